"""Local privacy: what a client sends is noise of its own beside a clipped update, whoever asks."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from federated.aggregation import UpdateContext
from federated.components import build_components
from federated.population import Population
from federated.privacy.local import Local, NoisyUpdate
from federated.protection.local import NoisyClients
from federated.updates import StepNoise
from heliotrope.data import Partition
from heliotrope.errors import ConfigError
from heliotrope.privacy.accountant import epsilon
from heliotrope.privacy.mechanisms import Mechanism
from heliotrope.privacy.secure_noise import SecureNormals
from tests.support import compose

_SIZE = 40_000


def _updates(scales: list[float]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    column = torch.tensor(scales, dtype=torch.float64)
    ways = torch.randn(len(scales), _SIZE, generator=generator, dtype=torch.float64)
    return {"w": column[:, None] * ways, "b": column[:, None].expand(-1, 7).clone()}


def _context(clients: tuple[int, ...], server_round: int = 3, stamp: str = "a") -> UpdateContext:
    noise = StepNoise(dict.fromkeys(clients, 1.5), stamp)
    return UpdateContext(5, server_round, clients, noise)


def _noise(transform: NoisyUpdate, scale: float, context: UpdateContext) -> Tensor:
    """Return what was added to a client's update, [D]."""
    updates = _updates([scale])
    norm = math.sqrt(sum(float(update.square().sum()) for update in updates.values()))
    factor = min(1.0, transform.clip / norm) if norm else 1.0
    clipped = {name: update.clone() * factor for name, update in updates.items()}
    sent = transform.apply(updates, context)
    return torch.cat([(sent[name] - clipped[name]).flatten() for name in sent])


@pytest.mark.parametrize("transform", [NoisyUpdate(0.5), NoisyUpdate(0.5, 1.5, secure=True)])
@pytest.mark.parametrize("scale", [0.0, 1e-9, 1.0, 1e9])
def test_a_client_adds_the_noise_that_is_accounted_for(
    transform: NoisyUpdate, scale: float
) -> None:
    """Of standard deviation 1.5 times how far two clipped updates can be apart, a clip each way."""
    deviation = 1.5 * 2 * 0.5
    noise = _noise(transform, scale, _context((4,)))
    assert abs(float(noise.mean())) < 5 * deviation / math.sqrt(_SIZE)
    assert float(noise.var()) == pytest.approx(deviation**2, rel=5 * math.sqrt(2 / _SIZE))
    beyond = float((noise.abs() > deviation).double().mean())
    assert beyond == pytest.approx(0.31731, abs=0.012)
    pairs = float(noise[: _SIZE // 2] @ noise[_SIZE // 2 : _SIZE]) * 2 / _SIZE / deviation**2
    assert abs(pairs) < 5 / math.sqrt(_SIZE / 2), "the halves of Box and Muller's pairs"


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e300])
def test_an_update_that_is_not_finite_is_sent_as_noise_alone(bad: float) -> None:
    updates = _updates([1.0, 1.0])
    updates["w"][1, 3] = bad
    sent = NoisyUpdate(0.5).apply(updates, _context((1, 2)))
    assert all(bool(update.isfinite().all()) for update in sent.values())
    alone = NoisyUpdate(0.5).apply(_updates([0.0]), _context((2,)))
    for name, update in alone.items():
        torch.testing.assert_close(sent[name][1], update[0])


def test_noise_is_that_of_run_round_client_and_stamp_whoever_is_in_the_stack() -> None:
    together = NoisyUpdate(0.5).apply(_updates([1.0, 2.0]), _context((6, 7)))
    single = {name: value[1:].clone() for name, value in _updates([1.0, 2.0]).items()}
    alone = NoisyUpdate(0.5).apply(single, _context((7,)))
    for name, update in together.items():
        assert torch.equal(update[1], alone[name][0])
    base = _noise(NoisyUpdate(0.5), 0.0, _context((7,)))
    for other in (_context((8,)), _context((7,), 4), _context((7,), stamp="b")):
        drawn = _noise(NoisyUpdate(0.5), 0.0, other)
        assert abs(float(torch.corrcoef(torch.stack([base, drawn]))[0, 1])) < 5 / math.sqrt(_SIZE)


def test_a_client_who_is_not_told_how_much_noise_sends_nothing() -> None:
    with pytest.raises(ValueError, match="client 4"):
        NoisyUpdate(0.5).apply(_updates([1.0]), UpdateContext(5, 3, (4,)))


def test_secure_noise_never_repeats_and_has_any_shape() -> None:
    source = SecureNormals()
    assert not np.array_equal(source.standard_normal((100,)), source.standard_normal((100,)))
    shapes: list[tuple[int, ...]] = [(), (1,), (3,), (2, 3), (0,), (4, 0)]
    assert [source.standard_normal(shape).shape for shape in shapes] == shapes
    quantiles = np.quantile(source.standard_normal((200_000,)), [0.001, 0.159, 0.5, 0.841, 0.999])
    np.testing.assert_allclose(quantiles, [-3.09, -0.9986, 0, 0.9986, 3.09], atol=0.06)


def test_deployed_clients_take_noise_from_their_own_keys() -> None:
    keys = Local(0.5, 1.5, None, None)
    assert keys.own_transforms(deployed=True) == (NoisyUpdate(0.5, 1.5, secure=True),)
    assert keys.own_transforms(deployed=False) == (NoisyUpdate(0.5),)


def test_an_update_is_a_gaussian_mechanism_by_itself() -> None:
    """As the reference of q=1, z=5 over 100 uses, of whichever neighbours."""
    found = epsilon([(Mechanism("none", 5.0, 3, 70), 100)], 1e-5)
    assert (found.value, found.rdp) == (
        pytest.approx(9.9973, abs=1e-3),
        pytest.approx(10.7255, abs=1e-3),
    )
    assert Mechanism("none", 5.0, 3, 70).adjacency == "replace-one"


def test_nobody_takes_part_more_often_than_the_noise_is_made_for() -> None:
    population = Population(Partition(np.arange(23), np.arange(0, 24)), 0.0, 3, idle=[7])
    keys = Local(0.5, None, None, 3.0)
    taken: Counter[int] = Counter()
    for rounds in range(1, 30):
        cohort = population.draw_around(rounds, 5)
        assert len(set(cohort)) == 5
        assert cohort == sorted(cohort)
        taken.update(cohort)
        assert max(taken.values()) == keys.uses(rounds, 5, 22)
    assert 7 not in taken
    assert max(taken.values()) - min(taken.values()) <= 1
    mechanism = keys.mechanism(5, 22, 30, None)
    assert epsilon([(mechanism, keys.uses(30, 5, 22))], 22**-1.1).value <= 3.0


class _LastMean(nn.Module):
    """Keeps the mean of its last batch, which is no weight: nothing clips it or adds noise."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            self.get_buffer("mean").copy_(image.flatten(1).mean(dim=0))
        out: Tensor = self.linear(image.flatten(1))
        return out


def test_a_buffer_that_training_changes_is_refused_since_it_would_be_sent_as_it_is() -> None:
    run = compose(
        "federated",
        "data.fit=none",
        "federated/privacy=local",
        "federated.privacy.noise_multiplier=1",
    )
    built, keys = build_components(run), Local(1.0, 1.0, None, None)
    context = replace(built.context, model=_LastMean())
    with pytest.raises(ConfigError, match="changes the model's buffer mean"):
        NoisyClients.check(keys, run, context, built.strategy, built.exchange)
