"""Keys of a configuration, read from the signature and the docstring of a function.

Of a user's function `inspect` tells them. Ours are read from the text of their module: importing
it, and torch with it, takes seconds that `--help` and a mistyped key should not wait for.
"""

from __future__ import annotations

import ast
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from heliotrope.errors import ConfigError

__all__ = ["REQUIRED", "Key", "Signature", "documented", "inspected", "parsed", "shown"]

REQUIRED: Final = inspect.Parameter.empty
"""The default of a key that has none: it must be set."""

_SCALARS = (bool, int, float, str)
_NAMED = {kind.__name__: kind for kind in (*_SCALARS, list, tuple, dict)}
_NAMESPACE: dict[str, Any] = {**_NAMED, "Sequence": Sequence, "Any": Any, "__builtins__": {}}


@dataclass(frozen=True)
class Key:
    """A key of a choice: its type as the configuration has it, and its default."""

    type: Any
    default: Any = REQUIRED


@dataclass(frozen=True)
class Signature:
    """What a function takes.

    Parameters
    ----------
    keys
        What the configuration sets, by name.
    given
        The names of what it is given beside them, such as `task`.
    text
        Its docstring.
    line
        Where it begins in its file.
    """

    keys: Mapping[str, Key]
    given: frozenset[str]
    text: str
    line: int

    @property
    def doc(self) -> str:
        """The first line of its docstring."""
        return self.text.partition("\n")[0]

    @property
    def meanings(self) -> dict[str, str]:
        """What its docstring says of its keys."""
        return documented(self.text)


class _UnfitError(Exception):
    """What a configuration cannot set: the reason, and the remedy."""


def inspected(target: Callable[..., Any], given: frozenset[str], where: str, of: str) -> Signature:
    """Return the signature of a function or class that is there; `of` is its name in messages.

    Raises `ConfigError` naming `where`, the parameter and a remedy if one has no type, or a type
    that a configuration cannot hold.
    """
    parameters = inspect.signature(target).parameters
    try:
        keys = _keys_of(target, [p for p in parameters.values() if p.name not in given], of)
    except _UnfitError as error:
        reason, remedy = error.args
        if (base := _lender(target)) is not None:
            reason = f"{of} has no __init__ of its own, and takes that of {base}: {reason}"
            remedy = (
                "Give it an __init__ whose keyword parameters are typed, and which hands them on "
                "to super().__init__"
            )
        raise ConfigError(f"{where}: {reason}. {remedy}.") from error
    code = getattr(target, "__code__", None) or getattr(target.__init__, "__code__", None)
    line = code.co_firstlineno if code else 0
    return Signature(keys, given & parameters.keys(), inspect.getdoc(target) or "", line)


def _lender(target: Callable[..., Any]) -> str | None:
    """Return the class of another module whose `__init__` a class has; None if there is none."""
    if not inspect.isclass(target):
        return None
    owner = next(base for base in target.__mro__ if "__init__" in vars(base))
    same = owner.__module__ == target.__module__
    return None if same else f"{owner.__module__}.{owner.__qualname__}"


def _keys_of(
    target: Callable[..., Any], parameters: Sequence[inspect.Parameter], of: str
) -> dict[str, Key]:
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError as error:
        raise _UnfitError(
            f"a type of {of} cannot be found: {error}", "Import it outside of `if TYPE_CHECKING`"
        ) from error
    keys = {}
    for parameter in parameters:
        name = parameter.name
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise _UnfitError(
                f"{of} takes {parameter}, which cannot be checked",
                "Name its keyword parameters, each with a type",
            )
        if name not in hints:
            raise _UnfitError(
                f"parameter {name} of {of} has no type",
                f"Write {name}: int, float, bool, str or a list of these",
            )
        key = _key(hints[name], parameter.default)
        if key is None:
            raise _UnfitError(
                f"parameter {name} of {of} has the type {shown(hints[name])}, which a "
                "configuration cannot hold",
                "Write int, float, bool, str, one of these or None, or a list of these",
            )
        if not _holds(key):
            raise _UnfitError(
                f"parameter {name} of {of} has the type {shown(hints[name])}, which its "
                f"default {key.default!r} is not",
                "Change one of them, such as to "
                f"{name}: {shown(type(key.default) if key.default is not None else hints[name])}"
                f"{' | None' if key.default is None else ''} = {key.default!r}",
            )
        keys[name] = key
    return keys


def parsed(path: Path, function: str, given: frozenset[str]) -> Signature:
    """Return the signature of a function of ours, from the text of its file."""
    node = _functions(path)[function]
    arguments = [*node.args.args, *node.args.kwonlyargs]
    missing: list[ast.expr | None] = [None] * (len(node.args.args) - len(node.args.defaults))
    defaults = [*missing, *node.args.defaults, *node.args.kw_defaults]
    keys = {}
    for argument, default in zip(arguments, defaults, strict=True):
        name = argument.arg
        if name not in given:
            assert argument.annotation is not None, f"{path}: {function}: {name} has no type"
            value = REQUIRED if default is None else ast.literal_eval(default)
            key = _key(_evaluated(argument.annotation), value)
            assert key is not None, f"{path}: {function}: the type of {name}"
            keys[name] = key
    taken = given & {argument.arg for argument in arguments}
    return Signature(keys, taken, ast.get_docstring(node) or "", node.lineno)


@cache
def _functions(path: Path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(path.read_text(), str(path))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def _evaluated(annotation: ast.expr) -> Any:
    if isinstance(annotation, ast.Name):
        return _NAMESPACE[annotation.id]
    return eval(compile(ast.Expression(annotation), "a type", "eval"), dict(_NAMESPACE))  # noqa: S307


def _key(kind: Any, default: Any) -> Key | None:
    """Return a key with the type that a configuration gives it, or None if it has none for it.

    Any sequence is a list there.
    """
    if kind is Sequence or get_origin(kind) is Sequence:
        inner = get_args(kind) or (Any,)
        kind = list[inner[0]]  # type: ignore[valid-type]
    if get_origin(kind) is list and isinstance(default, tuple):
        default = list(default)
    return Key(kind, default) if _is_plain(kind) else None


def _holds(key: Key) -> bool:
    """Return whether a configuration takes the default of a key for one of its type."""
    if key.default is REQUIRED:
        return True
    default = field(default_factory=lambda: key.default)
    try:
        OmegaConf.structured(make_dataclass("Keys", [("key", key.type, default)]))
    except OmegaConfBaseException:
        return False
    return True


def _is_plain(kind: Any) -> bool:
    if kind in (Any, types.NoneType, list, tuple, dict, *_SCALARS):
        return True
    parts = [part for part in get_args(kind) if part is not Ellipsis]
    of_parts = (list, tuple, dict, types.UnionType, typing.Union)
    return get_origin(kind) in of_parts and all(map(_is_plain, parts))


def shown(kind: Any) -> str:
    """Return a type as one writes it, such as `float | None`."""
    return kind if isinstance(kind, str) else inspect.formatannotation(kind)


def documented(text: str) -> dict[str, str]:
    """Return what the section Parameters of a docstring says of each.

    The section is numpydoc's: a line with a name, or several between commas, which a colon and a
    type may follow, and below it, indented, what it means.
    """
    meanings: dict[str, str] = {}
    current: list[str] = []
    for line in _section(inspect.cleandoc(text).splitlines(), "Parameters"):
        if line.startswith(" "):
            for name in current:
                meanings[name] = f"{meanings[name]} {line.strip()}".strip()
        elif line:
            current = [name.strip(" *") for name in line.partition(" :")[0].split(",")]
            meanings |= dict.fromkeys(current, "")
    return meanings


def _section(lines: Sequence[str], title: str) -> Sequence[str]:
    """Return the lines below an underlined title, up to the next one."""
    rules = [number for number, line in enumerate(lines) if line.startswith("---")]
    for rule in rules:
        if lines[rule - 1] == title:
            following = next((later for later in rules if later > rule), len(lines) + 1)
            return lines[rule + 1 : following - 1]
    return ()
