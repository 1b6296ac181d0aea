"""A terminal in which what others have named is text: a path, a run, a client, a metric."""

from __future__ import annotations

from rich.console import Console

__all__ = ["plain_console"]


def plain_console(*, stderr: bool = False, soft_wrap: bool = True) -> Console:
    """Return a console that takes no text for markup, nor names between colons for emoji.

    Otherwise a part of a name in brackets would be lost, or raise rich's `MarkupError`; in tables,
    too.
    """
    return Console(stderr=stderr, soft_wrap=soft_wrap, markup=False, highlight=False, emoji=False)
