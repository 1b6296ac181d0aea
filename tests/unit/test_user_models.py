"""A user's own models in this process: do they fit the task, and their configs each other?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import distributed.driver
import federated.components
from heliotrope import config, plugin_loading
from heliotrope.config import Mode, Run
from heliotrope.config.checks.run import check
from heliotrope.errors import ConfigError
from heliotrope.models.pristine import Pristine
from tests.support import MODES, compose, type_command

_MODELS = """
from torch import nn
from heliotrope import plugin

@plugin.model
def mine_fits(*, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Dropout(0.5), nn.Linear(width, 10))

@plugin.model
def mine_shape() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(63, 10))
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Load the models above, for one test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    file = tmp_path / "mine.py"
    file.write_text(_MODELS)
    plugin_loading.load([str(file)])
    config.register()
    return file


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_does_not_fit_is_refused_before_any_work(mode: Mode, mine: Path) -> None:
    run = compose(mode, f"plugins=[{mine}]", "model=mine_shape")
    prepare = {
        "distributed": distributed.driver.build_components,
        "federated": federated.components.build_components,
    }
    with pytest.raises(ConfigError, match=r"mine_shape .*line 9.*RuntimeError: mat1"):
        prepare[mode](run)


def _saved(mine: Path) -> str:
    run = compose("federated", f"plugins=[{mine}]", "model=mine_fits")
    return OmegaConf.to_yaml(OmegaConf.structured(run))


def test_reading_back_a_run_leaves_its_model_the_same_class(mine: Path) -> None:
    """In a sweep that is resumed, the first job's config is read back before the second begins."""
    run = compose("federated", f"plugins=[{mine}]", "model=mine_fits")
    again = config.from_yaml(_saved(mine))
    assert type(again.model) is type(run.model)
    check(run, "federated")


def test_a_sweep_over_a_users_model_is_resumed(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = []

    def job(run: Run, directory: Path) -> None:
        (directory / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(run)))
        widths.append(config.from_resolved(directory / "config.yaml").model.width)  # type: ignore[attr-defined]

    words = (f"plugins=[{mine}]", "model=mine_fits", "-m", "model.width=2,3")
    where = f"hydra.sweep.dir={tmp_path}/sweep"
    assert type_command(monkeypatch, "federated", *words, where, job=job) == 0
    assert type_command(monkeypatch, "federated", *words, where, "resume=true", job=job) == 0
    assert widths == [2, 3, 2, 3]


def test_copies_of_a_module_share_no_place_for_hooks_or_submodules() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    built, weights = Pristine(model), model.state_dict()
    first, second = built.copy(weights), built.copy(weights)
    for module in first.modules():
        module.register_forward_hook(lambda *_: None)
        module.register_buffer("late", torch.zeros(1))
    first[1].add_module("inner", nn.Identity())
    for other in (model, second, built.copy(weights)):
        assert not any(module._forward_hooks for module in other.modules())
        assert not list(other.named_buffers())
        assert [type(module) for module in other.modules()] == [nn.Sequential, nn.Linear, nn.ReLU]
