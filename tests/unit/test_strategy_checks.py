"""A robust rule that would promise nothing is refused before any work, with exit code 2."""

from __future__ import annotations

import pytest
from flwr.serverapp.strategy import Strategy
from torch import nn

from federated.strategies import ModelFacts, adds_evaluations, build_strategy, reduces
from heliotrope.errors import ConfigError
from tests.support import compose

_FACTS = ModelFacts.of(nn.Linear(2, 2), 100, 10)
_K = "federated.clients_per_round"
_F = "federated.strategy.num_malicious_nodes"


def _build(name: str, *settings: str) -> Strategy:
    more = ("federated.partition.clients=100", *settings)
    return build_strategy(compose("federated", f"federated/strategy={name}", *more), _FACTS)


@pytest.mark.parametrize("flower", ["", "flower_"])
@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        (
            "fedtrimmedavg",
            ("federated.strategy.beta=0.09", f"{_K}=11"),
            ("beta=0.09", "12 clients"),
        ),
        ("fedtrimmedavg", ("federated.strategy.beta=0",), ("beta=0", "strategy=fedavg")),
        ("fedtrimmedavg", ("federated.strategy.beta=0.5",), ("beta=0.5", "(0, 0.5)")),
        (
            "fedtrimmedavg",
            ("federated.strategy.beta=0.1", f"{_K}=10", "federated.quorum=0.9"),
            ("quorum=0.9 of 10", "with 9", "Raise federated.quorum"),
        ),
        ("krum", (f"{_F}=2", f"{_K}=6"), (f"{_F}=2", "at least 7", f"{_K}=6")),
        ("krum", (f"{_F}=2", f"{_K}=7", "federated.quorum=0.8"), ("quorum=0.8 of 7", "with 6")),
        ("bulyan", (f"{_F}=2", f"{_K}=10"), ("at least 11", f"{_K}=10")),
        (
            "multikrum",
            (f"{_F}=2", "federated.strategy.num_nodes_to_select=9", f"{_K}=10"),
            ("num_nodes_to_select=9", f"{_F}=2", "at least 11 clients"),
        ),
        (
            "multikrum",
            ("federated.strategy.num_nodes_to_select=11",),
            ("between 1 and", f"{_K}=10"),
        ),
    ],
)
def test_too_few_clients_for_a_robust_rule_are_refused(
    name: str, settings: tuple[str, ...], words: tuple[str, ...], flower: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        _build(flower + name, *settings)
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)


def _attacked(name: str, attackers: int, *settings: str) -> object:
    """Build for rounds of all 10 clients of `_FACTS`, unless told otherwise."""
    attack = ("federated/attack=scaling", f"federated.attack.attackers={attackers}")
    return _build(name, f"{_K}=10", *(attack if attackers else ()), *settings)


@pytest.mark.parametrize(
    ("name", "attackers", "settings", "words"),
    [
        (
            "fedtrimmedavg",
            3,
            ("federated.strategy.beta=0.2",),
            ("3 of 10 clients", "leaves out 2", "beta=0.3"),
        ),
        ("fedtrimmedavg", 5, ("federated.strategy.beta=0.4",), ("Lower federated.attack.att",)),
        ("flower_krum", 2, (f"{_F}=1",), ("2 of 10 clients", f"Set {_F}=2")),
        ("geometric_median", 5, (), ("5 of 10 clients", "less than half", "Lower")),
        (
            "fedmedian",
            3,
            ("federated.bucket_size=2",),
            ("3 of 5 buckets", "attackers or bucket_size"),
        ),
        ("multikrum", 0, ("federated.bucket_size=2", f"{_F}=2"), ("at least 7 buckets of 2",)),
        ("bulyan", 0, ("federated.bucket_size=2", f"{_F}=1"), ("at least 7 buckets of 2",)),
        (
            "krum",
            2,
            ("federated.bucket_size=2", f"{_F}=1"),
            ("2 of 5 buckets", "bound 1 of 5 at most"),
        ),
        ("krum", 9, (), ("9 of 10 clients", "bound 3 of 10 at most: lower federated.attack")),
        ("bulyan", 2, (), ("2 of 10 clients", "bound 1 of 10 at most")),
        ("centered_clipping", 5, (), ("5 of 10 clients", "less than half")),
        ("centered_clipping", 3, ("federated.bucket_size=2",), ("3 of 5 buckets",)),
        (
            "fedtrimmedavg",
            2,
            ("federated.strategy.beta=0.25", "federated.bucket_size=2"),
            ("2 of 5 buckets", "leaves out 1", "beta=0.4"),
        ),
        (
            "fedmedian",
            4,
            ("federated.quorum=0.8",),
            ("4 of 8 clients", "federated.quorum=0.8 lets go on with 8"),
        ),
        (
            "fedtrimmedavg",
            3,
            ("federated.strategy.beta=0.3", "federated.quorum=0.9"),
            ("3 of 9 clients", "leaves out 2", "quorum=0.9"),
        ),
        (
            "fedavg",
            0,
            ("federated.bucket_size=2",),
            ("bucket_size=2", "Set federated.bucket_size=1"),
        ),
    ],
)
def test_a_rule_that_bounds_fewer_attackers_than_there_are_is_refused(
    name: str, attackers: int, settings: tuple[str, ...], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        _attacked(name, attackers, *settings)
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "attackers", "settings"),
    [
        ("fedtrimmedavg", 3, ("federated.strategy.beta=0.3",)),
        ("geometric_median", 4, ()),
        ("krum", 3, (f"{_F}=3",)),
        ("fedavg", 9, ()),
        ("norm_bounding", 9, ()),  # how far each can go, however many there are
        ("fltrust", 9, ()),
        ("fedmedian", 3, ("federated.quorum=0.8",)),
        ("multikrum", 3, (f"{_F}=3", "federated.strategy.num_nodes_to_select=7")),
        ("fedmedian", 4, (f"{_K}=5",)),  # two in a round of five
    ],
)
def test_as_many_attackers_as_a_rule_bounds_are_simulated(
    name: str, attackers: int, settings: tuple[str, ...]
) -> None:
    _attacked(name, attackers, *settings)


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("optimizer=adam", "Set optimizer=sgd"),
        ("optimizer.momentum=0.9", "Set optimizer.momentum=0"),
        ("federated.clip_update_norm=0.5", "Set federated.clip_update_norm=null"),
    ],
)
def test_scaffold_needs_plain_sgd_and_unclipped_updates(setting: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _build("scaffold", setting)
    assert caught.value.exit_code == 2
    assert setting in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fedtrimmedavg", ("federated.strategy.beta=0.1", f"{_K}=10")),
        ("fedtrimmedavg", ("federated.strategy.beta=0.29", f"{_K}=100")),
        ("krum", (f"{_F}=2", f"{_K}=9", "federated.quorum=0.7")),
        ("bulyan", (f"{_F}=2", f"{_K}=11")),
    ],
)
def test_just_enough_clients_are_enough(name: str, settings: tuple[str, ...]) -> None:
    _build(name, *settings)


@pytest.mark.parametrize("name", ["krum", "qfedavg", "flower_fedmedian"])
def test_a_sum_is_not_enough_for_a_strategy_that_looks_at_each_client(name: str) -> None:
    run = compose("federated", f"federated/strategy={name}")
    cfg, strategy = run.federated, build_strategy(run, _FACTS)
    assert not reduces(cfg, strategy)
    cfg.reduce = "worker"
    with pytest.raises(ConfigError, match=f"federated/strategy={name} needs every client"):
        reduces(cfg, strategy)


@pytest.mark.parametrize("name", ["fedadam", "krum", "scaffold", "flower_fedavg", "qfedavg"])
def test_evaluations_are_added_unless_a_strategy_has_its_own_way(name: str) -> None:
    strategy = _build(name)
    assert adds_evaluations(strategy)
    own = type("Own", (type(strategy),), {"aggregate_evaluate": lambda *_: None})
    assert not adds_evaluations(own.__new__(own))
