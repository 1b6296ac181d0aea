"""Whatever bytes arrive in a message: tensors as they claim to be, or a `MessageError`."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from federated.flower.codec import forms_of
from federated.flower.messages import become_server, content_of, read_arrays, to_record
from federated.flower.vetting import vetted_evaluations, vetted_updates
from heliotrope.errors import MessageError
from tests.fuzzing import examples
from tests.hostile import WEIGHTS, instruction, reply

become_server()
TYPES = ["bool", "uint8", "int8", "int32", "int64", "float16", "float32", "float64", "complex64"]
NAMES = st.sampled_from([*TYPES, "object", "f4", ">f4", "|S3", "datetime64[s]", "f4,(2,)i8", ""])
SIZES = st.integers(-3, 5) | st.integers() | st.sampled_from([2**31, 2**62, 2**63, 2**64])
VALUES = hnp.arrays(st.sampled_from(TYPES).map(np.dtype), hnp.array_shapes(min_dims=0, max_side=4))


def npy(value: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return file.getvalue()


def arrays_or_error(array: Array) -> torch.Tensor | None:
    """Return the tensor that an array is read as; None if it is refused."""
    try:
        (tensor,) = read_arrays(ArrayRecord({"w": array})).values()
    except MessageError as error:
        said = str(error)
    else:
        assert forms_of({"w": tensor}) == {"w": (array.dtype, tuple(array.shape))}
        return tensor
    assert said.startswith("w ")
    assert len(said) < 500, "what someone else wrote is not repeated at length"
    return None


@examples(300)
@given(NAMES | st.text(max_size=20), st.lists(SIZES, max_size=5), st.text(max_size=15), st.binary())
def test_random_arrays(dtype: str, shape: list[int], stype: str, data: bytes) -> None:
    arrays_or_error(Array(dtype, tuple(shape), stype, data))
    arrays_or_error(Array(dtype, tuple(shape), "numpy.ndarray", data))


@examples(300)
@given(VALUES, NAMES, st.lists(SIZES, max_size=4))
def test_valid_bytes_with_other_claims(
    value: np.ndarray[Any, Any], dtype: str, shape: list[int]
) -> None:
    data = npy(value)
    for claimed in (
        Array(dtype, value.shape, "numpy.ndarray", data),
        Array(str(value.dtype), tuple(shape), "numpy.ndarray", data),
    ):
        tensor = arrays_or_error(claimed)
        same = (claimed.dtype, claimed.shape) == (str(value.dtype), value.shape)
        assert (tensor is not None) == same


@examples(400)
@given(VALUES, st.data())
def test_damaged_bytes(value: np.ndarray[Any, Any], data: st.DataObject) -> None:
    whole = npy(value)
    kind = data.draw(st.sampled_from(["flip", "cut", "more", "header"]))
    if kind == "flip":
        at = data.draw(st.integers(0, len(whole) * 8 - 1))
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << at % 8
    elif kind == "cut":
        damaged = bytearray(whole[: data.draw(st.integers(0, len(whole) - 1))])
    elif kind == "more":
        damaged = bytearray(whole + data.draw(st.binary(min_size=1, max_size=200)))
    else:
        text = data.draw(st.text("{}(),:'<>fi48 \ndescrshapenotru", max_size=100)).encode()
        damaged = bytearray(
            whole[:10] + text.ljust(len(whole) - 10 - value.nbytes) + value.tobytes()
        )
    tensor = arrays_or_error(Array(str(value.dtype), value.shape, "numpy.ndarray", bytes(damaged)))
    if kind in ("cut", "more"):
        assert tensor is None, "nothing is taken from bytes of another length"


JUNK = (
    st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.booleans()
    | st.lists(st.floats(), max_size=3)
    | st.binary(max_size=3)
)
KEYS = st.sampled_from(["server-round", "proximal-mu", "learning-rate", "client-momentum"])


@examples(200)
@given(st.dictionaries(KEYS | st.text(max_size=5), JUNK, max_size=5))
def test_instructions_of_any_values(config: dict[str, Any]) -> None:
    record = ConfigRecord()
    record.__dict__["_data"].update(config)
    content = RecordDict({"arrays": to_record(WEIGHTS), "config": record})
    try:
        _, order = content_of(Message(content, dst_node_id=1, message_type=MessageType.TRAIN))
    except MessageError:
        return
    assert order.server_round == config["server-round"] >= 0


@examples(200)
@given(
    st.dictionaries(
        st.sampled_from(["num_examples", "train_loss", "start_loss"]), JUNK | st.none()
    ),
    st.dictionaries(st.sampled_from(["w", "b", "n", "extra"]), VALUES.map(torch.from_numpy)),
)
def test_replies_of_any_content(metrics: dict[str, Any], arrays: dict[str, torch.Tensor]) -> None:
    metrics = {k: v for k, v in metrics.items() if v is not None or k != "start_loss"}
    answer = reply(instruction(1), **metrics, **arrays)
    good, bad = vetted_updates([answer], lambda _: WEIGHTS)
    assert len(good) + len(bad) == 1
    for _, stack in good:
        assert type(stack.weights[0]) is int
        assert forms_of({n: v[0] for n, v in stack.arrays.items()}) == forms_of(WEIGHTS)
        assert all(torch.isfinite(value).all() for value in stack.arrays.values())
    kept, left = vetted_evaluations([answer])
    assert len(kept) + len(left) == 1
