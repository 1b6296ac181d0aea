"""Pages from the templates that lie in this package: everything that is filled in is escaped."""

from __future__ import annotations

from importlib import resources
from typing import Any

__all__ = ["filled", "resource"]


def filled(name: str, **values: Any) -> str:
    """Return a template, such as `report/report.html.j2`, with `values` in it."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(resource),
    )
    return environment.get_template(name).render(**values)


def resource(name: str) -> str:
    """Return the text of a file of this package, by its path in it."""
    return (resources.files("heliotrope") / name).read_text(encoding="utf-8")
