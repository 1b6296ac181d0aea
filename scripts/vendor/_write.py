"""Where the vendored files lie, and how they are written: the same bytes for the same content."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

__all__ = ["FOLDER", "drawn", "write_gzip"]

FOLDER = Path(__file__).resolve().parents[2] / "heliotrope" / "data" / "vendored"


def write_gzip(name: str, text: str) -> None:
    """Write `text` as a gzip file that holds no time and no name, and say its size."""
    path = FOLDER / name
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{name}: {path.stat().st_size:,} bytes, {text.count(chr(10)):,} lines")


def drawn(key: str) -> str:
    """Return what to sort by for a fixed random order: the SHA-256 of a stable key."""
    return hashlib.sha256(key.encode()).hexdigest()
