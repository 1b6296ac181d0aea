"""What a federated run would need, and over cohorts of 1 to 10^6 clients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from heliotrope.config import Run
from heliotrope.models import parameter_count
from heliotrope.planning.section import Curve, PlanSettings, PlanTable, Section
from heliotrope.report.units import bytes_text, count_text, milliseconds_text, seconds_text
from heliotrope.system.resources import available_cpus, pick_device, threads_of

from ..components import Components, build_components
from ..engine.execution import ExecutionPlan
from ..pools.cohort_worker import CohortWorker
from ..tune import seconds_a_step, way_by_rule
from .rounds import Rounds
from .traffic import RunTraffic

__all__ = ["plan"]

_COHORTS = tuple(10**power for power in range(7))


def plan(run: Run, settings: PlanSettings) -> Section:
    """Take some clients' steps here, and return what the run needs."""
    components = build_components(run)
    traffic = RunTraffic.of(run, components)
    found, ways = _measured(run, components, settings, traffic.each)
    parameters = parameter_count(components.context.model)
    cohort = traffic.cohort
    lines = [
        (
            f"model={run.model.name}: {count_text(parameters)} parameters, optimizer="
            f"{run.optimizer.name}, federated/strategy={run.federated.strategy.name}"
        ),
        *ways,
        *_run_lines(traffic, found),
        _advice(found),
    ]
    deployed = [found.deployed_seconds(count) for count in _COHORTS]
    parts: dict[str, Sequence[float]] = {
        "round on devices": deployed,
        "of that transfers": [found.transfer_seconds(count) for count in _COHORTS],
        "round simulated here": [found.simulated_round_seconds(count) for count in _COHORTS],
    }
    marked = found.most_clients()
    curve = Curve("clients a round", _COHORTS, parts, "seconds a round", marked)
    return Section("federated", lines, (_cohorts(found, cohort),), curve)


def _measured(
    run: Run, components: Components, settings: PlanSettings, client_bytes: int
) -> tuple[Rounds, list[str]]:
    """Time clients' steps here; return what rounds take, and lines that say what was measured."""
    cfg, context = run.federated, components.context.on(pick_device(run.device))
    threads = cfg.cpus_per_worker or threads_of(max(1, available_cpus() // cfg.workers))
    worker, population = CohortWorker(context, threads), context.population
    training = population.training()
    cohort = training[: cfg.clients_per_round]
    ruled = way_by_rule(run, worker, len(cohort))
    simulated = seconds_a_step(worker, ruled, cohort)
    alone = seconds_a_step(worker, ExecutionPlan("sequential", 1), cohort[:1])
    sizes = np.array(population.train_sizes(training), dtype=np.int64)
    passes = -(-sizes // cfg.batch_size) if cfg.batch_size else np.ones_like(sizes)
    rounds = Rounds(
        passes * cfg.local_epochs,
        alone,
        simulated,
        cfg.workers,
        client_bytes,
        settings.network,
        settings.clients,
    )
    clients = settings.clients
    return rounds, [
        (
            f"measured here: a client's step takes {milliseconds_text(alone)} alone, "
            f"{milliseconds_text(simulated)} in a simulated cohort ({ruled})"
        ),
        (
            f"clients: {bytes_text(clients.bandwidth)}/s and {milliseconds_text(clients.latency)} "
            "a message (plan.client_bandwidth, plan.client_latency), each as fast as this machine"
        ),
    ]


def _run_lines(traffic: RunTraffic, found: Rounds) -> list[str]:
    cohort, rounds = traffic.cohort, traffic.rounds
    sent = bytes_text(cohort * traffic.each)
    deployed, simulated = found.deployed_seconds(cohort), found.simulated_round_seconds(cohort)
    return [
        (
            f"a round: {cohort} client(s), {sent} down and {sent} up, {bytes_text(traffic.each)} "
            f"each; {milliseconds_text(deployed)} on devices, {milliseconds_text(simulated)} "
            "simulated here"
        ),
        (
            f"{rounds} round(s): {bytes_text(traffic.up)} up, {bytes_text(traffic.down)} down; "
            f"{seconds_text(rounds * deployed)} on devices, {seconds_text(rounds * simulated)} "
            "simulated here, without evaluations"
        ),
    ]


def _cohorts(found: Rounds, cohort: int) -> PlanTable:
    rows = []
    for count in sorted({*_COHORTS, cohort}):
        each = found.deployed_seconds(count)
        rows.append(
            [
                count_text(count),
                bytes_text(count * found.client_bytes),
                milliseconds_text(found.transfer_seconds(count)),
                milliseconds_text(found.training_seconds(count)),
                milliseconds_text(each),
                f"{count / each:,.3g}",
                milliseconds_text(found.simulated_round_seconds(count)),
            ]
        )
    columns = ("clients", "down", "transfers", "slowest", "round", "clients/s")
    title = "rounds over sizes of the cohort, as many bytes up as down"
    return PlanTable(title, (*columns, "simulated"), rows)


def _advice(found: Rounds) -> str:
    most = found.most_clients()
    rate = found.server.bandwidth / (2 * max(1, found.client_bytes))
    return (
        f"from {count_text(most)} client(s) a round on, the server's link takes longer than a "
        f"client; it serves at most {rate:,.3g} clients a second"
    )
