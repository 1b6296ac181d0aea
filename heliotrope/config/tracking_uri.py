"""Where MLflow's files are: a URI that is relative means another place in every process."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["absolute_uri"]

_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)(?!/|:memory:|file:)([^?#]+)(.*)", re.DOTALL)
_FILE = re.compile(r"file:(?!/)(.+)", re.DOTALL)
_SCHEME = re.compile(r"[A-Za-z][\w+.-]*:")
_NAMES = ("databricks", "databricks-uc", "uc")  # of services, without a colon


def absolute_uri(uri: str) -> str:
    """Return a tracking URI whose relative path is taken from the working directory of now."""
    if found := _SQLITE.fullmatch(uri):
        return f"{found[1]}{Path(found[2]).absolute()}{found[3]}"
    if found := _FILE.fullmatch(uri):
        return Path(found[1]).absolute().as_uri()
    if uri.lower() not in ("", "true", "false", *_NAMES) and not _SCHEME.match(uri):
        return str(Path(uri).absolute())
    return uri
