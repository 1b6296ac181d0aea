"""Between the messages of secure aggregation and Flower's ConfigRecords: numbers and bytes alone.

What arrives was written by someone else: a record that is not of the form of the message that is
due is refused by the name of its sender.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from flwr.app import ConfigRecord

from ..secure_aggregation.messages import (
    Advertisement,
    EncryptedShares,
    ForwardedShares,
    MaskedInput,
    RefusedMessageError,
    RevealedShares,
    Roster,
    Setup,
    Survivors,
    Vector,
)
from ..secure_aggregation.quantization import Quantizer

__all__ = ["SECURE", "decoded", "encoded", "masked_input", "number_of", "record_of"]

SECURE = "heliotrope.secure"
"""The name of the ConfigRecord, in a message's content, that holds a message of the protocol."""

_KIND = "kind"
_T = TypeVar("_T")
_Read = Callable[[ConfigRecord, str], Any]


def record_of(values: Mapping[str, Any]) -> ConfigRecord:
    """Return numbers, bytes, and tuples or mappings of them as a record."""
    record = ConfigRecord()
    for name, value in values.items():
        if isinstance(value, Mapping):
            record[f"{name}.clients"], record[f"{name}.bytes"] = list(value), list(value.values())
        elif isinstance(value, tuple):
            record[name] = list(value)
        else:
            record[name] = value
    return record


def encoded(message: Any) -> ConfigRecord:
    """Return a message of the protocol, or a `Quantizer`, as a record."""
    values = dict(vars(message))
    if isinstance(message, Roster):
        peers = values.pop("neighbours")
        values["peers"] = tuple(peer.client for peer in peers)
        for name in ("sealing_key", "masking_key"):
            values[name] = tuple(getattr(peer, name) for peer in peers)
    if isinstance(message, MaskedInput):
        vector = values.pop("vector")
        little = (part.astype(part.dtype.newbyteorder("<"), copy=False) for part in vector.parts)
        values["values"], values["numbers"] = (part.tobytes() for part in little)
    values.pop("step", None)  # a quantizer's own, once it was asked for
    return record_of({_KIND: type(message).__name__, **values})


def decoded(kind: type[_T], record: ConfigRecord, sender: int | None = None) -> _T:
    """Return the message of this kind that a record holds.

    Raises `RefusedMessageError` if it holds another, or says to be of another client than it is.
    """
    _check_kind(kind, record)
    found: Any
    if kind is Roster:
        names = ("peers", "sealing_key", "masking_key")
        columns = _clients(record, names[0]), *(_many_bytes(record, name) for name in names[1:])
        if len({len(column) for column in columns}) != 1:
            raise RefusedMessageError("a roster of which the columns differ in length")
        peers = tuple(Advertisement(*row) for row in zip(*columns, strict=True))
        found = Roster(_clients(record, "clients"), peers)
    else:
        found = kind(**{name: read(record, name) for name, read in _FIELDS[kind].items()})
    _check_sender(found, sender)
    return found  # type: ignore[no-any-return]


def masked_input(record: ConfigRecord, setup: Setup, sender: int) -> MaskedInput:
    """Return the masked input that a record holds, of the round's length and type."""
    _check_kind(MaskedInput, record)
    words = (("values", setup.size, setup.dtype), ("numbers", setup.numbers, np.dtype(np.uint64)))
    parts = []
    for name, length, dtype in words:
        data = _bytes(record, name)
        if len(data) != length * dtype.itemsize:
            raise RefusedMessageError(
                f"client {sender} is refused: {name} of {len(data)} bytes, where "
                f"{length * dtype.itemsize} are asked for"
            )
        parts.append(np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype))
    found = MaskedInput(_int(record, "client"), Vector(*parts))
    _check_sender(found, sender)
    return found


def number_of(record: ConfigRecord, name: str) -> int:
    """Return the number of a client; `RefusedMessageError` if there is none that one has."""
    number = _int(record, name)
    if not 0 <= number < 1 << 64:
        raise RefusedMessageError(f"{name} is a number that no client has")
    return number


def _check_kind(kind: type[Any], record: ConfigRecord) -> None:
    if record.get(_KIND) != kind.__name__:
        said = str(record.get(_KIND))[:40]
        raise RefusedMessageError(f"a message of kind {said} where {kind.__name__} is due")


def _check_sender(message: Any, sender: int | None) -> None:
    if sender is not None and message.client != sender:
        raise RefusedMessageError(f"client {sender} is refused: it says to be {message.client}")


def _int(record: ConfigRecord, name: str) -> int:
    return _of(int, record, name)


def _float(record: ConfigRecord, name: str) -> float:
    return _of(float, record, name)


def _flag(record: ConfigRecord, name: str) -> bool:
    value = record.get(name)
    if not isinstance(value, bool):
        raise RefusedMessageError(f"{name} is missing, or no truth value")
    return value


def _bytes(record: ConfigRecord, name: str) -> bytes:
    return _of(bytes, record, name)


def _of(kind: type[_T], record: ConfigRecord, name: str) -> _T:
    value = record.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RefusedMessageError(f"{name} is missing, or not of type {kind.__name__}")
    return value


def _many(kind: type[_T], record: ConfigRecord, name: str) -> tuple[_T, ...]:
    values = record.get(name)
    if not isinstance(values, list) or not all(
        isinstance(value, kind) and not isinstance(value, bool) for value in values
    ):
        raise RefusedMessageError(f"{name} is missing, or no list of {kind.__name__}")
    return tuple(values)  # type: ignore[arg-type]


def _ints(record: ConfigRecord, name: str) -> tuple[int, ...]:
    return _many(int, record, name)


def _clients(record: ConfigRecord, name: str) -> tuple[int, ...]:
    """Return numbers of clients: those of Flower's nodes are of 64 bits."""
    clients = _ints(record, name)
    if any(not 0 <= client < 1 << 64 for client in clients):
        raise RefusedMessageError(f"{name} holds a number that no client has")
    return clients


def _many_bytes(record: ConfigRecord, name: str) -> tuple[bytes, ...]:
    return _many(bytes, record, name)


def _mapping(record: ConfigRecord, name: str) -> dict[int, bytes]:
    clients, data = _clients(record, f"{name}.clients"), _many_bytes(record, f"{name}.bytes")
    if len(clients) != len(data) or len(set(clients)) != len(clients):
        raise RefusedMessageError(f"{name} names a client twice, or without a value")
    return dict(zip(clients, data, strict=True))


_FIELDS: dict[type[Any], dict[str, _Read]] = {
    Setup: {
        "session": _bytes,
        **dict.fromkeys(("threshold", "neighbours", "bits", "size", "numbers"), _int),
    },
    Quantizer: {
        "limit": _float,
        **dict.fromkeys(("bits", "clients", "largest_weight", "total_weight"), _int),
        "toward_zero": _flag,
    },
    Advertisement: {"client": _int, "sealing_key": _bytes, "masking_key": _bytes},
    EncryptedShares: {"client": _int, "commitment": _bytes, "shares": _mapping},
    ForwardedShares: {"shares": _mapping},
    Survivors: {"alive": _clients, "dropped": _clients},
    RevealedShares: {"client": _int, "seeds": _mapping, "keys": _mapping},
}
