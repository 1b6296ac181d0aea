"""Where in a user's YAML file a mistake is: file, line and column."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from heliotrope.config.groups import GROUPS, choice_names
from heliotrope.config.schemas import conf_dir
from heliotrope.errors import ConfigError

__all__ = [
    "choices",
    "chosen_files",
    "experiment_files",
    "explain_composition",
    "explain_text",
    "explain_yaml",
    "in_experiment",
    "in_file",
    "keys_in_experiments",
    "named_experiment",
    "own_experiment",
]

_HEADER = "# @package _global_"


def explain_yaml(error: yaml.YAMLError) -> str:
    """Return file, line, column and what is wrong there."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"A YAML file cannot be read: {error}."
    problem = str(getattr(error, "problem", None) or "it cannot be read")
    context, began = getattr(error, "context", None), getattr(error, "context_mark", None)
    since = ""
    if context and began is not None and began.line != mark.line:
        since = f" ({context} that begins in line {began.line + 1})"
    hint = " Indent with spaces." if "'\\t'" in problem else ""
    return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: {problem}{since}.{hint}"


def explain_text(error: UnicodeDecodeError) -> str:
    """Return which of the files that the command line chooses is not UTF-8, and where."""
    for path in chosen_files(sys.argv[1:]):
        raw = path.read_bytes()
        try:
            raw.decode()
        except UnicodeDecodeError as found:
            line = raw.count(b"\n", 0, found.start) + 1
            return (
                f"{path}, line {line}: byte {raw[found.start]:#04x} is not UTF-8. Save it as UTF-8."
            )
    return str(error)


def choices(group: str) -> list[str]:
    """Return the names that a group such as federated/strategy can be set to."""
    files = (path.stem for folder in _folders() for path in (folder / group).glob("*.yaml"))
    return sorted({*files, *choice_names(group)})


def in_experiment() -> str:
    """Return `FILE: ` of the experiment that the command line chooses, or nothing."""
    path = next(_experiments(sys.argv[1:]), None)
    return f"{path}: " if path else ""


def in_file(path: Path, key: str) -> str:
    """Return the file, and the line of a key, for a message that begins with them."""
    return _at(path, str(path), key.split("."))


def own_experiment(name: str) -> Path | None:
    """Return the file that `experiment=NAME` means by its path; None if it means none."""
    path = Path(name)
    return path if path.suffix == ".yaml" and path.is_file() else None


def experiment_files(arguments: Sequence[str]) -> list[Path]:
    """Return the files of the experiments that a command line chooses.

    Raises `ConfigError` if one that is named by its path is not there.
    """
    for name in _names_of("experiment", arguments):
        if name.endswith(".yaml") and _path_of(f"experiment/{name}") is None:
            raise ConfigError(
                f"experiment={name}: there is no such file. A relative path counts from the "
                f"working directory, {Path.cwd()}."
            )
    return list(_experiments(arguments))


def named_experiment(name: str) -> Path | None:
    """Return the file of `experiment=NAME`, by its path or in one of the folders."""
    return _path_of(f"experiment/{name}")


def keys_in_experiments(group: str, arguments: Sequence[str]) -> list[str]:
    """Return the keys that the chosen experiments set of a group such as federated/strategy.

    Those that they extend set, too. `group` may be that of a key as well, such as
    distributed/early_stopping.
    """
    paths = [each for path in _experiments(arguments) for each in _extended(path)]
    nodes = [_node_at(path, group.split("/"), whole=True) for path in paths]
    return [
        str(name.value)
        for node in nodes
        if isinstance(node, yaml.MappingNode)
        for name, _ in node.value
    ]


def _extended(path: Path, by: Sequence[Path] = ()) -> list[Path]:
    """Return the file of an experiment, and those that it names under defaults without a group.

    `by` are the files by which it was named itself.
    """
    defaults = _node_at(path, ["defaults"])
    items = defaults.value if isinstance(defaults, yaml.SequenceNode) else []
    names = [item.value for item in items if isinstance(item, yaml.ScalarNode)]
    above = (*by, path)
    found = [one for name in names if (one := named_experiment(name)) not in (None, *above)]
    return [path, *(each for one in found if one for each in _extended(one, above))]


def explain_composition(text: str, unknown_key: str | None) -> str | None:
    """Explain what Hydra says of a file of an experiment or a group; None if it is about none.

    `unknown_key` is what to say of the key, where the file has one that there is not.
    """
    found = re.search(r"In '([^']+)': ", text)
    if found is None or found[1] == "config":
        return None
    name = found[1]
    path = _path_of(name)
    where = str(path or f"{name}.yaml")
    if name.startswith("experiment/") and _lacks_header(path, text):
        return f"{where}, line 1: an experiment begins with the line '{_HEADER}'. Add it."
    if "Cannot merge" in text:
        return f"{where} holds no keys and values. Write key: value, a line each."
    chosen = re.search(r"Merge error: str is not a subclass of \w+\. value: (.*)", text)
    if chosen:
        group = next((g for g in GROUPS if _value_at(path, g.split("/")) == chosen[1]), "GROUP")
        return (
            f"{_at(path, where, group.split('/'))}: {group.replace('/', '.')}: {chosen[1]} is a "
            f"choice, which stands under defaults: write '- override /{group}: {chosen[1]}' there."
        )
    override = re.search(r"Could not override '([^'@]+)(?:@[^']*)?'", text)
    if override:
        group = override[1].removeprefix("experiment/").replace(".", "/")
        if group not in GROUPS:
            return f"{where}: {unknown_key}"
        return (
            f"{where}: there is no {override[1]} to override. Write '- override /{group}: CHOICE'."
        )
    key = re.search(r"full_key: (\S+)", text)
    if key is None:
        return None
    located = _at(path, where, key[1].split("."))
    if "." in key[1] and f"Key '{key[1]}' not in 'Run'" in text:
        nested = ": {".join(key[1].split("."))
        closing = "}" * key[1].count(".")
        return (
            f"{located}: {key[1]} has a dot, as on a command line. Write {nested}: VALUE{closing}."
        )
    return f"{located}: {unknown_key}" if unknown_key else located


def _lacks_header(path: Path | None, text: str) -> bool:
    misplaced = "Key 'experiment' not in" in text or "@experiment." in text
    package = None
    if path is not None:
        package = re.search(r"^\s*#\s*@package\s+(\S+)", path.read_text(), re.MULTILINE)
    return misplaced or (package is not None and package[1] != "_global_")


def _path_of(name: str) -> Path | None:
    own = own_experiment(name.removeprefix("experiment/"))
    if own is not None and name.startswith("experiment/"):
        return own
    found = (folder / f"{name.removesuffix('.yaml')}.yaml" for folder in _folders())
    return next((path for path in found if path.is_file()), None)


def _folders() -> Iterator[Path]:
    """Yield where Hydra looks for files: what --config-dir names, and our own."""
    for flag, *value in ((a, *sys.argv[n + 2 : n + 3]) for n, a in enumerate(sys.argv[1:])):
        name, equals, joined = flag.partition("=")
        if name in ("--config-dir", "-cd"):
            yield Path(joined if equals else "".join(value))
    yield conf_dir()


def chosen_files(arguments: Sequence[str]) -> Iterator[Path]:
    """Yield the files that a command line chooses of groups, and those that experiments extend."""
    for experiment in _experiments(arguments):
        yield from _extended(experiment)
    for argument in arguments:
        group = argument.lstrip("+").partition("=")[0]
        for name in _names_of(group, [argument]):
            path = _path_of(f"{group}/{name}")
            if path is not None:
                yield path


def _experiments(arguments: Sequence[str]) -> Iterator[Path]:
    paths = (_path_of(f"experiment/{name}") for name in _names_of("experiment", arguments))
    return (path for path in paths if path is not None)


def _names_of(group: str, arguments: Sequence[str]) -> Iterator[str]:
    """Yield what overrides choose of a group: of a sweep, several."""
    for argument in arguments:
        key, _, names = argument.lstrip("+").partition("=")
        if key == group:
            yield from (name.strip("\"' ") for name in names.split(","))


def _at(path: Path | None, where: str, key: list[str]) -> str:
    node = _node_at(path, key)
    return where if node is None else f"{where}, line {node.start_mark.line + 1}"


def _value_at(path: Path | None, key: list[str]) -> object:
    node = _node_at(path, key)
    return getattr(node, "value", None)


def _node_at(path: Path | None, key: list[str], *, whole: bool = False) -> yaml.Node | None:
    """Return the node of a key; a file of a group has its keys without the group's name.

    So has none that is looked for as a `whole`.
    """
    if path is None:
        return None
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:  # said by who reads the file for what it holds
        return None
    for skipped in range(1 if whole else len(key)):
        node = root
        for part in key[skipped:]:
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            node = next((value for name, value in pairs if name.value == part), None)
        if node is not None:
            return node
    return None
