"""One round of the protocol with all its clients in one process, as a simulation plays it.

Clients and server are those of a deployment: each client makes its keys, agrees on them with its
neighbours, and shares and reveals; nothing is computed once for two of them. What goes to the
server is messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from heliotrope.errors import SecureAggregationError

from .client import Client, Masks
from .messages import MaskedInput, RefusedMessageError, Setup, Vector
from .server import Server, with_reason

__all__ = ["Session"]


class Session:
    """Stages 1 and 2 when it is made; stage 3 input by input; stage 4 at the end.

    Keys are drawn from the operating system's generator: the sum does not depend on them.
    """

    def __init__(self, setup: Setup, clients: Sequence[int]) -> None:
        self._setup = setup
        self._server = Server(setup, clients)
        self._clients = {client: Client(client, setup) for client in clients}
        for client in self._clients.values():
            self._server.receive_advertisement(client.advertise())
        for number, roster in self._server.rosters().items():
            self._server.receive_shares(self._clients[number].share_keys(roster))
        self.masks: dict[int, Masks] = {}
        for number, forwarded in self._server.forwarded().items():
            self._clients[number].receive_shares(forwarded)
            self.masks[number] = self._clients[number].masks()

    def receive(self, message: MaskedInput) -> str | None:
        """Take a client's input; return why it is refused, if it is."""
        try:
            self._server.receive_input(message)
        except RefusedMessageError as error:
            return str(error)
        return None

    def add_nothing(self, clients: Sequence[int]) -> None:
        """Let clients that were not drawn send zeros under their masks."""
        for client in clients:
            self._server.receive_input(self.masks[client].masked(Vector.zeros(self._setup)))

    def total(self, lost: Mapping[int, str]) -> tuple[Vector, tuple[int, ...]]:
        """Open and return the sum, and whose inputs are in it; `lost` says why others are not.

        Raises `SecureAggregationError` if too few are left.
        """
        gone = dict(lost)
        try:
            for number, survivors in self._server.survivors().items():
                try:
                    self._server.receive_revealed(self._clients[number].reveal(survivors))
                except RefusedMessageError as error:  # too few of its neighbours are left
                    gone.setdefault(number, str(error))
            return self._server.total(), self._server.included
        except SecureAggregationError as error:
            raise with_reason(error, gone) from error
