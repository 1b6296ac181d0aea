"""`data.fit=private`: no client or record moves the sums by more than is claimed, and noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from distributed.driver import build_components as build_distributed
from federated.components import build_components as build_federated
from heliotrope.config import Run
from heliotrope.data import Dataset, Partition, load, private_fit
from heliotrope.data.preparation import Pixels
from heliotrope.data.preparation.moments import (
    Bounds,
    pixel_moments,
    row_moments,
    scale_of,
    unit_sums,
)
from heliotrope.data.preparation.numbers import FittedNumbers
from heliotrope.data.private_fit import fitted_privately, sensitivity
from heliotrope.errors import ConfigError
from heliotrope.privacy.keys import NoiseKeys, RecordKeys
from heliotrope.privacy.mechanisms import Adjacency
from tests.support import compose, fresh_seed

_PRIVATE = ("data.fit=private", "data.fit_noise_multiplier=2")
_CENTRAL = ("federated/privacy=central", "federated.privacy.noise_multiplier=1")
_DPSGD = ("distributed/privacy=dpsgd", "distributed.privacy.noise_multiplier=1")
_HEART = ("data=heart", "model=logistic", *_PRIVATE)


class _Keys(RecordKeys):
    key = "keys"


def _keys(target: float | None = None) -> NoiseKeys:
    return _Keys(1.0, 1.0, 1e-3, target)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(fresh_seed())


_KNOWN = ((10, 90), (50, 210), (0, 400), (50, 250), (-3, 5), (-3, 5))  # 4 usual deviations
_BOUNDS: tuple[Bounds, ...] = ((-1.0, 3.0), (0.0, 1e-3), (1e5, 2e9))


def _numbers(rng: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Draw rows of three columns: inside of the bounds, far outside, on them, or missing."""
    low, high = np.array(_BOUNDS).T
    values = low + (high - low) * rng.normal(0.5, 2, (count, 3))
    on = rng.integers(0, 6, values.shape)
    values = np.where(on == 0, low, np.where(on == 1, high, values))
    values = np.where(on == 2, rng.choice([-1e38, 1e38], values.shape), values)
    return np.where(on == 3, np.nan, values).astype(np.float32)


@pytest.mark.parametrize("adjacency", ["add-or-remove-one", "replace-special", "replace-one"])
@pytest.mark.parametrize("rows_each", [1, 9])  # records, and clients with up to so many rows
def test_no_unit_moves_the_sums_by_more_than_is_claimed(
    adjacency: Adjacency, rows_each: int, rng: np.random.Generator
) -> None:
    claimed, furthest = sensitivity(3, adjacency), 0.0
    high = np.array([[high for _, high in _BOUNDS]], dtype=np.float32)
    low = np.array([[low for low, _ in _BOUNDS]], dtype=np.float32)
    for trial in range(300):
        sizes = rng.integers(1, rows_each + 1, 5)
        groups = np.repeat(np.arange(5), sizes)
        values = _numbers(rng, len(groups))
        changed = int(rng.integers(0, 5))
        others, there = groups != changed, groups == changed
        mine, theirs = values[there], _numbers(rng, int(rng.integers(1, rows_each + 1)))
        if trial == 0:  # the worst that there is
            mine, theirs = (np.repeat(each, len(each), 0) for each in (high, low))
        alone = [
            unit_sums(row_moments(rows, _BOUNDS), np.zeros(len(rows), np.int64), 1)
            for rows in (mine, theirs)
        ]
        rest = unit_sums(row_moments(values[others], _BOUNDS), groups[others], 5)
        with_mine = np.concatenate([values[others], mine])
        whose = np.concatenate([groups[others], np.full(len(mine), changed)])
        whole = unit_sums(row_moments(with_mine, _BOUNDS), whose, 5)
        np.testing.assert_allclose(whole, rest + alone[0], atol=1e-12)  # nobody else's changes
        replaced = adjacency == "replace-one"
        moved = alone[0] - alone[1] if replaced else alone[0]
        furthest = max(furthest, float(np.linalg.norm(moved)))
        assert furthest <= claimed + 1e-12
    assert furthest == pytest.approx(claimed)


def test_rows_add_what_is_inside_of_the_bounds() -> None:
    values = np.array([[1.0], [-7.0], [3.0], [np.nan], [2.0]], dtype=np.float32)
    found = row_moments(values, [(-1.0, 3.0)])[:, 0]
    wanted = [(1, 0, 0), (1, -1, 1), (1, 1, 1), (0, 0, 0), (1, 0.5, 0.25)]
    assert found.tolist() == [list(map(float, row)) for row in wanted]


@pytest.mark.parametrize("bounds", [(0.0, 255.0), (0.0, 16.0), (10.0, 200.0)])
def test_an_image_adds_the_mean_over_its_pixels(bounds: Bounds, rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (7, 2, 5, 3), dtype=np.uint8)
    images[0], images[1] = 0, 255
    each = row_moments(images.reshape(-1, 1).astype(np.float32), [bounds])
    wanted = each.reshape(7, 30, 1, 3).mean(axis=1)
    np.testing.assert_allclose(pixel_moments(images, bounds), wanted, atol=1e-12)
    assert pixel_moments(images[:0], bounds).shape == (0, 1, 3)


def test_sums_over_units_do_not_depend_on_the_order_and_leave_others_out(
    rng: np.random.Generator,
) -> None:
    moments, groups = row_moments(_numbers(rng, 50), _BOUNDS), rng.integers(0, 8, 50)
    wanted = sum(moments[groups == u].mean(axis=0) for u in range(6) if (groups == u).any())
    found = unit_sums(moments, groups, 6)  # the rows of 6 and 7 are nobody's
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    relabelled = (groups + 3) % 6 + np.where(groups < 6, 0, 6)  # clients in another order
    assert unit_sums(moments, np.where(groups < 6, relabelled, 6), 6).tolist() == found.tolist()


def test_noise_is_never_scaled_up() -> None:
    bounds = (0.0, 100.0)
    constant = np.array([1000.0, 1000.0 * 0.5, 1000.0 * 0.25])  # 75 everywhere
    scale = scale_of(constant, 0.0, bounds)
    assert (scale.mean, scale.deviation) == (75.0, 0.0)
    scale = scale_of(constant + np.array([0, 10, -30]), 10.0, bounds)
    assert scale.mean == pytest.approx(75.5)
    assert scale.deviation == pytest.approx(50 * 0.1)  # the noise's: sqrt(10 / 1000)
    for few in ([5.0, 80.0, -3.0], [-4.0, 0.0, 0.0], [20.0, 10.0, 10.0]):
        hidden = scale_of(np.array(few), 10.0, bounds)
        assert (hidden.mean, hidden.deviation) == (50.0, 50.0)
    wild = scale_of(np.array([21.0, 300.0, -300.0]), 10.0, bounds)
    assert 0 <= wild.mean <= 100
    assert 0 < wild.deviation <= 50


def _fitted(partition: Partition | None, *more: str) -> tuple[Run, Dataset]:
    run = compose("distributed", *_HEART, *more)
    dataset = load(run.data, run.seed, hashed=True)
    return run, fitted_privately(run, dataset, _keys(), partition)


def _numbers_of(dataset: Dataset) -> FittedNumbers:
    found = dataset.preparation.steps[0]
    assert isinstance(found, FittedNumbers)
    return found


def test_records_without_noise_give_the_means_and_deviations_of_the_fit() -> None:
    wide = "data.fit_bounds={age: [0, 200], trestbps: [0, 300], chol: [-1, 1000], thalach: "
    wide += "[0, 300], oldpeak: [-10, 20], ca: [-1, 10]}"
    _, private = _fitted(None, wide, "data.fit_noise_multiplier=1e-9")
    run = compose("distributed", *_HEART, "data.fit=training")
    plain = _numbers_of(load(run.data, run.seed))
    found = _numbers_of(private)
    np.testing.assert_allclose(found.means, plain.means, rtol=1e-5)
    np.testing.assert_allclose(found.deviations, plain.deviations, rtol=1e-5)
    assert found.indicators == found.columns  # which lack numbers is not told


def test_a_client_weighs_the_same_whatever_it_holds() -> None:
    run = compose("distributed", *_HEART)
    age = load(run.data, run.seed).fitting.train.columns["age"].values  # type: ignore[union-attr]
    cut = Partition(np.arange(len(age)), np.array([0, 1, len(age)]))
    _, private = _fitted(cut, "data.fit_noise_multiplier=1e-9")
    wanted = (float(np.float32(age[0])) + age[1:].astype(np.float32).mean(dtype=np.float64)) / 2
    assert _numbers_of(private).means[0] == pytest.approx(wanted)


@pytest.mark.parametrize("clients", [1, 3])
def test_few_clients_are_hidden(clients: int) -> None:
    run = compose("distributed", *_HEART)
    count = len(load(run.data, run.seed).train)
    ends = np.linspace(0, count, clients + 1).astype(np.int64)
    _, private = _fitted(Partition(np.arange(count), ends), "data.fit_noise_multiplier=100")
    found = _numbers_of(private)
    for (low, high), mean, width in zip(_KNOWN, found.means, found.deviations, strict=True):
        assert low <= mean <= high
        assert (high - low) / 4 < width <= (high - low) / 2


def test_noise_has_the_deviation_that_is_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[np.ndarray[Any, Any]] = []

    def noted(sums: np.ndarray[Any, Any], noise: float, bounds: Bounds) -> object:
        told.append(np.array([*sums, noise]))
        return scale_of(sums, noise, bounds)

    monkeypatch.setattr(private_fit, "scale_of", noted)
    first = fresh_seed() % 10**6
    run = compose("distributed", *_HEART)
    dataset = load(run.data, run.seed, hashed=True)
    for number in range(120):
        run.seed = first + number
        fitted_privately(run, dataset, _keys())
    found = np.array(told).reshape(120, 6, 4)
    noise = found[..., 3]
    assert np.all(noise == 2 * np.sqrt(3 * 6))
    spread = found[..., :3].std(axis=0) / noise[0, 0]
    assert abs(float(np.mean(spread)) - 1) < 0.06  # 2160 numbers
    centred = (found[..., :3] - found[..., :3].mean(axis=0)).reshape(120, -1)
    correlation = np.corrcoef(centred.T) - np.eye(18)
    assert np.abs(correlation).max() < 0.5  # no two sums have the same noise


def test_the_same_noise_is_only_for_the_same_sums() -> None:
    run, first = _fitted(None)
    assert _fitted(None)[1].preparation == first.preparation
    assert _fitted(None)[1].releases == first.releases
    count = len(first.train)
    halves = Partition(np.arange(count), np.array([0, count // 2, count]))
    thirds = Partition(np.arange(count), np.array([0, count // 3, count]))
    others = [
        _fitted(None, "seed=4"),
        _fitted(None, "data.fit_noise_multiplier=3"),
        _fitted(None, "data.fit_bounds={age: [0, 100]}"),
        _fitted(None, "data.validation_fraction=0.1"),
        _fitted(halves),
        _fitted(thirds),
    ]
    names = {each.releases[0].name for _, each in [(run, first), *others]}
    dataset = load(run.data, run.seed, hashed=True)
    names.add(fitted_privately(run, replace(dataset, content="other"), _keys()).releases[0].name)
    assert len(names) == 2 + len(others)


@pytest.mark.parametrize(
    ("mode", "choices", "said"),
    [
        ("distributed", _HEART, r"the run's protection charges for, and there is none\. Set "),
        ("federated", _HEART, r"and there is none\. Set federated/privacy=central"),
        ("federated", (*_HEART, *_CENTRAL, "data.fit_noise_multiplier=null"), "Set it, such as 5"),
        ("distributed", (*_DPSGD, "experiment=diabetes", *_PRIVATE), r"bounds of .*target.*public"),
        ("distributed", (*_DPSGD, *_HEART, "data.fit_bounds={aeg: [1, 2]}"), "Did you mean 'age'"),
        (
            "distributed",
            (*_DPSGD, "experiment=spam", *_PRIVATE),
            r"no numbers .*Set data\.fit=none",
        ),
        (
            "federated",
            (*_HEART, "federated/privacy=local", "federated.privacy.noise_multiplier=1"),
            r"privacy=local has an account for each client.*Set data\.fit=none",
        ),
        (
            "federated",
            (*_HEART, "federated/privacy=record", "federated.privacy.noise_multiplier=1"),
            r"privacy=record has an account for each client",
        ),
        (
            "federated",
            (*_HEART, *_CENTRAL, "federated/secure_aggregation=secagg"),
            r"secagg hides from the server.*Set data\.fit=none",
        ),
        (
            "distributed",
            (*_HEART, *_DPSGD, "distributed.privacy.target_epsilon=0.1"),
            r"spends epsilon 1\.\d+ before training, of distributed\.privacy\.target_epsilon=0\.1",
        ),
        ("federated", (*_HEART, *_CENTRAL, "data.fit_noise_multiplier=1e9"), r"=1e\+09 is beyond"),
        ("distributed", (*_DPSGD, "data=heart", "data.fit=training"), r"or data\.fit=private"),
        ("federated", (*_CENTRAL, "data=heart", "data.fit=training"), r"or data\.fit=private"),
    ],
)
def test_what_cannot_be_charged_is_refused(mode: Any, choices: tuple[str, ...], said: str) -> None:
    build = build_federated if mode == "federated" else build_distributed
    few = ("federated.clients_per_round=2",) if mode == "federated" else ()
    with pytest.raises(ConfigError, match=said):
        build(compose(mode, *choices, *few))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.fit_noise_multiplier=0", "data.fit_noise_multiplier=0"),
        ("data.fit_bounds=3", "must name columns"),
        ("data.fit_bounds={age: 3}", "two finite numbers"),
        ("data.fit_bounds={age: [3, 3]}", "two finite numbers"),
        ("data.fit_bounds={age: [3, x]}", "two finite numbers"),
        ("data.fit_bounds={age: [1, 2, 3]}", "two finite numbers"),
        ("data.fit_bounds={age: [5, 2]}", "two finite numbers"),
        ("data.fit_bounds={age: [-1e308, 1e308]}", "two finite numbers"),
    ],
)
def test_bounds_that_are_none_are_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compose("distributed", "data=heart", *_PRIVATE, override)


def test_pixels_have_the_bounds_of_bytes() -> None:
    assert Pixels((1, 2, 2), white=16.0).bounds() == {"image": (0.0, 16.0)}
    run = compose("distributed", *_DPSGD, *_PRIVATE, "data=digits", "data.fit_noise_multiplier=4")
    found = build_distributed(run).dataset
    plain = load(compose("distributed", "data=digits").data, run.seed).preparation.steps[0]
    (step, *_) = found.preparation.steps
    assert step.mean == pytest.approx(plain.mean, abs=0.3)  # type: ignore[attr-defined]
    assert step.deviation == pytest.approx(plain.deviation, rel=0.1)  # type: ignore[attr-defined]
