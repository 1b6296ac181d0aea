"""Files of a run on nodes that do not share its directory: what a worker writes is the driver's."""

from __future__ import annotations

import random
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from distributed.attempt import RunAttempt
from distributed.launch.node_files import NodeDirectory, given_to_nodes, is_part, write_changes
from heliotrope.runs import checkpoint
from heliotrope.runs.checkpoint import Checkpoint, Shard
from tests.support import assert_same_tensors, fresh_seed


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    made = tmp_path / "driver"
    made.mkdir()
    (made / "metrics.jsonl").write_bytes(b'{"event": "start"}\n')
    return made


def _node(rank: int, driver: Path) -> NodeDirectory:
    return NodeDirectory(rank, {"metrics.jsonl": (driver / "metrics.jsonl").read_bytes()})


def _files(root: Path) -> dict[str, bytes]:
    found = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def test_the_driver_has_what_number_0_writes_changes_and_removes(driver: Path) -> None:
    draw = random.Random(fresh_seed())
    node = _node(0, driver)
    for step in range(30):
        folder = node.path / f"checkpoints/{draw.randrange(3)}"
        if draw.random() < 0.3:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "state.json").write_bytes(draw.randbytes(draw.randrange(20)))
            (folder / "manifest.json").write_text(str(step))
        with (node.path / "metrics.jsonl").open("a") as file:
            file.write(f"{step}\n" * draw.randrange(3))
        (node.path / "checkpoints/.7.tmpabc").mkdir(parents=True, exist_ok=True)
        (node.path / "checkpoints/.7.tmpabc/model.0.safetensors").write_bytes(b"half")
        (node.path / ".workers").touch()
        if draw.random() < 0.7:
            write_changes(driver, node.changes())
    write_changes(driver, node.changes())
    there = {name: text for name, text in _files(node.path).items() if ".tmp" not in name}
    del there[".workers"]
    assert _files(driver) == there
    assert node.changes().whole == {}
    node.remove()
    assert not node.path.exists()


def test_checkpoints_that_are_not_kept_are_removed_also_if_another_attempt_wrote_them(
    driver: Path,
) -> None:
    root, weight = driver / "checkpoints", {"weight": torch.zeros(2)}
    for progress in (1, 2, 3):
        checkpoint.save(root, Checkpoint(progress, weight))
    given = given_to_nodes(cast("RunAttempt", SimpleNamespace(directory=driver, checkpoint=3)))
    node = NodeDirectory(0, given)
    at = node.path / "checkpoints"
    assert checkpoint.load(checkpoint.path_of(at, 3)).progress == 3
    checkpoint.save(at, Checkpoint(4, weight), keep_last=2, keep=[1])
    write_changes(driver, node.changes())
    assert sorted(path.name for path in root.iterdir()) == ["00000001", "00000003", "00000004"]
    assert all(checkpoint.load(path).model for path in root.iterdir())
    node.remove()


def test_a_manifest_is_written_after_the_files_it_is_of(driver: Path) -> None:
    node = _node(0, driver)
    folder = node.path / "checkpoints/00000001"
    folder.mkdir(parents=True)
    for name in ("manifest.json", "model.safetensors", "state.json"):
        (folder / name).write_text(name)
    assert [*node.changes().whole][-1] == "checkpoints/00000001/manifest.json"
    node.remove()


def test_logs_are_told_in_whole_lines_and_other_ranks_add_to_the_drivers(driver: Path) -> None:
    (driver / "run.log").write_text("driver: begins\n")
    node = _node(1, driver)
    with (node.path / "run.log").open("a") as log:
        log.write("rank 1: a\nrank 1: ha")
        log.flush()
        write_changes(driver, node.changes())
        assert (driver / "run.log").read_text() == "driver: begins\nrank 1: a\n"
        log.write("lf\n")
    write_changes(driver, node.changes())
    assert (driver / "run.log").read_text() == "driver: begins\nrank 1: a\nrank 1: half\n"
    assert (driver / "metrics.jsonl").read_text() == '{"event": "start"}\n'
    node.remove()


def test_parts_of_a_checkpoint_meet_at_number_0_and_the_whole_comes_to_the_driver(
    driver: Path,
) -> None:
    generator = torch.Generator().manual_seed(fresh_seed() % 2**31)
    whole = {name: torch.randn(4, 3, generator=generator) for name in ("weight", "bias")}
    nodes = [_node(rank, driver) for rank in range(3)]
    cuts = [slice(0, 2), slice(2, 3), slice(3, 4)]

    def write(rank: int) -> None:
        part = Shard(rank, 3, "token", patience=20)
        mine = {name: tensor[cuts[rank]].contiguous() for name, tensor in whole.items()}
        root, present = nodes[rank].path / "checkpoints", Checkpoint(7, mine, {}, {"epoch": 1})
        if rank:
            checkpoint.save_shard(root, present, part)
        else:
            checkpoint.save(root, present, part=part)

    writers = [threading.Thread(target=write, args=(rank,)) for rank in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        for rank in (1, 2):
            told = nodes[rank].changes()
            assert all(map(is_part, told.whole))
            nodes[0].write(told)
        assert not any(map(is_part, nodes[0].changes().whole)), "only whole checkpoints"
    for writer in writers:
        writer.join()
    fresh = NodeDirectory(0, {})
    shutil.copytree(nodes[0].path, fresh.path, dirs_exist_ok=True)
    write_changes(driver, fresh.changes())
    assert_same_tensors(dict(checkpoint.load(driver / "checkpoints/00000007").model), whole)
    assert not _files(nodes[1].path / "checkpoints"), "a part that was told is removed"
    for node in (*nodes, fresh):
        node.remove()
