"""Whatever bytes a checkpoint holds: it is read as it was written, or refused by its path."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliotrope.errors import CheckpointError
from heliotrope.runs import checkpoint
from heliotrope.runs.checkpoint import Checkpoint
from tests.checkpoints import FILES, example
from tests.forged_checkpoints import change_manifest, forged, put, safetensors
from tests.fuzzing import examples
from tests.support import assert_same_tensors

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def loaded_or_refused(path: Path) -> Checkpoint | None:
    try:
        return checkpoint.load(path)
    except CheckpointError as error:
        said = str(error)
    assert str(path) in said
    return None


@examples(150)
@given(st.sampled_from(FILES), st.binary(max_size=300))
def test_files_of_random_bytes(root: Path, name: str, data: bytes) -> None:
    path = forged(root)
    (path / name).write_bytes(data)
    assert loaded_or_refused(path) is None


@examples(150)
@given(st.sampled_from(FILES), st.data())
def test_damaged_files(root: Path, name: str, data: st.DataObject) -> None:
    path = forged(root)
    damaged = bytearray((path / name).read_bytes())
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(damaged) * 8 - 1))
        damaged[at // 8] ^= 1 << at % 8
    else:
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    (path / name).write_bytes(bytes(damaged))
    assert loaded_or_refused(path) is None


@examples(200)
@given(st.sampled_from(FILES[:2]), st.data())
def test_damaged_arrays_that_are_signed(root: Path, name: str, data: st.DataObject) -> None:
    path = forged(root)
    whole = (path / name).read_bytes()
    damaged = bytearray(whole)
    kind = data.draw(st.sampled_from(["flip", "cut", "header"]))
    if kind == "flip":
        at = data.draw(st.integers(0, 8 * 8 - 1) | st.integers(0, len(whole) * 8 - 1))
        damaged[at // 8] ^= 1 << at % 8
    elif kind == "cut":
        del damaged[data.draw(st.integers(0, len(whole) - 1)) :]
    else:
        damaged = bytearray(safetensors(data.draw(JSON), data.draw(st.binary(max_size=40))))
    found = loaded_or_refused(put(path, name, bytes(damaged)))
    if found is not None:  # only numbers have changed
        assert {n: v.shape for n, v in found.model.items()} == {
            n: v.shape for n, v in example(5).model.items()
        }


FIELDS = ["schema", "progress", "files", "order"]


@examples(200)
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), JSON, min_size=1))
def test_manifests_of_any_json(root: Path, changed: dict[str, Any]) -> None:
    path = change_manifest(forged(root), lambda manifest: manifest.update(changed))
    found = loaded_or_refused(path)
    if found is not None:
        assert_same_tensors(dict(found.model), dict(example(5).model))


@examples(100)
@given(JSON)
def test_states_of_any_json(root: Path, state: object) -> None:
    found = loaded_or_refused(put(forged(root), "state.json", json.dumps(state).encode()))
    assert (found is not None) == isinstance(state, dict)
