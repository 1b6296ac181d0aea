"""The server's half of secure aggregation over Flower's messages: clients are asked in four stages.

What carries the messages is told by its caller: a grid of Flower's, or a pool of nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from heliotrope.errors import SecureAggregationError

from ..secure_aggregation.messages import (
    Advertisement,
    EncryptedShares,
    RefusedMessageError,
    RevealedShares,
    Setup,
    Vector,
)
from ..secure_aggregation.quantization import Quantizer
from ..secure_aggregation.server import Server, with_reason
from .secure_client import NUMBER, QUANTIZER, TOLD
from .secure_codec import SECURE, decoded, encoded, masked_input

__all__ = ["SecurePlay"]

Ask = Callable[[Mapping[int, RecordDict]], Iterable[tuple[int, Message | str]]]
"""Sends each client its content, and gives each answer, or why there is none, with whose it is."""

Lose = Callable[[int, str], None]
"""Hears once that a client has dropped out of the round, and why."""


class SecurePlay:
    """One round.

    Parameters
    ----------
    setup, quantizer
        What clients are told of the round.
    told
        Names of the metrics that are masked beside weights.
    ask, lose
        How clients are reached, and who hears of those that drop out.
    """

    def __init__(
        self, setup: Setup, quantizer: Quantizer, told: Sequence[str], ask: Ask, lose: Lose
    ) -> None:
        self._setup, self._quantizer, self._told = setup, quantizer, list(told)
        self._ask, self._hear = ask, lose
        self._lost: dict[int, str] = {}

    def __call__(self, contents: Mapping[int, RecordDict]) -> tuple[Vector, tuple[int, ...]]:
        """Ask the clients of `contents`; return the sum, and whose inputs are in it.

        Each trains as its content says; one whose content is empty sends zeros. Raises
        `SecureAggregationError` if too few are left.
        """
        server = Server(self._setup, list(contents))
        try:
            self._play(server, contents)
            return server.total(), server.included
        except SecureAggregationError as error:
            raise with_reason(error, self._lost) from error

    def _play(self, server: Server, contents: Mapping[int, RecordDict]) -> None:
        setup = self._setup

        def advertised(record: ConfigRecord, client: int) -> None:
            server.receive_advertisement(decoded(Advertisement, record, client))

        def shared(record: ConfigRecord, client: int) -> None:
            server.receive_shares(decoded(EncryptedShares, record, client))

        def masked(record: ConfigRecord, client: int) -> None:
            server.receive_input(masked_input(record, setup, client))

        def revealed(record: ConfigRecord, client: int) -> None:
            server.receive_revealed(decoded(RevealedShares, record, client))

        self._stage({client: self._first(client) for client in contents}, advertised)
        self._stage(_alone(server.rosters()), shared)
        training = {
            client: RecordDict({**contents[client], SECURE: encoded(message)})
            for client, message in server.forwarded().items()
        }
        self._stage(training, masked)
        self._stage(_alone(server.survivors()), revealed)

    def _first(self, client: int) -> RecordDict:
        told = ConfigRecord({"names": self._told, NUMBER: client})
        setup, quantizer = encoded(self._setup), encoded(self._quantizer)
        return RecordDict({SECURE: setup, QUANTIZER: quantizer, TOLD: told})

    def _stage(
        self, contents: Mapping[int, RecordDict], take: Callable[[ConfigRecord, int], None]
    ) -> None:
        """Send each client its content, and take the answers; who gives none has dropped out."""
        waiting = set(contents)
        for client, reply in self._ask(contents):
            if client not in waiting:
                continue
            waiting.remove(client)
            if isinstance(reply, str) or reply.has_error():
                self._lose(client, reply if isinstance(reply, str) else str(reply.error.reason))
                continue
            try:
                if SECURE not in reply.content.config_records:
                    raise RefusedMessageError(
                        f"client {client} is refused: it gives no answer of secure aggregation. "
                        "Set mods=[secure_aggregation_mod] in its ClientApp."
                    )
                take(reply.content.config_records[SECURE], client)
            except RefusedMessageError as error:
                self._lose(client, str(error))
        for client in sorted(waiting):
            self._lose(client, "it did not answer")

    def _lose(self, client: int, reason: str) -> None:
        if client not in self._lost:
            self._lost[client] = reason
            self._hear(client, reason)


def _alone(messages: Mapping[int, Any]) -> dict[int, RecordDict]:
    """Return contents that hold each client's message of the protocol, and nothing else."""
    return {client: RecordDict({SECURE: encoded(m)}) for client, m in messages.items()}
