"""Splits as named fields: what a batch holds, whatever the data's types, lengths and memory."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heliotrope.data.examples import Examples
from heliotrope.data.fields import Affine, Dense, Field
from heliotrope.data.windows import Ragged, Windows


def split(**fields: Field) -> Examples:
    return Examples(fields)


def ragged(*sequences: list[int], dtype: torch.dtype = torch.int64) -> Ragged:
    lengths = [len(sequence) for sequence in sequences]
    flat = torch.tensor([value for sequence in sequences for value in sequence], dtype=torch.int64)
    return Ragged(flat.to(dtype), torch.tensor([0, *np.cumsum(lengths).tolist()]))


def test_bytes_become_numbers_in_the_batch() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 1, 3, 5), dtype=np.uint8)
    examples = split(image=Dense(pixels, Affine(1 / (255 * 0.3), -0.4 / 0.3)))
    chosen = torch.tensor([3, 3, 19])
    batch = examples.take(chosen)["image"]
    expected = (torch.from_numpy(pixels[chosen]).double() / 255 - 0.4) / 0.3
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch.double(), expected, atol=1e-6, rtol=1e-6)


def test_a_transform_leaves_the_values_as_they_are() -> None:
    values = torch.tensor([1.0, 2.0])
    field = Dense(values, Affine(2.0, 1.0))
    assert field.take("x", torch.tensor([1, 0]))["x"].tolist() == [5.0, 3.0]
    assert Affine(2.0, 1.0)(values).tolist() == [3.0, 5.0]
    assert values.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (3, 2), (1, 1), (0, 4), (4, 0)])
def test_stacks_are_batches_side_by_side(shape: tuple[int, ...]) -> None:
    examples = split(
        image=Dense(torch.randint(0, 9, (11, 2, 2), dtype=torch.uint8), Affine(0.5, 0.0)),
        label=Dense(torch.arange(11)),
        tokens=ragged(*([n] * n for n in range(11))),
    )
    indices = torch.randint(0, 11, shape)
    batch = examples.take(indices)
    flat = examples.take(indices.view(-1))
    assert batch.keys() == {"image", "label", "tokens", "tokens_length"}
    for name, value in batch.items():
        assert value.shape[: len(shape)] == shape
        assert torch.equal(value.view(flat[name].shape), flat[name])


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int16, torch.uint16, torch.float64, torch.bfloat16]
)
def test_any_type_is_kept(dtype: torch.dtype) -> None:
    values = torch.tensor([0, 1, 1, 0]).to(dtype)
    batch = split(x=Dense(values)).take(torch.tensor([1, 0]))
    assert batch["x"].dtype == dtype
    assert batch["x"].tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.int64])
def test_sequences_are_padded_with_zeros_and_told_their_lengths(dtype: torch.dtype) -> None:
    field = ragged([5, 6, 7], [], [9], list(range(1, 101)), dtype=dtype)
    batch = split(tokens=field).take(torch.tensor([0, 1, 2]))
    assert batch["tokens"].dtype == torch.int64
    assert batch["tokens"].tolist() == [[5, 6, 7, 0, 0, 0, 0, 0], [0] * 8, [9, *[0] * 7]]
    assert batch["tokens_length"].tolist() == [3, 0, 1]


@pytest.mark.parametrize(
    ("chosen", "width"), [([0], 8), ([2], 8), ([3], 16), ([0, 3], 16), ([4], 100), ([], 8)]
)
def test_few_widths_occur(chosen: list[int], width: int) -> None:
    field = ragged(*([1] * length for length in (0, 1, 8, 9, 100)))
    assert field.take("x", torch.tensor(chosen, dtype=torch.int64))["x"].shape[1] == width


def test_short_splits_are_no_wider_than_their_longest() -> None:
    assert ragged([1, 2, 3], [4]).take("x", torch.tensor([1]))["x"].shape == (1, 3)
    assert ragged([], []).take("x", torch.tensor([1]))["x"].shape == (1, 1)


def test_sequences_of_vectors() -> None:
    values = torch.arange(10.0).view(5, 2)
    batch = Ragged(values, torch.tensor([0, 1, 5])).take("x", torch.tensor([0]))
    assert batch["x"].dtype == torch.float32
    assert batch["x"][0].tolist() == [[0.0, 1.0], *[[0.0, 0.0]] * 3]


def test_windows_overlap_and_have_one_width() -> None:
    stream = np.arange(10, 20, dtype=np.uint8)
    starts, lengths = np.array([0, 3, 6]), np.array([4, 4, 3])
    examples = split(
        tokens=Windows(stream, starts, lengths, 4), next=Windows(stream, starts + 1, lengths, 4)
    )
    batch = examples.take(torch.tensor([2, 0]))
    assert batch["tokens"].tolist() == [[16, 17, 18, 0], [10, 11, 12, 13]]
    assert batch["next"].tolist() == [[17, 18, 19, 0], [11, 12, 13, 14]]
    assert batch["next_length"].tolist() == [3, 4]


def odd(read_only: bool = False) -> Examples:
    pixels = np.random.default_rng(1).integers(0, 256, (6, 4), dtype=np.uint8)
    pixels.flags.writeable = not read_only
    fields: dict[str, Field] = {
        "image": Dense(pixels, Affine(0.1, -1.0)),
        "tokens": ragged(*([n] * n for n in (3, 0, 200, 1, 2, 7)), dtype=torch.int32),
        "target": Dense(torch.linspace(0, 1, 6)),
    }
    return Examples(fields, keys=np.array(["b", "a", "a", "c", "c", "c"]))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("read_only", [False, True])
def test_examples_cross_processes_with_their_arrays_apart(read_only: bool) -> None:
    examples, buffers = odd(read_only), []  # type: ignore[var-annotated]
    data = pickle.dumps(examples, protocol=5, buffer_callback=buffers.append)
    assert len(data) < 5_000
    assert sum(buffer.raw().nbytes for buffer in buffers) >= 6 * 4 + 213 * 4
    copies = [memoryview(bytes(buffer.raw())) for buffer in buffers]  # as of shared memory
    there = pickle.loads(data, buffers=copies)  # noqa: S301 - made just above
    everything = torch.arange(6)
    assert same(there.take(everything), examples.take(everything))
    assert there.keys.tolist() == examples.keys.tolist()


@pytest.mark.parametrize(
    "rows",
    [slice(0, 0), slice(1, 4), slice(4, 99), torch.tensor([5, 0, 0]), torch.tensor([], dtype=int)],
)
def test_a_subset_has_the_examples_asked_for(rows: slice | Tensor) -> None:
    examples = odd()
    part = examples.subset(rows)
    places = torch.arange(6)[rows]
    assert len(part) == len(places)
    assert part.keys is not None
    assert examples.keys is not None
    assert part.keys.tolist() == examples.keys[places.numpy()].tolist()
    for where, place in enumerate(places.tolist()):
        ours, theirs = part.take(torch.tensor([where])), examples.take(torch.tensor([place]))
        length = int(theirs["tokens_length"])
        assert torch.equal(ours["tokens"][:, :length], theirs["tokens"][:, :length])
        assert torch.equal(ours["image"], theirs["image"])


def test_memory_mapped_values_are_read_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "stream.bin"
    np.arange(1000, dtype=np.uint16).tofile(path)
    mapped: Any = np.memmap(path, dtype=np.uint16, mode="r")
    field = Windows(mapped, np.arange(10) * 90, np.full(10, 100), 100)
    assert field.stream.data_ptr() == mapped.ctypes.data
    assert field.take("x", torch.tensor([9]))["x"][0].tolist() == list(range(810, 910))
    dense = Dense(mapped.reshape(10, 100))
    assert dense.take("x", torch.tensor([[1], [0]]))["x"].shape == (2, 1, 100)


def test_the_example_of_a_dry_pass_holds_nothing_of_the_data() -> None:
    batch = odd().example()
    assert {name: value.shape for name, value in batch.items()} == {
        "image": (1, 4),
        "tokens": (1, 64),  # the mean length is 35.5
        "tokens_length": (1,),
        "target": (1,),
    }
    assert batch["image"].unique().tolist() == [-1.0]
    assert batch["tokens_length"].tolist() == [36]
    assert not batch["tokens"].any()
    assert split(tokens=ragged()).example()["tokens"].shape == (1, 1)


def test_fields_must_fit_together() -> None:
    with pytest.raises(ValueError, match=r"of one length, not .*'a': 2, 'b': 3"):
        split(a=Dense(torch.zeros(2)), b=Dense(torch.zeros(3)))
    with pytest.raises(ValueError, match="of one length"):
        Examples({"a": Dense(torch.zeros(2))}, keys=np.zeros(1))
    with pytest.raises(ValueError, match="of one length"):
        Examples({})
    with pytest.raises(ValueError, match="fill the same name"):
        split(x=ragged([1], [2]), x_length=Dense(torch.zeros(2)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Ragged(torch.zeros(3), torch.tensor([0, 2])), "offsets end at 2"),
        (lambda: Ragged(torch.zeros(3), torch.tensor([1, 3])), "from 0 on"),
        (lambda: Ragged(torch.zeros(3), torch.tensor([0, 3, 2, 3])), "negative"),
        (lambda: Windows(torch.zeros(3), torch.tensor([2]), torch.tensor([2])), "beyond"),
        (lambda: Windows(torch.zeros(3), torch.tensor([-1]), torch.tensor([2])), "negative"),
        (lambda: Windows(torch.zeros(3), torch.tensor([0]), torch.tensor([3]), 2), "wider"),
        (lambda: Windows(torch.zeros(3), torch.tensor([0]), torch.tensor([1, 2])), "one number"),
    ],
)
def test_broken_sequences_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    "wide", [1, 3000]
)  # numbers an example: several batches a megabyte, or one
@pytest.mark.parametrize("stacked", [False, True])
def test_batches_taken_together_are_those_taken_one_by_one(wide: int, stacked: bool) -> None:
    pixels = torch.randint(0, 256, (50, wide), dtype=torch.uint8)
    fixed = split(image=Dense(pixels, Affine(0.3, 1.0)), label=Dense(torch.arange(50)))
    for examples in (fixed, odd().subset(torch.arange(50) % 6)):
        sizes = [3, 0, 1, 30, 30, 7]
        shapes = [(size, 4) if stacked else (size,) for size in sizes]
        rows = [torch.randint(0, 50, shape) for shape in shapes]
        found = list(examples.batches(iter(rows)))
        assert len(found) == len(rows)
        assert all(
            same(batch, examples.take(some)) for batch, some in zip(found, rows, strict=True)
        )
    assert list(fixed.batches([])) == []
