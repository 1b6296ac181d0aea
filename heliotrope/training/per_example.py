"""Gradients of single examples, clipped to a norm and added up (Abadi et al. 2016).

Each example goes through the model alone, as a batch of one, so that nothing of another can be in
its gradient: all of a batch at once by `torch.func.vmap`, or one after the other where vmap cannot.

A dense or convolutional layer's gradient is the product of what goes into it and of the gradient
by what comes out. For these only the factors are taken: of a dense layer on one vector an example,
norm and clipped sum follow from them, and the gradients never take up memory (Goodfellow 2015,
arXiv:1510.01799).

Shape legend: B examples, T places of one (such as tokens), I inputs, O outputs of a layer.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from heliotrope.data import Batch
from heliotrope.models.layers.seeded import SeededLayer, reseed
from heliotrope.seeding import isolated_rng
from heliotrope.tasks import Task
from heliotrope.training.factors import Factors, flat, is_product, norms_of
from heliotrope.training.loop import TrainingBatch

__all__ = ["ClippedGradients"]

_MOST = 1 << 24  # numbers of per-example gradients that are held at once: 64 MB
_ALIKE = 1e-3  # relative: how far two ways to the same gradients may differ by rounding


class _CalledOtherwise(Exception):  # noqa: N818 - no error: then without factors
    """A layer was not called once in a pass, as it was in the trial."""


class ClippedGradients:
    """Adds the clipped gradients of single examples to those of a model's trained parameters.

    An example's loss is what the task gives for it, divided by the number of its predicted places
    as the batch is padded to in the task's facts: 1, or the tokens of a window. An example whose
    gradient is not finite adds nothing.

    Parameters
    ----------
    model
        In training mode, not wrapped. Parameters that need no gradient are left alone.
    task
        Whose losses are those of single examples.
    clip
        The norm that an example's gradient may have, over all trained parameters.
    """

    def __init__(self, model: nn.Module, task: Task, clip: float) -> None:
        self._model, self._task, self._clip = model, task, clip
        self._places = math.prod(task.output_shape(task.facts.example)[1:-1])
        self._trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._slots = _slots_of(model)
        self._firsts = [
            f"{name}.first" if name else "first"
            for name, layer in model.named_modules()
            if isinstance(layer, SeededLayer)
        ]
        self._outputs: dict[Any, Batch] = {}  # of layers, without values, by shapes of the fields
        self._layers: dict[str, nn.Linear | nn.Conv2d] = {}
        self._vmapped = self._can_be_vmapped()
        if self._vmapped:
            self._layers = self._factored_layers()
        self._outputs.clear()

    def __call__(self, batch: TrainingBatch) -> Tensor:
        """Add the clipped sum of a batch, also an empty one; return the sum of its losses, []."""
        for parameter in self._trained.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        device = next(iter(self._trained.values())).device
        total = torch.zeros((), device=device)
        if not len(batch):
            return total
        for part in batch.parts(-(-len(batch) // self._at_once())):
            total += self._add_together(part) if self._vmapped else self._add_each(part)
        return total

    def _at_once(self) -> int:
        """Return of how many examples the gradients may be held."""
        alone = sum(p.numel() for n, p in self._trained.items() if n not in self._inside())
        convolutions = (m for m in self._layers.values() if isinstance(m, nn.Conv2d))
        alone += sum(module.weight.numel() for module in convolutions)
        return max(1, _MOST // max(1, alone))

    def _add_each(self, batch: TrainingBatch) -> Tensor:
        total = torch.zeros((), device=next(iter(self._trained.values())).device)
        wanted = list(self._trained.values())
        for number in range(len(batch)):
            reseed(self._model, batch.seed, batch.first + number)
            one = {name: value[number : number + 1] for name, value in batch.fields.items()}
            loss = self._task.losses(self._task.call(self._model, one), one).sum()
            found = torch.autograd.grad(loss / self._places, wanted, materialize_grads=True)
            norm = torch.stack([g.norm().double() for g in found]).norm()
            if bool(norm.isfinite()):
                for parameter, gradient in zip(wanted, found, strict=True):
                    assert parameter.grad is not None
                    parameter.grad += gradient * self._scale(norm)
            total += loss.detach()
        return total

    def _scale(self, norms: Tensor) -> Tensor:
        """Return the factors that shorten gradients of these norms to the clip."""
        return (self._clip / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1.0)

    @torch.no_grad()
    def _add_together(self, batch: TrainingBatch) -> Tensor:
        try:
            losses, whole, factors = self._gradients(batch)
        except _CalledOtherwise:  # which may come again at any time
            self._layers = {}
            return self(batch)
        norms = norms_of(len(batch), whole, factors).to(losses.device)
        finite = norms.isfinite()
        if not bool(finite.all()):
            whole = {name: value[finite] for name, value in whole.items()}
            factors = {n: Factors(a[finite], g[finite], b) for n, (a, g, b) in factors.items()}
        scales = self._scale(norms[finite])
        for name, value in whole.items():
            gradient = self._grad(name)
            gradient.add_((scales.to(value.dtype) @ flat(value)).view(gradient.shape))
        for name, (inputs, by_outputs, biased) in factors.items():
            scaled = by_outputs * scales[:, None].to(by_outputs.dtype)
            self._grad(f"{name}weight").addmm_(scaled.T, inputs)
            if biased:
                self._grad(f"{name}bias").add_(scaled.sum(dim=0))
        return losses.sum()

    def _grad(self, name: str) -> Tensor:
        gradient = self._trained[name].grad
        assert gradient is not None
        return gradient

    def _gradients(
        self, batch: TrainingBatch
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Factors]]:
        """Return losses [B], gradients [B, ...] by name, and factors by layer."""
        fields = batch.fields
        inside = self._inside()
        plain = {n: p.detach() for n, p in self._trained.items() if n not in inside}
        count = torch.arange(len(batch), device=next(iter(fields.values())).device)
        firsts = dict.fromkeys(self._firsts, batch.first + count)
        taps = {
            name: torch.zeros((len(batch), *one.shape), dtype=one.dtype, device=count.device)
            for name, one in self._outputs_of(fields, batch.seed).items()
        }
        reseed(self._model, batch.seed)
        found, (losses, inputs) = vmap(
            grad(self._loss, argnums=(0, 1), has_aux=True),
            in_dims=(None, 0, 0, 0),
            randomness="different",
        )(plain, taps, fields, firsts)
        if inputs.keys() != self._layers.keys():
            raise _CalledOtherwise
        whole, by_outputs = found
        factors: dict[str, Factors] = {}
        for name, layer in self._layers.items():
            prefix = f"{name}." if name else ""
            a, g = inputs[name], by_outputs[name]
            if isinstance(layer, nn.Conv2d):
                assert not isinstance(layer.padding, str)
                a = functional.unfold(
                    a.flatten(0, 1), layer.kernel_size, layer.dilation, layer.padding, layer.stride
                )
                g = g.flatten(0, 1).flatten(2)
                whole[f"{prefix}weight"] = torch.bmm(g, a.transpose(1, 2))
                if layer.bias is not None:
                    whole[f"{prefix}bias"] = g.sum(dim=2)
            elif a[0].numel() == a.shape[-1]:
                factors[prefix] = Factors(a.flatten(1), g.flatten(1), layer.bias is not None)
            else:
                a, g = a.flatten(1, -2), g.flatten(1, -2)
                whole[f"{prefix}weight"] = torch.bmm(g.transpose(1, 2), a)
                if layer.bias is not None:
                    whole[f"{prefix}bias"] = g.sum(dim=1)
        return losses, whole, factors

    def _loss(
        self, plain: Batch, taps: Batch, fields: Batch, firsts: Batch
    ) -> tuple[Tensor, tuple[Tensor, Batch]]:
        """Return one example's loss over its places; its loss, and what goes into the layers."""
        one = {name: value.unsqueeze(0) for name, value in fields.items()}
        inputs: Batch = {}

        def tapped(name: str, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if name in inputs:
                raise _CalledOtherwise
            inputs[name] = args[0]
            return output + taps[name]

        outputs = self._call(plain | firsts, one, tapped)
        loss = self._task.losses(outputs, one).sum()
        return loss / self._places, (loss, inputs)

    def _call(
        self,
        state: Mapping[str, Tensor],
        one: Batch,
        seen: Callable[[str, tuple[Tensor, ...], Tensor], Tensor | None],
    ) -> Tensor:
        everywhere = {
            slot: value for name, value in state.items() for slot in self._slots.get(name, (name,))
        }

        def call(*arguments: Tensor) -> Tensor:
            outputs: Tensor = functional_call(self._model, everywhere, arguments, tie_weights=False)
            return outputs

        # Of the kernels of attention, vmap knows the plain one.
        with _seen(self._layers, seen), sdpa_kernel(SDPBackend.MATH):
            return self._task.call(cast(nn.Module, call), one)

    def _outputs_of(self, fields: Batch, seed: int) -> Batch:
        """Return what comes out of the layers for one example, as a batch of one, without values.

        Of a layer that is not called, there is nothing.
        """
        if not self._layers:
            return {}
        key = tuple((name, value.shape[1:]) for name, value in fields.items())
        if key not in self._outputs:
            outputs: Batch = {}

            def note(name: str, _: tuple[Tensor, ...], output: Tensor) -> None:
                outputs[name] = torch.empty(output.shape, dtype=output.dtype, device="meta")

            def run(fields: Batch, firsts: Batch) -> Tensor:
                return self._call(firsts, {n: v.unsqueeze(0) for n, v in fields.items()}, note)

            reseed(self._model, seed)
            first = {name: value[:1] for name, value in fields.items()}
            zero = torch.zeros(1, dtype=torch.int64, device=next(iter(first.values())).device)
            with isolated_rng(0):
                vmap(run, randomness="different")(first, dict.fromkeys(self._firsts, zero))
            if outputs.keys() != self._layers.keys():
                raise _CalledOtherwise
            self._outputs[key] = outputs
        return self._outputs[key]

    def _inside(self) -> set[str]:
        """Return the names of the parameters of the layers of which factors are taken."""
        found = ((f"{n}." if n else "", m) for n, m in self._layers.items())
        return {f"{prefix}{own}" for prefix, m in found for own, _ in m.named_parameters()}

    def _trial(self) -> TrainingBatch:
        """Return two examples of random numbers, of zeros where they are whole numbers."""
        fields = {}
        for name, value in self._task.facts.example.items():
            two = value.expand(2, *value.shape[1:]).to(next(iter(self._trained.values())).device)
            random = torch.randn(two.shape, generator=torch.Generator().manual_seed(1))
            fields[name] = random.to(two) if two.is_floating_point() else two.clone()
        return TrainingBatch(fields, weight=2, divisor=1.0, seed=0)

    @torch.no_grad()
    def _can_be_vmapped(self) -> bool:
        """Return whether vmap knows all of the model's operators, and none changes a tensor."""
        before = {name: value.clone() for name, value in self._model.named_buffers()}
        try:
            with isolated_rng(0), warnings.catch_warnings():
                warnings.simplefilter("error")  # where it would go example by example, too
                self._gradients(self._trial())
        except Exception:  # noqa: BLE001 - whatever a user's code raises; then without vmap
            return False
        finally:
            for name, value in self._model.named_buffers():
                value.copy_(before[name])
        return True

    @torch.no_grad()
    def _factored_layers(self) -> dict[str, nn.Linear | nn.Conv2d]:
        """Return the layers whose gradients follow from their factors, found so in a trial.

        They must be called once in a pass, and their parameters be used nowhere else.
        """
        trained = {id(p) for p in self._trained.values()}
        self._layers = {
            name: module
            for name, module in self._model.named_modules()
            if is_product(module) and all(id(p) in trained for p in module.parameters())
        }
        trial = self._trial()
        try:
            with isolated_rng(0):
                self._layers = chosen = self._used_once(trial)
            factored = self._materialised(trial)
        except Exception:  # noqa: BLE001 - as above
            return {}
        self._layers = {}
        plain = self._materialised(trial)
        alike = all(
            torch.allclose(factored[name], value, rtol=_ALIKE, atol=_ALIKE * _largest(value))
            for name, value in plain.items()
        )
        return chosen if alike else {}

    @torch.enable_grad()
    def _used_once(self, trial: TrainingBatch) -> dict[str, nn.Linear | nn.Conv2d]:
        """Return the layers that a pass calls once, and whose parameters nothing else uses.

        By the graph of a pass, and not by its numbers: where the trial's gradients are zero, as
        those below a head of zeros, any gradient is like any other.
        """
        reseed(self._model, 0)
        copied = copy.deepcopy(self._model)
        calls: Counter[str] = Counter()

        def count(name: str, *_: Any) -> None:
            calls[name] += 1

        inner = {name: copied.get_submodule(name) for name in self._layers}
        with _seen(inner, count):
            outputs = self._task.call(copied, trial.fields)
        uses = _uses(outputs)
        return {
            name: module
            for name, module in self._layers.items()
            if calls[name] == 1 and all(uses[id(p)] == 1 for p in inner[name].parameters())
        }

    def _materialised(self, batch: TrainingBatch) -> Batch:
        with isolated_rng(0):
            _, whole, factors = self._gradients(batch)
        for prefix, (inputs, by_outputs, _) in factors.items():
            whole[f"{prefix}weight"] = by_outputs[:, :, None] * inputs[:, None, :]
            whole[f"{prefix}bias"] = by_outputs
        return {name: whole[name].view(len(batch), *p.shape) for name, p in self._trained.items()}


def _slots_of(model: nn.Module) -> dict[str, list[str]]:
    """Return the slots of a model that hold each parameter, by its first name: of a layer once.

    Of a layer with two names, `functional_call` with `tie_weights` puts back what it has put
    there itself (pytorch#164759), so that the parameter is no longer the model's.
    """
    first: dict[int, str] = {}
    found: dict[str, list[str]] = {}
    for prefix, layer in model.named_modules():
        own = layer.named_parameters(prefix, recurse=False, remove_duplicate=False)
        for name, parameter in own:
            found.setdefault(first.setdefault(id(parameter), name), []).append(name)
    return found


def _uses(outputs: Tensor) -> Counter[int]:
    """Return how often the graph of `outputs` uses each of its leaves, by their id."""
    found: Counter[int] = Counter()
    waiting, seen = [outputs.grad_fn], {outputs.grad_fn}
    while waiting:
        node = waiting.pop()
        for following, _ in () if node is None else node.next_functions:
            leaf = getattr(following, "variable", None)
            if leaf is not None:
                found[id(leaf)] += 1
            elif following not in seen:
                seen.add(following)
                waiting.append(following)
    return found


def _largest(values: Tensor) -> float:
    return float(values.abs().amax()) if values.numel() else 0.0


@contextmanager
def _seen(layers: Mapping[str, nn.Module], see: Callable[..., Tensor | None]) -> Iterator[None]:
    """Call `see` with name, arguments and output of each layer that is called in the block."""

    def hook(name: str) -> Callable[..., Tensor | None]:
        return lambda _, args, output: see(name, args, output)

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
