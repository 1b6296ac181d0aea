"""What `read_idx` accepts, and what it says of each kind of damage."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from heliotrope.data.sources.idx import read_idx
from heliotrope.errors import DataError


def idx_bytes(array: npt.NDArray[np.uint8]) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


@pytest.mark.parametrize("shape", [(7, 28, 28), (5,), (3, 2, 4)])
@pytest.mark.parametrize("compress", [False, True])
def test_reads_back_what_was_written(
    tmp_path: Path, rng: np.random.Generator, shape: tuple[int, ...], compress: bool
) -> None:
    array = rng.integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx_bytes(array)) if compress else idx_bytes(array))
    np.testing.assert_array_equal(read_idx(path, shape[1:]), array)


def test_compression_is_told_by_content_not_by_name(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    array = rng.integers(0, 256, 9, dtype=np.uint8)
    (tmp_path / "plain.gz").write_bytes(idx_bytes(array))
    (tmp_path / "packed").write_bytes(gzip.compress(idx_bytes(array)))
    np.testing.assert_array_equal(read_idx(tmp_path / "plain.gz", ()), array)
    np.testing.assert_array_equal(read_idx(tmp_path / "packed", ()), array)


IMAGES = idx_bytes(np.zeros((3, 4, 4), dtype=np.uint8))
FOUR_GIGA_IMAGES = struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 4, 4)

DAMAGED = {
    "empty": (b"", ["empty", "00 00 08 03"]),
    "web page": (b"<!DOCTYPE html>", ["3c 21 44 4f", "00 00 08 03"]),
    "labels for images": (idx_bytes(np.zeros(3, dtype=np.uint8)), ["00 00 08 01", "00 00 08 03"]),
    "floats": (b"\0\0\x0d\3" + IMAGES[4:], ["00 00 0d 03"]),
    "header ends": (IMAGES[:10], ["header ends early"]),
    "other size": (idx_bytes(np.zeros((3, 5, 4), dtype=np.uint8)), ["3x5x4", "Nx4x4"]),
    "no examples": (idx_bytes(np.zeros((0, 4, 4), dtype=np.uint8)), ["0x4x4", "at least 1"]),
    "truncated": (IMAGES[:-1], ["47 bytes", "48", "truncated"]),
    "trailing": (IMAGES + b"\0", ["more data after", "3x4x4"]),
    "lying header": (FOUR_GIGA_IMAGES + b"\0" * 16, ["16 bytes", "truncated"]),
}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_named_with_file_found_expected_and_remedy(
    tmp_path: Path, kind: str, compress: bool
) -> None:
    content, words = DAMAGED[kind]
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(DataError) as caught:
        read_idx(path, (4, 4))
    for word in [str(path), "found", "expected", "intact copy", *words]:
        assert word in str(caught.value)


def test_damaged_gzip_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    packed = gzip.compress(idx_bytes(rng.integers(0, 256, (50, 4, 4), dtype=np.uint8)))
    path = tmp_path / "images.gz"

    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"images\.gz: found the gzip stream ends early"):
        read_idx(path, (4, 4))

    flipped = bytearray(packed)
    flipped[-6] ^= 1  # in the checksum: everything else still decompresses
    path.write_bytes(flipped)
    with pytest.raises(DataError, match=r"images\.gz: found damaged gzip data"):
        read_idx(path, (4, 4))

    path.write_bytes(packed[:10] + b"\xff" * 20)
    with pytest.raises(DataError, match=r"images\.gz: found damaged gzip data"):
        read_idx(path, (4, 4))


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: cannot be read: No such file"):
        read_idx(tmp_path / "nowhere", ())
