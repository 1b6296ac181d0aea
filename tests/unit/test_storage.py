"""A directory in a storage: what changed is saved, what is gone is removed, all comes back."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from heliotrope.errors import ConfigError, RunFailedError
from heliotrope.runs.storage import Storage


def _contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_a_directory_comes_back_as_it_was(protocol: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    name = secrets.token_hex(4)
    url = f"file://{tmp_path / 'store'}" if protocol == "file" else f"memory://{name}/run"
    storage = Storage(url, here)
    assert storage.bring() == 0
    for path, content in {"checkpoints/1/manifest.json": b"a", "checkpoints/1/model": b"b",
                          "metrics.jsonl": b"1\n", ".seconds": b"2"}.items():  # fmt: skip
        (here / path).parent.mkdir(parents=True, exist_ok=True)
        (here / path).write_bytes(content)
    kept = _contents(here)
    (here / ".lock").write_text("held here")
    (here / "checkpoints" / ".2.tmp1").mkdir()
    (here / "checkpoints" / ".2.tmp1" / "model").write_text("half")
    storage.save()
    assert Storage(url, there).bring() == len(kept)
    assert _contents(there) == kept
    (here / "checkpoints/1/manifest.json").unlink()
    (here / "metrics.jsonl").write_bytes(b"1\n2\n")
    storage.save()
    last = tmp_path / "last"
    Storage(url, last).bring()
    assert _contents(last) == {
        "checkpoints/1/model": b"b", "metrics.jsonl": b"1\n2\n", ".seconds": b"2"
    }  # fmt: skip


def test_a_checkpoint_is_whole_once_its_manifest_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    for name in ("result.json", "c/manifest.json", "c/state.json", "metrics.jsonl"):
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_text(name)
    storage = Storage(f"file://{tmp_path / 'store'}", tmp_path / "here")
    put = storage._files.pipe_file

    def noting(path: str, content: bytes) -> None:
        written.append(Path(path).name)
        put(path, content)

    monkeypatch.setattr(storage._files, "pipe_file", noting)
    storage.save()
    assert set(written[:2]) == {"state.json", "metrics.jsonl"}
    assert written[2:] == ["manifest.json", "result.json"]


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_what_is_followed_is_what_the_storage_holds(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, copy = tmp_path / "here", tmp_path / "copy"
    name = secrets.token_hex(4)
    url = f"file://{tmp_path / 'store'}" if protocol == "file" else f"memory://{name}/run"
    (here / "0" / "checkpoints").mkdir(parents=True)
    (here / "0" / "checkpoints" / "model").write_bytes(b"large")
    lines = [f'{{"line": "{secrets.token_hex(50)}"}}\n'.encode() for _ in range(20)]
    storage, follower = Storage(url, here), Storage(url, copy)
    fetched: list[int] = []
    ranged = follower._files.cat_file

    def counting(path: str, start: int, end: int) -> bytes:
        fetched.append(end - start)
        return bytes(ranged(path, start=start, end=end))

    monkeypatch.setattr(follower._files, "cat_file", counting)
    others = {"0/config.yaml": b"seed: 1\n", "1/config.yaml": b"seed: 2\n"}
    (here / "1").mkdir()
    for path, content in others.items():
        (here / path).write_bytes(content)
    states = [lines[:9], lines[:18], lines[:7] + lines[18:], lines[:7] + lines[9:], []]
    for state in states:  # begun, grown, rewritten, longer than before and rewritten, emptied
        (here / "0" / "metrics.jsonl").write_bytes(b"".join(state))
        storage.save()
        follower.follow({"config.yaml", "metrics.jsonl"})
        assert _contents(copy) == {**others, "0/metrics.jsonl": b"".join(state)}
    assert fetched[0] == 256 + sum(map(len, lines[9:18]))
    for path in ("1/config.yaml", "0/metrics.jsonl"):
        (here / path).unlink()
    storage.save()
    follower.follow({"config.yaml", "metrics.jsonl"})
    assert _contents(copy) == {"0/config.yaml": b"seed: 1\n"}


def test_a_storage_writes_nothing_outside_of_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage("memory://bucket/run", tmp_path / "here")
    outside = {"/bucket/run/../../outside": {"size": 1}}
    monkeypatch.setattr(storage._files, "find", lambda *_, **__: outside)
    monkeypatch.setattr(storage._files, "exists", lambda *_: True)
    assert storage.bring() == 0
    storage.follow({"outside"})
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="storage=nowhere://x cannot be used"):
        Storage("nowhere://x", tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "run.log").write_text("")
    with pytest.raises(RunFailedError, match="could not be written"):
        Storage(f"file://{tmp_path / 'file' / 'x'}", tmp_path / "here").save()
