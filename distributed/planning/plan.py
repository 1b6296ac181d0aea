"""What a data-parallel run would need, for each strategy, and over 1 to 1024 workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from heliotrope.config import MeshConfig, Run
from heliotrope.config.workers import worker_range
from heliotrope.models import parameter_count
from heliotrope.planning.network import Network
from heliotrope.planning.section import Curve, PlanSettings, PlanTable, Section
from heliotrope.report.units import bytes_text, count_text, milliseconds_text, seconds_text
from heliotrope.system.resources import available_cpus, threads_of

from ..driver import build_components
from .launch import Launch, Units
from .measurement import Measurement, measured

__all__ = ["plan"]

_COUNTS = tuple(2**power for power in range(11))
_HALF_USED = 0.5  # of its time, a worker computes: with less, more workers are hardly worth it


def plan(run: Run, settings: PlanSettings) -> Section:
    """Take some steps here, and return what the run needs with as many workers as it has."""
    components = build_components(run)
    workers = worker_range(run.distributed.workers)[1]
    count = len(components.dataset.train)
    size = -(-min(run.distributed.batch_size, count) // workers)
    here = available_cpus()
    cpus = run.distributed.cpus_per_worker or threads_of(max(1, here // min(workers, here)))
    found = measured(run, components.dataset, components.task, size, cpus)
    launch = Launch(run.distributed, workers, count, found, Units.of(components.model))
    parameters = parameter_count(components.model)
    network = settings.network
    curve = _curve(launch, network)
    lines = [
        (
            f"model={run.model.name}: {count_text(parameters)} parameters, optimizer="
            f"{run.optimizer.name}, {run.distributed.precision}"
        ),
        *_measured_lines(found, size),
        *_run_lines(launch, network),
        _advice(curve),
    ]
    tables = (_memories(launch), _exchanges(launch, network), _workers(launch, network))
    return Section("distributed", lines, tables, curve)


def _measured_lines(found: Measurement, size: int) -> list[str]:
    spent, update = found.time.of(size), found.time.update
    return [
        (
            f"measured here: a step of one worker on {size} examples takes "
            f"{milliseconds_text(spent)}, of that the update {milliseconds_text(update)}; "
            f"{found.threads} thread(s), {found.device.type}"
        )
    ]


def _run_lines(launch: Launch, network: Network) -> list[str]:
    up, down = launch.exchange_bytes
    epochs, exchanges = launch.cfg.epochs, launch.exchanges
    epoch = launch.epoch_seconds(network)
    whole = bytes_text(epochs * exchanges * (up + down))
    spent = milliseconds_text(launch.step_seconds(network))
    return [
        f"{launch.name} on {launch.workers} worker(s): {launch.steps} steps of {spent} an epoch",
        (
            f"an epoch: {seconds_text(epoch)}, {bytes_text(exchanges * up)} up, "
            f"{bytes_text(exchanges * down)} down, all workers together"
        ),
        f"{epochs} epoch(s): {seconds_text(epochs * epoch)}, {whole}, without evaluations",
    ]


def _alternatives(launch: Launch) -> list[Launch]:
    """Return the launch with every strategy."""
    cfg = launch.cfg
    if cfg.privacy.name != "none":  # no other strategy is protected
        return [launch]
    one = replace(cfg, mesh=MeshConfig())
    kinds = [replace(launch, cfg=replace(one, strategy=name)) for name in ("ddp", "fsdp")]
    if (hybrid := launch.hybrid()) is not None:
        kinds.append(hybrid)
    return kinds + [
        replace(launch, cfg=replace(cfg, strategy=name)) for name in ("local_sgd", "diloco")
    ]


def _memories(launch: Launch) -> PlanTable:
    rows = []
    for each in _alternatives(launch):
        memory = each.memory
        parts = (memory.weights, memory.gradients, memory.optimizer, memory.copies)
        rows.append([each.name, *map(bytes_text, (*parts, memory.activations, memory.total))])
    columns = ("strategy", "weights", "gradients", "optimizer", "copies", "activations", "all")
    return PlanTable(f"memory of a rank, {launch.workers} worker(s)", columns, rows)


def _exchanges(launch: Launch, network: Network) -> PlanTable:
    rows = []
    for each in _alternatives(launch):
        up, down = each.exchange_bytes
        rows.append(
            [
                each.name,
                bytes_text(up * each.exchanges / each.steps),
                bytes_text(down * each.exchanges / each.steps),
                milliseconds_text(each.compute_seconds),
                milliseconds_text(each.step_seconds(network) - each.compute_seconds),
                seconds_text(each.epoch_seconds(network)),
            ]
        )
    columns = ("strategy", "up", "down", "compute", "exchange", "epoch")
    return PlanTable(f"an average step, {launch.workers} worker(s) together", columns, rows)


def _workers(launch: Launch, network: Network) -> PlanTable:
    alone = launch.on(1).epoch_seconds(network)
    rows = []
    for count in _COUNTS:
        each = launch.on(count)
        epoch = each.epoch_seconds(network)
        rows.append(
            [
                str(count),
                str(each.local_examples),
                milliseconds_text(each.compute_seconds),
                milliseconds_text(each.step_seconds(network) - each.compute_seconds),
                seconds_text(epoch),
                bytes_text(sum(each.exchange_bytes) * each.exchanges),
                f"{alone / epoch:.2f}",
                f"{alone / epoch / count:.0%}",
            ]
        )
    columns = ("workers", "examples", "compute", "exchange", "epoch", "its bytes", "faster", "used")
    size = launch.cfg.batch_size
    title = f"{launch.cfg.strategy} over numbers of workers, {size} examples a step among them"
    return PlanTable(title, columns, rows)


def _curve(launch: Launch, network: Network) -> Curve:
    each = [launch.on(count) for count in _COUNTS]
    compute = [one.steps * one.compute_seconds for one in each]
    epochs = [one.epoch_seconds(network) for one in each]
    fastest = _COUNTS[min(range(len(epochs)), key=lambda place: epochs[place])]
    parts: dict[str, Sequence[float]] = {
        "epoch": epochs,
        "of that computation": compute,
        "of that exchange": [whole - own for whole, own in zip(epochs, compute, strict=True)],
    }
    return Curve("workers", _COUNTS, parts, "seconds an epoch", fastest)


def _advice(curve: Curve) -> str:
    epochs = curve.parts["epoch"]
    used = [n for n, s in zip(curve.counts, epochs, strict=True) if epochs[0] / s >= _HALF_USED * n]
    where = f"epochs are shortest with {curve.marked} worker(s)"
    if curve.marked == curve.counts[-1]:
        where = f"epochs grow shorter up to {curve.marked} workers"
    return f"{where}; up to {used[-1]}, at least half of each worker's time is put to use"
