"""Shares of whole numbers are those of the decimal number that was written."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from federated.fractions import fraction_rounded_down, fraction_rounded_up, fractions_rounded_down


@pytest.mark.parametrize(("share", "count", "up"), [(0.55, 100, 55), (0.07, 100, 7), (1.0, 7, 7)])
def test_a_quorum_is_not_raised_by_rounding(share: float, count: int, up: int) -> None:
    assert fraction_rounded_up(share, count) == up


@pytest.mark.parametrize(
    ("share", "count", "down"), [(0.29, 100, 29), (0.57, 100, 57), (0.0, 9, 0)]
)
def test_a_hold_out_is_not_lowered_by_rounding(share: float, count: int, down: int) -> None:
    assert fraction_rounded_down(share, count) == down


def test_every_share_of_two_digits_is_exact() -> None:
    counts = np.arange(0, 1200, 7)
    for hundredths in range(101):
        exact = [Fraction(hundredths, 100) * int(count) for count in counts]
        share = hundredths / 100
        assert [fraction_rounded_up(share, int(c)) for c in counts] == list(map(math.ceil, exact))
        assert fractions_rounded_down(share, counts).tolist() == list(map(math.floor, exact))


def test_many_digits_and_tiny_shares_do_not_overflow() -> None:
    counts = np.array([10**12, 3])
    assert fractions_rounded_down(0.1234567890123456, counts).tolist() == [123456789012, 0]
    assert fractions_rounded_down(1e-9, counts).tolist() == [1000, 0]
