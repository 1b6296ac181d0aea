"""A mode's modules are there once in a process, by whichever name they came first."""

from __future__ import annotations

import subprocess
import sys

import pytest

from heliotrope.modes import mode_module
from tests.support import MODES, environment

_BOTH = """
import sys
{first}
from heliotrope.modes import mode_module
mode_module("federated", "updates")
print(*sorted(name for name in sys.modules if name.endswith("federated.updates")))
"""


@pytest.mark.parametrize(
    ("first", "found"),
    [
        ("import federated", "federated.updates"),
        ("import heliotrope.federated", "heliotrope.federated.updates"),
        ("", "heliotrope.federated.updates"),
    ],
)
def test_a_module_of_an_installed_checkout_is_loaded_once(first: str, found: str) -> None:
    command = [sys.executable, "-c", _BOTH.format(first=first)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == [found]


@pytest.mark.parametrize("mode", MODES)
def test_tests_and_commands_share_the_modules_of_a_mode(mode: str) -> None:
    assert mode_module(mode, "components" if mode == "federated" else "driver").__name__ in (
        "federated.components",
        "distributed.driver",
    )
