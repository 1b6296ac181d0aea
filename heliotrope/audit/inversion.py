"""Gradient inversion: the example that a step was taken on, computed from what the step tells.

A dense layer that is the first gives its input away exactly: the gradient of a row of its weights
is the input times that of the row's bias (Phong et al. 2018). For other models an input is looked
for whose gradient is the same (Zhu et al. 2019, arXiv:1906.08935), by L-BFGS. The attacker knows
model, weights and target, and looks at one step on one example.

Shape legend: P trained parameters' numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from heliotrope.data import Batch
from heliotrope.seeding import torch_generator
from heliotrope.tasks import Task

__all__ = [
    "Inversion",
    "Recovered",
    "inverted",
    "signal_to_noise",
    "similarity",
    "why_not_inverted",
]

_ROUNDS = 200  # of L-BFGS
_WINDOW = 7  # pixels, of the structural similarity
_STABLE = (0.01, 0.03)  # K_1 and K_2 of Wang et al. 2004


@dataclass(frozen=True)
class Recovered:
    """What was computed from a gradient: `values` as the input, and how near they came.

    `psnr` in decibels, infinite if exact; `ssim` of pictures, 1 if exact, else None.
    """

    values: Tensor
    psnr: float
    ssim: float | None


@dataclass(frozen=True)
class Inversion:
    """An example, [*shape], and what was recovered of it without and with protection.

    `method` is how: `exact` for a dense first layer, `matching` else. `protected` is None where the
    run has no protection.
    """

    original: Tensor
    method: str
    plain: Recovered
    protected: Recovered | None


def why_not_inverted(task: Task) -> str | None:
    """Return why no input can be recovered as numbers; None if it can."""
    if task.joint:
        return "the losses of examples depend on one another: none has a gradient of its own."
    if len(_numbers(task)) != 1:
        return (
            "what goes into the model is no picture or row of numbers, but such as words or "
            "categories, which have nothing between them that could be approached."
        )
    return None


def _numbers(task: Task) -> list[str]:
    """Return the inputs that are numbers; an attacker knows the others, such as categories."""
    example = task.facts.example
    return [n for n in task.inputs if example[n].is_floating_point() and example[n].numel()]


def inverted(
    model: nn.Module,
    task: Task,
    one: Batch,
    run_seed: int,
    clip: float | None = None,
    deviation: float = 0.0,
) -> Inversion:
    """Return what the gradient of `model` on a batch of one gives away.

    With a `clip`, also what is left of it once the gradient is clipped to that norm and has
    Gaussian noise of the standard deviation `deviation`.
    """
    model = model.eval()
    (name,) = _numbers(task)
    original = one[name][0].detach()
    trained = [p for p in model.parameters() if p.requires_grad]
    gradient = [g.detach() for g in _gradient(model, task, one, trained)]
    layer = _first_dense(model, task, one, trained)

    def recovered(seen: Sequence[Tensor]) -> Recovered:
        if layer is not None:
            taken = _of_dense(seen[layer[0]], seen[layer[1]])
            values = taken[: original.numel()].view_as(original)
        else:
            values = _matching(model, task, one, trained, seen, run_seed)
        ssim = similarity(original, values) if original.dim() == 3 else None
        return Recovered(values, signal_to_noise(original, values), ssim)

    protected = None
    if clip is not None:
        norm = torch.stack([g.double().norm() for g in gradient]).norm()
        factor = float((clip / norm).clamp(max=1.0))
        generator = torch_generator(run_seed, "noise of an inverted gradient")
        drawn = [torch.randn(g.shape, generator=generator).to(g) for g in gradient]
        pairs = zip(gradient, drawn, strict=True)
        protected = recovered([g * factor + deviation * noise for g, noise in pairs])
    method = "matching" if layer is None else "exact"
    return Inversion(original, method, recovered(gradient), protected)


def _gradient(
    model: nn.Module, task: Task, one: Batch, trained: Sequence[Tensor], *, graph: bool = False
) -> tuple[Tensor, ...]:
    loss = task.losses(task.call(model, one), one).sum()
    return torch.autograd.grad(loss, trained, create_graph=graph, materialize_grads=True)


def _first_dense(
    model: nn.Module, task: Task, one: Batch, trained: Sequence[Tensor]
) -> tuple[int, int] | None:
    """Return the places of weight and bias of a dense layer that takes the input as it is.

    It may take others after it, such as categories.
    """
    (name,) = _numbers(task)
    found: list[nn.Linear] = []

    def look(layer: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        taken = given[0].reshape(-1)[: one[name].numel()]
        if torch.equal(taken, one[name].reshape(-1)):
            found.append(layer)

    dense = [m for m in model.modules() if isinstance(m, nn.Linear) and m.bias is not None]
    handles = [module.register_forward_hook(look) for module in dense]
    with torch.no_grad():
        task.call(model, one)
    for handle in handles:
        handle.remove()
    places = {id(parameter): place for place, parameter in enumerate(trained)}
    for layer in found:
        if id(layer.weight) in places and id(layer.bias) in places:
            return places[id(layer.weight)], places[id(layer.bias)]
    return None


def _of_dense(weight: Tensor, bias: Tensor) -> Tensor:
    """Return the input of a dense layer from the gradients of its weight, [O, I], and bias, [O]."""
    row = int(bias.abs().argmax())
    return weight[row] / bias[row] if bool(bias[row]) else torch.zeros_like(weight[row])


def _matching(
    model: nn.Module,
    task: Task,
    one: Batch,
    trained: Sequence[Tensor],
    seen: Sequence[Tensor],
    run_seed: int,
) -> Tensor:
    """Return an input whose gradient is nearly what was seen."""
    (name,) = _numbers(task)
    generator = torch_generator(run_seed, "start of an inversion")
    values = torch.randn(one[name].shape, generator=generator).to(one[name]).requires_grad_()
    size = sum(float(g.square().sum()) for g in seen) or 1.0
    search = torch.optim.LBFGS([values], max_iter=_ROUNDS, line_search_fn="strong_wolfe")

    def distance() -> Tensor:
        search.zero_grad()
        found = _gradient(model, task, {**one, name: values}, trained, graph=True)
        apart = torch.stack([(f - s).square().sum() for f, s in zip(found, seen, strict=True)])
        total = apart.sum() / size
        total.backward()  # type: ignore[no-untyped-call]
        return total

    search.step(distance)  # type: ignore[no-untyped-call]
    model.zero_grad()
    return values.detach()[0].nan_to_num()


def signal_to_noise(original: Tensor, recovered: Tensor) -> float:
    """Return the peak signal-to-noise ratio in decibels, for the range of the original's values."""
    error = float((recovered.double() - original.double()).square().mean())
    return math.inf if error == 0 else 20 * math.log10(_range(original)) - 10 * math.log10(error)


def similarity(original: Tensor, recovered: Tensor) -> float:
    """Return the mean structural similarity of two pictures, [C, H, W] (Wang et al. 2004).

    Over square windows; of smaller pictures, over the whole.
    """
    side = min(_WINDOW, *original.shape[1:])
    a, b = original.double()[None], recovered.double()[None]

    def mean(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values, side, stride=1)

    luminance, contrast = ((k * _range(original)) ** 2 for k in _STABLE)
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    both = mean(a * b) - mean_a * mean_b
    above = (2 * mean_a * mean_b + luminance) * (2 * both + contrast)
    below = (mean_a**2 + mean_b**2 + luminance) * (var_a + var_b + contrast)
    return float((above / below).mean())


def _range(values: Tensor) -> float:
    return float(values.max() - values.min()) or 1.0
