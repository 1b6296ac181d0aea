"""Whom attackers mimic: the paper's rule written out, and what attackers keep of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from federated.attacks.collusion import Colluders
from federated.attacks.kinds import Mimic
from federated.attacks.mimicry import Mimicry
from federated.components import build_components
from federated.updates import Update
from heliotrope.errors import ConfigError
from heliotrope.seeding import numpy_generator
from tests.support import compose, fresh_seed


def _rounds(seed: int, rounds: int, clients: int = 5, size: int = 4) -> Tensor:
    draws = np.random.default_rng(seed).normal(size=(rounds, clients, size))
    return torch.from_numpy(draws + np.arange(size))


def _expected(rounds: Sequence[Tensor], seed: int) -> int:
    """Oja's rule and argmax_i |sum_t z^T x_i^t|, number by number."""
    z = numpy_generator(seed, "mimic").standard_normal(rounds[0].shape[1])
    z, mu = z / np.linalg.norm(z), np.zeros(len(z))
    sums = np.zeros(len(rounds[0]))
    for t, updates in enumerate(rounds):
        x = updates.numpy()
        mu = t / (t + 1) * mu + x.mean(axis=0) / (t + 1)
        step = sum(float((own - mu) @ z) * (own - mu) for own in x)
        z = t / (t + 1) * z + step / np.linalg.norm(step) / (t + 1)
        z = z / np.linalg.norm(z)
        sums += x @ z
    return int(np.abs(sums).argmax())


def test_the_client_is_the_one_of_the_paper() -> None:
    seed = fresh_seed()
    rounds, mimicry = _rounds(seed, 6), Mimicry(6, 11)
    for done, updates in enumerate(rounds, start=1):
        assert mimicry.place(range(5), updates) == _expected(list(rounds[:done]), 11)


def test_the_direction_becomes_that_of_the_largest_variance() -> None:
    updates = torch.tensor([[3.0, 0.1], [-3.0, -0.1], [0.0, 1.0], [0.0, -1.0], [2.9, 0]]).double()
    mimicry = Mimicry(100, 0)
    for _ in range(100):
        place = mimicry.place(range(5), updates)
    deviations = updates - updates.mean(dim=0)
    top = torch.linalg.eigh(deviations.T @ deviations).eigenvectors[:, -1]
    found = mimicry.snapshot()["mimicry/direction"]
    assert abs(float(found @ top)) == pytest.approx(1.0, abs=1e-3)
    assert place == int((updates @ top).abs().argmax())


def test_after_the_learning_rounds_the_client_stays_the_same_also_when_resumed() -> None:
    rounds = _rounds(3, 8)
    whole, resumed = Mimicry(3, 7), Mimicry(3, 7)
    places = [whole.place(range(5), updates) for updates in rounds]
    for updates in rounds[:2]:
        resumed.place(range(5), updates)
    after = Mimicry(3, 7)
    after.restore(resumed.snapshot())
    assert [after.place(range(5), updates) for updates in rounds[2:]] == places[2:]
    assert len(set(places[2:])) == 1
    last = rounds[-1] * 1000  # whatever they send then
    assert whole.place(range(5), last) == places[-1]
    present = [client for client in range(5) if client != places[-1]]
    assert whole.place(present, last[present]) in range(4)  # the next of those in the round
    assert whole.place([90, 91], last[:2]) == 0  # nobody knows them: the lowest number


def test_clients_who_send_the_same_teach_nothing_and_break_nothing() -> None:
    mimicry = Mimicry(2, 0)
    assert mimicry.place([4, 5], torch.zeros(2, 3).double()) == 0
    assert mimicry.place([4], torch.ones(1, 3).double()) == 0
    assert bool(torch.isfinite(mimicry.snapshot()["mimicry/direction"]).all())


def _update(client: int, *values: float) -> Update:
    return Update(
        (client,), {"w": torch.tensor(values), "n": torch.tensor(client)}, 1, 0.0, 1, 1, 1
    )


def test_attackers_send_the_weights_of_an_honest_client_that_are_finite() -> None:
    colluders = Colluders(Mimic("mimic", 2, 5), {1, 3}, ["w"], ["w"], 0)
    starts = {"w": torch.zeros(2), "n": torch.tensor(0)}
    honest = [_update(0, 1.0, 1.0), _update(2, 5.0, 5.0), _update(4, float("nan"), 0.0)]
    found = colluders([_update(3, 9.0, 9.0), *honest, _update(1, 8.0, 8.0)], starts)
    sent = {update.clients[0]: update.arrays for update in found}
    assert sent[1]["w"].tolist() == sent[3]["w"].tolist() == [5.0, 5.0]
    assert (int(sent[1]["n"]), int(sent[3]["n"])) == (1, 3)
    alone = [honest[2], _update(1, 8.0, 8.0)]
    assert colluders(alone, starts)[1].arrays["w"].tolist() == [8.0, 8.0]


def test_mimicry_without_rounds_to_learn_in_is_refused() -> None:
    keys = ("federated/attack=mimic", "federated.attack.learning_rounds=0")
    with pytest.raises(ConfigError, match=r"learning_rounds=0 must be 1 or more"):
        build_components(compose("federated", *keys))
