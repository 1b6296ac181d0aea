"""A user's own task, metric, partition, strategy, optimizer, schedule: what is refused, and how."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distributed.driver import build_components as build_distributed
from distributed.strategies.engine import Engine
from distributed.topology import Topology
from federated.components import build_components as build_federated
from federated.job import run_job
from federated.strategies import ModelFacts, build_strategy, reduces
from heliotrope import config, plugin_loading, registry
from heliotrope.config import Mode, Run
from heliotrope.errors import ConfigError, HeliotropeError, RunFailedError
from heliotrope.models import build
from heliotrope.training.loop import TrainTotals
from heliotrope.training.optimizers import build_optimizer
from tests.support import (
    Started,
    assert_same_tensors,
    compose,
    everything,
    fresh_seed,
    global_random_state_untouched,
    random_split,
    small_task,
    training_batch,
    type_command,
    weights,
)

_HEAD = """
import threading
import numpy as np
import torch
from flwr.serverapp.strategy import FedAvg
from functools import cached_property
from heliotrope import plugin
from heliotrope.metrics import Loss, MetricSet
from heliotrope.tasks import Classification, Task
"""
_TASK = """
@plugin.task
class mine(Task):
    targets = ("label",)
    num_outputs = 9
    metrics = cached_property(lambda self: MetricSet((Loss(self.losses),)))
    def losses(self, outputs, batch):
        return {losses}
"""
_METRIC = """
@plugin.metric
class mine:
    size = 1
    directions = {{"{number}": "max"}}
    def cells(self, outputs, batch):
        return [(0, {value})]
    def compute(self, sums):
        return {{"{number}": sums[..., 0]}}
"""

_LOCKED = """
@plugin.strategy
class mine(FedAvg):
    def aggregate_train(self, server_round, replies):
        if server_round >= {first}:
            self.lock = threading.Lock()
        return super().aggregate_train(server_round, replies)
"""

# What the plug-in says -> what is typed, and words of the refusal.
_REFUSED = {
    _TASK.format(losses="outputs.mean()"): (
        "task=mine",
        "losses of two examples are torch.float32 of shape []",
    ),
    _TASK.format(losses="outputs[:, 9]"): ("task=mine", "outputs [2, 9], it raises IndexError"),
    _TASK.format(losses="0").replace("label", "rating"): ("task=mine", "has no rating, which mine"),
    _TASK.format(losses="outputs[:, 0]").replace('targets = ("label",)', "pass"): (
        "task=mine",
        "the fields image, label are to be predicted, and not given to the model. Add targets = (",
    ),
    _TASK.format(losses="outputs[:, 0]").replace('("label",)', '("label")'): (
        "task=mine",
        "mine.targets='label' is no tuple of fields. Write targets = ('label',), with a comma",
    ),
    "@plugin.task\ndef mine(facts): return 3": (
        "task=mine",
        "gave a int. Return a heliotrope",
    ),
    "@plugin.task\ndef mine(facts): 1 / 0": ("task=mine", "cannot be built: ZeroDivisionError"),
    "@plugin.task\ndef mine(facts):\n    return facts.example['no']": (
        "task=mine",
        f"mine.py, line {_HEAD.count(chr(10)) + 3}. Mend it.",
    ),
    _METRIC.format(value="outputs[:, 11]", number="m"): ("metrics=[mine]", "IndexError"),
    _METRIC.format(value="outputs.abs().mean()", number="m"): (
        "metrics=[mine]",
        "adds a tensor without dimensions",
    ),
    _METRIC.format(value="float(outputs.abs().mean())", number="m"): (
        "metrics=[mine]",
        "for an example is another when a second one is beside it",
    ),
    _METRIC.format(value="outputs[:, 0] - outputs[:, 0].mean()", number="m"): (
        "metrics=[mine]",
        "for an example is another when a second one is beside it",
    ),
    _TASK.format(losses="outputs[:, 0] - outputs[:, 0].mean()"): (
        "task=mine",
        "its loss of an example is another when a second one is beside it",
    ),
    _METRIC.format(value="outputs[:, 0] * batch['label'].float().mean()", number="m"): (
        "metrics=[mine]",
        "for an example is another when a second one is beside it",
    ),
    _TASK.format(losses="outputs[:, 0] * batch['label'].max()"): (
        "task=mine",
        "its loss of an example is another when a second one is beside it",
    ),
    _TASK.format(losses="outputs[:, 0]").replace("num_outputs", "joint = True\n    num_outputs"): (
        "task=mine",
        "it is joint, but has no method compared(outputs, candidates, first)",
    ),
    _METRIC.format(value="outputs[:, 0]", number="loss"): (
        "metrics=[mine]",
        "more than one metric computes loss",
    ),
    _TASK.format(losses="outputs.sum(dim=1)"): (
        "task=mine metrics=[auroc]",
        "metrics=[auroc] is of the logits of classes, and mine of data=digits has others",
    ),
    _METRIC.format(value="outputs[:, 0]", number="m").replace('"max"', '"maximum"'): (
        "metrics=[mine]",
        "its direction of m is 'maximum'. Say 'max' or 'min'",
    ),
    _METRIC.format(value="outputs[:, 11]", number="number"): (  # the line of the decorator
        "metrics=[mine]",
        f"mine.py, line {_HEAD.count(chr(10)) + 2}) cannot be measured",
    ),
    _TASK.format(losses="outputs.sum()"): (
        "task=mine",
        f"mine.py, line {_HEAD.count(chr(10)) + 2}) cannot be trained",
    ),
    _TASK.format(losses="outputs[:, 0]") + "    def __init__(self, facts): self.a = 1\n": (
        "task=mine",
        "its __init__ leaves out that of Task. Begin it with super().__init__(facts)",
    ),
    "@plugin.metric\ndef mine(task): return 3": ("metrics=[mine]", "AttributeError"),
    "@plugin.partition\ndef mine(): return [1, 2]": (
        "federated/partition=mine",
        "gave int64 [2]. Return the client of each",
    ),
    "@plugin.partition\ndef mine(traits): return np.arange(traits.examples) - 1": (
        "federated/partition=mine",
        "to client -1. Number the clients from 0",
    ),
    "@plugin.partition\ndef mine(generator): return generator.nothing()": (
        "federated/partition=mine",
        "fails: AttributeError",
    ),
    "@plugin.model\ndef mine():\n    raise SystemExit(0)": (
        "model=mine",
        f"mine.py, line {_HEAD.count(chr(10)) + 3}. Raise an error instead.",
    ),
    "@plugin.data\ndef mine(): raise SystemExit": (
        "data=mine federated.rounds=2",
        "The code of a plug-in ends the process. SystemExit in ",
    ),
    "@plugin.strategy\nclass mine(FedAvg):\n    def __init__(self): self.a = 1": (
        "federated/strategy=mine",
        f"mine.py, line {_HEAD.count(chr(10)) + 3}) has an __init__ that leaves out that of FedAvg",
    ),
    "@plugin.strategy\ndef mine(): return FedAvg": (
        "federated/strategy=mine",
        "gave a abc.ABCMeta",
    ),
    "@plugin.strategy\ndef mine(*, a: int = 1): return FedAvg(b=a)": (
        "federated/strategy=mine",
        "cannot be built: TypeError",
    ),
    "@plugin.strategy\nclass mine(FedAvg):\n    def __init__(self):\n"
    "        super().__init__()\n        self.lock = threading.Lock()": (
        "federated/strategy=mine",
        "keeps lock, a lock, which a checkpoint cannot hold",
    ),
    _LOCKED.format(first=1): (
        "federated/strategy=mine",
        "keeps lock, a lock, which a checkpoint cannot hold",
    ),
    "@plugin.optimizer\ndef mine(params, *, lr: float = 1.0): return 3": (
        "optimizer=mine",
        "gave a int. Return a torch.optim.Optimizer",
    ),
    "class O(torch.optim.Optimizer):\n    def __init__(self, p): super().__init__(p, {'rate': 1})\n"
    "@plugin.optimizer\ndef mine(params, *, lr: float = 1.0): return O(params)": (
        "optimizer=mine",
        "has groups of parameters without lr",
    ),
    "@plugin.optimizer\ndef mine(params, *, lr: float = 1.0): return torch.optim.SGD(params, lr)": (
        "optimizer=mine optimizer.weight_decay=0.1",
        "weight_decay=0.1 has no effect",
    ),
}
_AT_ONCE = {
    "@plugin.optimizer\ndef mine(params, *, rate: float = 1.0): ...": "has no parameter lr",
    "@plugin.schedule\ndef mine(done, *, low: float = 0.0): ...": "parameter low, which nothing",
    "@plugin.model\ndef mine(task, *, name: str = 'a'): ...": "has a parameter called name",
    "@plugin.model\ndef mine(task, *, w: int = 'a'): ...": "w of model=mine has the type int",
    "@plugin.model\ndef mine(task, *, w: int = None): ...": r"Change .* to w: int \| None = None",
    "plugin.model(lambda task: 1)": "is called <lambda>, which cannot be chosen. Write a function",
    "@plugin.data\ndef digits(): ...": "there is a data=digits already",
    "@plugin.strategy\nclass fedavg(FedAvg): ...": "there is a strategy=fedavg already",
    "@plugin.modle\ndef mine(task): ...": r"line 10: .*no plugin.modle \(did you mean 'model'\?\)",
    "@plugin.model()\ndef mine(task): ...": "Write @plugin.model, without brackets, above a def",
    "@plugin.task('mine')\ndef mine(facts): ...": "@plugin.task is given nothing but what it decor",
    "@plugin.optimizer\nclass mine(torch.optim.Adam): ...": (
        r"no __init__ of its own, and takes that of torch.optim.adam.Adam: .* hands them on to sup"
    ),
    "@plugin.data\ndef mine(rows): ...": "parameter rows of data=mine has no type",
}


Load = Callable[[str], str]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return what loads a plug-in with this text, and returns what is typed for it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def loaded(text: str) -> str:
        (tmp_path / "mine.py").write_text(_HEAD + text)
        plugin_loading.load([str(tmp_path / "mine.py")])
        config.register()
        return f"plugins=[{tmp_path / 'mine.py'}]"

    return loaded


@pytest.mark.parametrize("text", _REFUSED)
def test_what_does_not_fit_is_refused_before_any_work(text: str, load: Load) -> None:
    typed, words = _REFUSED[text]
    mode: Mode = "federated" if "federated" in typed else "distributed"
    run = compose(mode, load(text), *typed.split())
    build: Callable[[Run], object] = build_federated if "federated" in typed else build_distributed
    with pytest.raises(HeliotropeError, match=re.escape(words)) as refused:
        build(run)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("text", _AT_ONCE)
def test_what_cannot_be_registered_is_named_with_its_line(text: str, load: Load) -> None:
    with pytest.raises(HeliotropeError, match=_AT_ONCE[text]) as refused:
        load(text)
    assert "mine.py, line " in str(refused.value)


def test_a_key_without_a_default_is_named_with_the_plug_in_that_needs_it(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    plugins, job = load("@plugin.model\ndef mine(task, *, w: int): ..."), Started()
    assert type_command(monkeypatch, "federated", plugins, "model=mine", job=job) == 2
    said = (
        r"model.w is not set: model=mine \(.*mine.py, line 10\) .* Set model.w=VALUE, of type int"
    )
    assert re.search(said, capsys.readouterr().err)
    assert type_command(monkeypatch, "federated", plugins, "model=mine", "model.w=3", job=job) == 0


def test_a_plug_in_that_ends_the_process_in_training_is_a_failure_that_names_it(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    plugins = load("@plugin.schedule\ndef mine(done):\n    raise SystemExit(0)\n")
    job = Started(lambda run, _: print(registry.entry("schedule", "mine").build({}, done=0)))
    assert type_command(monkeypatch, "federated", plugins, job=job) == 1
    assert re.search(r"error: .* SystemExit: 0 in .*mine.py, line 12\.", capsys.readouterr().err)


def test_a_class_of_torch_with_an_init_of_its_own_is_taken_as_the_message_says(load: Load) -> None:
    text = """
@plugin.optimizer
class mine(torch.optim.Adam):
    def __init__(self, params, *, lr: float = 0.1):
        super().__init__(params, lr=lr)
"""
    run = compose("distributed", "experiment=quickstart", load(text), "optimizer=mine")
    assert build_distributed(run).notes == ()


def test_an_optimizer_may_go_through_the_parameters_for_each_of_its_groups(load: Load) -> None:
    plugins = load(
        "@plugin.optimizer\ndef mine(params, *, lr: float = 1.0):\n"
        "    slow = [p for p in params if p.ndim < 2]\n"
        "    fast = [p for p in params if p.ndim >= 2]\n"
        "    return torch.optim.SGD([{'params': slow, 'lr': lr / 10}, {'params': fast}], lr=lr)"
    )
    run = compose("distributed", plugins, "optimizer=mine")
    optimizer = build_optimizer(run.optimizer, torch.nn.Linear(3, 2).parameters())
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]


def test_what_own_code_draws_follows_from_the_step_and_the_rank(load: Load, tmp_path: Path) -> None:
    plugins = load(
        "@plugin.model\nclass mine(torch.nn.Linear):\n"
        "    def __init__(self, task):\n"
        "        super().__init__(4, 3)\n"
        "    def forward(self, x):\n"
        "        kept = torch.nn.functional.dropout(x, 0.5, self.training)\n"
        "        return super().forward(kept * float(np.random.rand()))"
    )
    run, task = compose("distributed", plugins, "model=mine"), small_task(3, (4,))
    split = everything(random_split(6, task, torch.Generator().manual_seed(fresh_seed())))
    batch = training_batch(split["image"], split["label"])
    trained = []
    for first in (0, 0, 6):
        engine = Engine(run, build(run.model, task, 1), task, Topology(), tmp_path)
        engine.begin(TrainTotals())
        torch.rand(1)  # others in the process draw, too
        with global_random_state_untouched():
            engine.step(replace(batch, first=first))
        with engine.evaluating() as model:
            trained.append(weights(model))
    assert_same_tensors(trained[0], trained[1])
    assert not torch.equal(trained[1]["weight"], trained[2]["weight"])


def test_a_strategy_says_whether_a_mean_is_enough(load: Load) -> None:
    plugins = load(
        "@plugin.strategy\nclass each(FedAvg): ...\n"
        "@plugin.strategy\nclass means(FedAvg): mean_is_enough = True\n"
    )
    for name, enough in (("each", False), ("means", True)):
        run = compose("federated", plugins, f"federated/strategy={name}")
        strategy = build_strategy(run, ModelFacts(frozenset(), frozenset(), 10, 1, frozenset()))
        assert reduces(run.federated, strategy) is enough
        assert strategy.fraction_train == 1.0  # type: ignore[attr-defined]
        assert strategy.min_available_nodes == 1  # type: ignore[attr-defined]
    run = compose("federated", plugins, "federated/strategy=each", "federated.reduce=worker")
    with pytest.raises(ConfigError, match=r"strategy=each needs every.*or mean_is_enough = True"):
        reduces(
            run.federated,
            build_strategy(run, ModelFacts(frozenset(), frozenset(), 10, 1, frozenset())),
        )


@pytest.mark.usefixtures("no_report")
def test_a_strategy_of_means_gives_the_same_reduced_or_not(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins = load("@plugin.strategy\nclass means(FedAvg): mean_is_enough = True\n")
    losses = []
    for reduce in ("worker", "none"):
        words = ("experiment=quickstart", plugins, "federated/strategy=means", "federated.rounds=2")
        more = (f"federated.reduce={reduce}", "federated.local_epochs=1")
        where = f"hydra.run.dir={tmp_path}/{reduce}"
        assert type_command(monkeypatch, "federated", *words, *more, where, job=run_job) == 0
        result = json.loads((tmp_path / reduce / "result.json").read_text())
        losses.append(result["metrics"]["test/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.usefixtures("no_report")
def test_memory_that_comes_later_and_cannot_be_saved_ends_the_run_with_what_was_trained(
    load: Load, tmp_path: Path
) -> None:
    run = compose(
        "federated",
        load(_LOCKED.format(first=3)),
        *("federated/strategy=mine", "model.hidden=[4]", "federated.rounds=4"),
        "federated.client_training=sequential",
    )
    with pytest.raises(RunFailedError, match=r"round 3: .* keeps lock, .*up to round 2 is saved"):
        run_job(run, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["00000002"]
