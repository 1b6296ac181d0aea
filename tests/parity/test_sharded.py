"""FSDP2: sharded workers give what whole ones give, and their checkpoints are whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import distributed.launch.torchrun
from heliotrope.commands.evaluate import evaluate_run
from tests.distributed_runs import INLINE, RAY, TORCHRUN, assert_close, cut, result_of, train
from tests.support import assert_same_tensors, weights_of

pytestmark = pytest.mark.usefixtures("no_report")

_FSDP = "distributed.strategy=fsdp"
_EPOCHS = 2
# Everything that has to do with gradients; the last batch leaves micro-batches without examples.
_ALL = (
    "model=cnn",
    "model.channels=[4]",
    "model.kernel_size=3",
    "optimizer=adamw",
    "optimizer.lr=0.002",
    "optimizer.clip_norm=0.5",
    "loss.l1=0.0001",
    "distributed.batch_size=322",
    "distributed.accumulation_steps=7",
    "distributed.lr_warmup_steps=2",
)
_ROUNDING = {"rtol": 1e-3, "atol": 1e-5}  # AdamW divides small gradients by smaller ones


@pytest.mark.parametrize("launcher", [RAY, TORCHRUN], ids=["ray", "torchrun"])
def test_sharded_workers_are_one_worker_and_resume_exactly(
    launcher: tuple[str, ...], ray_session: object, tmp_path: Path
) -> None:
    alone = train(tmp_path / "alone", *INLINE, *_ALL, epochs=_EPOCHS)
    whole = train(tmp_path / "whole", *launcher, *_ALL, _FSDP, epochs=_EPOCHS)
    assert_close(alone, whole, **_ROUNDING)
    for name, value in evaluate_run(whole).items():
        assert result_of(whole)["metrics"][name] == pytest.approx(value, rel=1e-6), name

    parts = cut(whole, tmp_path / "parts", after=1)
    train(parts, *launcher, *_ALL, _FSDP, "resume=true", epochs=_EPOCHS)
    assert_same_tensors(weights_of(whole), weights_of(parts))

    other = cut(whole, tmp_path / "other", after=1)
    train(other, *INLINE, *_ALL, "resume=true", epochs=_EPOCHS)
    assert_close(alone, other, **_ROUNDING)


def test_each_worker_writes_its_part_and_any_number_of_them_goes_on(
    ray_session: object, tmp_path: Path
) -> None:
    uneven = (*_ALL, "model.channels=[3]", "distributed.ema_decay=0.9")
    alone = train(tmp_path / "alone", *INLINE, *uneven, epochs=_EPOCHS)
    sharded = (*RAY, *uneven, _FSDP, "distributed.sharded_checkpoints=true")
    whole = train(tmp_path / "whole", *sharded, epochs=_EPOCHS)
    assert_close(alone, whole, **_ROUNDING)
    newest = max((whole / "checkpoints").iterdir())
    assert {file.name for file in newest.glob("model.*")} == {
        "model.0.safetensors",
        "model.1.safetensors",
    }
    for name, value in evaluate_run(whole).items():
        assert result_of(whole)["metrics"][name] == pytest.approx(value, rel=1e-6), name

    parts = cut(whole, tmp_path / "parts", after=1)
    train(parts, *sharded, "resume=true", epochs=_EPOCHS)
    assert_same_tensors(weights_of(whole), weights_of(parts))

    other = cut(whole, tmp_path / "other", after=1)
    train(other, *INLINE, *uneven, "resume=true", epochs=_EPOCHS)
    assert_close(alone, other, **_ROUNDING)


@pytest.mark.slow
def test_a_worker_may_have_nothing_of_a_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed.launch.torchrun, "available_cpus", lambda: 3)
    narrow = (*_ALL, "loss.l2=0.001", "model.channels=[2]")  # two rows for three workers
    sharded = (*TORCHRUN, "distributed.workers=3", _FSDP, "distributed.sharded_checkpoints=true")
    alone = train(tmp_path / "alone", *INLINE, *narrow, epochs=_EPOCHS)
    whole = train(tmp_path / "whole", *narrow, *sharded, epochs=_EPOCHS)
    assert_close(alone, whole, **_ROUNDING)
    parts = cut(whole, tmp_path / "parts", after=1)
    train(parts, *narrow, *sharded, "resume=true", epochs=_EPOCHS)
    assert_same_tensors(weights_of(whole), weights_of(parts))


def test_a_run_begun_whole_goes_on_sharded(ray_session: object, tmp_path: Path) -> None:
    alone = train(tmp_path / "alone", *INLINE, *_ALL, epochs=_EPOCHS)
    parts = cut(alone, tmp_path / "parts", after=1)
    train(parts, *RAY, *_ALL, _FSDP, "resume=true", epochs=_EPOCHS)
    assert_close(alone, parts, **_ROUNDING)


@pytest.mark.parametrize(
    "feature",
    [
        pytest.param("distributed.precision=bf16", marks=pytest.mark.slow),
        "distributed.precision=fp16",
        pytest.param("distributed.activation_checkpointing=true", marks=pytest.mark.slow),
    ],
)
def test_half_precision_and_recomputing_work_sharded(
    feature: str, ray_session: object, tmp_path: Path
) -> None:
    plain = train(tmp_path / "plain", *RAY, *_ALL, _FSDP, epochs=_EPOCHS)
    other = train(tmp_path / "other", *RAY, *_ALL, _FSDP, feature, epochs=_EPOCHS)
    if "precision" in feature:
        with_half, with_full = (result_of(run)["metrics"]["test/loss"] for run in (other, plain))
        assert with_half != with_full
        assert with_half == pytest.approx(with_full, rel=0.05)
    else:
        assert_close(plain, other, **_ROUNDING)
    assert {value.dtype for value in weights_of(other).values()} == {torch.float32}


@pytest.mark.slow
def test_compiled_parts_take_the_same_steps(ray_session: object, tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", *RAY, *_ALL, _FSDP, epochs=_EPOCHS)
    compiled = (*RAY, *_ALL, _FSDP, "distributed.compile=true")
    whole = train(tmp_path / "compiled", *compiled, epochs=_EPOCHS)
    assert_close(plain, whole, **_ROUNDING)
    parts = cut(whole, tmp_path / "parts", after=1)
    train(parts, *compiled, "resume=true", epochs=_EPOCHS)
    assert_same_tensors(weights_of(whole), weights_of(parts))


def test_bytes_are_those_of_gradients_and_gathered_weights(
    ray_session: object, tmp_path: Path
) -> None:
    out = train(tmp_path, *RAY, _FSDP, "distributed.accumulation_steps=2", epochs=1)
    result = json.loads((out / "result.json").read_text())
    once = 4 * result["parameters"] * result["steps"]  # float32
    assert (result["bytes_up"], result["bytes_down"]) == (once, 4 * once)
