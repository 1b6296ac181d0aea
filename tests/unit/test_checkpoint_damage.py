"""Damaged checkpoints are refused by name, and crashes and power loss leave a good one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from heliotrope.errors import CheckpointError
from heliotrope.runs import checkpoint
from tests.checkpoints import FILES, example, refuse
from tests.support import assert_same_tensors, fresh_seed


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


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
