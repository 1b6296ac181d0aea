"""Record-level privacy: the same noisy steps however they are divided, charged once."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent, pld
from torch.nn import functional

from distributed.loop.example_order import poisson_draws
from distributed.privacy.account import stamp_of
from heliotrope.data import Dataset, load
from heliotrope.models import build
from heliotrope.privacy.ledger import PLANNED, Ledger
from heliotrope.seeding import numpy_generator, seed
from heliotrope.tasks import task_of
from tests.distributed_runs import (
    INLINE,
    MOMENTUM,
    RAY,
    SMALL,
    TORCHRUN,
    assert_close,
    cut,
    result_of,
    train,
    weights_of,
)
from tests.support import assert_same_tensors, compose, events_of, with_images

pytestmark = pytest.mark.usefixtures("no_report")

_NOISE, _CLIP, _EPOCHS = 0.8, 0.5, 2
_PRIVATE = (
    "data.fit=none",
    "distributed/privacy=dpsgd",
    f"distributed.privacy.clip={_CLIP}",
    f"distributed.privacy.noise_multiplier={_NOISE}",
)
_PLAIN = ("model.dropout=0.0", "optimizer.weight_decay=0.001", "loss.l2=0.01")
_STEPS = 11  # of an epoch: 1294 examples, 128 a step


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One worker, in this process."""
    return train(tmp_path_factory.mktemp("runs") / "inline", *INLINE, *_PRIVATE, epochs=_EPOCHS)


def test_one_worker_is_a_plain_loop_in_float64(tmp_path: Path) -> None:
    train(tmp_path / "whole", *INLINE, *_PRIVATE, *_PLAIN, epochs=_EPOCHS)
    parts = "distributed.accumulation_steps=2"
    train(tmp_path / "parts", *INLINE, *_PRIVATE, *_PLAIN, parts, epochs=_EPOCHS)

    run = compose("distributed", *SMALL, MOMENTUM, *INLINE, *_PRIVATE, *_PLAIN)
    dataset = load(run.data, run.seed, hashed=True)
    model = build(run.model, task_of(dataset), run.seed).double()
    weights = list(model.parameters())
    optimizer = torch.optim.SGD(weights, lr=0.05, momentum=0.9, weight_decay=0.001)
    examples = len(dataset.train)
    stream = (stamp_of(run, dataset.content), repr(_NOISE))
    draws = poisson_draws(run.seed, range(_EPOCHS * _STEPS), examples, 128, stream)
    for step, rows in enumerate(draws):
        batch = dataset.train.take(rows)
        totals = [torch.zeros_like(w) for w in weights]
        for image, label in zip(batch["image"].double(), batch["label"], strict=True):
            loss = functional.cross_entropy(model(image[None]), label[None])
            found = torch.autograd.grad(loss, weights)
            norm = float(torch.cat([g.flatten() for g in found]).norm())
            scale = min(1.0, _CLIP / norm)
            totals = [t + g * scale for t, g in zip(totals, found, strict=True)]
        path = ("privacy", stamp_of(run, dataset.content), repr(_NOISE * _CLIP))
        generator = numpy_generator(seed(run.seed, "dropout", step), *path)
        count = sum(w.numel() for w in weights)
        noise = torch.from_numpy(generator.standard_normal(count, dtype=np.float32))
        parts_of_noise = torch.split(noise, [w.numel() for w in weights])
        for w, total, drawn in zip(weights, totals, parts_of_noise, strict=True):
            w.grad = (total + drawn.view_as(w) * _NOISE * _CLIP) / 128 + 0.01 * w.detach()
        optimizer.step()

    for directory in ("whole", "parts"):
        for name, value in weights_of(tmp_path / directory).items():
            wanted = model.state_dict()[name].float()
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)


def test_two_ranks_are_one_on_torchrun(alone: Path, tmp_path: Path) -> None:
    two = train(tmp_path, *TORCHRUN, *_PRIVATE, epochs=_EPOCHS)
    assert_close(alone, two)
    assert result_of(two)["privacy"] == result_of(alone)["privacy"]
    assert result_of(two)["examples_seen"] == result_of(alone)["examples_seen"]
    assert (two / "privacy.jsonl").read_text() == (alone / "privacy.jsonl").read_text()
    losses = [e["train/loss"] for e in events_of(alone, "train")]
    assert [e["train/loss"] for e in events_of(two, "train")] == pytest.approx(losses, rel=1e-5)


@pytest.mark.slow
def test_canaries_are_among_the_examples_of_torchruns_workers(tmp_path: Path) -> None:
    planted = (*_PRIVATE, "audit.canaries=200")
    one = train(tmp_path / "one", *INLINE, *planted, epochs=1)
    two = train(tmp_path / "two", *TORCHRUN, *planted, epochs=1)
    assert_close(one, two)
    assert result_of(two)["examples_seen"] == result_of(one)["examples_seen"]


@pytest.mark.slow
def test_two_ranks_are_one_on_ray(alone: Path, ray_session: object, tmp_path: Path) -> None:
    assert_close(alone, train(tmp_path, *RAY, *_PRIVATE, epochs=_EPOCHS))


def test_epsilon_is_what_dp_accounting_says_of_all_steps(alone: Path) -> None:
    told = result_of(alone)["privacy"]
    assert (told["releases"], told["clip"]) == (_EPOCHS * _STEPS, _CLIP)
    once = PoissonSampledDpEvent(128 / 1294, GaussianDpEvent(_NOISE))
    spent = pld.PLDAccountant().compose(SelfComposedDpEvent(once, _EPOCHS * _STEPS))
    assert told["epsilon"] == pytest.approx(spent.get_epsilon(told["delta"]))
    bounds = [event["privacy/epsilon_rdp"] for event in events_of(alone, "train")]
    assert bounds[0] < bounds[1] == pytest.approx(told["epsilon_rdp"])
    assert told["epsilon"] < bounds[1]


def test_an_example_whose_loss_is_no_number_adds_nothing_and_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the run ends must not tell of an example."""
    ends = []
    for name, odd in (("none", math.nan), ("overflows", 3e38)):

        def spoiled(*given: Any, odd: float = odd, **more: Any) -> Dataset:
            def spoil(images: torch.Tensor) -> torch.Tensor:
                images = images.clone()
                images[:8] = odd  # so many that each epoch draws one
                return images

            dataset = load(*given, **more)
            return replace(dataset, train=with_images(dataset.train, spoil))

        monkeypatch.setattr("distributed.loop.training_data.load", spoiled)
        often = ("distributed.checkpoint_every_steps=8", "distributed.log_every_steps=5")
        whole = train(tmp_path / name, *INLINE, *_PRIVATE, *often, epochs=2)
        parts = cut(whole, tmp_path / f"{name} cut", after=1)
        train(parts, *INLINE, *_PRIVATE, *often, "resume=true", epochs=2)
        assert_same_tensors(weights_of(whole), weights_of(parts))
        assert all(bool(value.isfinite().all()) for value in weights_of(whole).values())
        assert [event["train/loss"] for event in events_of(parts, "train")][-1] is None
        ends.append(weights_of(whole))
    assert_same_tensors(*ends)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_run_that_goes_on_is_one_in_one_go_and_charged_once(
    optimizer: str, tmp_path: Path
) -> None:
    choice = [*INLINE, *_PRIVATE, f"optimizer={optimizer}", "model.dropout=0.2"]
    whole = train(tmp_path / "whole", *choice, epochs=3)
    often = ("distributed.checkpoint_every_steps=4", "distributed.keep_last=9")
    killed = train(tmp_path / "killed", *choice, *often, epochs=2)
    parts = cut(killed, tmp_path / "parts", after=1)  # in the first epoch
    train(parts, *choice, "resume=true", epochs=3)
    assert_same_tensors(weights_of(whole), weights_of(parts))
    assert events_of(whole, "train", "evaluate") == events_of(parts, "train", "evaluate")
    assert result_of(whole)["privacy"] == result_of(parts)["privacy"]


def test_epochs_that_follow_others_of_other_settings_have_noise_of_their_own(
    tmp_path: Path,
) -> None:
    directory, noise = tmp_path / "run", "distributed.privacy.delta=1e-4"
    for epoch, device in enumerate(("auto", "cpu", "auto"), start=1):
        resumed = (f"device={device}", f"resume={str(epoch > 1).lower()}")
        train(directory, *INLINE, *_PRIVATE, noise, *resumed, epochs=epoch)
    lines = map(json.loads, (directory / "privacy.jsonl").read_text().splitlines())
    stamps = [line["release"].split()[-1] for line in lines if line["release"] != PLANNED]
    assert len(stamps) == len(set(stamps)) == 3


@pytest.mark.slow
def test_a_run_ends_where_its_budget_does_also_when_it_goes_on(tmp_path: Path) -> None:
    choice = [*INLINE, *_PRIVATE, "distributed.privacy.target_epsilon=4.2"]
    train(tmp_path, *choice, epochs=9)
    told = result_of(tmp_path)
    assert 1 <= told["epochs"] < 9
    assert told["privacy"]["epsilon"] <= 4.2
    before = weights_of(tmp_path)
    train(tmp_path, *choice, "resume=true", epochs=12)
    assert result_of(tmp_path)["privacy"] == told["privacy"]
    assert_same_tensors(before, weights_of(tmp_path))


@pytest.mark.slow
def test_noise_is_found_for_a_target_and_kept(tmp_path: Path) -> None:
    choice = [*INLINE, *_PRIVATE[:-1], "distributed.privacy.target_epsilon=3.0"]
    train(tmp_path, *choice, epochs=2)
    told = result_of(tmp_path)["privacy"]
    assert told["releases"] == 2 * _STEPS
    assert 2.9 < told["epsilon"] <= 3.0
    ledger = Ledger(tmp_path / "privacy.jsonl")
    ledger.close()
    planned = ledger.latest
    assert planned is not None
    assert planned.noise_multiplier == told["noise_multiplier"]
