"""Clients' metrics on their held-out examples: many clients in one pass, or one at a time.

Held-out parts are small, and a forward pass over a few examples costs almost what one over a full
batch does. So the examples of many clients go through the model together and their sums are taken
client by client. That gives what `evaluate_client` gives, the reference, only if a model treats
each example by itself. Whether it does is decided by results: some clients are evaluated by
themselves as well, and one beside made-up examples. A model that fails this, such as one with
statistics of the batch, is evaluated one client at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from heliotrope.data import Batch
from heliotrope.evaluation import evaluating, taken
from heliotrope.metrics import GroupedMetrics
from heliotrope.models.hidden import changed, hidden_state
from heliotrope.seeding import generator_states, isolated_rng, same_generator_states, seed

from ..client_state import ClientStates
from ..updates import Failure, Weights
from .client_metrics import Evaluations, merged
from .context import TrainingContext
from .sequential import evaluate_client
from .time_limit import Limit, Watch, limit_of

__all__ = ["ClientEvaluator"]

_log = logging.getLogger(__name__)

_EXAMPLES = 1 << 14  # evaluated together at most; a client with more is a block of its own
_LIMITED_BATCHES = 4  # the same where a client's time is limited
_CELLS = 1 << 22  # of the sums of the clients of a block
_CHECKED = 0.05  # share of a block's examples that is evaluated twice to check the result
_TOLERANCE = 1e-5  # of the outputs' length: rounding depends on the size of a batch


class ClientEvaluator:
    """Evaluates clients, each from the module as it was built, but for the weights."""

    def __init__(self, context: TrainingContext, watch: Watch) -> None:
        self._context = context
        self._watch = watch
        self._nobody = Evaluations.of_nobody(context.task.metrics)
        self._held: dict[tuple[int, ...], _Held] = {}  # of the blocks of the last evaluation

    def evaluate(
        self, weights: Weights, cohort: Sequence[int], states: ClientStates | None = None
    ) -> Evaluations:
        """Return the metrics of each client of `cohort`, with its own of the `states`, if any.

        A client that raises, takes too long or has a loss that is no number is a failure.
        """
        if states is not None or self._context.task.joint:
            return merged(chain([self._nobody], self._one_by_one(weights, cohort, states)))
        module = _Module(self._context, weights)
        left: list[int] = []
        reason: str | None = None
        try:
            together = merged(chain([self._nobody], self._in_blocks(module, cohort, left)))
        except _DiffersError as error:
            together, left, reason = self._nobody, list(cohort), str(error)
        by_themselves = (self._alone(module, client) for client in left)
        return replace(merged(chain([together], by_themselves)), alone=reason)

    def _in_blocks(
        self, module: _Module, cohort: Sequence[int], left: list[int]
    ) -> Iterator[Evaluations]:
        """Evaluate clients block by block; those who cannot be are added to `left`."""
        waiting = self._blocks(cohort)
        self._held = {block: self._held.get(block) or self._held_by(block) for block in waiting}
        while waiting:
            block = waiting.pop(0)
            try:
                done = self._together(module, block)
            except _DiffersError:
                raise
            except TimeoutError as error:  # it may be long until each of its parts is over, too
                _log.warning("%d clients evaluated together are too slow: %s", len(block), error)
                left += block
            except Exception:  # noqa: BLE001 - whatever a client's examples can lead to
                _log.exception("%d clients cannot be evaluated together", len(block))
                half = len(block) // 2
                waiting[:0] = [block[:half], block[half:]] if half else []
                left += [] if half else block
            else:
                yield done

    def _one_by_one(
        self, weights: Weights, cohort: Sequence[int], states: ClientStates | None
    ) -> Iterator[Evaluations]:
        """Evaluate clients whose models differ, or that compare their own examples."""
        for client in cohort:
            own = {} if states is None else states.of(client)
            whole = self._context.personal.start(weights, own)
            yield self._alone(_Module(self._context, whole), client)

    def _alone(self, module: _Module, client: int) -> Evaluations:
        """Evaluate one client by itself."""
        limit = limit_of(self._context.federated.client_timeout)
        try:
            with self._watch.over([client], limit):
                metrics = evaluate_client(self._context, module.as_built(), client, limit)
        except Exception as error:  # noqa: BLE001 - whatever it raises is its own failure
            _log.exception("client %d failed in evaluation", client)
            failed = Failure.of(client, error, doing="evaluation: ")
            return replace(self._nobody, failures=[failed])
        return Evaluations.of([client], GroupedMetrics(metrics.metric_set, metrics.sums[None]))

    def _blocks(self, cohort: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the clients in parts that are evaluated together."""
        context = self._context
        most = max(1, _CELLS // context.task.metrics.size)
        limited = context.federated.client_timeout is not None  # each block has a client's time
        examples_at_most = (
            _LIMITED_BATCHES * context.evaluation_batch_size if limited else _EXAMPLES
        )
        blocks: list[tuple[int, ...]] = []
        first, examples = 0, 0
        for index, size in enumerate(context.population.holdout_sizes(cohort)):
            if index > first and (examples + size > examples_at_most or index - first == most):
                blocks.append(tuple(cohort[first:index]))
                first, examples = index, 0
            examples += size
        return [*blocks, tuple(cohort[first:])] if cohort else []

    def _held_by(self, block: Sequence[int]) -> _Held:
        population = self._context.population
        positions = torch.from_numpy(population.holdout_examples(block))
        sizes = population.holdout_sizes(block)
        return _Held(positions, sizes, torch.repeat_interleave(torch.tensor(sizes)))

    def _together(self, module: _Module, block: tuple[int, ...]) -> Evaluations:
        """Evaluate a block in one pass; raises `_DiffersError` if that is not each one's own.

        All of it must be done in the time that a single client may take: then each of them is.
        """
        context, task = self._context, self._context.task
        held = self._held.get(block) or self._held_by(block)
        limit = limit_of(context.federated.client_timeout)
        indices = _to_check(held.sizes, self._size)
        checked = [held.first_batch(index, self._size) for index in indices]
        kept: list[tuple[int, _Said]] = []  # passes with examples of those clients
        sums = np.zeros((len(block), task.metrics.size))
        with self._watch.over(block, limit), isolated_rng(seed(context.run_seed, "evaluation")):
            before = generator_states()
            model = module.as_built()
            for start in range(0, len(held.positions), self._size):
                limit.check()
                rows = slice(start, start + self._size)
                batch = taken(context.train, held.positions[rows], model)
                said = self._said(model, batch)
                owners = held.owners[rows]
                first, count = int(owners[0]), int(owners[-1] - owners[0]) + 1
                found = task.metrics.measure_groups(said.outputs, batch, owners - first, count)
                sums[first : first + count] += found.sums
                if any(_overlap(rows, own) for own in checked):
                    kept.append((start, said))
            if not same_generator_states(before, generator_states()):
                raise _DiffersError("it draws random numbers in evaluation")
            self._check(module, checked, kept, held, limit)
        return Evaluations.of(block, GroupedMetrics(task.metrics, sums))

    @property
    def _size(self) -> int:
        return self._context.evaluation_batch_size

    def _said(self, model: nn.Module, batch: Batch) -> _Said:
        """Return what a model says of a batch in evaluation mode."""
        task = self._context.task
        with evaluating(model):
            outputs = task.call(model, batch)
        return _Said(outputs, lambda: task.losses(outputs, batch))

    def _check(
        self,
        module: _Module,
        checked: Sequence[slice],
        kept: Sequence[tuple[int, _Said]],
        held: _Held,
        limit: Limit,
    ) -> None:
        """Raise `_DiffersError` if some clients' outputs alone are not theirs of a block.

        `checked` are the rows of the block where their first batches are, `kept` the passes over
        these, by their first rows. A client's first batch is compared, from the module as it was
        built, so that state which a pass leaves behind shows too. The first client is also
        evaluated behind made-up examples.
        """
        positions = held.positions
        for number, mine in enumerate(checked):
            limit.check()
            model = module.as_built()
            alone = self._said(model, taken(self._context.train, positions[mine], model))
            alike = all(
                said.rows(both.start - start, both.stop - start).is_like(
                    alone.rows(both.start - mine.start, both.stop - mine.start)
                )
                for start, said in kept
                if (both := _overlap(slice(start, start + len(said.outputs)), mine))
            )
            if number == 0:
                others = torch.cat([positions[: mine.start], positions[mine.stop :]])
                others = others[: len(alone.outputs)]
                beside = self._behind_others(module, others, positions[mine])
                alike = alike and (beside is None or beside.is_like(alone))
            if not alike:
                raise _DiffersError("what it says of an example depends on the rest of the batch")

    def _behind_others(self, module: _Module, others: Tensor, mine: Tensor) -> _Said | None:
        """Return what is said of the examples `mine` in one batch behind changed `others`.

        None if the module refuses such examples, as an embedding does numbers it has not.
        """
        model = module.as_built()
        batch = taken(self._context.train, torch.cat([others, mine]), model)
        for name in self._context.task.inputs:
            batch[name][: len(others)] = _made_up(batch[name][: len(others)])
        try:
            said = self._said(model, batch)
        except TimeoutError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a module says of made-up examples
            _log.info("not evaluated beside made-up examples: %s", error)
            return None
        return said.rows(len(others), len(said.outputs))


@dataclass(frozen=True)
class _Said:
    """What a model says of B examples: outputs [B, ...], and what gives the losses [B] of them."""

    outputs: Tensor
    losses: Callable[[], Tensor]

    def rows(self, first: int, end: int) -> _Said:
        return _Said(self.outputs[first:end], lambda: self.losses()[first:end])

    def is_like(self, other: _Said) -> bool:
        """Whether both are the same, to rounding; by the losses, where sequences are padded."""
        if self.outputs.shape == other.outputs.shape:
            return _alike(self.outputs, other.outputs)
        return _alike(self.losses(), other.losses())


@dataclass(frozen=True)
class _Held:
    """The held-out examples of a block of K clients: positions [N], numbers [K], owners [N]."""

    positions: Tensor
    sizes: list[int]
    owners: Tensor

    def first_batch(self, index: int, batch_size: int) -> slice:
        """Return where the first examples of one of the clients are, at most a batch."""
        first = sum(self.sizes[:index])
        return slice(first, first + min(self.sizes[index], batch_size))


class _Module:
    """A module as it was built, with given weights: copied anew only if a pass has changed it."""

    def __init__(self, context: TrainingContext, weights: Weights) -> None:
        self._context, self._weights = context, weights
        self._model: nn.Module | None = None
        self._state: Mapping[str, object] = {}  # of the model when it was copied

    def as_built(self) -> nn.Module:
        if self._model is None or self._has_changed(self._model):
            self._model = self._context.fresh_model(self._weights)
            self._state = hidden_state(self._model)
        return self._model

    def _has_changed(self, model: nn.Module) -> bool:
        return bool(changed(self._state, hidden_state(model))) or not all(
            torch.equal(value, self._weights[name].to(value))
            for name, value in model.named_parameters()
        )


class _DiffersError(Exception):
    """Clients evaluated together do not get what they get by themselves; says why."""


def _to_check(sizes: Sequence[int], batch_size: int) -> list[int]:
    """Return the indices of the clients of a block that are also evaluated alone: a few."""
    count = len(sizes)
    if count == 1:
        return []  # it was alone
    starts = np.cumsum(sizes) - sizes
    whole = [not (a % batch_size or b % batch_size) for a, b in zip(starts, sizes, strict=True)]
    spread = dict.fromkeys((count - 1, 0, count // 2))
    chosen: list[int] = []
    spent = 0
    for index in sorted(spread, key=whole.__getitem__):  # those first that shared a batch
        spent += min(sizes[index], batch_size)
        if chosen and spent > _CHECKED * sum(sizes):
            break
        chosen.append(index)
    return chosen


def _overlap(a: slice, b: slice) -> slice | None:
    """Return what two ranges of rows have in common, if anything."""
    both = slice(max(a.start, b.start), min(a.stop, b.stop))
    return both if both.start < both.stop else None


def _made_up(inputs: Tensor) -> Tensor:
    """Return inputs beside which no example's outputs may change: their extremes lie outside."""
    return 1 - 3 * inputs if inputs.is_floating_point() else inputs


def _alike(found: Tensor, expected: Tensor) -> bool:
    """Whether outputs are the same, to rounding; NaN is the same as NaN."""
    if found.shape != expected.shape:
        return False
    if torch.equal(found, expected):
        return True
    a, b = found.double(), expected.double()
    finite = torch.isfinite(b)
    if not torch.equal(torch.isfinite(a), finite):
        return False
    a, b = a[finite], b[finite]
    eps = torch.finfo(expected.dtype).eps if expected.is_floating_point() else 0.0
    return bool((a - b).norm() <= max(_TOLERANCE, 8 * eps) * b.norm())
