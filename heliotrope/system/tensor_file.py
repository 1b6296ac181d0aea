"""Writing tensors to a safetensors file as a stream: durable, hashed, without a second copy.

The safetensors library would first gather the file in memory, and hold Python's lock meanwhile:
a training step beside it would stand still. Here hashing and writing let it go on.

The format: 8 bytes with the length of a JSON header, little-endian; the header, padded with
spaces to a multiple of 8, which gives each tensor's dtype, shape and place; the raw bytes.
(https://github.com/huggingface/safetensors#format)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["SAVABLE", "Digest", "raw_bytes", "write_bytes", "write_tensors"]

Digest = dict[str, str | int]

_CHUNK = 1 << 22  # bytes hashed and written at a time

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
SAVABLE = frozenset(_NAMES)  # the types of tensors that can be written


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, in place."""
    array: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Digest:
    """Write `tensors` durably to `path`; return the file's SHA-256 and size in bytes.

    Raises `OSError` if it cannot be written.
    """
    # Wide elements first, as the library does: every tensor is then aligned to its own.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = {}, 0
    for name in names:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        header[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def parts() -> Iterator[memoryview]:
        yield memoryview(len(text).to_bytes(8, "little") + text)
        for name in names:
            yield raw_bytes(tensors[name].detach().cpu().contiguous())

    return _write(path, parts())


def write_bytes(path: Path, data: bytes) -> Digest:
    """Write `data` durably to `path`; return the file's SHA-256 and size in bytes."""
    return _write(path, iter([memoryview(data)]))


def _write(path: Path, parts: Iterator[memoryview]) -> Digest:
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for part in parts:
            for start in range(0, len(part), _CHUNK):
                chunk = part[start : start + _CHUNK]
                digest.update(chunk)
                file.write(chunk)
            size += len(part)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": digest.hexdigest(), "bytes": size}
