"""What a search goes over: read from what a sweep goes over, typed, tried with few digits."""

from __future__ import annotations

import math
import random

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from heliotrope import config
from heliotrope.errors import ConfigError
from heliotrope.search.space import Dimension, dimension_of
from tests.support import fresh_seed


def _read(override: str) -> Dimension:
    config.register()
    return dimension_of(OverridesParser.create().parse_override(override))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=interval(0.01,1)", Dimension("float", 0.01, 1.0)),
        ("optimizer.lr=interval(1,0.01)", Dimension("float", 0.01, 1.0)),
        ("optimizer.lr=tag(log,interval(0.01,1))", Dimension("float", 0.01, 1.0, log=True)),
        ("federated.local_epochs=interval(1,8)", Dimension("int", 1, 8)),  # as its type says
        ("optimizer.lr=int(interval(1.2,8.7))", Dimension("int", 1, 8)),  # as a cast says
        ("federated.local_epochs=tag(log,range(1,9))", Dimension("int", 1, 8, log=True)),
        ("federated.local_epochs=range(1,10,3)", Dimension("int", 1, 7, 3)),
        ("optimizer.momentum=range(0,0.35,0.1)", Dimension("float", 0.0, 0.3, 0.1)),
        ("model=mlp,cnn", Dimension("choice", choices=("mlp", "cnn"))),
        ("model.hidden=[32],[64,32]", Dimension("choice", choices=("[32]", "[64,32]"))),
        ("seed=choice(3,3,1)", Dimension("choice", choices=("3", "1"))),
    ],
)
def test_a_dimension_has_the_values_that_a_sweep_says(override: str, expected: Dimension) -> None:
    found = _read(override)
    assert found == expected
    assert type(found.low) is type(expected.low)
    assert Dimension.from_json(found.to_json()) == found
    found.distribution()  # optuna takes it


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("federated.local_epochs=interval(0.5,3)", "takes whole numbers"),
        ("optimizer.lr=tag(logg,interval(0.1,1))", "no tag logg"),
        ("optimizer.lr=tag(log,interval(0,1))", "above 0"),
        ("optimizer.lr=tag(log,range(0.1,1,0.1))", "without steps"),
        ("model=tag(log,choice(mlp,cnn))", "without steps"),
        ("federated.local_epochs=range(5,5)", "holds no number"),
    ],
)
def test_what_can_be_no_dimension_is_refused(override: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        _read(override)


def test_a_number_is_tried_with_few_digits_and_within_its_range() -> None:
    draw = random.Random(fresh_seed())
    for _ in range(200):
        low = draw.uniform(1e-6, 1)
        dimension = Dimension("float", low, low + draw.uniform(1e-9, 10))
        given = draw.uniform(dimension.low, dimension.high)
        tried = dimension.rounded(given)
        assert isinstance(tried, float)
        assert dimension.low <= tried <= dimension.high
        assert math.isclose(tried, given, rel_tol=1e-3)
        assert len(f"{tried:g}") <= 11 or tried in (dimension.low, dimension.high)
    stepped = Dimension("float", 0.0, 0.9, 0.1)
    assert [stepped.rounded(0.1 * n) for n in range(4)] == [0.0, 0.1, 0.2, 0.3]
