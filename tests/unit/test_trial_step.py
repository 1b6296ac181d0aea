"""A plug-in that would fail in the first step of training is refused before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import distributed.driver
import federated.components
from heliotrope import config, registry
from heliotrope.config import Mode, Run
from heliotrope.errors import ConfigError
from heliotrope.models import build
from heliotrope.tasks import Classification, Task
from heliotrope.training.trial import check_step
from tests.support import (
    MODES,
    assert_same_tensors,
    compose,
    global_random_state_untouched,
    small_task,
    weights,
)

_WHERE = "mine.py, line 3"
_NOTHING = registry.snapshot()


class _Model(nn.Module):
    """Two linear layers, and what is done with their outputs in training."""

    def __init__(self, change: Callable[[Tensor], Any] = lambda outputs: outputs) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(64, 4), nn.Linear(4, 10)
        self.change = change

    def forward(self, inputs: Tensor) -> Any:
        outputs = self.out(self.hidden(inputs.flatten(1)))
        return self.change(outputs) if self.training else outputs


def _raising(_outputs: Tensor) -> Tensor:
    raise ValueError("not in training")


def _backwards(outputs: Tensor) -> Tensor:
    outputs.register_hook(_raising)
    return outputs


class _NeedsClosure(torch.optim.SGD):
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        return closure()


class _Failing(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        raise IndexError("a step too far")


def _sgd(of: Callable[[list[nn.Parameter]], Any]) -> Callable[..., Any]:
    return lambda params, lr: torch.optim.SGD(of(params), lr=lr)


_MODELS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "in training": (_raising, r"called in training with image .* ValueError: not in training"),
    "a pair": (lambda outputs: (outputs, outputs), "called in training with .* gives a tuple"),
    "detached": (torch.Tensor.detach, "no gradient goes from its outputs back to a weight"),
    "made anew": (lambda o: torch.zeros_like(o, requires_grad=True), "no gradient goes"),
    "backwards": (_backwards, "taking the gradient raises ValueError: not in training"),
}
_OPTIMIZERS: dict[str, tuple[Callable[..., Any], str]] = {
    "lbfgs": (torch.optim.LBFGS, r"LBFGS.step\(\) needs closure, which training does not give"),
    "closure": (_NeedsClosure, "needs closure"),
    "failing": (_Failing, "cannot take a step: IndexError: a step too far"),
    "copies": (
        _sgd(lambda params: [nn.Parameter(p.detach().clone()) for p in params]),
        "updates none of the weights that it is given",
    ),
}


class _Cut(Classification):
    def losses(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return super().losses(outputs.detach(), batch)


class _Numbers(Classification):
    """What is fine with outputs of zeros, and cannot be done with those of a model."""

    def losses(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return super().losses(torch.from_numpy(outputs.numpy()), batch)


_TASKS: dict[str, tuple[type[Classification], str]] = {
    "detached": (_Cut, "no gradient goes from its losses back to a weight of the model"),
    "numbers": (
        _Numbers,
        r"on examples of zeros, and the outputs of model=mine .*, it raises Runt",
    ),
}


def _chosen(
    model: Callable[[], nn.Module] = _Model, optimizer: Any = None, task: Any = None
) -> tuple[Run, Task]:
    """Return a run with these, as if plug-ins had registered them, and its task."""

    def mine() -> nn.Module:
        return model()

    def own(params: Any, *, lr: float = 0.1) -> Any:
        return optimizer(params, lr=lr)

    def ours(facts: Any) -> Task:
        built: Task = task(facts, 0.0)
        return built

    run: Run = compose("distributed", "experiment=quickstart")
    registry.restore(_NOTHING)
    registry.register("model", "mine", mine, _WHERE)
    run.model = config.ModelConfig("mine")
    facts = small_task(10, (1, 8, 8)).facts
    if optimizer is not None:
        registry.register("optimizer", "own", own, _WHERE)
        run.optimizer = config.OptimizerConfig("own", 0.1)
    if task is not None:
        registry.register("task", "ours", ours, _WHERE)
        run.task = config.TaskConfig("ours")
    return run, Classification(facts, 0.0) if task is None else ours(facts)


def _check(run: Run, task: Task) -> tuple[str, ...]:
    return check_step(run, build(run.model, task, run.seed), task)


@pytest.mark.parametrize("kind", _MODELS)
def test_what_a_model_cannot_do_in_training(kind: str) -> None:
    change, words = _MODELS[kind]
    with pytest.raises(ConfigError, match=rf"^model=mine \({_WHERE}\) cannot be trained.*{words}"):
        _check(*_chosen(lambda: _Model(change)))


@pytest.mark.parametrize("kind", _TASKS)
def test_what_a_task_cannot_do_with_a_model(kind: str) -> None:
    task, words = _TASKS[kind]
    with pytest.raises(ConfigError, match=rf"^task=ours \({_WHERE}\) cannot be trained: {words}"):
        _check(*_chosen(task=task))


@pytest.mark.parametrize("kind", _OPTIMIZERS)
def test_what_an_optimizer_cannot_do(kind: str) -> None:
    optimizer, words = _OPTIMIZERS[kind]
    with pytest.raises(ConfigError, match=rf"^optimizer=own \({_WHERE}\) .*{words}"):
        _check(*_chosen(optimizer=optimizer))


def test_weights_that_an_optimizer_leaves_out_are_named_unless_they_are_frozen() -> None:
    matrices = _sgd(lambda params: [p for p in params if p.dim() > 1])
    (said,) = _check(*_chosen(optimizer=matrices))
    assert said == (
        f"optimizer=own ({_WHERE}) leaves out 2 of the 4 weights that it is given, which stay as "
        "they begin: hidden.bias, out.bias"
    )
    frozen = _sgd(lambda params: [p for p in params if p.requires_grad])
    run, task = _chosen(optimizer=frozen)
    model = build(run.model, task, run.seed)
    model.get_submodule("hidden").requires_grad_(False)
    assert check_step(run, model, task) == ()


def test_the_step_changes_nothing_that_the_run_begins_with() -> None:
    run, task = _chosen(lambda: _Model(nn.functional.dropout), optimizer=torch.optim.Adam)
    model = build(run.model, task, run.seed)
    before = weights(model)
    with global_random_state_untouched():
        assert check_step(run, model, task) == ()
    assert_same_tensors(weights(model), before)
    assert all(p.grad is None for p in model.parameters())


def test_what_needs_more_examples_or_another_device_is_left_to_training() -> None:
    def few(outputs: Tensor) -> Tensor:
        if len(outputs) < 4:
            raise ValueError("a part of the batch is empty")
        return outputs

    def elsewhere(_outputs: Tensor) -> Tensor:
        raise RuntimeError("No CUDA GPUs are available")

    assert _check(*_chosen(lambda: _Model(few))) == ()
    assert _check(*_chosen(lambda: _Model(elsewhere), optimizer=torch.optim.SGD)) == ()


@pytest.mark.parametrize("mode", MODES)
def test_both_modes_look_before_any_work(mode: Mode) -> None:
    prepare = {
        "distributed": distributed.driver.build_components,
        "federated": federated.components.build_components,
    }
    run = _chosen(lambda: _Model(_raising))[0]
    with pytest.raises(ConfigError, match="in training with image"):
        prepare[mode](run)
    matrices = _sgd(lambda params: params[:1])
    run = _chosen(optimizer=matrices)[0]
    assert any("leaves out 3 of the 4 weights" in note for note in prepare[mode](run).notes)
