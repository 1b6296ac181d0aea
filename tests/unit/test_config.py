"""The configuration composes, is checked, and reads back from a run's directory."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from torch import nn

from heliotrope import config, registry
from heliotrope.config import Mode, Run
from heliotrope.data import load
from heliotrope.errors import ConfigError, DataError
from heliotrope.models import build
from heliotrope.tasks import Task, task_of
from tests.support import MODES, choices, classification, compose, composed, experiments

# Every (group, choice) of conf/ that a user can select, listed from the folder.
SELECTABLE = [
    (group, choice)
    for group in sorted(
        str(path.relative_to(config.conf_dir()))
        for path in config.conf_dir().glob("**/*")
        if path.is_dir()
    )
    for choice in choices(group)
]
# The least that some choices need beside their name.
NEEDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("data", "arrays"): ("data.path=rows.npz",),
    ("data", "images"): ("data.path=pictures",),
    ("data", "table"): ("data.path=rows.csv", "data.target=sick"),
    ("data", "texts"): ("data.path=texts",),
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
            keys = registry.entry(group.rpartition("/")[2], choice).signature.keys  # type: ignore[arg-type]
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


# --- refused before any work --------------------------------------------------------------

# Overrides of a valid config, and what the message must name: the key, the value, the remedy.
REFUSED: list[tuple[Mode, tuple[str, ...], tuple[str, ...]]] = [
    ("federated", ("data.fit=trainig",), ("data.fit=trainig", "training, per_client, none")),
    (
        "distributed",
        ("data.fit=per_client",),
        ("data.fit=per_client", "needs clients", "data.fit=training"),
    ),
    (
        "federated",
        ("data=table", "data.path=a.csv", "data.target=b", "data.bad_rows=drop"),
        ("data.bad_rows=drop", "refuse, skip"),
    ),
    (
        "federated",
        ("data=table", "data.path=a.csv", "data.target=b", "data.delimiter=ab"),
        ("data.delimiter=ab must be one character, or 'data.delimiter=\\t' for a tab",),
    ),
    (
        "federated",
        ("data=table", "data.path=a.csv", "data.target=b", "data.encoding=lateen"),
        ("data.encoding=lateen", "such as utf-8, latin-1"),
    ),
    (
        "federated",
        ("data=table", "data.path=a.csv", "data.target=b", "data.decimal=x"),
        ("data.decimal=x must be data.decimal=. or 'data.decimal=\",\"'",),
    ),
    ("federated", ("data=shakespeare", "data.length=0"), ("data.length=0", "at least 1")),
    (
        "distributed",
        ("distributed.checkpoint_every_steps=0",),
        ("distributed.checkpoint_every_steps=0", "at least 1"),
    ),
    (
        "distributed",
        ("distributed.collective_timeout=0",),
        ("distributed.collective_timeout=0", "at least 1"),
    ),
    ("distributed", ("distributed.workers=two",), ("distributed.workers=two", "such as [1,4]")),
    ("distributed", ("distributed.workers=1.5",), ("distributed.workers=1.5", "whole number")),
    ("distributed", ("distributed.workers=[4,1]",), ("distributed.workers=[4, 1]", "the fewest")),
    ("distributed", ("distributed.workers=[0,1]",), ("distributed.workers=[0, 1]", "at least 1")),
    (
        "distributed",
        ("distributed.workers=[1,4]", "distributed.launcher=torchrun"),
        ("distributed.workers=[1, 4]", "distributed.launcher=ray"),
    ),
    ("distributed", ("distributed.keep_last=0",), ("distributed.keep_last=0", "at least 1")),
    (
        "distributed",
        ("distributed.keep_best=2",),
        ("distributed.keep_best=2", "Set distributed.best_metric"),
    ),
    (
        "distributed",
        ("distributed.best_metric=test/loss",),
        ("distributed.best_metric=test/loss", "Set distributed.keep_best"),
    ),
    ("federated", ("seed=-1",), ("seed=-1", "at least 0")),
    ("federated", ("device=gpu",), ("device=gpu", "auto, cpu, cuda")),
    ("federated", ("device=cud",), ("device=cud", "Did you mean 'cuda'?")),
    ("federated", ("evaluation_batch_size=0",), ("evaluation_batch_size=0", "at least 1")),
    ("federated", ("optimizer.lr=0",), ("optimizer.lr=0", "greater than 0")),
    ("federated", ("optimizer.lr=-0.1",), ("optimizer.lr=-0.1", "greater than 0")),
    ("federated", ("optimizer.lr=nan",), ("optimizer.lr=nan", "finite")),
    ("federated", ("optimizer.lr=inf",), ("optimizer.lr=inf", "finite")),
    ("federated", ("optimizer.weight_decay=-1",), ("optimizer.weight_decay=-1", "at least 0")),
    ("federated", ("optimizer.momentum=1.5",), ("optimizer.momentum=1.5", "[0, 1]")),
    ("federated", ("optimizer.nesterov=true",), ("optimizer.nesterov", "Set optimizer.momentum")),
    (
        "federated",
        ("optimizer=adam", "optimizer.betas=[0.9,1.0]"),
        ("optimizer.betas=[0.9, 1.0]", "two numbers in [0, 1)"),
    ),
    (
        "federated",
        ("optimizer=adam", "optimizer.betas=[0.9,0.99,0.999]"),
        ("optimizer.betas=[0.9, 0.99, 0.999]", "two numbers"),
    ),
    ("federated", ("optimizer=adamw", "optimizer.eps=0"), ("optimizer.eps=0", "greater than 0")),
    ("federated", ("data.validation_fraction=1",), ("data.validation_fraction=1", "[0, 1)")),
    ("federated", ("target.metric=test/accuracy",), ("target.metric", "Set target.value")),
    ("federated", ("target.value=0.9",), ("target.value", "Set target.metric")),
    ("federated", ("model.name=cnn",), ("model.name=cnn", "Set model=cnn")),
    ("federated", ("model.name=cn",), ("model.name=cn", "Did you mean 'cnn'?")),
    (
        "federated",
        ("federated.strategy.name=krum",),
        ("federated.strategy.name=krum", "Set federated/strategy=krum"),
    ),
    ("federated", ("+optimizer.momentun=1",), ("optimizer.momentun=1", "'optimizer.momentum'")),
    ("federated", ("+federated.roundz=1",), ("federated.roundz=1", "'federated.rounds'")),
    ("federated", ("federated.rounds=0",), ("federated.rounds=0", "at least 1")),
    ("federated", ("federated.batch_size=0",), ("federated.batch_size=0", "at least 1")),
    ("federated", ("federated.quorum=0",), ("federated.quorum=0", "(0, 1]")),
    ("federated", ("federated.quorum=1.1",), ("federated.quorum=1.1", "(0, 1]")),
    ("federated", ("federated.holdout_fraction=1",), ("federated.holdout_fraction=1", "[0, 1)")),
    (
        "federated",
        ("federated.evaluate_clients=5",),
        ("federated.evaluate_clients=5 has no effect", "Set federated.holdout_fraction"),
    ),
    (
        "federated",
        (
            "federated.holdout_fraction=0.2",
            "federated.evaluate_clients=5",
            "federated.evaluate_fraction=0.5",
        ),
        ("federated.evaluate_clients=5", "federated.evaluate_fraction=0.5", "Set one to null"),
    ),
    (
        "federated",
        ("federated.holdout_fraction=0.2", "federated.evaluate_fraction=0"),
        ("federated.evaluate_fraction=0", "(0, 1]"),
    ),
    (
        "federated",
        (
            "federated.holdout_fraction=0.2",
            "federated.evaluate_every=2",
            "federated.client_rows_every=3",
        ),
        ("client_rows_every=3", "evaluate_every=2", "Set federated.client_rows_every=4"),
    ),
    ("federated", ("federated.pool=rays",), ("federated.pool=rays", "Did you mean 'ray'?")),
    (
        "federated",
        ("federated.client_training=parallel",),
        ("federated.client_training=parallel", "sequential", "batched"),
    ),
    ("federated", ("federated.reduce=all",), ("federated.reduce=all", "auto, worker, none")),
    (
        "federated",
        ("federated.workers=2",),
        ("federated.workers=2", "Set federated.pool=ray or federated.workers=1"),
    ),
    (
        "federated",
        ("federated.clients_per_round=11",),
        ("federated.clients_per_round=11", "10 clients", "Lower the one or raise the other"),
    ),
    (
        "federated",
        ("federated.partition.clients=4",),
        ("federated.clients_per_round=10", "4 clients", "federated.partition.clients"),
    ),
    ("federated", ("federated.partition.clients=0",), ("federated.partition.clients=0", "least 1")),
    (
        "federated",
        ("federated.partition.clients=null",),
        ("federated.partition.clients", "Set it to the number of clients"),
    ),
    ("federated", ("federated.clip_update_norm=0",), ("clip_update_norm=0", "greater than 0")),
    ("federated", ("federated.partition.alpha=0",), ("federated.partition.alpha=0", "than 0")),
    ("federated", ("federated.partition.min_size=0",), ("partition.min_size=0", "at least 1")),
    (
        "federated",
        ("federated/partition=shards", "federated.partition.shards_per_client=0"),
        ("federated.partition.shards_per_client=0", "at least 1"),
    ),
    (
        "federated",
        ("federated/strategy=fedprox", "federated.strategy.proximal_mu=-1"),
        ("federated.strategy.proximal_mu=-1", "at least 0"),
    ),
    (
        "federated",
        ("federated/strategy=fedadam", "federated.strategy.eta=0"),
        ("federated.strategy.eta=0", "greater than 0"),
    ),
    (
        "federated",
        ("federated/strategy=fedyogi", "federated.strategy.beta_2=1"),
        ("federated.strategy.beta_2=1", "[0, 1)"),
    ),
    (
        "federated",
        ("federated/strategy=fedavgm", "federated.strategy.server_momentum=nan"),
        ("federated.strategy.server_momentum=nan", "finite"),
    ),
    ("distributed", ("distributed.epochs=0",), ("distributed.epochs=0", "at least 1")),
    ("distributed", ("distributed.workers=0",), ("distributed.workers=0", "at least 1")),
    ("distributed", ("distributed.max_failures=-1",), ("max_failures=-1", "at least 0")),
    ("distributed", ("distributed.cpus_per_worker=0",), ("cpus_per_worker=0", "at least 1")),
    (
        "distributed",
        ("distributed.launcher=tourchrun",),
        ("distributed.launcher=tourchrun", "Did you mean 'torchrun'?"),
    ),
    (
        "distributed",
        ("distributed.launcher=inline",),
        ("distributed.workers=2", "Set distributed.workers=1 or distributed.launcher=ray"),
    ),
    (
        "distributed",
        ("distributed.batch_size=1",),
        ("distributed.batch_size=1", "distributed.workers=2", "Raise the batch size"),
    ),
    (
        "distributed",
        ("distributed.accumulation_steps=5",),
        (
            "distributed.accumulation_steps=5",
            "batch_size=32",
            "Set distributed.accumulation_steps=4",
        ),
    ),
    (
        "distributed",
        ("distributed.accumulation_steps=32",),
        (
            "distributed.accumulation_steps=32",
            "16 examples",
            "Set distributed.accumulation_steps=16",
        ),
    ),
    ("distributed", ("distributed.lr_schedule=cosin",), ("lr_schedule=cosin", "'cosine'")),
    ("distributed", ("distributed.lr_warmup_steps=-1",), ("lr_warmup_steps=-1", "at least 0")),
    ("distributed", ("distributed.lr_schedule=step",), ("Set it", "distributed.lr_decay_steps")),
    ("distributed", ("distributed.lr_decay_steps=5",), ("Set distributed.lr_schedule=step",)),
    (
        "distributed",
        ("distributed.lr_horizon=5",),
        ("distributed.lr_horizon=5", "no effect", "distributed.lr_schedule=constant"),
    ),
    (
        "distributed",
        ("distributed.lr_horizon=0", "distributed.lr_schedule=linear"),
        ("distributed.lr_horizon=0", "at least 1"),
    ),
    ("distributed", ("distributed.lr_decay_factor=0",), ("lr_decay_factor=0", "(0, 1]")),
    (
        "distributed",
        ("distributed.lr_schedule=one_cycle", "distributed.lr_warmup_steps=3"),
        ("distributed.lr_warmup_steps=3", "one_cycle", "Set distributed.lr_warmup_steps=0"),
    ),
    ("federated", ("loss.label_smoothing=1",), ("loss.label_smoothing=1", "[0, 1)")),
    ("federated", ("loss.l1=-1",), ("loss.l1=-1", "at least 0")),
    ("federated", ("loss.l2=-1",), ("loss.l2=-1", "at least 0")),
    ("distributed", ("distributed.mixup=-1",), ("distributed.mixup=-1", "at least 0")),
    ("distributed", ("distributed.ema_decay=1",), ("distributed.ema_decay=1", "[0, 1)")),
    ("distributed", ("distributed.precision=fp8",), ("distributed.precision=fp8", "fp32, bf16")),
    (
        "distributed",
        ("optimizer=adafactor", "optimizer.beta2_decay=0.5"),
        ("optimizer.beta2_decay=0.5", "at most 0"),
    ),
    (
        "distributed",
        ("distributed.early_stopping.patience=0",),
        ("distributed.early_stopping.patience=0", "at least 1"),
    ),
    (
        "distributed",
        ("distributed.early_stopping.mode=maximum",),
        ("distributed.early_stopping.mode=maximum", "Did you mean 'max'?"),
    ),
    ("distributed", ("distributed.strategy=fdsp",), ("strategy=fdsp", "Did you mean 'fsdp'?")),
    (
        "distributed",
        ("distributed.strategy=fsdp", "distributed.launcher=inline", "distributed.workers=1"),
        ("distributed.strategy=fsdp", "distributed.workers=1", "Set distributed.workers=2"),
    ),
    (
        "distributed",
        ("distributed.strategy=diloco", "distributed.ema_decay=0.9"),
        ("distributed.ema_decay=0.9 yet", "Set it to null"),
    ),
    (
        "distributed",
        ("distributed.strategy=fsdp", "optimizer=adafactor"),
        ("optimizer=adafactor yet", "Set optimizer=adamw"),
    ),
    (
        "federated",
        ("federated.lanes=2", "federated.client_timeout=5.0"),
        ("federated.lanes=2", "federated.client_timeout=5", "Set federated.lanes=1"),
    ),
    (
        "distributed",
        ("distributed.sharded_checkpoints=true",),
        ("distributed.sharded_checkpoints=true", "Set distributed.strategy=fsdp"),
    ),
    (
        "distributed",
        ("distributed.diloco.local_steps=8",),
        ("distributed.diloco.local_steps=8", "strategy=ddp", "Set distributed.strategy=diloco"),
    ),
    (
        "distributed",
        ("distributed.strategy=local_sgd", "distributed.diloco.lr=0.5"),
        ("distributed.diloco.lr=0.5", "strategy=local_sgd", "Set distributed.strategy=diloco"),
    ),
    (
        "distributed",
        ("distributed.strategy=diloco", "distributed.diloco.local_steps=0"),
        ("distributed.diloco.local_steps=0 must be at least 1",),
    ),
    (
        "distributed",
        ("distributed.strategy=diloco", "distributed.diloco.exchange=int4"),
        ("distributed.diloco.exchange=int4", "Did you mean 'int8'?"),
    ),
    (
        "distributed",
        ("distributed.strategy=diloco", "distributed.diloco.momentum=0.0"),
        ("distributed.diloco.nesterov=true", "Set distributed.diloco.momentum"),
    ),
    (
        "distributed",
        ("distributed.strategy=local_sgd", "distributed.precision=fp16"),
        ("local_sgd does not support distributed.precision=fp16 yet", "distributed.precision=bf16"),
    ),
]


@pytest.mark.parametrize(
    ("mode", "overrides", "named"), REFUSED, ids=[" ".join(row[1]) for row in REFUSED]
)
def test_bad_values_are_refused_with_key_value_and_remedy(
    mode: Mode, overrides: tuple[str, ...], named: tuple[str, ...]
) -> None:
    # Groups through Hydra, values set afterwards: to compose anew for each takes 0.1 s.
    cfg = copy.deepcopy(composed(*(part for part in overrides if "." not in part.split("=")[0])))
    OmegaConf.set_readonly(cfg, False)
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if "." in key:
            OmegaConf.update(cfg, key, yaml.safe_load(value), force_add=override[0] == "+")
    with pytest.raises(ConfigError) as caught:
        config.load(cfg, mode)
    for part in named:
        assert part in str(caught.value)


def test_the_other_mode_is_not_checked() -> None:
    compose("distributed", "federated.rounds=0")
    compose("federated", "distributed.epochs=0")


@pytest.mark.parametrize(
    ("mode", "override"),
    [
        ("federated", "optimizer.momentum=0"),
        ("federated", "federated.quorum=1"),
        ("federated", "federated.batch_size=null"),
        ("federated", "federated.clients_per_round=10"),
        ("federated", "data.validation_fraction=0"),
        ("distributed", "distributed.batch_size=2"),
        ("distributed", "distributed.max_failures=0"),
    ],
)
def test_values_on_the_edge_are_taken(mode: Mode, override: str) -> None:
    compose(mode, override)


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
