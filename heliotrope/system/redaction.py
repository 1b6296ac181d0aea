"""Passwords in addresses, which must not stand in a run's files, its log or on the terminal."""

from __future__ import annotations

import re

__all__ = ["MASK", "masked"]

MASK = "***"

# In scheme://user:password@host the password goes to the last @: databases' clients take a / in it
# for a part of it. Of http they do not, and what looks like a port and a path is one.
_USER = re.compile(r"(://[^/\s:@]*):(?!\d+[/?#])\S*@|((?<!http)(?<!https)://[^/\s:@]*):\S*@")
_TOKEN = re.compile(r"(https?://)[^/\s:@]+@")  # a user without a password is itself the secret
_QUERY = re.compile(
    r"([?&;][\w.-]*(?:password|passwd|pwd|token|secret|api[_-]?key|access[_-]?key|signature|sig)=)"
    r"[^&;\s'\"]+",
    re.IGNORECASE,
)
_ODBC = re.compile(r"(%3B(?:pwd|password)%3D)(?:(?!%3B)[^&\s'\"])+", re.IGNORECASE)  # ;PWD= quoted


def masked(text: str) -> str:
    """Return `text` with *** in the place of each password in an address, such as a database's."""
    text = _USER.sub(lambda found: f"{found[1] or found[2]}:{MASK}@", text)
    text = _TOKEN.sub(rf"\1{MASK}@", text)
    for pattern in (_QUERY, _ODBC):
        text = pattern.sub(rf"\1{MASK}", text)
    return text
