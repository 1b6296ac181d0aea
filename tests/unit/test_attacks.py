"""Simulated attackers: what they send, who they are, and what they are refused with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest
import torch
from scipy.stats import hypergeom
from torch import nn

from federated.aggregation import ClipNorm, UpdateContext
from federated.algorithms import ClientMomentum
from federated.algorithms.momentum import MOMENTUM
from federated.attack_setting import chance_of_more
from federated.attacks.collusion import Colluders
from federated.attacks.kinds import Collusion, LittleIsEnough, NegativeMean, Scaling
from federated.client_state import ClientStates
from federated.components import build_components
from federated.engine.client_updates import ClientUpdates
from federated.updates import Instruction, Stack, Update
from heliotrope.config import OptimizerConfig
from heliotrope.errors import ConfigError
from tests.support import compose, values_of

_ORACLE = json.loads((Path(__file__).parent / "byzfl_vectors.json").read_text())
_HONEST = torch.tensor(_ORACLE["vectors"], dtype=torch.float64)[: -_ORACLE["attackers"]]
_SMALL = ("federated.partition.clients=10", "federated.clients_per_round=10", "model.hidden=[4]")


@pytest.mark.parametrize(
    ("attack", "oracle"),
    [
        (LittleIsEnough("alie", 2, 1.5), _ORACLE["alie"]),
        (NegativeMean("ipm", 2, 2.0), _ORACLE["ipm"]),
    ],
)
def test_colluders_forge_what_byzfl_forges(attack: Collusion, oracle: Sequence[float]) -> None:
    expected = torch.tensor(oracle, dtype=torch.float64)
    torch.testing.assert_close(attack.forged(_HONEST), expected)


def _update(client: int, value: float) -> Update:
    arrays = {"w": torch.tensor([value]), "seen": torch.tensor([client])}
    return Update((client,), arrays, client + 1, 0.0, 1, 1, 1)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_colluders_alter_their_parameters_alone_from_the_honest_in_any_order(
    order: list[int],
) -> None:
    """The honest went 1 and 4 from 10: the mean way is 2.5."""
    values = {0: 11.0, 1: 1000.0, 2: 14.0, 3: -1000.0}
    colluders = Colluders(NegativeMean("ipm", 2, 2.0), {1, 3}, ["w"])
    starts = {"w": torch.tensor([10.0]), "seen": torch.tensor([0])}
    found = colluders([_update(client, values[client]) for client in order], starts)
    assert [update.clients for update in found] == [(client,) for client in order]
    sent = {u.clients[0]: (float(u.arrays["w"]), int(u.arrays["seen"]), u.weight) for u in found}
    assert sent == {0: (11.0, 0, 1), 1: (5.0, 1, 2), 2: (14.0, 2, 3), 3: (5.0, 3, 4)}


def test_a_round_of_attackers_alone_is_sent_as_it_was_trained() -> None:
    updates = [_update(1, 2.0), _update(3, 4.0)]
    colluders = Colluders(NegativeMean("ipm", 2, 2.0), {1, 3}, ["w"])
    assert colluders(updates, {"w": torch.tensor([0.0])}) == updates


def test_one_honest_client_has_no_deviation() -> None:
    assert LittleIsEnough("alie", 1, 1.5).forged(_HONEST[:1]).tolist() == _HONEST[0].tolist()


def test_attackers_in_a_stack_send_a_multiple() -> None:
    (transform,) = Scaling("scaling", 1, -50.0).transforms({7})
    updates = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()}
    found = transform.apply(updates, UpdateContext(0, 1, (4, 7)))
    assert found["w"].tolist() == [[1.0, 2.0], [-150.0, -200.0]]


def test_momentum_of_a_client_is_kept_as_it_was_before_it_is_clipped() -> None:
    """m = 0.5 m + 0.5 x, by hand: 4, then 0.5 * 4 + 0.5 * 2; what is sent is clipped to 1."""
    model = nn.Linear(1, 1, bias=False)
    weights, kept = {"weight": torch.tensor([[1.0]])}, None
    finish = ClientUpdates(model, OptimizerConfig("sgd"), 5, [ClipNorm(1.0)])
    for way, momentum in ((8.0, 4.0), (2.0, 3.0)):
        order = Instruction(1, (ClientMomentum(0.5),), states=kept)
        stack = Stack((4,), {"weight": torch.tensor([[[1.0 + way]]])}, *[(1,)] * 5)
        done = finish(stack, weights, order, rounded=True)
        assert done.arrays["weight"].flatten().tolist() == [2.0]
        assert done.states[f"{MOMENTUM}weight"].flatten().tolist() == [momentum]
        kept = ClientStates((4,), done.states)


def test_attackers_train_on_flipped_labels_and_nobody_else() -> None:
    more = ("federated.holdout_fraction=0.3", "seed=3")
    plain = build_components(compose("federated", *_SMALL, *more)).context
    run = compose(
        "federated", *_SMALL, *more, "federated/attack=label_flip", "federated.attack.attackers=3"
    )
    parts = build_components(run)
    assert parts.attack is not None
    attackers = sorted(parts.attack.attackers)
    assert len(attackers) == 3
    expected = values_of(plain.train, "label").clone()
    rows = torch.from_numpy(plain.population.train_examples(attackers))
    expected[rows] = 9 - expected[rows]
    assert torch.equal(values_of(parts.context.train, "label"), expected)
    assert parts.attack.told() == {
        "name": "label_flip", "attackers": 3, "clients": attackers, "simulated": True
    }  # fmt: skip


def test_who_knows_all_updates_needs_them_unreduced() -> None:
    parts = build_components(compose("federated", *_SMALL, "federated/attack=alie"))
    assert not parts.reduce
    assert build_components(compose("federated", *_SMALL, "federated/attack=sign_flip")).reduce


@pytest.mark.parametrize(
    ("bounded", "attackers", "clients", "cohort"),
    [(2, 5, 25, 10), (0, 1, 4, 3), (5, 5, 25, 10), (0, 3, 4, 3), (1, 6, 9, 9)],
)
def test_how_often_a_round_has_more_attackers_than_are_bounded(
    bounded: int, attackers: int, clients: int, cohort: int
) -> None:
    cohorts = list(combinations(range(clients), cohort)) if clients < 10 else []
    if cohorts:
        beyond = [sum(c < attackers for c in each) > bounded for each in cohorts]
        expected = sum(beyond) / len(beyond)
    else:
        expected = float(hypergeom.sf(bounded, clients, attackers, cohort))
    assert chance_of_more(bounded, attackers, clients, cohort) == pytest.approx(expected)


def test_that_is_said_before_training() -> None:
    few = (
        *("federated.partition.clients=20", "federated.clients_per_round=10", "model.hidden=[4]"),
        *("federated/attack=scaling", "federated.attack.attackers=4"),
    )
    krum = ("federated/strategy=krum", "federated.strategy.num_malicious_nodes=2")
    attack = build_components(compose("federated", *few, *krum)).attack
    assert attack is not None
    assert "more than the 2 that are bounded are in 29" in attack.line()
    attack = build_components(compose("federated", *few)).attack
    assert attack is not None
    assert attack.line().endswith("(scaling)")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("federated/attack=alie", "federated.reduce=worker"), ("reduce=worker", "reduce=none")),
        (("federated/attack=ipm", "federated.attack.attackers=0"), ("attackers=0", "attack=none")),
        (
            ("federated/attack=ipm", "federated.attack.attackers=10"),
            ("attackers=10", "less than the 10", "attackers=9"),
        ),
        (
            ("federated/attack=mimic", "federated/strategy=scaffold"),
            ("strategy=scaffold", "label_flip"),
        ),
        (
            ("federated/attack=label_flip", "data=diabetes", "model=logistic"),
            ("attack=label_flip", "Regression", "attack=sign_flip"),
        ),
        (
            (
                *("federated/attack=alie", "federated/privacy=central"),
                "federated.privacy.noise_multiplier=1",
            ),
            ("attack=alie", "privacy=central", "privacy=none"),
        ),
        (
            ("federated.client_momentum=0.9", "federated/strategy=scaffold"),
            ("client_momentum=0.9", "client_momentum=0"),
        ),
        (("federated.client_momentum=1.0",), ("client_momentum=1.0", "[0, 1)")),
    ],
)
def test_what_an_attack_or_momentum_does_not_go_with_is_refused_before_work(
    settings: tuple[str, ...], words: tuple[str, ...]
) -> None:
    small = _SMALL[:2] if "model=logistic" in settings else _SMALL
    with pytest.raises(ConfigError) as caught:
        build_components(compose("federated", *small, *settings))
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)
