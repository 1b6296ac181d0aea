"""Names of run directories that nobody chose: the time, and letters against equal times."""

from __future__ import annotations

import secrets
from datetime import datetime

__all__ = ["new_stamp"]


def new_stamp() -> str:
    """Return such as `2026-01-31_23-59-59-3fa0c1`; jobs of the same second get different ones."""
    return f"{datetime.now().astimezone():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(3)}"
