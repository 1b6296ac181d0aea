"""How many examples the forward passes of training have: some models cannot take one alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from heliotrope.config import Run
from heliotrope.config.workers import worker_range
from heliotrope.errors import ConfigError
from heliotrope.models.usable import why_not_one
from heliotrope.tasks import Task

__all__ = ["check_passes"]


def check_passes(run: Run, model: nn.Module, task: Task, examples: int) -> None:
    """Raise `ConfigError` if a pass of training has one example, and the model cannot take one.

    That follows from `examples`, the number of training examples; the message names a batch size
    for which no pass is so small, if one is near.
    """
    cfg = run.distributed
    fewest, most = worker_range(cfg.workers)
    if cfg.sync_batchnorm and fewest > 1:  # then statistics are those of all ranks
        return

    def has_one(batch_size: int) -> bool:
        worlds = range(fewest, most + 1)
        return 1 in _passes(batch_size, examples, worlds, cfg.accumulation_steps)

    if not has_one(cfg.batch_size) or (why := why_not_one(model, task)) is None:
        return
    size = next((size for size in _near(cfg.batch_size) if not has_one(size)), None)
    divided = [f"distributed.workers={cfg.workers}"] if most > 1 else []
    if cfg.accumulation_steps > 1:
        divided.append(f"distributed.accumulation_steps={cfg.accumulation_steps}")
    among = f", divided by {' and '.join(divided)}," if divided else ""
    raise ConfigError(
        f"model={run.model.name} cannot be trained on one example at a time ({why}), but "
        f"distributed.batch_size={cfg.batch_size} of {examples:,} training examples{among} leaves "
        f"a part of one. {f'Set distributed.batch_size={size}' if size else 'Take other data'}, or "
        "normalise without the other examples of a batch, such as by torch.nn.GroupNorm."
    )


def _passes(batch_size: int, examples: int, worlds: Iterable[int], parts: int) -> Iterator[int]:
    """Yield the numbers of examples that passes have, with each number of workers."""
    for size in {min(batch_size, examples), examples % batch_size} - {0}:
        for workers in worlds:
            for part in _cut(size, workers):
                yield from _cut(part, parts)


def _cut(count: int, parts: int) -> set[int]:
    """Return the sizes of parts that differ by at most one."""
    return {count // parts, -(-count // parts)}


def _near(batch_size: int) -> Iterator[int]:
    """Yield other batch sizes, the nearest first, up to about twice as large."""
    for step in range(1, batch_size + 64):
        yield batch_size + step
        if batch_size - step > 1:
            yield batch_size - step
