"""Which plug-ins this user has named on a command line before: those may be executed again.

Their SHA-256 sums are kept in `$XDG_STATE_HOME/heliotrope/plugins` (`~/.local/state` by default),
outside of any run.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["remember", "remembered"]


def _memory() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "heliotrope" / "plugins"


def remembered() -> set[str]:
    """Return the SHA-256 sums that this user has named."""
    try:
        return set(_memory().read_text().split())
    except OSError:
        return set()


def remember(sha256: str) -> None:
    """Note a hash; where that cannot be written, later commands ask for `plugins=` again."""
    if sha256 in remembered():
        return
    with suppress(OSError):
        _memory().parent.mkdir(parents=True, exist_ok=True)
        with _memory().open("a") as file:
            file.write(f"{sha256}\n")
