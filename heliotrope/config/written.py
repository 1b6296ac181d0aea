"""What the text of a written configuration may not hold; needs no Hydra, as what composes does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf

from heliotrope.errors import ConfigError

__all__ = ["leaves", "refuse_blown_up", "refuse_interpolations"]

_MOST_NODES = 100_000  # of a YAML file with its anchors written out; ours have 60


def leaves(tree: object, key: str) -> Iterator[tuple[str, object]]:
    """Yield the dotted key and value of all that holds no others; those of a list share its key."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from leaves(value, f"{key}.{name}")
    elif isinstance(tree, list):
        for value in tree:
            yield from leaves(value, key)
    else:
        yield key, tree


def refuse_interpolations(values: Any, source: str) -> None:
    """Raise `ConfigError` if the config of a run refers to anything: we write it resolved."""
    for key, value in leaves(OmegaConf.to_container(values, resolve=False), ""):
        if isinstance(value, str) and "${" in value:
            raise ConfigError(
                f"{source}: {key.lstrip('.')}={value[:60]} refers to something else, which the "
                "config of a run does not. It was not written by Heliotrope: do not use it."
            )


def refuse_blown_up(text: str, source: str | Path) -> None:
    """Raise `ConfigError` if a YAML text would become large, or endless, by its anchors.

    Raises `yaml.YAMLError` where it is no YAML.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        sizes: dict[int, int] = {}
        if root is not None and _size(root, sizes, set()) > _MOST_NODES:
            raise ConfigError(
                f"{source} holds more than {_MOST_NODES} values, by anchors (&) that it repeats. "
                "Write them out, or leave them out."
            )
    except RecursionError as error:
        raise ConfigError(f"{source} nests too deeply.") from error


def _size(node: yaml.Node, sizes: dict[int, int], above: set[int]) -> int:
    """Return how many nodes there are with every alias written out."""
    if id(node) in above:
        raise RecursionError
    if id(node) in sizes:
        return sizes[id(node)]
    above.add(id(node))
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    sizes[id(node)] = 1 + sum(_size(part, sizes, above) for part in parts)
    above.remove(id(node))
    return sizes[id(node)]
