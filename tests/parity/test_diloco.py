"""Workers that train by themselves: the bridge between the two modes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import distributed.job
import federated.engine.context
import federated.job
from distributed.loop.example_order import permutation, rank_slice
from distributed.strategies.local_sgd import LocalSgdEngine
from distributed.topology import Topology
from federated.engine.batch_plan import BatchPlan
from federated.population import Population
from heliotrope.commands.evaluate import evaluate_run
from heliotrope.data import load
from heliotrope.models import build
from heliotrope.runs.checkpoint import Checkpoint
from heliotrope.tasks import task_of
from heliotrope.training.loop import TrainTotals
from tests.distributed_runs import INLINE, RAY, SMALL, assert_close, cut, result_of, train
from tests.support import (
    assert_same_tensors,
    compose,
    events_of,
    everything,
    training_batch,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("no_report")

# The 1294 examples make 11 steps of 128 an epoch, the last of 14: exchanges after 4, 8 and 11.
_STEPS, _EXAMPLES, _EPOCHS = 11, 1294, 2
_EVERY = "distributed.diloco.local_steps=4"
_ROUNDS = [range(4), range(4, 8), range(8, 11)]
_LOCAL, _DILOCO = (("distributed.strategy=" + name, _EVERY) for name in ("local_sgd", "diloco"))
_INT8 = "distributed.diloco.exchange=int8"


def _run(directory: Path, *overrides: str) -> Path:
    run = compose("distributed", *SMALL, f"distributed.epochs={_EPOCHS}", *overrides)
    distributed.job.run_job(run, directory)
    return directory


def _examples(seed: int, epoch: int, step: int, rank: int, workers: int) -> Tensor:
    """Return the training examples that a rank sees in a step."""
    batch = permutation(seed, epoch, _EXAMPLES)[128 * step : 128 * (step + 1)]
    return batch[rank_slice(len(batch), Topology(rank, workers))]


# The clients of a round hold what the workers see between two exchanges.
_SHARED = (
    "seed=5",
    "model.hidden=[16]",
    "optimizer.lr=0.05",
    "optimizer.weight_decay=0.01",
    "optimizer.clip_norm=1.0",
)


def _federated(directory: Path, monkeypatch: pytest.MonkeyPatch, *strategy: str) -> None:
    def same_shards(
        population: Population, cohort: Sequence[int], path: tuple[int, int], *_: object
    ) -> BatchPlan:
        epoch, number = divmod(path[1] - 1, len(_ROUNDS))
        steps = _ROUNDS[number]
        clients = tuple(sorted(cohort))
        rows = [_examples(path[0], epoch + 1, s, rank, 2) for s in steps for rank in clients]
        sizes = torch.tensor([len(row) for row in rows])
        wide = [functional.pad(row, (0, 64 - len(row)), value=int(row[0])) for row in rows]
        return BatchPlan(
            clients=clients,
            steps=(len(steps),) * len(clients),
            seen=(int(sizes[:: len(clients)].sum()),) * len(clients),
            first=tuple(range(0, len(rows) + 1, len(clients))),
            positions=torch.stack(wide),
            sizes=sizes,
            seeds=torch.zeros(len(rows), dtype=torch.int64),
        )

    monkeypatch.setattr(federated.engine.context, "make_batch_plan", same_shards)
    alike = ("federated/partition=iid", "federated.partition.clients=2")  # they weigh the same
    rounds = (f"federated.rounds={_EPOCHS * len(_ROUNDS)}", "federated.clients_per_round=2")
    federated.job.run_job(compose("federated", *_SHARED, *alike, *rounds, *strategy), directory)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            (*_DILOCO, "distributed.diloco.nesterov=false"),
            (
                "federated/strategy=fedavgm",
                "federated.strategy.server_learning_rate=0.7",
                "federated.strategy.server_momentum=0.9",
            ),
        ),
        (_LOCAL, ("federated/strategy=fedavg",)),
    ],
    ids=["diloco is fedavgm", "local sgd is fedavg"],
)
def test_workers_by_themselves_are_clients_with_the_same_shards(
    ours: tuple[str, ...],
    theirs: tuple[str, ...],
    ray_session: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _run(tmp_path / "distributed", *RAY, *_SHARED, "model.dropout=0", *ours)
    _federated(tmp_path / "federated", monkeypatch, *theirs)
    assert_close(tmp_path / "federated", tmp_path / "distributed")
    one, other = (result_of(tmp_path / mode) for mode in ("distributed", "federated"))
    for name, value in one["metrics"].items():
        assert other["metrics"][name] == pytest.approx(value, rel=1e-4), name
    assert one["examples_seen"] == other["examples_seen"] == _EPOCHS * _EXAMPLES


def _by_hand(workers: int, lr: float, momentum: float) -> dict[str, Tensor]:
    """DiLoCo with AdamW inside and Nesterov outside, as the paper's algorithm 1 has it."""
    run = compose("distributed", *SMALL, *_SHARED, "model.dropout=0")
    dataset = load(run.data, run.seed)
    data, task = dataset.train, task_of(dataset)
    models = [build(run.model, task, run.seed) for _ in range(workers)]
    inner = [torch.optim.AdamW(m.parameters(), lr=0.002, weight_decay=0.01) for m in models]
    agreed = {name: value.clone() for name, value in models[0].state_dict().items()}
    velocity = {name: torch.zeros_like(value) for name, value in agreed.items()}
    for epoch in range(1, _EPOCHS + 1):
        for steps in _ROUNDS:
            for rank, (model, optimizer) in enumerate(zip(models, inner, strict=True)):
                model.load_state_dict(agreed)
                for step in steps:
                    mine = _examples(run.seed, epoch, step, rank, workers)
                    optimizer.zero_grad()
                    batch = data.take(mine)
                    outputs = model(batch["image"])
                    functional.cross_entropy(outputs, batch["label"]).backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
            for name, weight in agreed.items():
                went = torch.stack([weight - m.state_dict()[name] for m in models]).mean(0)
                velocity[name] = momentum * velocity[name] + went
                agreed[name] = weight - lr * (went + momentum * velocity[name])
    return agreed


@pytest.mark.parametrize(("launcher", "workers"), [(INLINE, 1), (RAY, 2)], ids=["inline", "ray"])
def test_diloco_is_the_papers_algorithm(
    launcher: tuple[str, ...], workers: int, ray_session: object, tmp_path: Path
) -> None:
    adamw = ("optimizer=adamw", "optimizer.lr=0.002", "optimizer.weight_decay=0.01")
    outer = ("distributed.diloco.lr=0.5", "distributed.diloco.momentum=0.8")
    _run(tmp_path, *launcher, *_SHARED, *adamw, "model.dropout=0", *_DILOCO, *outer)
    assert_close(_by_hand(workers, 0.5, 0.8), tmp_path, rtol=1e-3)
    assert evaluate_run(tmp_path) == pytest.approx(result_of(tmp_path)["metrics"], rel=1e-6)


def test_an_exchange_after_every_step_is_plain_data_parallel(
    ray_session: object, tmp_path: Path
) -> None:
    alone = _run(tmp_path / "alone", *INLINE)
    every = _run(tmp_path / "every", *RAY, _LOCAL[0], "distributed.diloco.local_steps=1")
    assert_close(alone, every)


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param(_DILOCO, marks=pytest.mark.slow),
        (*_LOCAL, _INT8),
        (*_DILOCO, "distributed.sharded_checkpoints=true"),
    ],
    ids=["diloco", "local sgd, int8", "diloco, each its part"],
)
def test_a_run_cut_between_two_exchanges_goes_on_exactly(
    choice: tuple[str, ...], ray_session: object, tmp_path: Path
) -> None:
    often = (*RAY, *choice, "optimizer=adam", "distributed.checkpoint_every_steps=9")
    whole = train(tmp_path / "whole", *often, epochs=_EPOCHS)
    parts = cut(whole, tmp_path / "parts", after=2)
    assert max(path.name for path in (parts / "checkpoints").iterdir()) == "00000018"
    train(parts, *often, "resume=true", epochs=_EPOCHS)
    assert_same_tensors(weights_of(whole), weights_of(parts))
    assert events_of(whole) == events_of(parts)

    alone = cut(whole, tmp_path / "alone", after=2)
    train(alone, *often, *INLINE, "resume=true", epochs=_EPOCHS)
    mine, theirs = (events_of(run, "train")[-1] for run in (whole, alone))
    assert mine["examples_seen"] == theirs["examples_seen"] == _EPOCHS * _EXAMPLES
    assert theirs["train/loss"] == pytest.approx(mine["train/loss"], rel=0.2)


def test_another_number_of_workers_goes_on_from_the_mean(tmp_path: Path) -> None:
    run = compose("distributed", *SMALL, *INLINE, *_DILOCO, "optimizer=adam")
    dataset = load(run.data, run.seed)
    task, data = task_of(dataset), dataset.train

    def engine(topology: Topology) -> LocalSgdEngine:
        return LocalSgdEngine(run, build(run.model, task, run.seed), task, topology, tmp_path)

    parts = []
    for rows in (slice(0, 64), slice(64, 128)):
        own = engine(Topology())
        given = everything(data.subset(rows))
        batch = training_batch(given["image"], given["label"], divisor=1, seed=3)
        own.begin(TrainTotals())
        own.step(batch)
        own.step(batch)
        own.finish()
        parts.append(own.snapshot())
    one, other = (part.arrays for part in parts)
    both = dict(one) | {f"1{name[1:]}": v for name, v in other.items() if name.startswith("0/")}
    saved = Checkpoint(2, parts[0].model, both, {**parts[0].rest, "ranks": 2})

    alone = engine(Topology())
    alone.restore(saved, tmp_path)
    found = alone.snapshot()
    assert_same_tensors(dict(found.model), dict(parts[0].model))
    for name, value in found.arrays.items():
        torch.testing.assert_close(value, (one[name] + other[name]) / 2, rtol=1e-6, atol=0)

    second = engine(Topology())
    second._topology = Topology(1, 2)  # one of as many ranks goes on from its own
    second.restore(saved, tmp_path)
    second._topology = Topology()
    assert_same_tensors(dict(second.snapshot().arrays), dict(other))


@pytest.mark.slow
def test_eight_bits_are_a_quarter_of_the_bytes_and_about_the_same_model(
    ray_session: object, tmp_path: Path
) -> None:
    plain = _run(tmp_path / "plain", *RAY, *_DILOCO)
    rounded = _run(tmp_path / "rounded", *RAY, *_DILOCO, _INT8)
    one, other = result_of(plain), result_of(rounded)
    assert one["bytes_up"] == 4 * one["parameters"] * _EPOCHS * len(_ROUNDS)
    assert other["bytes_up"] / one["bytes_up"] == pytest.approx(0.25, rel=0.3)  # a small model
    for name, value in weights_of(plain).items():
        assert not torch.equal(weights_of(rounded)[name], value)
        torch.testing.assert_close(weights_of(rounded)[name], value, rtol=0.05, atol=0.005)


def test_another_strategy_cannot_go_on(tmp_path: Path) -> None:
    run = _run(tmp_path, *INLINE, *_LOCAL)
    with pytest.raises(Exception, match=r"distributed\.strategy=local_sgd, not .*=ddp") as refused:
        _run(run, *INLINE, "resume=true")
    assert getattr(refused.value, "exit_code", None) == 2
