"""Reading the files of a checkpoint, which someone else may have written: only what belongs there.

A manifest names files; here it names none outside of its folder, and no link, pipe or device is
opened. Sizes are compared before anything is read, and every claim has its type.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load as load_tensors
from torch import Tensor

from heliotrope.errors import CheckpointError
from heliotrope.system.tensor_file import SAVABLE

__all__ = ["Below", "Whole", "map_files", "read_files", "read_json", "read_manifest", "signed"]

Files = Mapping[str, Mapping[str, Any]]  # of a manifest: the size and SHA-256 of each, by its name

_NAME = re.compile(r"(?:model|state)(?:\.[0-9]{1,6})?\.safetensors|state\.json")
_MOST_MANIFEST = 1 << 28  # bytes


def signed(manifest: Mapping[str, Any]) -> bytes:
    """Return the manifest as JSON that ends in its own SHA-256."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": digest}, indent=1).encode()


def read_manifest(path: Path, schema: int) -> dict[str, Any]:
    """Return the manifest of the checkpoint at `path`, whose claims are of the right types.

    Raises `CheckpointError` if it is of another schema or fails its checksum, `OSError` or
    `ValueError` if it is none.
    """
    file = path / "manifest.json"
    data = _read(file, None)
    manifest = read_json(data)
    if manifest.get("schema") != schema:
        raise CheckpointError(
            f"{path}: checkpoint schema {str(manifest.get('schema'))[:20]}; this version reads "
            f"{schema}."
        )
    manifest.pop("sha256", None)
    if signed(manifest) != data:
        raise CheckpointError(f"{file} fails its own checksum.")
    files, order, progress = (manifest.get(key) for key in ("files", "order", "progress"))
    if type(progress) is not int or progress < 0:
        raise ValueError("manifest.json has no progress")
    if not isinstance(files, dict) or not isinstance(order, dict):
        raise ValueError("manifest.json names no files, or no order of arrays")
    for name, digest in files.items():
        if not _NAME.fullmatch(name):
            raise CheckpointError(
                f"{file} names {name[:60]!r}, which is no file of a checkpoint. Do not use it: it "
                "was not written by Heliotrope."
            )
        fields = digest if isinstance(digest, dict) else {}
        size, sha256 = fields.get("bytes"), fields.get("sha256")
        if type(size) is not int or size < 0 or not isinstance(sha256, str):
            raise ValueError(f"manifest.json has no size or SHA-256 of {name}")
    for kind in ("model", "arrays"):
        names = order.get(kind)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"manifest.json has no order of {kind}")
        if len(set(names)) != len(names):
            raise ValueError(f"manifest.json names an array of {kind} twice")
    return manifest


def read_files(path: Path, files: Files) -> dict[str, Mapping[str, Any]]:
    """Return what each file of a manifest holds: tensors by name, or the state.

    Raises `CheckpointError` naming one that is damaged, `OSError` if one is not there.
    """
    held: dict[str, Mapping[str, Any]] = {}
    for name, expected in files.items():
        data = _read(path / name, expected["bytes"])
        _check(path / name, hashlib.sha256(data).hexdigest(), expected)
        held[name] = read_json(data) if name == "state.json" else load_tensors(data)
    return held


def map_files(path: Path, files: Files) -> dict[str, Mapping[str, Any]]:
    """Return the same as `read_files`, with tensors that stay in their files.

    They take memory where they are written to. The files may be removed, not changed.
    """
    state = {name: expected for name, expected in files.items() if name == "state.json"}
    held = read_files(path, state)
    for name, expected in files.items():
        if name not in state:
            with _opened(path / name, expected["bytes"]) as file:
                _check(path / name, hashlib.file_digest(file, "sha256").hexdigest(), expected)
            with safe_open(path / name, framework="pt") as tensors:
                held[name] = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118 - it is no mapping
    return held


def _check(path: Path, sha256: str, expected: Mapping[str, Any]) -> None:
    if sha256 != expected["sha256"]:
        raise CheckpointError(
            f"{path} fails its checksum: {expected['bytes']} bytes with another SHA-256 were "
            "written."
        )


def read_json(data: bytes) -> dict[str, Any]:
    """Return an object of JSON; `ValueError` if it is none, or nests too deeply."""
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("its JSON nests too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("its JSON is no object")
    return value


class Whole(Mapping[str, Tensor]):
    """The tensors of a `kind`, `model` or `state`, in the order they were given, not their files'.

    `held` is what all files hold. One that several of them hold a part of is joined when it is
    asked for. Raises `ValueError` if there are others than `names`, or of types that are never
    saved.
    """

    def __init__(
        self, held: Mapping[str, Mapping[str, Tensor]], kind: str, names: Sequence[str]
    ) -> None:
        files = [name for name in held if name.startswith(f"{kind}.") and name != "state.json"]
        files.sort(key=lambda name: int(name.split(".")[1]) if len(files) > 1 else 0)
        self._parts = [held[name] for name in files]
        self._names = names
        there = {name for part in self._parts for name in part}
        if there != set(names):
            name = min(there ^ set(names))
            raise ValueError(f"{kind}.safetensors and the manifest do not agree about {name[:60]}")
        for part in self._parts:
            for name, value in part.items():
                if value.dtype not in SAVABLE:
                    raise ValueError(f"{name[:60]} is of type {value.dtype}, which is never saved")
                if math.prod(max(1, size) for size in value.shape) >= 1 << 63:  # also of none
                    raise ValueError(f"{name[:60]} is of a shape that overflows")

    def __getitem__(self, name: str) -> Tensor:
        parts = [part[name] for part in self._parts if name in part]
        if not parts:
            raise KeyError(name)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Below(Mapping[str, Tensor]):
    """The `tensors` whose names begin with `prefix`, without it; each is read when asked for."""

    def __init__(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        self._prefix, self._tensors = prefix, tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        found = (name for name in self._tensors if name.startswith(self._prefix))
        return (name.removeprefix(self._prefix) for name in found)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _read(path: Path, size: int | None) -> bytes:
    with _opened(path, size) as file:
        return file.read()


def _opened(path: Path, size: int | None) -> BufferedReader:
    """Return a regular file that is open to be read, if it is as large as it should be.

    A link would lead out of the checkpoint; to open a pipe would wait for ever.
    """
    if path.is_symlink():
        raise CheckpointError(f"{path} is a link. A checkpoint holds its files itself.")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{path} is no file.")
        if size is not None and found.st_size != size:
            raise CheckpointError(
                f"{path} holds {found.st_size} bytes, and {size} were written: it is damaged."
            )
        if size is None and found.st_size > _MOST_MANIFEST:
            raise CheckpointError(f"{path} holds {found.st_size} bytes, which no manifest does.")
    except BaseException:
        file.close()
        raise
    return file
