"""Checkpoints survive damage, crashes and power loss, or say loudly that they did not."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from heliotrope.errors import CheckpointError, ConfigError
from heliotrope.runs import checkpoint
from heliotrope.runs.checkpoint import Checkpoint, Shard
from heliotrope.system.tensor_file import write_tensors
from tests.support import assert_same_tensors, fresh_seed

FILES = ("model.safetensors", "state.safetensors", "state.json", "manifest.json")


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def example(progress: int, size: int = 4) -> Checkpoint:
    generator = torch.Generator().manual_seed(progress)
    return Checkpoint(
        progress=progress,
        model={"0.weight": torch.randn(size, 3, generator=generator), "0.bias": torch.zeros(size)},
        arrays={"momentum": torch.randn(size, generator=generator)},
        state={"round": progress, "history": [0.5, None, "text"]},
    )


def refuse(line: str) -> None:
    pytest.fail(f"a good checkpoint was refused: {line}")


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


# --- damage -------------------------------------------------------------------------------


def flip_one_bit(data: bytes, generator: np.random.Generator) -> bytes:
    position, bit = int(generator.integers(len(data))), int(generator.integers(8))
    print(f"flipped bit {bit} of byte {position} of {len(data)}")
    damaged = bytearray(data)
    damaged[position] ^= 1 << bit
    return bytes(damaged)


def flip_one_byte(data: bytes, generator: np.random.Generator) -> bytes:
    position, change = int(generator.integers(len(data))), int(generator.integers(1, 256))
    print(f"byte {position} of {len(data)} xor {change}")
    damaged = bytearray(data)
    damaged[position] ^= change
    return bytes(damaged)


def truncate(data: bytes, generator: np.random.Generator) -> bytes:
    length = int(generator.integers(len(data)))
    print(f"truncated to {length} of {len(data)} bytes")
    return data[:length]


def extend(data: bytes, generator: np.random.Generator) -> bytes:
    return data + generator.bytes(int(generator.integers(1, 20)))


DAMAGE = (flip_one_bit, flip_one_byte, truncate, extend)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_any_damage_to_any_file_is_refused_by_its_name(
    tmp_path: Path, name: str, damage: Callable[[bytes, np.random.Generator], bytes]
) -> None:
    generator = np.random.default_rng(fresh_seed())
    path = checkpoint.save(tmp_path, example(5))
    good = (path / name).read_bytes()
    for _ in range(25):
        (path / name).write_bytes(damage(good, generator))
        with pytest.raises(CheckpointError, match=str(path)):
            checkpoint.load(path)
    (path / name).write_bytes(good)
    assert checkpoint.load(path).progress == 5


def test_every_single_bit_of_the_manifest_counts(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, example(5)) / "manifest.json"
    good = path.read_bytes()
    for position in range(len(good)):
        for bit in range(8):
            damaged = bytearray(good)
            damaged[position] ^= 1 << bit
            path.write_bytes(bytes(damaged))
            with pytest.raises(CheckpointError):
                checkpoint.load(path.parent)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    path = checkpoint.save(tmp_path, example(5))
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(path)


@pytest.mark.parametrize("content", ["", "null", "[]", "3", '"text"', "{}", "{", "\x00\xff"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    path = checkpoint.save(tmp_path, example(5))
    (path / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=str(path)):
        checkpoint.load(path)


def test_files_swapped_between_checkpoints_are_refused(tmp_path: Path) -> None:
    a, b = (checkpoint.save(tmp_path, example(progress)) for progress in (1, 2))
    shutil.copy(a / "model.safetensors", b / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        checkpoint.load(b)


def test_another_schema_is_refused_with_its_number(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, example(5)) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    with pytest.raises(CheckpointError, match="schema 99"):
        checkpoint.load(path.parent)


@pytest.mark.parametrize("damaged", [1, 2])
def test_falls_back_past_damaged_ones_and_says_so_for_each(tmp_path: Path, damaged: int) -> None:
    for progress in (10, 20, 30):
        checkpoint.save(tmp_path, example(progress))
    for progress in (30, 20)[:damaged]:
        (tmp_path / f"{progress:08d}" / "model.safetensors").write_bytes(b"torn")
    lines: list[str] = []
    found = checkpoint.latest(tmp_path, lines.append)
    assert found is not None
    assert found.progress == (20, 10)[damaged - 1]
    assert len(lines) == damaged
    for line, progress in zip(lines, (30, 20), strict=False):
        assert f"{progress:08d}/model.safetensors" in line


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    for progress in (1, 2):
        (checkpoint.save(tmp_path, example(progress)) / "state.json").unlink()
    with pytest.raises(CheckpointError, match=rf"All 2 checkpoints under {tmp_path}"):
        checkpoint.latest(tmp_path, lambda _: None)


def test_what_is_saved_after_a_fallback_outlives_the_damaged_newer_ones(tmp_path: Path) -> None:
    for progress in (70, 80, 90):
        (checkpoint.save(tmp_path, example(progress)) / "model.safetensors").write_bytes(b"")
    checkpoint.save(tmp_path, example(51))
    found = checkpoint.latest(tmp_path, lambda _: None)
    assert found is not None
    assert found.progress == 51


# --- crashes ------------------------------------------------------------------------------


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it and tidy up."""


STEPS = ("fsync", "rename", "mkdir", "rmdir", "unlink")


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Cut the power before the file-system call number `step`, counted from now."""
    count = 0

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal count
            count += 1
            if count > step:
                raise PowerCut
            return real(*args, **kwargs)

        return call

    for name in STEPS:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))


@pytest.mark.parametrize("progress", [20, 30], ids=["same progress again", "next progress"])
def test_a_crash_at_any_step_leaves_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: int
) -> None:
    steps = 0
    while True:
        root = tmp_path / str(steps)
        for earlier in (10, 20):
            checkpoint.save(root, example(earlier))
        replacement = example(progress, size=8)
        with monkeypatch.context() as patch:
            interrupt_at(patch, steps)
            try:
                checkpoint.save(root, replacement)
                finished = True
            except PowerCut:
                finished = False
        found = checkpoint.latest(root, refuse)
        assert found is not None, f"cut before step {steps}: nothing is left"
        assert found.progress in (20, progress)
        whole = replacement if len(found.model["0.bias"]) == 8 else example(20)
        assert_same_tensors(dict(found.model), dict(whole.model))
        # Life goes on, and the remains of the crash are swept away.
        checkpoint.save(root, example(40))
        checkpoint.save(root, example(50))
        checkpoint.save(root, example(60))
        assert sorted(path.name for path in root.iterdir()) == ["00000040", "00000050", "00000060"]
        if finished:
            break
        steps += 1
    assert steps >= 8, "the steps of a save were not counted"


def test_all_bytes_are_on_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[str] = set()
    unsynced: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        synced.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real_fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        needed = [source, *Path(source).iterdir()]
        unsynced.extend(str(path) for path in needed if str(path) not in synced)
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    checkpoint.save(tmp_path.resolve(), example(1))
    assert unsynced == []
    assert str(tmp_path.resolve()) in synced, "the new name itself was not made durable"


def test_a_full_disk_is_a_run_failure_that_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, example(1))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left") as caught:
        checkpoint.save(tmp_path, example(2))
    assert str(tmp_path) in str(caught.value)
    assert "resume=true" in str(caught.value)
    found = checkpoint.latest(tmp_path, refuse)
    assert found is not None
    assert found.progress == 1


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
