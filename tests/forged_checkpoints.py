"""Checkpoints that someone forged: whole by their own checksums, and not what we write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from heliotrope.runs import checkpoint
from heliotrope.runs.checkpoint_files import signed
from tests.checkpoints import example

__all__ = ["change_manifest", "change_state", "forged", "put", "safetensors"]


def forged(root: Path) -> Path:
    """Return a good checkpoint under `root`, to be forged."""
    return checkpoint.save(root, example(5))


def put(path: Path, name: str, data: bytes) -> Path:
    """Replace a file of a checkpoint, as one does who can sign the manifest."""
    (path / name).write_bytes(data)

    def sign(manifest: dict[str, Any]) -> None:
        sha256 = hashlib.sha256(data).hexdigest()
        manifest["files"][name] = {"sha256": sha256, "bytes": len(data)}

    change_manifest(path, sign)
    return path


def change_state(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change state.json, and sign it."""
    state = json.loads((path / "state.json").read_text())
    change(state)
    return put(path, "state.json", json.dumps(state).encode())


def change_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change the manifest, and sign it."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    change(manifest)
    (path / "manifest.json").write_bytes(signed(manifest))
    return path


def safetensors(header: object, data: bytes = b"") -> bytes:
    """Return a file of that format, whatever its header says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data
