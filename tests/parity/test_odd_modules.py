"""Whatever way a user's module is trained, its update is that of the sequential loop."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from federated.algorithms import proximal
from federated.engine.context import TrainingContext, assemble, divide
from federated.engine.execution import decide
from federated.engine.sequential import train_client
from federated.engine.stacked import FastTrainer
from federated.engine.thread_lane import ThreadLane
from federated.engine.time_limit import Watch
from federated.pools.cohort_worker import CohortWorker
from federated.updates import Instruction, Stack
from heliotrope.data import load
from heliotrope.errors import ConfigError
from heliotrope.models import seed_dropout
from heliotrope.seeding import isolated_rng
from heliotrope.tasks import task_of
from tests import odd_computations, odd_modules, odd_state
from tests.parity.cohorts import weights_of
from tests.support import compose, global_random_state_untouched, with_images

_COHORT = [0, 2, 3, 5]
# Modules whose steps do something that a stack, or a recording, cannot repeat.
_SEQUENTIAL = {
    "OldWeightNorm": "fc.weight",
    "SpectralNorm": "_u",
    "Binary": "takes numbers out of torch",
    "ToList": "takes numbers out of torch",
    "NumpyInput": "takes numbers out of torch",
    "WeightBranch": "depends on the values",
    "Counter": "change n",
    "LateCounter": "change state",
    "RunningMean": "change m",
    "LayerDrop": "random",
    "NumpyNoise": "random",
    "TorchNoise": "random",
    "OwnGenerator": "generator",
    "BatchNorm": "bn.",
    "Masked": "depends on the values",
    "RareBranch": "depends on the values",
    "PythonGenerator": "change generator",
    "OldNumpyGenerator": "change generator",
    "Iterator": "change numbers",
    "Annealed": "change factor",
    "Slotted": "change state",
    "PythonLists": "takes numbers out of torch",
    "WeightWithGain": "no attribute 'gain'",
    "GradientHook": "gradient of fc.weight",
    "AccumulatedHook": "gradient of out.weight",
    "ClippingHook": "depends on the values",
    "Bfloat16": "agree in float64 only",
    "ClosureCounter": "change tick",
    "HookCounter": "forward_hooks keep",
    "GlobalCounter": "the global _steps, which all clients",
    "HelpersGlobal": "the global _calls, which all clients",
    "ClassCounter": "the class attribute ClassCounter.n, which all clients",
    "ClassDictionary": "the class attribute ClassDictionary.state, which all clients",
}


def _clients(kind: type[nn.Module], *settings: str) -> TrainingContext:
    run = compose("federated", "experiment=quickstart", "optimizer.lr=0.05", *settings)
    dataset = load(run.data, run.seed)
    task = task_of(dataset)
    with isolated_rng(5):
        model = kind()
    seed_dropout(model)
    clients = assemble(run, task, dataset.train, divide(run, dataset), {"test": dataset.test})
    return replace(clients, model=model)


def _in_double(clients: TrainingContext) -> TrainingContext:
    model = copy.deepcopy(clients.fresh_model(clients.model.state_dict())).double()
    return replace(clients, model=model, train=with_images(clients.train, Tensor.double))


def _apart(ours: Mapping[str, Tensor], theirs: Stack, start: Mapping[str, Tensor]) -> float:
    pairs = [(ours[n].double(), v[0].double(), start[n].double()) for n, v in theirs.arrays.items()]
    difference = sum(float((a - b).square().sum()) for a, b, _ in pairs)
    return float((difference / sum(float((b - w).square().sum()) for _, b, w in pairs)) ** 0.5)


@pytest.mark.filterwarnings("ignore")  # of what these modules do
@pytest.mark.parametrize(
    "kind",
    odd_modules.MODULES + odd_computations.MODULES + odd_state.MODULES,
    ids=lambda kind: str(kind.__name__),
)
def test_the_default_way_gives_the_sequential_update(kind: type[nn.Module]) -> None:
    clients = _clients(kind)
    weights, order = weights_of(clients), Instruction(1)
    worker = CohortWorker(clients, 1)
    decision = worker.decide(10, ())
    assert decision.execution is not None
    if kind.__name__ in _SEQUENTIAL:
        assert decision.execution.kind == "sequential"
        assert _SEQUENTIAL[kind.__name__] in decision.line()
    else:
        assert decision.execution.kind != "sequential", decision.line()
    reply = worker.train(weights, order, _COHORT, decision.execution, reduce=False)
    assert [update.clients for update in reply.updates] == [(client,) for client in _COHORT]
    for update in reply.updates:
        (client,) = update.clients
        expected = train_client(clients, weights, order, client)
        distance = _apart(update.arrays, expected, weights)
        if distance > 1e-5:
            exact = train_client(_in_double(clients), weights, order, client)
            rounded = {name: value[0] for name, value in expected.arrays.items()}
            assert distance <= 10 * _apart(rounded, exact, weights)


_PRODUCTS = ["LowRank", "Lora", "FedPara", "Prototypes", "Hypernetwork", "Gram", "Tied", "Unused"]
_SETTINGS = [
    "optimizer.momentum=0.9 optimizer.weight_decay=0.01",
    "optimizer=adam optimizer.lr=0.003",
    "optimizer.clip_norm=0.3 loss.l2=0.01",
    "federated.batch_size=1 optimizer.lr=0.002",
    "federated.batch_size=null",
]


@pytest.mark.parametrize("captures", [True, False])
@pytest.mark.parametrize("settings", _SETTINGS)
@pytest.mark.parametrize("name", _PRODUCTS)
def test_products_of_weights_are_exact_in_every_way(
    name: str, settings: str, captures: bool
) -> None:
    clients = _in_double(_clients(getattr(odd_modules, name), *settings.split()))
    weights, order, cohort = weights_of(clients), Instruction(2, proximal(0.05)), _COHORT[:2]
    trainer = FastTrainer(clients, captures=captures)
    ways = [trainer.train_stacked(weights, order, cohort)]
    if captures:
        ways += [trainer.train_one(weights, order, client) for client in cohort]
    for stack in ways:
        for update in stack.rows():
            expected = train_client(clients, weights, order, update.clients[0])
            assert _apart(update.arrays, expected, weights) < 1e-9


@pytest.mark.parametrize(
    "kind",
    [
        odd_state.GradientHook,
        odd_state.AccumulatedHook,
        odd_state.WeightWithGain,
        odd_state.HookOnItself,
        odd_state.ClippingHook,
        odd_state.ClosureCounter,
        odd_state.HookCounter,
        odd_state.Annealed,
    ],
    ids=lambda kind: str(kind.__name__),
)
def test_the_reference_is_a_plain_loop_over_a_new_module(kind: type[nn.Module]) -> None:
    clients = _clients(kind, "federated.local_epochs=3")
    weights = weights_of(clients)
    for client in _COHORT[:2]:
        model = kind().train()
        model.load_state_dict(weights)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for chosen, _ in clients.plan(1, [client]).batches():
            optimizer.zero_grad()
            batch = clients.train.take(chosen)
            nn.functional.cross_entropy(model(batch["image"]), batch["label"]).backward()
            optimizer.step()
        ours = train_client(clients, weights, Instruction(1), client)
        assert _apart(model.state_dict(), ours, weights) < 1e-6


class _Lazy(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.LazyLinear(10))


class _ExtraState(odd_modules.Base):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}


class _StateOfCopies(odd_modules.Base):
    def state_dict(self, *args: Any, **how: Any) -> dict[str, Any]:
        return {name: value.clone() for name, value in super().state_dict(*args, **how).items()}


class _PartOfState(odd_modules.Base):
    def state_dict(self, *args: Any, **how: Any) -> dict[str, Any]:
        state = super().state_dict(*args, **how)
        return {name: value for name, value in state.items() if name.startswith("out")}


class _View(odd_modules.Base):
    def __init__(self) -> None:
        super().__init__()
        self.turned = self.fc.weight.data.t()


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (_Lazy, "does not know the shape of 1.weight"),
        (_ExtraState, "a dict under _extra_state"),
        (_StateOfCopies, "gives a copy of fc.weight"),
        (_PartOfState, "trains fc.weight and leaves it out"),
        (_View, "keeps turned in the memory of fc.weight"),
    ],
)
def test_a_module_of_which_copies_would_differ_is_refused(kind: type[nn.Module], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        _clients(kind)


class _RegistersLate(odd_modules.Base):
    def between(self, h: Tensor) -> Tensor:
        if not hasattr(self, "gain"):
            self.gain = nn.Parameter(torch.ones(32))
        return h * self.gain


def test_a_weight_that_is_made_in_training_is_named() -> None:
    clients = _clients(_RegistersLate)
    worker = CohortWorker(clients, 1)
    choice = worker.decide(10, ()).execution
    assert choice is not None
    reply = worker.train(weights_of(clients), Instruction(1), [3], choice, reduce=True)
    (failure,) = reply.failures
    assert "adds or removes gain" in failure.reason


def test_ways_are_not_compared_by_updates_without_a_number() -> None:
    clients = _clients(odd_modules.BatchCentre)
    nothing = with_images(clients.train, lambda images: images.fill_(float("nan")))
    clients = replace(clients, train=nothing)
    decision = decide(clients, 10, 1, (), Watch())
    assert "no trial update is finite" in decision.line()


@pytest.mark.parametrize("by_function", [True, False])
def test_dropout_in_place_changes_what_it_is_given(by_function: bool) -> None:
    class InPlace(odd_modules.Base):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5, inplace=True)

        def between(self, h: Tensor) -> Tensor:
            h = h * 1
            if by_function:
                nn.functional.dropout(h, 0.5, self.training, inplace=True)
            else:
                self.drop(h)
            return h

    clients = _clients(InPlace)
    weights = weights_of(clients)
    dropped = train_client(clients, weights, Instruction(1), 3)
    plain = train_client(_clients(odd_modules.Base), weights, Instruction(1), 3)
    (whole,) = plain.rows()
    assert _apart(whole.arrays, dropped, weights) > 1e-2
    (ours,) = FastTrainer(clients).train_stacked(weights, Instruction(1), [3]).rows()
    assert _apart(ours.arrays, dropped, weights) < 1e-5


@pytest.mark.parametrize("decay", [0.0, 0.001])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_small_pulls_are_not_lost_in_rounding_over_many_steps(optimizer: str, decay: float) -> None:
    settings = [f"optimizer={optimizer}", "optimizer.lr=0.0005", f"optimizer.weight_decay={decay}"]
    clients = _clients(odd_modules.Base, "federated.batch_size=1", *settings)
    weights, order = weights_of(clients), Instruction(1, proximal(0.1))
    exact = train_client(_in_double(clients), weights, order, 3)
    (own,) = train_client(clients, weights, order, 3).rows()
    (ours,) = FastTrainer(clients).train_stacked(weights, order, [3]).rows()
    allowed = max(1e-5, 10 * _apart(own.arrays, exact, weights))
    assert _apart(ours.arrays, exact, weights) <= allowed


class _Narrow(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (_Narrow, "federated.batch_size=null optimizer.lr=0.0001"),
        (odd_computations.DeepLstm, "optimizer.clip_norm=0.3"),  # biases with one gradient
    ],
)
def test_small_rates_and_clipping_leave_fast_ways_open(
    kind: type[nn.Module], settings: str
) -> None:
    decision = decide(_clients(kind, *settings.split()), 10, 1, (), Watch())
    assert not decision.reasons, decision.line()


def test_each_client_begins_with_the_module_as_built() -> None:
    for kind in (odd_modules.LateCounter, odd_modules.RunningMean, odd_modules.OwnGenerator):
        clients = _clients(kind)
        weights = weights_of(clients)
        alone = train_client(_clients(kind), weights, Instruction(1), 3)
        train_client(clients, weights, Instruction(1), 0)
        after = train_client(clients, weights, Instruction(1), 3)
        for name, value in alone.arrays.items():
            assert torch.equal(after.arrays[name], value)


@pytest.mark.parametrize("name", ["LayerDrop", "NumpyNoise", "TorchNoise"])
def test_process_wide_generators_are_seeded_for_each_client(name: str) -> None:
    clients = _clients(getattr(odd_modules, name))
    weights = weights_of(clients)
    found = []
    for state in (1, 2):
        random.seed(state)
        np.random.seed(state)  # noqa: NPY002
        torch.manual_seed(state)
        with global_random_state_untouched():
            found.append(train_client(clients, weights, Instruction(1), 3))
    other = train_client(clients, weights, Instruction(2), 3)
    for name_, value in found[0].arrays.items():
        assert torch.equal(found[1].arrays[name_], value)
    assert any(not torch.equal(other.arrays[n], v) for n, v in found[0].arrays.items())


def test_a_model_delivered_in_eval_mode_trains_in_training_mode() -> None:
    clients = _clients(odd_modules.EvalMode)
    weights = weights_of(clients)
    (ours,) = FastTrainer(clients).train_stacked(weights, Instruction(1), [3]).rows()
    expected = train_client(clients, weights, Instruction(1), 3)
    assert _apart(ours.arrays, expected, weights) < 1e-5
    undropped = _clients(odd_modules.Base)
    plain = train_client(undropped, weights, Instruction(1), 3)
    assert _apart(ours.arrays, plain, weights) > 1e-3


def test_a_dropout_used_twice_draws_twice() -> None:
    model = odd_modules.TwiceDropout()
    seed_dropout(model)
    model.train()
    ones = torch.ones(4, 32)
    first, second = model.drop(ones), model.drop(ones)
    assert not torch.equal(first, second)


def test_ways_that_a_model_does_not_allow_are_refused_with_the_reason() -> None:
    for kind, asked, why in (
        (odd_modules.BatchCentre, "batched", "one another"),
        (odd_modules.Counter, "captured", "change n"),
    ):
        clients = _clients(kind, f"federated.client_training={asked}")
        decision = decide(clients, 10, 1, (), Watch())
        assert decision.execution is None
        assert why in decision.reasons[asked]


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(8, 12, batch_first=True)
        self.out = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, 8, 8)
        lengths = torch.full((len(rows),), 8)
        packed = nn.utils.rnn.pack_padded_sequence(rows, lengths, batch_first=True)
        return self.out(self.layer(packed)[1][-1])


def test_a_layer_that_cannot_be_stacked_says_why() -> None:
    decision = CohortWorker(_clients(Packed), 1).decide(10, ())
    assert decision.execution is not None
    assert decision.execution.kind == "sequential"
    assert ", since it packs sequences by their lengths" in decision.line()


def test_a_stack_is_freed_before_the_next_one_is_made() -> None:
    clients = _clients(odd_modules.Base)
    lane = ThreadLane(clients, Watch())
    choice = CohortWorker(clients, 1).decide(1, ()).execution
    assert choice is not None
    before: weakref.ref[Stack] | None = None
    for stack in lane._stacks(weights_of(clients), Instruction(1), _COHORT, choice, []):
        gc.collect()
        assert before is None or before() is None
        before = weakref.ref(stack)
        del stack
