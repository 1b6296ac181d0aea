"""A client of one round: it holds the secrets, and says only what nobody learns its update from.

The stages in order: `advertise`, `share_keys`, `receive_shares`, `masked_input`, `reveal`; each
once. Whatever the server says is checked against what the client knows: the round's graph, its
threshold, and which of its neighbours have shared their keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

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
from .primitives import KEY_BYTES, add_masks, agreed_key, commitment, opened, random_bytes, sealed
from .shamir import split

__all__ = ["MASKING", "SEALING", "Client", "Masks", "share_header"]

MASKING, SEALING = b"heliotrope mask", b"heliotrope shares"
"""What agreed keys are for."""


@dataclass(frozen=True)
class Masks:
    """What a client's vector is hidden under: the key of each mask, and whether it is added."""

    client: int
    keys: tuple[tuple[bytes, bool], ...]

    def masked(self, vector: Vector) -> MaskedInput:
        """Return the input that may be sent; `vector` is changed in place."""
        add_masks(vector.parts, self.keys)
        return MaskedInput(self.client, vector)


class Client:
    """One client in one round; `setup` is what the server told all of them.

    Raises `RefusedMessageError`, here and in each stage, for what it does not act on.
    """

    def __init__(self, number: int, setup: Setup) -> None:
        if setup.bits not in (16, 32, 64):
            raise RefusedMessageError(f"masked values of {setup.bits} bits; 16, 32 and 64 are safe")
        if setup.threshold < 2 or setup.neighbours < 1 or len(setup.session) != KEY_BYTES:
            raise RefusedMessageError("a round of one client, or of no public randomness")
        self.number, self._setup = number, setup
        self._sealing, self._masking = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._seed = random_bytes(KEY_BYTES)
        self._needed = 0  # shares that open a secret
        self._masking_keys: dict[int, bytes] = {}  # of each neighbour, public
        self._sealing_keys: dict[int, bytes] = {}
        self._shares: dict[int, bytes] = {}  # of each neighbour's key and seed, and of the own
        self._stage = 0

    def advertise(self) -> Advertisement:
        """Stage 1: tell the public keys."""
        self._enter(1)
        own = (self._sealing, self._masking)
        return Advertisement(self.number, *(key.public_key().public_bytes_raw() for key in own))

    def share_keys(self, roster: Roster) -> EncryptedShares:
        """Stage 2: share the seed of the own mask and the key of the pairwise masks."""
        self._enter(2)
        holders = self._holders(roster)
        public = {each.client: each.sealing_key for each in roster.neighbours}
        secret = self._masking.private_bytes_raw() + self._seed
        points = [point for _, point in holders]
        shares = dict(zip(holders, split(secret, self._needed, points), strict=True))
        sent: dict[int, bytes] = {}
        for (holder, _), share in shares.items():
            if holder == self.number:
                self._shares[holder] = share
                continue
            key = self._agreed(self._sealing, holder, public[holder], SEALING)
            self._sealing_keys[holder] = key
            sent[holder] = sealed(key, share, share_header(self.number, holder))
        told = commitment(self._seed, self._setup.session, self.number)
        return EncryptedShares(self.number, told, sent)

    def receive_shares(self, forwarded: ForwardedShares) -> None:
        """Stage 3, first half: open the shares of those neighbours that have shared theirs."""
        self._enter(3)
        for owner, message in sorted(forwarded.shares.items()):
            if owner not in self._sealing_keys:
                raise self._refused(f"shares of client {owner}, which is no neighbour")
            try:
                share = opened(self._sealing_keys[owner], message, share_header(owner, self.number))
            except RefusedMessageError as error:
                raise self._refused(f"shares of client {owner}: {error}") from error
            if len(share) != 2 * KEY_BYTES:
                raise self._refused(f"shares of client {owner} have {len(share)} bytes")
            self._shares[owner] = share
        if len(self._shares) < self._needed:
            raise self._refused(
                f"only {len(self._shares)} of it and its neighbours have shared their keys, where "
                f"{self._needed} are needed"
            )

    def masks(self) -> Masks:
        """Return the masks of the own input: they are used once."""
        self._enter(4)
        keys = [(self._seed, True)]
        for peer in sorted(self._shares.keys() - {self.number}):
            public = self._masking_keys[peer]
            keys.append((self._agreed(self._masking, peer, public, MASKING), self.number < peer))
        return Masks(self.number, tuple(keys))

    def masked_input(self, vector: Vector) -> MaskedInput:
        """Stage 3, second half: return the vector under its masks; it is copied."""
        if not vector.fits(self._setup):
            raise self._refused("the vector is not of the round's length and type")
        return self.masks().masked(vector.copy())

    def reveal(self, survivors: Survivors) -> RevealedShares:
        """Stage 4: of each neighbour the one share that opens the sum, never both.

        Those whose input has arrived have their own mask taken away, for which their seed is
        needed; of the others the pairwise masks are left over, for which their key is needed.
        """
        alive, dropped = set(survivors.alive), set(survivors.dropped)
        if both := sorted(alive & dropped):
            raise self._refused(f"client {both[0]} is said to be alive and to have dropped out")
        if unknown := sorted((alive | dropped) ^ self._shares.keys()):
            raise self._refused(
                f"it is told of other clients than have shared their keys: {unknown[0]}"
            )
        if self.number not in alive:
            raise self._refused("it is said to have dropped out itself")
        if len(alive) < self._needed:
            raise self._refused(
                f"only {len(alive)} of it and its neighbours are left, where {self._needed} are "
                "needed"
            )
        self._enter(5)
        return RevealedShares(
            self.number,
            seeds={owner: self._shares[owner][KEY_BYTES:] for owner in sorted(alive)},
            keys={owner: self._shares[owner][:KEY_BYTES] for owner in sorted(dropped)},
        )

    def saved(self) -> dict[str, int | bytes | tuple[int, ...] | Mapping[int, bytes]]:
        """Return the secrets, for the client's own keeping until the next stage's message."""
        return {
            "number": self.number,
            "stage": self._stage,
            "needed": self._needed,
            "sealing": self._sealing.private_bytes_raw(),
            "masking": self._masking.private_bytes_raw(),
            "seed": self._seed,
            "masking_keys": self._masking_keys,
            "sealing_keys": self._sealing_keys,
            "shares": self._shares,
        }

    @classmethod
    def restored(cls, setup: Setup, saved: Mapping[str, Any]) -> Client:
        """Return the client that `saved` was of; mappings as the lists that records have."""
        client = cls(saved["number"], setup)
        client._stage, client._needed, client._seed = (
            saved[name] for name in ("stage", "needed", "seed")
        )
        client._sealing = X25519PrivateKey.from_private_bytes(saved["sealing"])
        client._masking = X25519PrivateKey.from_private_bytes(saved["masking"])
        client._masking_keys, client._sealing_keys, client._shares = (
            dict(zip(saved[f"{name}.clients"], saved[f"{name}.bytes"], strict=True))
            for name in ("masking_keys", "sealing_keys", "shares")
        )
        return client

    def _holders(self, roster: Roster) -> list[tuple[int, int]]:
        """Check the roster, and return who holds shares of the own secrets, at which points."""
        clients, setup = sorted(roster.clients), self._setup
        if len(set(clients)) < len(clients) or self.number not in clients:
            raise self._refused("the roster names a client twice, or not the one it is sent to")
        if len(clients) < setup.threshold:
            raise self._refused(
                f"{len(clients)} clients take part, where {setup.threshold} are needed"
            )
        degree = degree_of(setup.neighbours, len(clients))
        wanted = neighbours_of(clients, degree, setup.session)[self.number]
        named = [each.client for each in roster.neighbours]
        if tuple(sorted(named)) != wanted:
            raise self._refused("its neighbours are not those of the round's graph")
        self._masking_keys = {each.client: each.masking_key for each in roster.neighbours}
        self._needed = share_threshold(setup.threshold, degree, len(clients))
        held = {*wanted, self.number}
        if 2 * self._needed <= len(held):
            raise self._refused(
                f"{self._needed} of {len(held)} holders open its secrets: one half could be asked "
                "for what the other must not tell"
            )
        return [(c, point) for point, c in enumerate(clients, start=1) if c in held]

    def _agreed(self, own: X25519PrivateKey, peer: int, public: bytes, purpose: bytes) -> bytes:
        try:
            return agreed_key(own, public, self._setup.session, purpose)
        except RefusedMessageError as error:
            raise self._refused(f"client {peer}: {error}") from error

    def _enter(self, stage: int) -> None:
        """Go on to a stage, each once: masks or shares given twice would tell the update."""
        if self._stage != stage - 1:
            raise self._refused(f"stage {stage} does not follow on {self._stage}")
        self._stage = stage

    def _refused(self, why: str) -> RefusedMessageError:
        return RefusedMessageError(f"client {self.number} refuses: {why}")


def share_header(owner: int, holder: int) -> bytes:
    """Return what a sealed share is bound to: whose it is, and for whom."""
    return owner.to_bytes(8, "big") + holder.to_bytes(8, "big")
