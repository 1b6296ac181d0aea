"""The configuration composes, is checked, and reads back from a run's directory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import get_args

import pytest
from omegaconf import OmegaConf
from torch import nn

from heliotrope import config, registry
from heliotrope.config import Mode, Run
from heliotrope.config.groups import chosen_by
from heliotrope.data import load
from heliotrope.errors import ConfigError, DataError
from heliotrope.models import build
from heliotrope.tasks import Task, task_of
from tests.support import MODES, choices, classification, compose, experiments

# Every (group, choice) of conf/ that a user can select, listed from the folder.
SELECTABLE = [
    (group, choice)
    for group in sorted(
        str(path.relative_to(config.conf_dir()))
        for path in config.conf_dir().glob("**/*")
        if path.is_dir()
    )
    for choice in choices(group)
    if group != "cluster" or choice not in registry.names("cluster")  # of submit, not of a run
]
# The least that some choices need beside their name.
NEEDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("data", "arrays"): ("data.path=rows.npz",),
    ("data", "images"): ("data.path=pictures",),
    ("data", "table"): ("data.path=rows.csv", "data.target=sick"),
    ("data", "texts"): ("data.path=texts",),
    ("data", "token_stream"): ("data.path=train.bin", "data.vocabulary=64"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("experiment", experiments())
def test_every_experiment_composes_in_both_modes(experiment: str, mode: Mode) -> None:
    run = compose(mode, f"experiment={experiment}")
    assert run.name == experiment, "an experiment's runs are found under its own name"


@pytest.mark.parametrize("experiment", experiments())
def test_an_experiment_means_the_same_in_both_modes(experiment: str) -> None:
    a, b = (compose(mode, f"experiment={experiment}") for mode in MODES)
    assert a == b


@pytest.mark.parametrize(("group", "choice"), SELECTABLE)
def test_every_choice_composes_and_its_saved_config_reads_back(
    group: str, choice: str, tmp_path: Path
) -> None:
    mode: Mode = "distributed" if group == "distributed" else "federated"
    run = compose(mode, f"{group}={choice}", *NEEDS.get((group, choice), ()))
    saved = tmp_path / "config.yaml"
    saved.write_text(OmegaConf.to_yaml(OmegaConf.structured(run)))
    assert config.from_resolved(saved) == run
    assert asdict(config.from_resolved(saved)) == asdict(run)


def test_a_run_from_before_there_was_privacy_reads_back() -> None:
    run = compose("distributed")
    written = asdict(run)
    for mode in MODES:
        del written[mode]["privacy"]
    del written["federated"]["attack"]
    found = config.from_yaml(OmegaConf.to_yaml(written))
    assert found.federated.attack.name == "none"
    assert (found.distributed.privacy.name, found.federated.privacy.name) == ("none", "none")


def test_groups_and_schemas_have_the_same_choices() -> None:
    in_yaml = {group: set(choices(group)) for group, _ in SELECTABLE}
    for group in ("cluster", "distributed", "federated", "experiment"):  # no schema per choice
        in_yaml.pop(group)
    assert in_yaml.keys() == set(config.GROUPS) - {"task"}  # no task has a file
    for group, written in in_yaml.items():
        assert written <= set(config.choice_names(group))


def test_each_choice_carries_its_own_name() -> None:
    for group, choice in SELECTABLE:
        if group in config.GROUPS:
            written = OmegaConf.load(config.conf_dir() / group / f"{choice}.yaml")
            assert written.name == choice, f"conf/{group}/{choice}.yaml"


def test_a_choices_file_says_what_its_signature_says() -> None:
    for group, choice in SELECTABLE:
        if group in config.GROUPS:
            by_code = OmegaConf.structured(config.chosen(group, choice))
            written = OmegaConf.load(config.conf_dir() / group / f"{choice}.yaml")
            kind = next(kind for kind in get_args(registry.Group) if chosen_by(kind) == group)
            keys = registry.entry(kind, choice).signature.keys
            for key in keys.keys() & written.keys():
                assert written[key] == by_code[key], f"conf/{group}/{choice}.yaml: {key}"


def task_of_experiment(run: Run) -> Task:
    if run.data.name in ("mnist", "fashion_mnist"):  # not on every machine
        return classification(run.data.name, (1, 28, 28), tuple("0123456789"))
    try:
        return task_of(load(run.data, run.seed), run)
    except DataError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("experiment", experiments())
def test_every_experiment_has_a_model_that_fits_its_data(experiment: str) -> None:
    run = compose("federated", f"experiment={experiment}")
    assert isinstance(build(run.model, task_of_experiment(run), run.seed), nn.Module)


def test_quickstart_is_what_the_readme_promises() -> None:
    run = compose("federated", "experiment=quickstart")
    assert run.data.name == "digits"
    assert (run.distributed.launcher, run.distributed.workers) == ("ray", 2)
    assert (run.federated.partition.name, run.federated.partition.clients) == ("dirichlet", 10)
    assert run.federated.partition.alpha == 0.3


def test_the_command_line_wins_over_the_experiment() -> None:
    run = compose("federated", "experiment=fedavg_2nn", "federated.rounds=3", "model.hidden=[5]")
    assert run.federated.rounds == 3
    assert run.model.hidden == [5]
    assert compose("federated", "experiment=fedavg_2nn", "optimizer=adam").optimizer.name == "adam"


# --- a saved config that cannot be used ---------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"- a\n- b\n",
        b"just text",
        b"{ unclosed",
        b"\xff\xfe\x00broken",
        b"name: [unbalanced\n",
        b"key: value\n",
    ],
)
def test_an_unreadable_saved_config_is_refused_by_its_path(tmp_path: Path, content: bytes) -> None:
    saved = tmp_path / "config.yaml"
    saved.write_bytes(content)
    with pytest.raises(ConfigError, match=str(saved)):
        config.from_resolved(saved)


def test_a_missing_saved_config_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path / "config.yaml")):
        config.from_resolved(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("name: sgd", "name: lion", "optimizer.name=lion"),
        ("momentum: 0.0", "momentun: 0.0", "momentun"),
        ("seed: 0", "seed: many", "many"),
    ],
)
def test_a_saved_config_of_another_version_is_refused(
    tmp_path: Path, old: str, new: str, named: str
) -> None:
    text = OmegaConf.to_yaml(OmegaConf.structured(compose("federated")))
    assert old in text
    saved = tmp_path / "config.yaml"
    saved.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=named) as caught:
        config.from_resolved(saved)
    assert str(saved) in str(caught.value)


def test_configs_name_no_code() -> None:
    """A config must not be able to run code of its choice, nor break under another package name."""
    for path in config.conf_dir().glob("**/*.yaml"):
        assert "_target_" not in path.read_text(), path


@pytest.mark.parametrize("launcher", ["torchrun", "ray"])
def test_a_range_of_one_number_of_workers_is_that_number(launcher: str) -> None:
    run = compose("distributed", f"distributed.launcher={launcher}", "distributed.workers=[2,2]")
    assert run.distributed.workers == 2
