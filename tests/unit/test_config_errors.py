"""A wrong command line gets one message, naming the key, the value and the remedy, and exit 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliotrope.errors import closest
from tests.support import Started, type_command

# What is typed -> what the message must hold.
WRONG: list[tuple[str, tuple[str, ...]]] = [
    # unknown keys and groups
    ("federated.roundz=3", ("federated.roundz=3", "no such key", "'federated.rounds'")),
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
    ("model=cn", ("model=cn", "cnn, mlp", "Did you mean 'cnn'?")),
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
