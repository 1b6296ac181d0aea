"""An override as it is typed in a shell: quoted where the shell, or Hydra's grammar, needs it."""

from __future__ import annotations

import re
import shlex

__all__ = ["offending", "quoted", "typed"]

_PLAIN = re.compile(r"[\w/\\+.$%*@?|: \t-]", re.ASCII)  # needs no quotes in Hydra's grammar


def typed(key: str, value: object) -> str:
    """Return `key=value` as one types it, such as in a hint."""
    return shlex.quote(f"{key}={quoted(str(value))}")


def quoted(value: str) -> str:
    """Return a text as Hydra's grammar takes it for a value, in quotes only if it has to be."""
    from hydra.core.override_parser.types import Quote, QuotedString  # here: a rank needs no Hydra

    if value and not offending(value) and value == value.strip():
        return value
    return str(QuotedString(value, Quote.double).with_quotes())


def offending(value: str) -> str:
    """Return the characters, each once, that a value without quotes must not have."""
    return "".join(dict.fromkeys(_PLAIN.sub("", value)))
