"""The server of one round: it sees messages, forwards them, and opens nothing but the sum.

Each stage takes the messages that have arrived, and closes when what follows from them is asked
for: `rosters`, `forwarded`, `survivors`, `total`. Who has not been heard of by then has dropped
out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from heliotrope.errors import SecureAggregationError

from .client import MASKING
from .graph import degree_of, neighbours_of, share_threshold
from .messages import (
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
from .primitives import KEY_BYTES, add_masks, agreed_key, commitment
from .shamir import combined

__all__ = ["Server", "with_reason"]

_STAGES = ("advertise keys", "share keys", "masked input", "unmasking")


class Server:
    """One round with `cohort`, the clients that are asked.

    Messages that cannot be meant so raise `RefusedMessageError`, which names their sender, who
    then counts as dropped out. `SecureAggregationError` is raised where too few clients are left.
    """

    def __init__(self, setup: Setup, cohort: Sequence[int]) -> None:
        self._setup, self._cohort = setup, sorted(cohort)
        self._stage = 1
        self._probe = X25519PrivateKey.generate()  # to try clients' public keys with
        self._advertised: dict[int, Advertisement] = {}
        self._shared: dict[int, EncryptedShares] = {}
        self._revealed: dict[int, RevealedShares] = {}
        self._neighbours: dict[int, tuple[int, ...]] = {}
        self._needed = 0
        self._sum = Vector.zeros(setup)
        self._included: set[int] = set()

    @property
    def included(self) -> tuple[int, ...]:
        """The clients whose inputs are in the sum."""
        return tuple(sorted(self._included))

    def receive_advertisement(self, message: Advertisement) -> None:
        """Stage 1."""
        self._expect(1, message.client, self._cohort, self._advertised)
        if {len(message.sealing_key), len(message.masking_key)} != {KEY_BYTES}:
            raise _refused(message.client, f"its public keys are not of {KEY_BYTES} bytes")
        for key in (message.sealing_key, message.masking_key):
            try:  # a key of low order agrees with nobody: its neighbours would all be lost for it
                agreed_key(self._probe, key, self._setup.session, MASKING)
            except RefusedMessageError as error:
                raise _refused(message.client, str(error)) from error
        self._advertised[message.client] = message

    def rosters(self) -> dict[int, Roster]:
        """Close stage 1: return what each client that advertised its keys is told."""
        self._close(1, self._advertised)
        clients = tuple(sorted(self._advertised))
        degree = degree_of(self._setup.neighbours, len(clients))
        self._neighbours = neighbours_of(clients, degree, self._setup.session)
        self._needed = share_threshold(self._setup.threshold, degree, len(clients))
        return {
            client: Roster(clients, tuple(self._advertised[peer] for peer in peers))
            for client, peers in self._neighbours.items()
        }

    def receive_shares(self, message: EncryptedShares) -> None:
        """Stage 2."""
        self._expect(2, message.client, self._advertised, self._shared)
        if set(message.shares) != set(self._neighbours[message.client]):
            raise _refused(message.client, "it has not shared its keys with its neighbours")
        self._shared[message.client] = message

    def forwarded(self) -> dict[int, ForwardedShares]:
        """Close stage 2: return each client's shares of its neighbours' secrets."""
        self._close(2, self._shared)
        return {
            client: ForwardedShares(
                {peer: self._shared[peer].shares[client] for peer in self._sharing(client)}
            )
            for client in self._shared
        }

    def receive_input(self, message: MaskedInput) -> None:
        """Stage 3: the input is added up at once, and not kept."""
        self._expect(3, message.client, self._shared, self._included)
        if not message.vector.fits(self._setup):
            raise _refused(message.client, "its input is not of the round's length and type")
        self._sum.add(message.vector)
        self._included.add(message.client)

    def survivors(self) -> dict[int, Survivors]:
        """Close stage 3: tell each client whose input has arrived which of its neighbours' has."""
        self._close(3, self._included)
        found = {}
        for client in self.included:
            known = {client, *self._sharing(client)}
            alive, dropped = known & self._included, known - self._included
            found[client] = Survivors(tuple(sorted(alive)), tuple(sorted(dropped)))
        return found

    def receive_revealed(self, message: RevealedShares) -> None:
        """Stage 4."""
        self._expect(4, message.client, self._included, self._revealed)
        known = {message.client, *self._sharing(message.client)}
        alive, dropped = known & self._included, known - self._included
        if message.seeds.keys() != alive or message.keys.keys() != dropped:
            raise _refused(message.client, "it reveals other shares than it was asked for")
        shares = (*message.seeds.values(), *message.keys.values())
        if any(len(share) != KEY_BYTES for share in shares):
            raise _refused(message.client, f"its shares are not of {KEY_BYTES} bytes")
        self._revealed[message.client] = message

    def total(self) -> Vector:
        """Close stage 4: take all masks away and return the sum of the inputs that arrived.

        Raises `SecureAggregationError` also if a client's secrets cannot be put together, since
        too few of those that hold its shares are left, or since shares are wrong.
        """
        self._close(4, self._revealed)
        session = self._setup.session
        masks: list[tuple[bytes, bool]] = []
        for client in self.included:
            seed = self._opened(client, "seed", lambda message: message.seeds)
            if commitment(seed, session, client) != self._shared[client].commitment:
                raise self._wrong(client)
            masks.append((seed, False))
        for client in sorted(self._shared.keys() - self._included):
            alive = [peer for peer in self._sharing(client) if peer in self._included]
            if not alive:
                continue  # nobody has masked anything with it
            key = self._opened(client, "key", lambda message: message.keys)
            private = X25519PrivateKey.from_private_bytes(key)
            known = self._advertised[client].masking_key
            if private.public_key().public_bytes_raw() != known:
                raise self._wrong(client)
            for peer in alive:
                public = self._advertised[peer].masking_key
                # As if the client had masked its own input, which was then lost.
                masks.append((agreed_key(private, public, session, MASKING), client < peer))
        add_masks(self._sum.parts, masks)
        return self._sum

    def _sharing(self, client: int) -> list[int]:
        """Return the neighbours of a client that have shared their keys."""
        return [peer for peer in self._neighbours[client] if peer in self._shared]

    def _opened(
        self, client: int, what: str, shares: Callable[[RevealedShares], Mapping[int, bytes]]
    ) -> bytes:
        points = {holder: point for point, holder in enumerate(sorted(self._advertised), start=1)}
        held = {
            points[holder]: shares(self._revealed[holder])[client]
            for holder in (client, *self._neighbours[client])
            if holder in self._revealed
        }
        if len(held) < self._needed:
            raise SecureAggregationError(
                f"secure aggregation: the {what} of client {client} cannot be opened: {len(held)} "
                f"of it and its {len(self._neighbours[client])} neighbours are left, where "
                f"{self._needed} are needed. Set federated.secure_aggregation.neighbours higher."
            )
        return combined(held, self._needed)

    def _wrong(self, client: int) -> SecureAggregationError:
        return SecureAggregationError(
            f"secure aggregation: the shares of client {client} do not give what it has committed "
            "to: it, or a client that holds them, sent wrong ones. No sum can be opened."
        )

    def _expect(
        self, stage: int, client: int, asked: Collection[int], heard: Iterable[int]
    ) -> None:
        """Raise `RefusedMessageError` for a message of another stage, of a stranger, or again."""
        if stage != self._stage:
            raise _refused(client, f"its message is of the stage {_STAGES[stage - 1]}: too late")
        if client not in asked:
            raise _refused(client, "it does not take part, or has dropped out before")
        if client in heard:
            raise _refused(client, "it has sent this before")

    def _close(self, stage: int, heard: Collection[int]) -> None:
        """End a stage; `SecureAggregationError` if too few clients were heard of in it."""
        if self._stage != stage:
            raise RuntimeError(f"stage {stage} closed in stage {self._stage}")
        self._stage += 1
        needed = self._setup.threshold
        if len(heard) >= needed:
            return
        lost = [client for client in self._cohort if client not in heard]
        named = ", ".join(str(client) for client in lost[:8]) + (", ..." if lost[8:] else "")
        raise SecureAggregationError(
            f"secure aggregation, stage {stage} ({_STAGES[stage - 1]}): {len(heard)} of "
            f"{len(self._cohort)} clients are left, where federated.secure_aggregation.threshold="
            f"{needed} are needed. Lost: client {named}. No update was seen. Go on with "
            "resume=true, or lower the threshold, down to a majority."
        )


def with_reason(error: SecureAggregationError, lost: Mapping[int, str]) -> SecureAggregationError:
    """Return the same error with why the first of the clients was `lost` that are missing."""
    if not lost:
        return error
    client, why = next(iter(lost.items()))
    return SecureAggregationError(f"{error} Client {client} was lost: {why}.")


def _refused(client: int, why: str) -> RefusedMessageError:
    return RefusedMessageError(f"client {client} is refused: {why}")
