"""Reading the files of a checkpoint, which someone else may have written: only what belongs there.

A manifest names files; here it names none outside of its folder, and no link, pipe or device is
opened. Sizes are compared before anything is read, and every claim has its type.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from heliotrope.errors import CheckpointError
from heliotrope.system.tensor_file import SAVABLE

__all__ = ["read_json", "read_manifest", "read_payloads", "signed", "whole"]

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


def read_payloads(path: Path, files: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """Return the content of each file of a manifest; `CheckpointError` names one that is damaged.

    Raises `OSError` if one is not there.
    """
    payloads = {}
    for name, expected in files.items():
        data = _read(path / name, expected["bytes"])
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise CheckpointError(
                f"{path / name} fails its checksum: {len(data)} bytes read, "
                f"{expected['bytes']} bytes with another SHA-256 were written."
            )
        payloads[name] = data
    return payloads


def read_json(data: bytes) -> dict[str, Any]:
    """Return an object of JSON; `ValueError` if it is none, or nests too deeply."""
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError("its JSON nests too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("its JSON is no object")
    return value


def whole(payloads: Mapping[str, bytes], kind: str, names: Sequence[str]) -> dict[str, Tensor]:
    """Read the tensors of all parts, in the order they were given, not that of their files.

    Raises `ValueError` if there are others than `names`, or of types that are never saved.
    """
    files = [name for name in payloads if name.startswith(f"{kind}.") and name != "state.json"]
    files.sort(key=lambda name: int(name.split(".")[1]) if len(files) > 1 else 0)
    parts = [load_tensors(payloads[name]) for name in files]
    there = {name for part in parts for name in part}
    if there != set(names):
        name = min(there ^ set(names))
        raise ValueError(f"{kind}.safetensors and the manifest do not agree about {name[:60]}")
    for part in parts:
        for name, value in part.items():
            if value.dtype not in SAVABLE:
                raise ValueError(f"{name[:60]} is of type {value.dtype}, which is never saved")
    return {name: _joined([part[name] for part in parts if name in part]) for name in names}


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _read(path: Path, size: int | None) -> bytes:
    """Return what a regular file holds, if it is as large as it should be.

    A link would lead out of the checkpoint; to open a pipe would wait for ever.
    """
    if path.is_symlink():
        raise CheckpointError(f"{path} is a link. A checkpoint holds its files itself.")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{path} is no file.")
        if size is not None and found.st_size != size:
            raise CheckpointError(
                f"{path} holds {found.st_size} bytes, and {size} were written: it is damaged."
            )
        if size is None and found.st_size > _MOST_MANIFEST:
            raise CheckpointError(f"{path} holds {found.st_size} bytes, which no manifest does.")
        return file.read()
