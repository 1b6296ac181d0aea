"""A wrong command line gets one message, naming the key, the value and the remedy, and exit 2."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from heliotrope.errors import closest
from tests.support import Started, type_command

# What is typed -> what the message must hold.
WRONG: list[tuple[str, tuple[str, ...]]] = [
    # unknown keys and groups
    ("federated.roundz=3", ("federated.roundz=3", "no such key", "'federated.rounds'")),
    ("federated.clients=3", ("federated.clients=3", "'federated.partition.clients'")),
    ("epochs=3", ("epochs=3", "Did you mean 'distributed.epochs'?")),
    ("batch_size=3", ("Did you mean 'distributed.batch_size' or 'federated.batch_size'?",)),
    ("optimizr.lr=0.1", ("Did you mean 'optimizer.lr'?",)),
    ("fedrated.rounds=3", ("fedrated.rounds=3", "'federated.rounds'")),
    ("sed=3", ("sed=3", "'seed'")),
    ("optimizer.lrr=0.1", ("optimizer.lrr=0.1", "'optimizer.lr'")),
    ("+optimizer.lrr=0.1", ("optimizer.lrr=0.1", "'optimizer.lr'")),
    ("++sed=3", ("sed=3", "'seed'")),
    ("federated.partition.alhpa=3", ("federated.partition.alhpa=3", "'federated.partition.alpha'")),
    ("target.metrik=3", ("target.metrik=3", "'target.metric'")),
    ("hydra.run.dirr=x", ("hydra.run.dirr=x", "'hydra.run.dir'")),
    ("modle=cnn", ("modle=cnn", "'model'")),
    ("federated/partitio=iid", ("federated/partitio=iid", "'federated/partition'")),
    ("~sed", ("sed",)),
    # a key that another choice of the group has
    ("optimizer=adam optimizer.momentum=0.9", ("optimizer.momentum=0.9", "optimizer=sgd")),
    (
        "federated/partition=iid federated.partition.alpha=1",
        ("federated.partition.alpha=1", "federated/partition=dirichlet"),
    ),
    (
        "federated.strategy.proximal_mu=1",
        ("federated.strategy.proximal_mu=1", "federated/strategy=fedprox"),
    ),
    # unknown choices
    ("experiment=quickstrt", ("experiment=quickstrt", "fashion_cnn", "Did you mean 'quickstart'?")),
    ("model=cn", ("model=cn", "char_lstm, cnn, embedding_bag", "Did you mean 'cnn'?")),
    ("federated/strategy=fedavgg", ("federated/strategy=fedavgg", "krum", "'fedavg'")),
    ("+model=cnn", ("model=cnn", "Leave out the +")),
    ("model=null", ("model=null", "--help")),
    # wrong types
    ("seed=abc", ("seed=abc", "whole number")),
    ("federated.rounds=2.5", ("federated.rounds=2.5", "whole number")),
    ("optimizer.lr=fast", ("optimizer.lr=fast", "Set a number")),
    ("resume=maybe", ("resume=maybe", "true or false")),
    ("seed=null", ("seed=null", "Set a value")),
    ("model.hidden=3", ("model.hidden=3", "Set a list")),
    ("model.hidden=[a]", ("model.hidden", "'a'", "whole number")),
    ("federated.rounds=", ("federated.rounds=", "whole number")),
    # what cannot be read at all
    ("seed", ("seed", "key=value")),
    ("seed==3", ("seed==3", "key=value")),
    ("model=mlp,cnn", ("model=mlp,cnn", "--multirun")),
    ("name=${nowhere}", ("name=${nowhere}", "no key nowhere")),
    ("hydra.run.dir=here name=${nowhere}", ("name=${nowhere}", "no key nowhere")),
    ("name=${seed", ("name=${seed", "bracket is not closed")),
    ("name=${oc.env:HOME}", ("${oc.env:HOME}", "environment", 'KEY="$HOME"')),
    ("name=${name}", ("name=${name}", "Recursive")),
    # characters that Hydra's grammar wants quoted
    ("name=a=b", ("name=a=b", """'name="a=b"'""")),
    ("name=a#b", ("name=a#b", """'name="a#b"'""")),
    ("name=a~b", ("name=a~b", """'name="a~b"'""")),
    ("name=café", ("name=café", """'name="café"'""")),
    ("name=a(b", ("name=a(b", """'name="a(b"'""")),
    ("hydra.run.dir=runs/lr=1", ("hydra.run.dir=runs/lr=1", """'hydra.run.dir="runs/lr=1"'""")),
    ("data.dir=~/mnist", ("data.dir=~/mnist", 'data.dir="$HOME/mnist"')),
    ("metrics=[größe,a]", ("metrics=[größe,a]", """'metrics=["größe",a]'""")),
    ("-m name=a=b,c", ("name=a=b,c", """'name="a=b",c'""")),
    # lists and several values
    ("model.hidden=[1,2", ("model.hidden=[1,2", "bracket is not closed")),
    ("model.hidden=(1,2)", ("model.hidden=(1,2)", "'model.hidden=[1,2]'")),
    ("model.hidden=1,2", ("model.hidden=1,2", "--multirun", "'model.hidden=[1,2]'")),
    ("seed=1,2", ("seed=1,2", "add -m")),
    ("name=a,b", ("name=a,b", "add -m", """'name="a,b"'""")),
    ("federated/strategy=glob(*)", ("federated/strategy=glob(*)", "add -m")),
    ("data=[digits,mnist]", ("data=[digits,mnist]", "data=CHOICE")),
    ("-m seed=interval(1,2)", ("seed=interval(1,2)", "'seed=range(1,4)'")),
    ("-m target={value:1} target={metric:a}", ("in a sweep", "target.KEY=VALUE")),
    ("-m target={value:1},null target={metric:a}", ("target={metric:a}", "target.KEY=VALUE")),
    ("-m seed=rang(1,2)", ("seed=rang(1,2)", "'range'")),
    ("-m federated/strategy=glob(zzz*)", ("zzz*", "no jobs")),
    ("-m seed=range(1,1)", ("seed=range(1,1)", "no jobs")),
    # groups with a dot, keys with a slash, choices without their group
    (
        "federated.strategy=fedadam",
        ("federated.strategy=fedadam", "Write federated/strategy=fedadam"),
    ),
    ("federated.partition=iid", ("federated.partition=iid", "Write federated/partition=iid")),
    ("federated/rounds=3", ("federated/rounds=3", "'federated.rounds'")),
    ("federated/strategy.eta=3", ("federated/strategy.eta=3", "federated.strategy.eta=3")),
    ("model/hidden=[3]", ("model/hidden=[3]", "'model.hidden'")),
    ("quickstart", ("quickstart", "experiment=quickstart")),
    ("experiment.quickstart", ("experiment.quickstart", "experiment=quickstart")),
    ("model=MLP", ("model=MLP", "'mlp'")),
    ("model=mlp_schema", ("model=mlp_schema", "model=mlp.")),
    ("optimizer=0.1", ("optimizer=0.1", "--help")),
    ("~name", ("~name", "name=VALUE")),
    ("experiment=emoji ~model.width", ("no experiment here sets it", "model.width=VALUE")),
    ("metrics=auroc", ("metrics=auroc", "Set a list: metrics=[auroc].")),
    ("optimizer=adam optimizer.betas=3", ("Set a list: optimizer.betas=[3].",)),
    ("data=table", ("data.path is not set: data=table has no default", "VALUE, of type str.")),
    ("=3", ("=3", "key=value")),
    # flags
    ("--seed 3", ("--seed", "seed=VALUE")),
    ("--resume=true", ("--resume=true", "Write resume=true")),
    ("--experiment=quickstart", ("--experiment=quickstart", "Write experiment=quickstart")),
    ("--multirum seed=1,2", ("--multirum", "'--multirun'")),
    ("--cfg jobb", ("--cfg", "jobb", "hydra")),
    # relations between keys
    (
        "federated.clients_per_round=11",
        ("federated.clients_per_round=11", "10 clients", "Lower the one or raise the other"),
    ),
    ("federated.workers=2", ("federated.workers=2", "federated.pool=ray")),
    # no effect in this mode
    ("distributed.workers=2", ("distributed.workers=2", "python -m distributed")),
    ("++distributed.workers=2", ("distributed.workers=2", "python -m distributed")),
    ("distributed=local", ("distributed=local", "python -m distributed")),
]


@pytest.mark.parametrize(("typed", "named"), WRONG, ids=[typed for typed, _ in WRONG])
def test_one_message_names_key_value_and_remedy(
    typed: str,
    named: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    job = Started()
    assert type_command(monkeypatch, "federated", *typed.split(), job=job) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("error") == 1, err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    for part in named:
        assert part in err
    assert job.runs == [], "work was started all the same"
    assert not list(tmp_path.rglob("*.yaml"))


@pytest.mark.parametrize("override", ["federated.rounds=2", "federated/strategy=krum"])
def test_federated_keys_are_refused_in_distributed_mode(
    override: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    job = Started()
    assert type_command(monkeypatch, "distributed", override, job=job) == 2
    err = capsys.readouterr().err
    assert override in err
    assert "python -m federated" in err
    assert job.runs == []


@pytest.mark.parametrize("experiment", ["fashion_cnn", "mine.yaml"])
def test_keys_of_a_choice_that_is_swapped_are_left_out_as_the_message_says(
    experiment: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("# @package _global_\ndefaults:\n  - fashion_cnn\nseed: 3\n")
    job, words = Started(), (f"experiment={experiment}", "model=mlp")
    assert type_command(monkeypatch, "federated", *words, job=job) == 2
    err = capsys.readouterr().err
    assert "conf/experiment/fashion_cnn.yaml, line 11: model.channels is no key of model=mlp" in err
    said = err.partition("Add ")[2].partition(" to the command line")[0]
    assert type_command(monkeypatch, "federated", *words, *shlex.split(said), job=job) == 0
    (run,) = job.runs
    assert (run.model.name, run.model.hidden) == ("mlp", [128])  # type: ignore[attr-defined]


def test_a_value_given_twice_is_named_as_it_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert type_command(monkeypatch, "federated", "seed=1", "seed=x", job=Started()) == 2
    assert "seed=x" in capsys.readouterr().err


def test_only_near_words_are_suggested() -> None:
    assert closest("acuracy", ["loss", "accuracy"]) == " Did you mean 'accuracy'?"
    assert closest("zzz", ["loss", "accuracy"]) == ""
    assert closest("zzz", []) == ""
