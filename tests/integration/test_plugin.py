"""A user's own model, from a file outside the checkout, in both modes and on every launcher."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from heliotrope import config, registry
from heliotrope.data import load
from heliotrope.models import build
from heliotrope.tasks import task_of
from tests.support import command

_MODEL = """
from torch import nn
from heliotrope import plugin

@plugin.model
def tiny(task, *, width: int = 32, act: str = "relu") -> nn.Module:
    act = {"relu": nn.ReLU, "tanh": nn.Tanh}[act]()
    layers = [nn.Flatten(), nn.Linear(64, width), act, nn.Linear(width, task.num_outputs)]
    model = nn.Sequential(*layers)
    nn.init.constant_(model[1].bias, 0.25)
    return model

@plugin.model
class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(64, 10)

    def forward(self, images):
        return self.out(images.flatten(1))
"""
_SHORT = {
    "distributed": ("experiment=quickstart", "distributed.epochs=1"),
    "federated": ("experiment=quickstart", "federated.rounds=1"),
}
_WAYS = {
    "distributed torchrun": ("distributed.launcher=torchrun",),
    "distributed ray": ("distributed.launcher=ray",),
    "federated in-process": ("federated.pool=inprocess",),
    "federated ray": ("federated.pool=ray", "federated.workers=2"),
}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    file = tmp_path / "mine.py"
    file.write_text(_MODEL)
    return file


@pytest.mark.parametrize("way", _WAYS)
def test_a_users_model_trains_everywhere(way: str, mine: Path, tmp_path: Path) -> None:
    mode = way.split()[0]
    place = f"hydra.run.dir={tmp_path}/run"
    words = (
        mode,
        *_SHORT[mode],
        *_WAYS[way],
        "plugins=[mine.py]",
        "model=tiny",
        "model.width=7",
        place,
    )
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "run/result.json").read_text())["parameters"] == 64 * 7 + 7 + 80

    measured = command("heliotrope", "evaluate", f"run={tmp_path}/run", cwd=tmp_path)
    assert "accuracy" in measured.stdout, measured.stderr
    mine.write_text(_MODEL + "# changed\n")
    changed = command("heliotrope", "evaluate", f"run={tmp_path}/run", cwd=tmp_path)
    assert changed.returncode == 2
    assert "another version" in changed.stderr


def test_a_run_from_elsewhere_executes_nothing(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("federated", *_SHORT["federated"], "plugins=[mine.py]", "model=Plain")
    done = command(*words, f"hydra.run.dir={tmp_path}/run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    refused = command("heliotrope", "evaluate", f"run={tmp_path}/run", cwd=tmp_path)
    assert refused.returncode == 2
    assert f"plugins=[{mine}]" in refused.stderr
    named = command(
        "heliotrope", "evaluate", f"run={tmp_path}/run", f"plugins=[{mine}]", cwd=tmp_path
    )
    assert named.returncode == 0, named.stderr


def test_initial_values_are_the_plugins_own(mine: Path) -> None:
    from heliotrope import plugin_loading

    plugin_loading.load([str(mine)])
    config.register()
    cfg = config.chosen("model", "tiny")
    task = task_of(load(config.chosen("data", "digits"), 0))
    first, again, other = (build(cfg, task, seed) for seed in (1, 1, 2))
    assert bool((first[1].bias == 0.25).all())
    assert bool((first[1].weight == again[1].weight).all())
    assert not bool((first[1].weight == other[1].weight).all())


def test_two_files_of_one_name_are_two_modules_with_their_own_annotations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heliotrope import plugin_loading

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    names = ("first_of_two", "second_of_two")
    for name in names:
        (tmp_path / name).mkdir()
        text = f"from torch import nn\nclass {name}(nn.Module):\n    width: int = 3\n"
        text += "    def __init__(self):\n        super().__init__()\n"
        (tmp_path / name / "net.py").write_text(
            f"from heliotrope import plugin\n{text}plugin.model({name})\n"
        )
    plugin_loading.load([str(tmp_path / name / "net.py") for name in names])
    for name in names:
        kind: Any = registry.entry("model", name).builder
        assert getattr(sys.modules[kind.__module__], name) is kind  # as pickle finds it
        assert kind.__annotations__ == {"width": int}


_REFUSED = {
    "model.widht=3": ("model.widht", "model.width"),
    "model.width=x": ("model.width=x", "whole number"),
    "model.act=sigmoid": ("model=tiny", "mine.py, line", "KeyError"),
}


@pytest.mark.parametrize("typed", _REFUSED)
def test_a_plugins_keys_are_checked_like_ours(typed: str, mine: Path, tmp_path: Path) -> None:
    words = ("federated", *_SHORT["federated"], "plugins=[mine.py]", "model=tiny", typed)
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in _REFUSED[typed]:
        assert word in done.stderr


_BROKEN = {
    "import nothing_like_it": ("line 2", "ModuleNotFoundError"),
    "def f(:": ("line 2", "SyntaxError"),
    "from heliotrope import plugin\n\n@plugin.model\ndef tiny(task, *, width=3): ...": (
        "line 4",
        "width",
        "type",
    ),
    "from heliotrope import plugin\n\n@plugin.model\ndef cnn(task): ...": ("line 4", "already"),
}


@pytest.mark.parametrize("text", _BROKEN)
def test_a_broken_plugin_is_named_with_its_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(f"# a plug-in\n{text}\n")
    done = command("federated", *_SHORT["federated"], "plugins=[bad.py]", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in ("bad.py", *_BROKEN[text]):
        assert word in done.stderr, done.stderr


def test_a_missing_plugin_is_named(tmp_path: Path) -> None:
    done = command("distributed", *_SHORT["distributed"], "plugins=[none.py]", cwd=tmp_path)
    assert done.returncode == 2
    assert "none.py cannot be read" in done.stderr
