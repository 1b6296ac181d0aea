"""Checkpoints: atomic, checksummed, without pickle, in one format for both modes.

A checkpoint is a directory named by the progress it holds (`00000020`)::

    model.safetensors   the weights, by parameter name
    state.safetensors   other arrays: optimizer or strategy state
    state.json          everything else, as JSON
    manifest.json       schema, the SHA-256 and size of each file, and its own SHA-256

Several processes may write one together, `model.0.safetensors`, `model.1.safetensors` and so on:
each its part of a tensor, cut along the first dimension, and tensors that it alone has. Reading
gives whole tensors.

It is written under a temporary name, flushed to disk, and renamed, so that a directory with
a final name is always whole. Loading verifies every hash: a flipped bit is refused by name.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from heliotrope.errors import CheckpointError, ConfigError, HeliotropeError
from heliotrope.plugin_loading import raised
from heliotrope.runs.checkpoint_files import (
    Whole,
    map_files,
    read_files,
    read_manifest,
    signed,
)
from heliotrope.system.durable import sync_folder
from heliotrope.system.tensor_file import Digest, write_bytes, write_tensors

__all__ = [
    "Checkpoint",
    "Shard",
    "check_preparation",
    "check_weights",
    "latest",
    "load",
    "load_weights",
    "path_of",
    "save",
    "save_shard",
    "understood",
]

_SCHEMA = 1
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, RuntimeError, SafetensorError)
_PART = "part.{}.json"  # what a process has written, once it is whole
_REPLACED = ".replaced"  # a checkpoint that another of the same progress is about to replace


@dataclass(frozen=True)
class Checkpoint:
    """What training needs to go on: `progress` counts rounds, or optimizer steps."""

    progress: int
    model: Mapping[str, Tensor]
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """Which part of a checkpoint this process writes: one of `count`, on a shared file system.

    Number 0 writes what is not cut, awaits the others and makes the checkpoint whole. `token`
    tells their files from those of an earlier attempt. It awaits each for `patience` seconds.
    """

    number: int
    count: int
    token: str
    patience: float = 1800.0  # seconds


def path_of(root: Path, progress: int) -> Path:
    """Return the directory of the checkpoint at `progress`."""
    return root / f"{progress:08d}"


def save(
    root: Path,
    checkpoint: Checkpoint,
    keep_last: int = 3,
    keep: Collection[int] = (),
    part: Shard | None = None,
    go_on: Callable[[], bool] = lambda: True,
    on_written: Callable[[], object] = lambda: None,
) -> Path:
    """Write `checkpoint` durably under `root` and return its path.

    With `part`, number 0 of several, it holds this one's part of the tensors; the others write
    theirs by `save_shard`, for which it waits as long as `go_on()`. `on_written` is called as soon
    as the tensors are in files, so that they may change.

    Of the others, only the newest stay, `keep_last` with this one, and those whose progress is
    in `keep`. Interrupted at any point, it leaves the earlier checkpoints readable. Raises
    `CheckpointError` if the files cannot be written.
    """
    try:
        path = _save(root, checkpoint, part or Shard(0, 1, str(os.getpid())), go_on, on_written)
        # Newer ones, which a resume found damaged, do not count: this one must never be dropped.
        found = _directories(root)
        for old in found[: max(0, found.index(path) + 1 - keep_last)]:
            if int(old.name.removesuffix(_REPLACED)) not in keep:
                shutil.rmtree(old, ignore_errors=True)
        return path
    except OSError as error:
        # Half a checkpoint would keep the room that is missing; others still write their parts.
        _sweep(root, but=part.token if part else None)
        raise CheckpointError(
            f"The checkpoint at {checkpoint.progress} could not be written under {root}: {error}. "
            "The earlier ones are whole: make room there and continue with resume=true."
        ) from error


def save_shard(
    root: Path,
    checkpoint: Checkpoint,
    part: Shard,
    on_written: Callable[[], object] = lambda: None,
) -> None:
    """Write this process's part of the tensors, and call `on_written`.

    Raises `CheckpointError` if they cannot be written.
    """
    try:
        temporary = _temporary(root, checkpoint, part)
        written = {"files": _written(temporary, checkpoint, part), "order": _order(checkpoint)}
        on_written()
        unfinished = temporary / f"{_PART.format(part.number)}.tmp"
        write_bytes(unfinished, json.dumps(written).encode())
        unfinished.rename(temporary / _PART.format(part.number))
    except OSError as error:
        raise CheckpointError(
            f"Part {part.number} of the checkpoint at {checkpoint.progress} could not be written "
            f"under {root}: {error}. The earlier ones are whole: make room there and continue with "
            "resume=true."
        ) from error


def _save(
    root: Path,
    checkpoint: Checkpoint,
    part: Shard,
    go_on: Callable[[], bool],
    on_written: Callable[[], object],
) -> Path:
    final = path_of(root, checkpoint.progress)
    _sweep(root, but=part.token if part.count > 1 else None)
    temporary = _temporary(root, checkpoint, part)
    state = json.dumps(dict(checkpoint.state), sort_keys=True).encode()
    files = _written(temporary, checkpoint, part)
    on_written()
    order = _order(checkpoint)
    for number in range(1, part.count):
        other = _awaited(temporary / _PART.format(number), part.patience, go_on)
        files |= other["files"]
        order = {kind: list(dict.fromkeys(order[kind] + other["order"][kind])) for kind in order}
    files["state.json"] = write_bytes(temporary / "state.json", state)
    manifest = {"schema": _SCHEMA, "progress": checkpoint.progress, "files": files, "order": order}
    write_bytes(temporary / "manifest.json", signed(manifest))
    sync_folder(temporary)
    replaced = root / f"{final.name}{_REPLACED}"
    if final.exists():  # the same progress, reached again after a resume
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    temporary.rename(final)
    sync_folder(root)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def _temporary(root: Path, checkpoint: Checkpoint, part: Shard) -> Path:
    path = root / f".{checkpoint.progress:08d}.tmp{part.token}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _written(directory: Path, checkpoint: Checkpoint, part: Shard) -> dict[str, Digest]:
    """Write the tensors; return the digest of each file."""
    number = f".{part.number}" if part.count > 1 else ""
    tensors = {
        f"model{number}.safetensors": checkpoint.model,
        f"state{number}.safetensors": checkpoint.arrays,
    }
    return {name: write_tensors(directory / name, values) for name, values in tensors.items()}


def _order(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Return the names of the tensors, as they are given."""
    return {"model": list(checkpoint.model), "arrays": list(checkpoint.arrays)}


def _awaited(path: Path, patience: float, go_on: Callable[[], bool]) -> dict[str, Any]:
    """Return the digests of the files that another process has written, and its order of tensors.

    Waits until it has.
    """
    deadline = time.monotonic() + patience
    while not path.exists():
        if not go_on() or time.monotonic() > deadline:
            raise FileNotFoundError(f"{path.name} was never written, by another process")
        time.sleep(0.01)
    part: dict[str, Any] = json.loads(path.read_bytes())
    path.unlink()
    return part


def load(path: Path, *, mapped: bool = False) -> Checkpoint:
    """Read and verify the checkpoint at `path`; `CheckpointError` names the file at fault.

    With `mapped` its tensors stay in their files, and one of several parts is joined each time it
    is asked for: to take of them what is needed, by a copy, without memory for the others.
    """
    try:
        manifest = read_manifest(path, _SCHEMA)
        held = (map_files if mapped else read_files)(path, manifest["files"])
        model = Whole(held, "model", manifest["order"]["model"])
        arrays = Whole(held, "state", manifest["order"]["arrays"])
        return Checkpoint(
            progress=manifest["progress"],
            model=model if mapped else dict(model),
            arrays=arrays if mapped else dict(arrays),
            state=held["state.json"],
        )
    except _UNREADABLE as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from error


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Raise `CheckpointError` naming `path` if the block makes no sense of its state.

    Checksums say that a checkpoint is whole, not that this version wrote it, or a friend.
    """
    try:
        yield
    except HeliotropeError:
        raise
    except (*_UNREADABLE, ArithmeticError, AttributeError, MemoryError) as error:
        raise CheckpointError(
            f"{path}: its state is not that of such a run: {raised(error, '')}. Use the version "
            "and the configuration that wrote it, or another checkpoint."
        ) from error


def latest(
    root: Path, refused: Callable[[str], None], *, mapped: bool = False
) -> Checkpoint | None:
    """Return the newest good checkpoint under `root`, or None if there is none at all.

    With `mapped` its tensors stay in their files. Every newer one that is damaged is passed over
    with a line to `refused`. If all are damaged, `CheckpointError`: starting afresh must be the
    user's decision.
    """
    candidates = _directories(root)
    for path in reversed(candidates):
        try:
            return load(path, mapped=mapped)
        except CheckpointError as error:
            refused(f"Checkpoint refused: {error} Falling back to the one before it.")
    if candidates:
        raise CheckpointError(
            f"All {len(candidates)} checkpoints under {root} are damaged. "
            "Start afresh in another hydra.run.dir."
        )
    return None


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Copy `weights` into `model`, casting to its dtypes.

    Raises `ConfigError` naming `source` and the array if they are of another model.
    """
    check_weights(model.state_dict(), weights, source)
    model.load_state_dict(dict(weights))


def check_weights(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: Path) -> None:
    """Raise `ConfigError` unless the `weights` of a checkpoint are of the model that has `own`."""
    wrong = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
    wrong += [name for name in weights if name not in own]
    if wrong:
        name = wrong[0]
        here = list(own[name].shape) if name in own else "absent"
        there = list(weights[name].shape) if name in weights else "absent"
        raise ConfigError(
            f"{source} is a checkpoint of another model: {name} is {there} there and {here} in "
            f"the model of this configuration ({len(wrong)} arrays differ). Set model.* and "
            "data as in the run that wrote it, or use another hydra.run.dir."
        )


def check_preparation(own: Mapping[str, Any], state: Mapping[str, Any], source: Path) -> None:
    """Raise `ConfigError` if the `state` of a checkpoint says that data were prepared otherwise.

    `own` is `heliotrope.data.Dataset.kept` of the data that are there now. Weights that were
    trained with other classes, words or scales would mean something else, and the rest of an
    epoch would be of other rows if files have changed.
    """
    saved, here = state.get("preparation"), json.loads(json.dumps(own))
    if saved is not None and "files" not in saved:  # of a version that kept none
        here.pop("files", None)
    if saved in (None, here):  # version 0.1 saved none
        return
    difference = "another fit, or other columns"
    for before, now in zip(saved["steps"], here["steps"], strict=False):
        key = next((key for key in now if before.get(key) != now[key]), None)
        if key is not None:
            then = _short(before.get(key))
            difference = f"the {key} of {now['kind']} were {then} and are now {_short(now[key])}"
            break
    else:
        if saved.get("files") != here.get("files"):
            difference = "files were written anew, removed or added"
    raise ConfigError(
        f"The data have changed since {source} was written: {difference}. Put the data back as "
        "they were, or begin anew in another hydra.run.dir."
    )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _sweep(root: Path, but: str | None = None) -> None:
    """Remove what a process that was killed while saving left behind; not what `but` marks."""
    replaced = [path for path in root.glob(f"*{_REPLACED}") if path.with_suffix("").exists()]
    for path in (*root.glob(".*.tmp*"), *replaced):
        if path.suffix != f".tmp{but}":
            shutil.rmtree(path, ignore_errors=True)


def _directories(root: Path) -> list[Path]:
    """Return the whole checkpoints under `root`, oldest first."""
    if not root.is_dir():
        return []
    found = {path.name: path for path in root.iterdir() if path.is_dir()}
    for name in [name for name in found if name.endswith(_REPLACED)]:
        found.setdefault(name.removesuffix(_REPLACED), found[name])  # the swap was interrupted
    return [found[name] for name in sorted(filter(str.isdecimal, found), key=int)]
