"""How hard the fuzz tests try: a little and always the same, or by HELIOTROPE_FUZZ=N much more.

HELIOTROPE_FUZZ=50 pytest tests/unit/test_fuzz_*.py     50 times as many examples, drawn anew
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

__all__ = ["examples"]

_TIMES = int(os.environ.get("HELIOTROPE_FUZZ", "1"))
_UNHURRIED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


def examples(count: int) -> Callable[[Any], Any]:
    """Return the settings of a fuzz test that tries `count` examples; a failure prints its own."""
    return settings(
        max_examples=count * _TIMES,
        deadline=None,
        database=None,  # no folder in the checkout, and no memory of other runs
        derandomize=_TIMES == 1,
        print_blob=True,
        suppress_health_check=_UNHURRIED,
    )
