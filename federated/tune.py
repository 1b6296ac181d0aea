"""`heliotrope tune`: time the ways of training clients here, and print what to set.

A run takes its way by a rule (see `execution`), so that its digits repeat. What is measured here is
only printed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from rich.table import Table

from heliotrope import config
from heliotrope.commands.overrides import checked
from heliotrope.config import Run
from heliotrope.config.explain import composing
from heliotrope.errors import ConfigError
from heliotrope.system.console import plain_console
from heliotrope.system.resources import available_cpus, pick_device

from .components import build_components
from .engine.execution import ExecutionPlan, may_have_lanes, most_stacked
from .engine.time_limit import Watch
from .engine.verdict import FAST, Verdict, examine
from .pools.cohort_worker import CohortWorker

__all__ = ["candidates", "seconds_a_step", "tune_command", "way_by_rule"]

_STACKS = (4, 16, 64, 256)
_TRIES = 3  # timings of each way, of which the median counts
_MOST_STEPS = 8  # local steps of each client in a timing
_WORTH_SETTING = 1.1  # times as fast as what the rule takes


def tune_command(arguments: Sequence[str]) -> None:
    """`experiment=E [key=value ...]`: time the ways of training a cohort; print overrides."""
    config.register_for(arguments)
    folder = str(config.conf_dir())
    with composing(), initialize_config_dir(config_dir=folder, version_base="1.3"):
        run = config.load(compose("config", overrides=checked(arguments)), "federated")
    console = plain_console()
    context = build_components(run).context.on(pick_device(run.device))
    threads = run.federated.cpus_per_worker or max(1, available_cpus() // run.federated.workers)
    worker = CohortWorker(context, threads)
    cohort = list(range(min(len(context.population), run.federated.clients_per_round)))
    ruled = way_by_rule(run, worker, len(cohort))
    verdict = examine(context, (), Watch(), FAST)
    choices = [ruled, *(c for c in candidates(run, verdict, worker, len(cohort)) if c != ruled)]
    seconds = {execution: seconds_a_step(worker, execution, cohort) for execution in choices}
    best = min(seconds, key=lambda execution: seconds[execution])
    if seconds[ruled] < _WORTH_SETTING * seconds[best]:
        best = ruled
    table = Table("client training", "ms a client's step")
    for execution, value in sorted(seconds.items(), key=lambda item: item[1]):
        mark = " (by rule)" if execution == ruled else ""
        table.add_row(f"{execution}{mark}", f"{value * 1e3:.3f}")
    console.print(table)
    for kind, reason in verdict.reasons.items():
        console.print(f"not {kind}: {reason}")
    words = "nothing to set: the rule's way is as fast as any" if best == ruled else _typed(best)
    console.print(words)


def way_by_rule(run: Run, worker: CohortWorker, cohort: int) -> ExecutionPlan:
    """Return how a run trains its clients; raises `ConfigError` if it asks for what cannot be."""
    ruled = worker.decide(cohort, ()).execution
    if ruled is None:
        raise ConfigError(
            f"federated.client_training={run.federated.client_training} is not possible for this "
            "model. Set federated.client_training=auto."
        )
    return ruled


def candidates(
    run: Run, verdict: Verdict, worker: CohortWorker, cohort: int
) -> list[ExecutionPlan]:
    """Return the ways that the model allows, and that the configuration does not exclude."""
    context, threads, cfg = worker.context, worker.threads, run.federated
    asked = cfg.client_training
    kinds = [k for k in (*FAST, "sequential") if asked in ("auto", k) and k not in verdict.reasons]
    counts = sorted({1, threads})
    choices = []
    for kind in kinds:
        if kind == "batched":
            most = min(cohort, most_stacked(context, verdict))
            stacks = {cfg.stack_size} if cfg.stack_size else {min(size, most) for size in _STACKS}
            choices += [
                ExecutionPlan(kind, count, stack) for stack in sorted(stacks) for count in counts
            ]
            continue
        choices += [ExecutionPlan(kind, count) for count in counts]
        if threads > 1 and cohort > 1 and may_have_lanes(kind, context, verdict):
            choices.append(ExecutionPlan(kind, 1, lanes=min(threads, cohort)))
    return choices


def seconds_a_step(worker: CohortWorker, execution: ExecutionPlan, cohort: Sequence[int]) -> float:
    """Return the seconds that a client's step takes: the median of a few, after one."""
    worker.steps(execution, cohort, _MOST_STEPS)  # captures, and allocates
    found = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        steps = worker.steps(execution, cohort, _MOST_STEPS)
        found.append((time.perf_counter() - started) / max(1, steps))
    return statistics.median(found)


def _typed(execution: ExecutionPlan) -> str:
    """Return an execution plan as overrides of the command line."""
    words = [f"federated.client_training={execution.kind}"]
    if execution.kind == "batched":
        words.append(f"federated.stack_size={execution.stack}")
    else:
        words.append(f"federated.lanes={execution.lanes}")
    words.append(f"federated.cpus_per_worker={execution.threads * execution.lanes}")
    return " ".join(words)
