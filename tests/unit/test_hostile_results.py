"""A result.json of someone else names no code, and is refused where it is no result."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from heliotrope.commands.trained import read_result
from heliotrope.errors import ConfigError
from tests.support import Command, compose

_GOOD: dict[str, Any] = {
    "mode": "federated",
    "examples_seen": 100,
    "privacy": {"epsilon": None, "delta": 1e-3, "unit": "client"},
}


def _written(folder: Path, result: object) -> Path:
    (folder / "config.yaml").write_text(
        OmegaConf.to_yaml(OmegaConf.structured(compose("federated")))
    )
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_a_mode_is_no_package_of_somebody_else(
    tmp_path: Path, heliotrope: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "theirs" / "audit"
    package.mkdir(parents=True)
    (package / "mechanism.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(str(tmp_path))
    directory = _written(tmp_path, {**_GOOD, "mode": "theirs"})
    code, _, errors = heliotrope("audit", f"run={directory}")
    assert code == 2
    assert "result.json is not what a run writes: ValueError: mode='theirs'" in errors
    assert not [name for name in sys.modules if name.startswith("theirs")]


@pytest.mark.parametrize(
    "result",
    [
        [],
        "x",
        {},
        {**_GOOD, "mode": ["federated"]},
        {**_GOOD, "examples_seen": "100"},
        {**_GOOD, "examples_seen": -1},
        {**_GOOD, "examples_seen": float("inf")},
        {**_GOOD, "privacy": 5},
        {**_GOOD, "privacy": {"epsilon": 1.0}},
        {**_GOOD, "privacy": {"epsilon": "1", "delta": 1e-3, "unit": "client"}},
        {**_GOOD, "privacy": {"epsilon": float("nan"), "delta": 1e-3, "unit": "client"}},
        {**_GOOD, "privacy": {"epsilon": 1.0, "delta": 1e-3, "unit": 5}},
        {**_GOOD, "privacy": {"epsilon": 1.0, "delta": 1e-3, "unit": "client", "clip": []}},
    ],
    ids=lambda result: json.dumps(result)[-60:],
)
def test_what_is_no_result_is_refused_by_its_path(result: object, tmp_path: Path) -> None:
    assert read_result(_written(tmp_path, _GOOD)) == _GOOD
    with pytest.raises(ConfigError, match=r"result\.json is not what a run writes"):
        read_result(_written(tmp_path, result))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00"], ids=lambda text: text[:5])
def test_what_is_no_json_is_refused_too(text: str, tmp_path: Path) -> None:
    directory = _written(tmp_path, _GOOD)
    (directory / "result.json").write_text(text)
    with pytest.raises(ConfigError, match=r"result\.json is not what a run writes"):
        read_result(directory)
