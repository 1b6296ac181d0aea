"""Checkpoints that someone else wrote: nothing is executed, and nothing outside is opened."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from federated.job import run_job
from federated.strategies.state import restore, snapshot
from heliotrope.errors import CheckpointError, ConfigError
from heliotrope.runs import checkpoint
from tests.federated_runs import SMALL
from tests.forged_checkpoints import change_manifest, change_state, forged, put, safetensors
from tests.support import Command, compose


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self._mark),)


def _refused(path: Path, match: str) -> None:
    for mapped in (False, True):
        with pytest.raises(CheckpointError, match=match):
            checkpoint.load(path, mapped=mapped)


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json"])
@pytest.mark.parametrize("write", ["pickle", "torch"])
def test_a_pickle_in_place_of_a_file_is_refused_and_not_executed(
    tmp_path: Path, name: str, write: str
) -> None:
    mark, path = tmp_path / "executed", forged(tmp_path)
    bomb = tmp_path / "bomb"
    if write == "torch":
        torch.save({"0.weight": Bomb(mark)}, bomb)
    else:
        bomb.write_bytes(pickle.dumps(Bomb(mark)))
    put(path, name, bomb.read_bytes())
    _refused(path, str(path))
    assert not mark.exists()
    torch.load(bomb, weights_only=False) if write == "torch" else pickle.loads(bomb.read_bytes())  # noqa: S301
    assert mark.exists(), "the bomb of this test is none"


@pytest.mark.parametrize(
    "name",
    [
        "../../secret",
        "/etc/hostname",
        "sub/model.safetensors",
        "../00000005/state.json",
        "model.safetensors/../../secret",
        "model..safetensors",
        "model.\N{ARABIC-INDIC DIGIT ONE}.safetensors",
        "state.json\n",
        ".",
        "",
        "\x00",
    ],
)
def test_a_manifest_cannot_name_a_file_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("of another")
    path = forged(tmp_path)

    def point_to_it(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"].pop("state.safetensors")

    change_manifest(path, point_to_it)
    _refused(path, "no file of a checkpoint")


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_no_link_is_followed_also_to_what_fits(tmp_path: Path, name: str) -> None:
    path = forged(tmp_path / "checkpoints")
    (path / name).rename(tmp_path / "moved")
    (path / name).symlink_to(tmp_path / "moved")
    _refused(path, f"{name} is a link")


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    path = forged(tmp_path)
    (path / name).unlink()
    os.mkfifo(path / name)
    _refused(path, f"{name} is no file")


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS = {
    "a length that overflows": (2**63).to_bytes(8, "little") + b"{}",
    "a shape that overflows": safetensors({"a": {**ONE, "shape": [2**62, 8]}}, b"1234"),
    "nothing by what overflows": safetensors(
        {"a": {"dtype": "F32", "shape": [0, 2**62, 2**40], "data_offsets": [0, 0]}}
    ),
    "a negative shape": safetensors({"a": {**ONE, "shape": [-1]}}, b"1234"),
    "an unknown type": safetensors({"a": {**ONE, "dtype": "OBJ"}}, b"1234"),
    "a type of half bytes": safetensors({"a": {**ONE, "dtype": "F4", "shape": [8]}}, b"1234"),
    "a type that is never saved": safetensors({"a": {**ONE, "dtype": "U32"}}, b"1234"),
    "two arrays in one place": safetensors({"a": ONE, "b": ONE}, b"1234"),
    "a place beyond the end": safetensors({"a": {**ONE, "data_offsets": [4, 8]}}, b"1234"),
    "deep nesting": safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "no bytes": b"",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_arrays_with_absurd_claims_are_refused(tmp_path: Path, kind: str) -> None:
    path = put(forged(tmp_path), "model.safetensors", HEADERS[kind])
    change_manifest(path, lambda manifest: manifest["order"].update(model=["a"]))
    _refused(path, str(path))


@pytest.mark.parametrize("name", ["²", "①", "5²"])
def test_a_folder_whose_name_is_hardly_a_number_is_none_of_ours(tmp_path: Path, name: str) -> None:
    path = forged(tmp_path)
    (path.parent / name).mkdir()
    found = checkpoint.latest(path.parent, pytest.fail)
    assert found is not None
    assert checkpoint.path_of(path.parent, found.progress) == path


def test_arrays_that_the_manifest_does_not_name_are_refused(tmp_path: Path) -> None:
    path = forged(tmp_path)
    change_manifest(path, lambda manifest: manifest["order"]["model"].remove("0.bias"))
    _refused(path, r"do not agree about 0\.bias")


def _set(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.update(values)


def _sized(size: object) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["files"]["state.json"].update(bytes=size)


@pytest.mark.parametrize(
    "change",
    [
        _set(progress=-1),
        _set(progress=True),
        _set(progress="5"),
        _set(progress=1e300),
        _set(files=[]),
        _set(files={"state.json": []}),
        _set(files={"state.json": None}),
        _set(order={"model": "0.weight", "arrays": []}),
        _set(order={"model": [["0.weight"]], "arrays": []}),
        _set(order={"model": ["0.weight", "0.weight"], "arrays": []}),
        _set(order=None),
        _sized(2**62),
        _sized(-1),
        _sized("12"),
        _sized(None),
    ],
)
def test_a_manifest_of_other_types_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    path = change_manifest(forged(tmp_path), change)
    _refused(path, str(path))


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "[]", "null", '"x"', "\ud800"])
def test_a_state_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = put(forged(tmp_path), "state.json", text.encode(errors="surrogatepass"))
    _refused(path, str(path))


# --- what a strategy remembers ------------------------------------------------------------


class Remembering:
    """A strategy, as far as its memory goes."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(1)
        self.rate = 0.5

    def aggregate(self) -> None: ...


def restored(arrays: dict[str, torch.Tensor], described: dict[str, Any]) -> None:
    with checkpoint.understood(Path("a/checkpoint")):
        restore(Remembering(), arrays, described)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["test", "seed", "default_rng", "os", "PCG65", 3, ["PCG64"]])
def test_the_name_of_a_generator_names_nothing_else(name: object) -> None:
    arrays, described = snapshot(Remembering())  # type: ignore[arg-type]
    restored(arrays, described)
    described["attributes"]["generator"]["bits"] = name
    with pytest.raises(CheckpointError, match="a/checkpoint"):
        restored(arrays, described)


@pytest.mark.parametrize(
    ("bits", "position"), [("MT19937", 625), ("MT19937", -1), ("Philox", 5), ("Philox", 10**6)]
)
def test_no_generator_draws_from_beyond_its_memory(bits: str, position: int) -> None:
    mine = Remembering()
    mine.generator = np.random.Generator(getattr(np.random, bits)(1))
    arrays, described = snapshot(mine)  # type: ignore[arg-type]
    restored(arrays, described)
    state = described["attributes"]["generator"]["state"]
    _change(state, "pos" if bits == "MT19937" else "buffer_pos", position)
    with pytest.raises(CheckpointError, match=f"position {position}"):
        restored(arrays, described)


def _change(described: dict[str, Any], name: str, value: int) -> None:
    """Set one number in the description of a dict, wherever it is."""
    for key, item in described["items"]:
        if key["value"] == name:
            item["value"] = value
        elif item["kind"] == "dict":
            _change(item, name, value)


@pytest.mark.parametrize("name", ["aggregate", "__class__", "__dict__", "__init__"])
def test_what_is_code_is_not_replaced(name: str) -> None:
    arrays, described = snapshot(Remembering())  # type: ignore[arg-type]
    described["attributes"][name] = {"kind": "plain", "value": 3}
    with pytest.raises(CheckpointError, match=f"replace {name}"):
        restored(arrays, described)


# --- whole runs ---------------------------------------------------------------------------

STATES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no round": lambda state: state.pop("round"),
    "a round that is a list": lambda state: state.update(round=[1]),
    "no strategy": lambda state: state.pop("strategy"),
    "a strategy that is a number": lambda state: state.update(strategy=3),
    "counts of others": lambda state: state.update(counts={"__class__": 1}),
    "a way of training that there is not": lambda state: state.update(client_training={"x": 1}),
    "an absurd way of training": lambda state: state.update(
        client_training={"kind": "sequential", "threads": 1, "stack": 1, "lanes": 10**12}
    ),
    "events from before the beginning": lambda state: state.update(metrics_offset=-5),
    "no time": lambda state: state.update(seconds="long"),
    "a target of others": lambda state: state.update(target=None),
    "a preparation of others": lambda state: state.update(preparation={"steps": [{"kind": "os"}]}),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "mine"
    run_job(compose("federated", *SMALL, "federated.rounds=1"), directory)
    return directory


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.usefixtures("no_report")
def test_a_resumed_run_refuses_a_state_that_it_makes_no_sense_of(
    kind: str, trained: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "mine"
    shutil.copytree(trained, directory)
    change_state(checkpoint.path_of(directory / "checkpoints", 1), STATES[kind])
    before = (directory / "metrics.jsonl").read_bytes()
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        run_job(compose("federated", *SMALL, "resume=true"), directory)
    assert "00000001" in str(caught.value)
    events = (directory / "metrics.jsonl").read_bytes()
    assert events.startswith(before), "what the run said before is still there"


def test_evaluate_refuses_a_state_that_it_makes_no_sense_of(
    trained: Path, tmp_path: Path, heliotrope: Command
) -> None:
    directory = tmp_path / "mine"
    shutil.copytree(trained, directory)
    path = checkpoint.path_of(directory / "checkpoints", 1)
    change_state(path, lambda state: state.update(preparation=[1, 2]))
    code, _, said = heliotrope("evaluate", f"run={directory}")
    assert code == 1
    assert said.startswith(f"error: {path}: its state is not that of such a run")
