"""Checkpoints survive damage, crashes and power loss, or say loudly that they did not."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from heliotrope.errors import CheckpointError, ConfigError
from heliotrope.runs import checkpoint
from heliotrope.runs.checkpoint import Checkpoint, Shard
from heliotrope.system.tensor_file import write_tensors
from tests.checkpoints import example, refuse
from tests.support import assert_same_tensors, fresh_seed, mapped_from


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(fresh_seed())
    model = {
        "float": torch.randn(3, 5, generator=generator),
        "double": torch.randn(7, generator=generator, dtype=torch.float64) * 1e300,
        "half": torch.randn(2, 2, generator=generator).to(torch.bfloat16),
        "special": torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45]),
        "int": torch.randint(-(2**63), 2**63 - 1, (4,), generator=generator),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.empty(0, 4),
    }
    state = {"float": 0.1 + 0.2, "int": 2**80, "none": None, "nested": {"list": [1, "é", True]}}
    written = checkpoint.save(tmp_path, Checkpoint(12, model, dict(model), state))
    read = checkpoint.load(written)
    assert read.progress == 12
    assert_same_tensors(dict(read.model), model)
    assert_same_tensors(dict(read.arrays), model)
    assert read.state == state


def test_views_and_tied_arrays_are_stored_as_what_they_show(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    model = {"a": whole, "tied": whole, "slice": whole[1:3], "transposed": whole.T}
    model["needs_grad"] = whole.clone().requires_grad_()
    read = checkpoint.load(checkpoint.save(tmp_path, Checkpoint(1, model)))
    assert_same_tensors(dict(read.model), {name: t.detach() for name, t in model.items()})


def test_no_checkpoint_is_not_an_error(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path, refuse) is None
    assert checkpoint.latest(tmp_path / "nowhere", refuse) is None


def test_newest_few_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    for progress in (1, 2, 9, 10, 11, 100):
        checkpoint.save(tmp_path, example(progress))
    kept = sorted(int(path.name) for path in tmp_path.iterdir())
    assert kept == [10, 11, 100]
    newest = checkpoint.latest(tmp_path, refuse)
    assert newest is not None
    assert newest.progress == 100


def test_progress_beyond_the_padding_is_still_the_newest(tmp_path: Path) -> None:
    for progress in (99_999_999, 100_000_000):
        checkpoint.save(tmp_path, example(progress))
    newest = checkpoint.latest(tmp_path, refuse)
    assert newest is not None
    assert newest.progress == 100_000_000


def test_strangers_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "best").mkdir()
    for progress in range(6):
        checkpoint.save(tmp_path, example(progress))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "best").is_dir()


# --- weights into a model -----------------------------------------------------------------


def test_weights_go_into_the_model_in_its_own_dtype(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 3)
    wanted = {"weight": torch.full((3, 2), 0.5, dtype=torch.float64), "bias": torch.ones(3)}
    checkpoint.load_weights(model, wanted, tmp_path)
    assert model.weight.dtype == torch.float32
    assert torch.equal(model.weight, torch.full((3, 2), 0.5))
    assert torch.equal(model.bias, torch.ones(3))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w | {"weight": torch.zeros(4, 2)}, r"weight is \[4, 2\] there and \[3, 2\] in"),
        (lambda w: {"weight": w["weight"]}, r"bias is absent there and \[3\] in"),
        (lambda w: w | {"scale": torch.ones(1)}, r"scale is \[1\] there and absent in"),
    ],
    ids=["shape", "missing", "extra"],
)
def test_weights_of_another_model_are_refused_naming_the_array(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], named: str
) -> None:
    model = torch.nn.Linear(2, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = change({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)})
    with pytest.raises(ConfigError, match=named) as caught:
        checkpoint.load_weights(model, other, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "Set model.*" in str(caught.value)
    assert_same_tensors(model.state_dict(), before)


def test_files_are_those_that_the_safetensors_library_writes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(fresh_seed())
    kinds = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    kinds += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
    tensors = {
        f"{number}.{kind}": torch.randint(0, 2, shape, generator=generator).to(kind)
        for kind in kinds
        for number, shape in enumerate([(), (0,), (3,), (2, 5), (4, 1, 3)])
    }
    tensors["transposed"] = torch.rand(3, 4, generator=generator).T
    write_tensors(tmp_path / "ours", tensors)
    theirs = {name: tensor.contiguous() for name, tensor in tensors.items()}
    assert_same_tensors(safetensors.torch.load_file(tmp_path / "ours"), theirs)


def _cut(whole: Checkpoint, number: int) -> Checkpoint:
    """Return one of two parts; what is not cut, such as a scalar, is in the first."""
    sides = [
        {
            name: value.tensor_split(2)[number] if value.dim() else value
            for name, value in tensors.items()
            if value.dim() or number == 0
        }
        for tensors in (whole.model, whole.arrays)
    ]
    return Checkpoint(whole.progress, *sides, whole.state if number == 0 else {})


@pytest.mark.parametrize("first", [0, 1])
def test_parts_that_two_processes_write_are_one_checkpoint(first: int, tmp_path: Path) -> None:
    whole = example(3, size=5)
    whole = replace(whole, arrays={**whole.arrays, "step": torch.tensor(7.0)})
    stale = tmp_path / ".00000003.tmp1" / "part.1.json"
    stale.parent.mkdir()
    stale.write_text("{}")

    def write(number: int) -> None:
        part = Shard(number, 2, "2")
        if number:
            checkpoint.save_shard(tmp_path, _cut(whole, 1), part)
        else:
            checkpoint.save(tmp_path, _cut(whole, 0), part=part)

    with ThreadPoolExecutor() as pool:
        earlier = pool.submit(write, first)
        time.sleep(0.05)
        write(1 - first)
        earlier.result(timeout=10)

    assert [path.name for path in tmp_path.iterdir()] == ["00000003"]
    read = checkpoint.latest(tmp_path, refuse)
    assert read is not None
    assert read.state == whole.state
    assert_same_tensors(dict(read.model), dict(whole.model))
    assert_same_tensors(dict(read.arrays), dict(whole.arrays))

    damaged = tmp_path / "00000003" / "model.1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"model\.1\.safetensors fails its checksum"):
        checkpoint.load(tmp_path / "00000003")


def test_a_part_that_never_comes_is_awaited_only_while_there_is_hope(tmp_path: Path) -> None:
    hopes = iter([True, True, False])
    with pytest.raises(CheckpointError, match=r"part\.1\.json was never written"):
        checkpoint.save(
            tmp_path, _cut(example(3), 0), part=Shard(0, 2, "2"), go_on=lambda: next(hopes)
        )
    with pytest.raises(CheckpointError, match=r"part\.1\.json was never written"):
        checkpoint.save(tmp_path, _cut(example(3), 0), part=Shard(0, 2, "2", patience=0.05))
    assert checkpoint.latest(tmp_path, refuse) is None
    checkpoint.save(tmp_path, example(4))
    assert [path.name for path in tmp_path.iterdir()] == ["00000004"]


def test_what_is_mapped_is_what_is_read(tmp_path: Path) -> None:
    drawn = torch.randn(9, generator=torch.Generator().manual_seed(fresh_seed()))
    whole = replace(example(3, size=5), arrays={"cut": drawn, "step": torch.tensor(7.0)})
    parts = [_cut(whole, number) for number in (0, 1)]
    with ThreadPoolExecutor() as pool:
        other = pool.submit(checkpoint.save_shard, tmp_path, parts[1], Shard(1, 2, "2"))
        path = checkpoint.save(tmp_path, parts[0], part=Shard(0, 2, "2"))
        other.result(timeout=10)
    mapped, read = checkpoint.latest(tmp_path, refuse, mapped=True), checkpoint.load(path)
    assert mapped is not None
    assert mapped_from(mapped.arrays["step"]) == str(path / "state.0.safetensors")
    assert not mapped_from(read.arrays["step"]).startswith(str(path))
    assert mapped.state == read.state
    assert list(mapped.arrays) == list(read.arrays)
    assert_same_tensors(dict(mapped.model), dict(whole.model))
    assert_same_tensors(dict(mapped.arrays), dict(whole.arrays))

    damaged = path / "state.1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"state\.1\.safetensors fails its checksum"):
        checkpoint.load(path, mapped=True)


def test_a_tensor_that_one_process_alone_has_is_read_too(tmp_path: Path) -> None:
    own = [{f"{number}/weight": torch.full((2,), float(number))} for number in (0, 1)]
    parts = [Checkpoint(3, {}, arrays, {}) for arrays in own]
    with ThreadPoolExecutor() as pool:
        other = pool.submit(checkpoint.save_shard, tmp_path, parts[1], Shard(1, 2, "2"))
        path = checkpoint.save(tmp_path, parts[0], part=Shard(0, 2, "2"))
        other.result(timeout=10)
    assert_same_tensors(dict(checkpoint.load(path).arrays), own[0] | own[1])
