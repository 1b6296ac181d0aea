"""Each training feature: two workers are one, and a resumed run is an uninterrupted one."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch.amp import GradScaler

import distributed.strategies.engine
from heliotrope.commands.evaluate import evaluate_run
from tests.distributed_runs import INLINE, RAY, assert_close, cut, result_of, train
from tests.support import assert_same_tensors, events_of, saved_by, weights_of

pytestmark = pytest.mark.usefixtures("no_report")

# The last batch of 1294 training examples is ragged: 1294 = 10 * 128 + 14.
FEATURES: dict[str, tuple[str, ...]] = {
    "accumulation": ("distributed.accumulation_steps=4",),
    "smoothing and penalties": (
        "loss.label_smoothing=0.1",
        "loss.l1=0.0001",
        "loss.l2=0.001",
        "distributed.accumulation_steps=2",
    ),
    "mixup": ("distributed.mixup=0.4", "distributed.accumulation_steps=2"),
    "ema": ("distributed.ema_decay=0.9", "optimizer=adam", "distributed.accumulation_steps=2"),
    "adafactor and recomputed activations": (
        "optimizer=adafactor",
        "optimizer.clip_norm=0.5",
        "distributed.activation_checkpointing=true",
        "distributed.accumulation_steps=2",
    ),
    "logged steps": ("distributed.log_every_steps=2", "distributed.accumulation_steps=2"),
    "warm-up": ("distributed.lr_warmup_steps=5", "distributed.lr_schedule=cosine"),
    "step": ("distributed.lr_schedule=step", "distributed.lr_decay_steps=4"),
    "one cycle": ("distributed.lr_schedule=one_cycle",),
}
_SELDOM = ("logged steps", "step", "one cycle", "accumulation")  # parts of the others
_EPOCHS = 2


@pytest.mark.parametrize(
    "feature",
    [pytest.param(name, marks=pytest.mark.slow if name in _SELDOM else ()) for name in FEATURES],
)
def test_two_ray_workers_are_one_and_a_resumed_run_is_a_whole_one(
    feature: str, ray_session: object, tmp_path: Path
) -> None:
    overrides = FEATURES[feature]
    whole = train(tmp_path / "whole", *INLINE, *overrides, epochs=_EPOCHS)
    assert_close(whole, train(tmp_path / "ray", *RAY, *overrides, epochs=_EPOCHS))

    parts = cut(whole, tmp_path / "parts", after=1)
    train(parts, *INLINE, "resume=true", *overrides, epochs=_EPOCHS)
    assert_same_tensors(weights_of(whole), weights_of(parts))
    assert events_of(whole) == events_of(parts)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_about_as_well_and_resumes_exactly(
    precision: str, ray_session: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the scale of float16 would be the first one all the time.
    sooner = functools.partial(GradScaler, init_scale=1024.0, growth_interval=8)
    monkeypatch.setattr(distributed.strategies.engine, "GradScaler", sooner)
    half = [f"distributed.precision={precision}", "distributed.accumulation_steps=2"]
    half += ["optimizer.clip_norm=1.0"]
    full = train(tmp_path / "full", *INLINE, "optimizer.clip_norm=1.0", epochs=_EPOCHS)
    whole = train(tmp_path / "whole", *INLINE, *half, epochs=_EPOCHS)
    for value in weights_of(whole).values():
        assert value.dtype == torch.float32
    with_half, with_full = (result_of(run)["metrics"]["test/loss"] for run in (whole, full))
    assert with_half != with_full
    assert with_half == pytest.approx(with_full, rel=0.05)

    parts = cut(whole, tmp_path / "parts", after=1)
    train(parts, *INLINE, "resume=true", *half, epochs=_EPOCHS)
    assert_same_tensors(weights_of(whole), weights_of(parts))
    scalers = [saved_by(run).state["scaler"] for run in (whole, parts)]
    assert scalers[0] == scalers[1]
    assert (scalers[0] is None) == (precision == "bf16")
    assert scalers[0] is None or scalers[0]["scale"] == 4096.0  # grown in each of the epochs
    on_ray = train(tmp_path / "ray", *RAY, *half, epochs=_EPOCHS)
    assert result_of(on_ray)["metrics"]["test/loss"] == pytest.approx(with_half, rel=0.05)


@pytest.mark.slow
def test_a_compiled_step_is_the_same_step(ray_session: object, tmp_path: Path) -> None:
    model = ["model=cnn", "model.channels=[4]", "model.kernel_size=3"]
    choice = [*model, "distributed.accumulation_steps=2", "distributed.batch_size=322"]
    compiled = [*choice, "distributed.compile=true"]
    plain = train(tmp_path / "plain", *INLINE, *choice, epochs=_EPOCHS)
    whole = train(tmp_path / "whole", *INLINE, *compiled, epochs=_EPOCHS)
    assert_close(plain, whole)
    assert_close(plain, train(tmp_path / "ray", *RAY, *compiled, epochs=_EPOCHS))
    parts = cut(whole, tmp_path / "parts", after=1)
    train(parts, *INLINE, "resume=true", *compiled, epochs=_EPOCHS)
    assert_same_tensors(weights_of(whole), weights_of(parts))


def test_averaged_weights_are_those_evaluated_and_exported(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", *INLINE, epochs=_EPOCHS)
    averaged = train(tmp_path / "ema", *INLINE, "distributed.ema_decay=0.9", epochs=_EPOCHS)
    found = saved_by(averaged)
    trained = {name.removeprefix("weights/"): value for name, value in found.arrays.items()}
    for name, value in weights_of(plain).items():
        assert torch.equal(trained[name], value), "the average must not change the training"
        assert not torch.equal(found.model[name], value)
    assert evaluate_run(averaged) == result_of(averaged)["metrics"]
    assert {event["weights"] for event in events_of(averaged, "evaluate")} == {"ema"}


def test_micro_batches_change_no_more_than_rounding(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", *INLINE, epochs=_EPOCHS)
    parts = train(tmp_path / "parts", *INLINE, *FEATURES["accumulation"], epochs=_EPOCHS)
    assert_close(whole, parts)


def test_logged_steps_add_up_to_their_epoch(ray_session: object, tmp_path: Path) -> None:
    logged = ("distributed.log_every_steps=1", "distributed.lr_schedule=linear")
    alone = train(tmp_path / "alone", *INLINE, *logged, epochs=_EPOCHS)
    both = train(tmp_path / "both", *RAY, *logged, epochs=_EPOCHS)
    steps, on_ray = (events_of(run, "step") for run in (alone, both))
    assert [event["steps"] for event in steps] == list(range(1, 11 * _EPOCHS + 1))
    rates = [event["step/lr"] for event in steps]
    assert rates == sorted(rates, reverse=True)
    for epoch, event in enumerate(events_of(alone, "train"), start=1):
        mine = [e["step/loss"] for e in steps if e["epoch"] == epoch]
        sizes = [128] * 10 + [14]
        mean = sum(n * loss for n, loss in zip(sizes, mine, strict=True)) / 1294
        assert event["train/loss"] == pytest.approx(mean, rel=1e-9)
    losses, theirs = ([event["step/loss"] for event in run] for run in (steps, on_ray))
    assert theirs == pytest.approx(losses, rel=1e-4)
