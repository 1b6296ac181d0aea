"""From trained weights to what clients send, keep and tell: the same in any kind of training.

Algorithms finish first, from how far the clients really went; transforms follow, on what is to be
sent. Both work on differences to the global weights, in float64, of trained parameters; buffers
go by unchanged.

Shape legend: K clients of a stack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from heliotrope.config import OptimizerConfig

from ..aggregation import ClipNorm, UpdateContext, UpdateTransform, transforms_of
from ..algorithms import Finished
from ..attacks.names import attack_of
from ..privacy.names import privacy_of
from ..updates import UNCLIPPED, Instruction, Scaling, Stack, Weights
from .context import TrainingContext

__all__ = ["ClientUpdates"]


class ClientUpdates:
    """Finishes stacks of clients of one model.

    Parameters
    ----------
    model
        Says which weights are trained parameters, and which are one under several names.
    optimizer
        The clients' optimizer, whose rate algorithms ask for.
    run_seed
        Of the run, for the transforms.
    transforms
        Applied one after the other.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerConfig,
        run_seed: int,
        transforms: Sequence[UpdateTransform],
    ) -> None:
        self._optimizer, self._seed, self._transforms = optimizer, run_seed, transforms
        by_id: dict[int, list[str]] = {}
        for name, p in model.named_parameters(remove_duplicate=False):
            if p.requires_grad:
                by_id.setdefault(id(p), []).append(name)
        self._names = list(by_id.values())  # of each parameter

    @classmethod
    def of(cls, context: TrainingContext, *, deployed: bool = False) -> ClientUpdates:
        """Return those of a run's clients, which may be `deployed`: not simulated.

        What a server does to all comes after an attack, what clients do by themselves before.
        """
        privacy, attack = privacy_of(context.federated), attack_of(context.federated)
        transforms = transforms_of(context.federated)
        if context.canaries is not None:
            transforms = (context.canaries, *transforms)
        if privacy is not None:
            transforms += privacy.own_transforms(deployed=deployed)
        if attack is not None:
            transforms += attack.transforms(context.population.attackers(attack.attackers))
        if privacy is not None:
            transforms += privacy.transforms()
        return cls(context.model, context.optimizer, context.run_seed, transforms)

    def __call__(
        self, stack: Stack, weights: Weights, instruction: Instruction, *, rounded: bool
    ) -> Stack:
        """Return what the clients of `stack`, which began with `weights`, send, keep and tell.

        It is `stack` itself where there is nothing to do, and where a client's weights are of
        another shape: what adds it up rejects it. Weights that are changed are float64 where they
        are to be added up, and otherwise `rounded` to the types they came in.
        """
        if instruction.equal_weights:
            stack = replace(stack, weights=(1,) * len(stack.clients))
        finishing = [algorithm for algorithm in instruction.algorithms if algorithm.finishes]
        shapes = {name: value.shape[1:] for name, value in stack.arrays.items()}
        clip = None if instruction.clip is None else ClipNorm(instruction.clip)
        transforms = self._transforms if clip is None else (*self._transforms, clip)
        if not (finishing or transforms) or any(
            shape != weights[name].shape for name, shape in shapes.items()
        ):
            return stack
        if not (finishing or rounded) and len(transforms) == 1:
            (only,) = transforms
            if isinstance(only, ClipNorm):
                scaling = self._scaling(only, stack, weights)
                told = {} if clip is None else {UNCLIPPED: _unclipped(scaling.factors)}
                return replace(stack, arrays={**stack.arrays, **told}, scaling=scaling)
        starts = {
            name: weights[name].to(stack.arrays[name].device, torch.float64)
            for name, *_ in self._names
            if name in shapes
        }
        went = {name: stack.arrays[name].double() - start for name, start in starts.items()}
        done = self._finished(stack, went, instruction)
        updates: Mapping[str, Tensor] = {name: done.differences[name] for name in went}
        changed = {n for n, update in updates.items() if transforms or update is not went[n]}
        context = UpdateContext(
            self._seed, instruction.server_round, stack.clients, instruction.noise
        )
        for transform in self._transforms:
            updates = transform.apply(updates, context)
        arrays = dict(stack.arrays)
        if clip is not None:
            updates, factors = clip.clipped(updates)
            arrays[UNCLIPPED] = _unclipped(factors)
        for name, *shared in self._names:
            if name in changed:
                moved = updates[name] + starts[name]
                moved = moved.to(arrays[name].dtype) if rounded else moved
                arrays.update(dict.fromkeys([name, *shared], moved))
        for algorithm in finishing:
            for name, zero in algorithm.sends().items():
                arrays[name] = done.differences[name].to(zero.dtype)
        return replace(
            stack,
            arrays=arrays,
            states={**stack.states, **done.state},
            numbers={name: tuple(values.tolist()) for name, values in done.numbers.items()},
        )

    def _scaling(self, clip: ClipNorm, stack: Stack, weights: Weights) -> Scaling:
        """Return how updates are clipped while they are added up, without copies of them all."""
        each = [names for names in self._names if names[0] in stack.arrays]
        trained = {first: stack.arrays[first] for first, *_ in each}
        starts = {name: weights[name].to(value.device) for name, value in trained.items()}
        factors = clip.factors(trained, starts)
        return Scaling(factors, frozenset(name for names in each for name in names), clip.most)

    def _finished(
        self, stack: Stack, went: Mapping[str, Tensor], instruction: Instruction
    ) -> Finished:
        """Return what all algorithms make of it, one after the other."""
        state, steps = instruction.states_of(stack.clients), torch.tensor(stack.steps)
        rate = instruction.optimizer(self._optimizer).lr
        done = Finished(went)
        for algorithm in instruction.algorithms:
            if algorithm.finishes:
                own = algorithm.finish(done.differences, state, steps, rate)
                done = Finished(
                    own.differences,
                    {**done.state, **own.state},
                    {**done.numbers, **own.numbers},
                )
        return done


def _unclipped(factors: Tensor) -> Tensor:
    """Return 1 for each client whose update was no longer than the clip, and 0; int64 [K]."""
    return (factors == 1).to(torch.int64)
