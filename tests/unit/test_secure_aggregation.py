"""The protocol: sums exact, drop-outs survived, nothing but sums seen, and what must be refused."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from Crypto.Protocol.SecretSharing import Shamir
from numpy.typing import NDArray
from scipy import stats

from federated.secure_aggregation.client import Client
from federated.secure_aggregation.graph import degree_of, neighbours_of, share_threshold
from federated.secure_aggregation.messages import (
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
from federated.secure_aggregation.primitives import add_masks
from federated.secure_aggregation.server import Server
from federated.secure_aggregation.session import Session
from federated.secure_aggregation.shamir import combined, split
from heliotrope.errors import SecureAggregationError

_STAGES = (1, 2, 3, 4)


def _setup(threshold: int, neighbours: int, bits: int = 32, size: int = 50) -> Setup:
    return Setup(secrets.token_bytes(32), threshold, neighbours, bits, size, 3)


def _vectors(setup: Setup, clients: Sequence[int]) -> dict[int, Vector]:
    seed = secrets.randbits(32)
    print("seed of the vectors", seed)
    rng = np.random.default_rng(seed)
    return {
        client: Vector(
            rng.integers(0, 2**setup.bits, setup.size, setup.dtype),
            rng.integers(0, 2**64, setup.numbers, np.uint64),
        )
        for client in clients
    }


def _sum(setup: Setup, vectors: Sequence[Vector]) -> Vector:
    """Add Python's whole numbers, and take the remainder once."""
    values = np.sum([v.values.astype(object) for v in vectors], axis=0) % 2**setup.bits
    numbers = np.sum([v.numbers.astype(object) for v in vectors], axis=0) % 2**64
    return Vector(values.astype(setup.dtype), numbers.astype(np.uint64))


def _same(one: Vector, other: Vector) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.parts, other.parts, strict=True))


@dataclass
class _Play:
    """A round: who leaves before which stage, and all that the server was sent."""

    setup: Setup
    vectors: dict[int, Vector]
    leaving: dict[int, frozenset[int]] = field(default_factory=dict)
    sent: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = Server(self.setup, list(self.vectors))
        self.clients = {number: Client(number, self.setup) for number in self.vectors}
        self.gone: set[int] = set()

    def _here(self, stage: int, asked: Any) -> list[int]:
        self.gone |= self.leaving.get(stage, frozenset())
        return [number for number in asked if number not in self.gone]

    def advertise(self) -> dict[int, Roster]:
        for number in self._here(1, self.clients):
            self.sent.append(self.clients[number].advertise())
            self.server.receive_advertisement(self.sent[-1])
        return self.server.rosters()

    def share(self, rosters: dict[int, Roster]) -> dict[int, ForwardedShares]:
        for number in self._here(2, rosters):
            self.sent.append(self.clients[number].share_keys(rosters[number]))
            self.server.receive_shares(self.sent[-1])
        return self.server.forwarded()

    def mask(self, forwarded: dict[int, ForwardedShares]) -> dict[int, Survivors]:
        for number in self._here(3, forwarded):
            self.clients[number].receive_shares(forwarded[number])
            self.sent.append(self.clients[number].masked_input(self.vectors[number]))
            self.server.receive_input(self.sent[-1])
        return self.server.survivors()

    def open(self, survivors: dict[int, Survivors]) -> Vector:
        for number in self._here(4, survivors):
            self.sent.append(self.clients[number].reveal(survivors[number]))
            self.server.receive_revealed(self.sent[-1])
        return self.server.total()

    def run(self) -> Vector:
        return self.open(self.mask(self.share(self.advertise())))


def _play(clients: int, threshold: int, neighbours: int, bits: int = 32, size: int = 50) -> _Play:
    setup = _setup(threshold, neighbours, bits, size)
    numbers = sorted(secrets.SystemRandom().sample(range(1000), clients))
    return _Play(setup, _vectors(setup, numbers))


# --- sums ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize(
    ("clients", "threshold", "neighbours", "size"),
    [(2, 2, 1, 1), (3, 2, 2, 1), (3, 3, 2, 40_000), (8, 6, 7, 33), (11, 8, 4, 7), (9, 6, 5, 2)],
)
def test_the_sum_is_that_of_whole_numbers_modulo_2_to_the_bits(
    clients: int, threshold: int, neighbours: int, size: int, bits: int
) -> None:
    play = _play(clients, threshold, neighbours, bits, size)
    assert _same(play.run(), _sum(play.setup, list(play.vectors.values())))
    assert play.server.included == tuple(play.vectors)


def test_zeros_and_a_vector_without_values_are_added_up() -> None:
    setup = replace(_setup(2, 2), size=0)
    play = _Play(setup, {number: Vector.zeros(setup) for number in range(3)})
    total = play.run()
    assert total.values.size == 0
    assert total.numbers.tolist() == [0, 0, 0]


# --- drop-outs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("neighbours", [9, 6])
@pytest.mark.parametrize("stage", _STAGES)
def test_as_many_drop_outs_as_the_threshold_allows_are_survived_at_each_stage(
    stage: int, neighbours: int
) -> None:
    play = _play(10, 7, neighbours)
    lost = frozenset(secrets.SystemRandom().sample(list(play.vectors), 3))
    play.leaving[stage] = lost
    counted = [v for number, v in play.vectors.items() if stage == 4 or number not in lost]
    assert _same(play.run(), _sum(play.setup, counted))


@pytest.mark.parametrize("stage", _STAGES)
def test_one_drop_out_more_is_an_error_that_names_the_stage_and_who_is_lost(stage: int) -> None:
    play = _play(10, 7, 9)
    lost = sorted(play.vectors)[:4]
    play.leaving[stage] = frozenset(lost)
    named = ["advertise keys", "share keys", "masked input", "unmasking"][stage - 1]
    with pytest.raises(SecureAggregationError) as caught:
        play.run()
    assert f"stage {stage} ({named})" in str(caught.value)
    assert "6 of 10 clients are left" in str(caught.value)
    assert ", ".join(map(str, lost)) in str(caught.value)


def test_drop_outs_of_all_stages_together_are_survived() -> None:
    play = _play(12, 8, 11)
    for stage, number in zip(_STAGES, sorted(play.vectors), strict=False):
        play.leaving[stage] = frozenset([number])
    counted = [v for number, v in sorted(play.vectors.items())][3:]
    assert _same(play.run(), _sum(play.setup, counted))


def test_a_neighbourhood_that_is_lost_in_a_sparse_graph_is_an_error_that_names_its_client() -> None:
    play = _play(20, 11, 4)
    graph = neighbours_of(list(play.vectors), 4, play.setup.session)
    client, others = next(iter(graph.items()))
    lost = frozenset(others[:3])  # three of five shares are needed
    play.leaving[4] = lost
    closed = [c for c, peers in graph.items() if len(lost & {c, *peers}) > 2]
    assert client in closed
    with pytest.raises(SecureAggregationError, match=rf"seed of client {min(closed)} cannot be"):
        play.run()


def test_a_neighbourhood_that_is_lost_before_its_inputs_is_an_error_by_name() -> None:
    setup = _setup(4, 2)
    session = Session(setup, range(7))
    lost = neighbours_of(range(7), 2, setup.session)[3]  # 3 will not tell the others' shares
    for number in set(range(7)) - set(lost):
        assert session.receive(session.masks[number].masked(Vector.zeros(setup))) is None
    with pytest.raises(SecureAggregationError, match="cannot be opened"):
        session.total(dict.fromkeys(lost, "it is gone"))


# --- what the server sees -----------------------------------------------------------------------


def _inputs(play: _Play) -> dict[int, Vector]:
    return {m.client: m.vector for m in play.sent if isinstance(m, MaskedInput)}


def test_masked_values_and_numbers_are_uniform() -> None:
    """Chi-square over bytes and over the top bits; zeros, ones and the largest as inputs."""
    setup = replace(_setup(2, 2), size=60_000, numbers=30_000)
    vectors = {
        0: Vector.zeros(setup),
        1: Vector(np.ones(60_000, np.uint32), np.ones(30_000, np.uint64)),
        2: Vector(np.full(60_000, 2**32 - 1, np.uint32), np.zeros(30_000, np.uint64)),
    }
    play = _Play(setup, vectors)
    play.run()
    for vector in _inputs(play).values():
        for part in vector.parts:
            octets = np.bincount(part.view(np.uint8), minlength=256)
            assert stats.chisquare(octets).pvalue > 1e-6
            high = np.bincount((part >> (8 * part.itemsize - 6)).astype(np.int64), minlength=64)
            assert stats.chisquare(high).pvalue > 1e-6


def test_what_the_server_sees_is_alike_when_two_clients_swap_their_inputs() -> None:
    """With a fixed sum, what client 0 sends does not tell which of two inputs it had."""
    setup = _setup(2, 2, size=1)
    none = Vector.zeros(setup)
    small, large = (replace(none, values=np.array([n], np.uint32)) for n in (5, 4_000_000))

    def seen(swapped: bool) -> tuple[int, int, int]:
        first, second = (large, small) if swapped else (small, large)
        new = replace(setup, session=secrets.token_bytes(32))
        play = _Play(new, {0: first, 1: second, 2: none})
        total = int(play.run().values[0])
        inputs = _inputs(play)
        return int(inputs[0].values[0]), int(inputs[1].values[0]), total

    views = {swapped: np.array([seen(swapped) for _ in range(400)]) for swapped in (False, True)}
    for column in (0, 1):
        found = stats.ks_2samp(views[False][:, column], views[True][:, column])
        assert found.pvalue > 1e-6
        joint = [(views[s][:, 0] - views[s][:, 1]) % 2**32 for s in (False, True)]
        assert stats.ks_2samp(*joint).pvalue > 1e-6
    assert set(views[False][:, 2]) == set(views[True][:, 2]) == {4_000_005}


def test_the_server_is_sent_no_input_and_no_two_masks_are_alike() -> None:
    play = _play(6, 4, 5)
    play.leaving[3] = frozenset([min(play.vectors)])
    play.run()
    kinds = {type(message) for message in play.sent}
    assert kinds == {Advertisement, EncryptedShares, MaskedInput, RevealedShares}
    plain = {vector.values.tobytes() for vector in play.vectors.values()}
    masks = set()
    for number, vector in _inputs(play).items():
        assert vector.values.tobytes() not in plain
        masks.add((vector.values - play.vectors[number].values).tobytes())
    assert len(masks) == 5


def test_weights_and_counts_are_masked_like_values() -> None:
    play = _play(4, 3, 3)
    play.run()
    for number, vector in _inputs(play).items():
        assert not np.any(vector.numbers == play.vectors[number].numbers)


# --- what clients refuse ------------------------------------------------------------------------


def test_no_client_ever_reveals_both_shares_of_one_peer() -> None:
    play = _play(9, 5, 8)
    lost = frozenset(sorted(play.vectors)[:3])
    play.leaving[3] = lost
    play.run()
    revealed = [m for m in play.sent if isinstance(m, RevealedShares)]
    assert len(revealed) == 6
    for message in revealed:
        assert not message.seeds.keys() & message.keys.keys()
        assert message.keys.keys() == lost
        assert message.client in message.seeds


def _upto_survivors() -> tuple[_Play, int, Survivors]:
    play = _play(6, 4, 5)
    play.leaving[3] = frozenset([max(play.vectors)])
    survivors = play.mask(play.share(play.advertise()))
    number = min(play.vectors)
    return play, number, survivors[number]


def test_a_client_is_not_made_to_reveal_both_shares_by_a_lying_server() -> None:
    play, number, told = _upto_survivors()
    client, lost = play.clients[number], told.dropped[0]
    with pytest.raises(RefusedMessageError, match=f"client {lost} is said to be alive and to have"):
        client.reveal(Survivors((*told.alive, lost), told.dropped))
    with pytest.raises(RefusedMessageError, match="other clients than have shared"):
        client.reveal(Survivors(told.alive[:-1], told.dropped))
    with pytest.raises(RefusedMessageError, match="other clients than have shared"):
        client.reveal(Survivors((*told.alive, 5000), told.dropped))
    with pytest.raises(RefusedMessageError, match="dropped out itself"):
        client.reveal(Survivors(told.alive[1:], (*told.dropped, number)))
    with pytest.raises(RefusedMessageError, match="only 3 of it and its neighbours are left"):
        client.reveal(Survivors(told.alive[:3], (*told.dropped, *told.alive[3:])))
    client.reveal(told)
    other = Survivors(told.alive[:-1], (*told.dropped, told.alive[-1]))
    with pytest.raises(RefusedMessageError, match="does not follow"):  # and never twice
        client.reveal(other)


def test_a_ciphertext_that_was_altered_or_is_for_another_is_refused_by_the_name_of_its_sender() -> (
    None
):
    play = _play(4, 3, 3)
    forwarded = play.share(play.advertise())
    first, second, third, _ = sorted(play.vectors)
    good = forwarded[first].shares
    for bad in (
        good[second][:-1] + bytes([good[second][-1] ^ 1]),
        bytes([good[second][0] ^ 1]) + good[second][1:],
        good[third],  # of another sender
        forwarded[third].shares[second],  # for another receiver
        forwarded[second].shares[first],  # its own, sent back: of the same key
        b"",
    ):
        client = replace_stage(play.clients[first])
        with pytest.raises(
            RefusedMessageError, match=rf"client {first} refuses: shares of client {second}: its"
        ):
            client.receive_shares(ForwardedShares({**good, second: bad}))


def replace_stage(client: Client) -> Client:
    """Let a client be asked again for what it has refused."""
    client._stage = 2
    return client


def test_clients_check_the_round_they_are_told_of() -> None:
    setup = _setup(3, 2)
    play = _Play(setup, _vectors(setup, range(5)))
    rosters = play.advertise()
    good = rosters[0]
    stranger = next(each for each in rosters[1].neighbours if each not in good.neighbours)
    bad = {
        "the roster names a client twice": replace(good, clients=(*good.clients, 1)),
        "not the one it is sent to": replace(good, clients=good.clients[1:]),
        "2 clients take part": replace(good, clients=good.clients[:2]),
        "not those of the round's graph": replace(
            good, neighbours=(stranger, *good.neighbours[1:])
        ),
        "its public key is refused": replace(
            good,
            neighbours=(replace(good.neighbours[0], sealing_key=bytes(32)), *good.neighbours[1:]),
        ),
    }
    for named, roster in bad.items():
        client = Client(0, setup)
        client.advertise()
        with pytest.raises(RefusedMessageError, match=named):
            client.share_keys(roster)
    minority = replace(setup, threshold=2, neighbours=4)
    play = _Play(minority, _vectors(minority, range(5)))
    with pytest.raises(RefusedMessageError, match="2 of 5 holders open its secrets"):
        play.clients[0].share_keys(play.advertise()[0])
    for wrong in (replace(setup, bits=8), replace(setup, threshold=1), replace(setup, session=b"")):
        with pytest.raises(RefusedMessageError):
            Client(0, wrong)


def test_the_server_refuses_what_nobody_could_have_sent() -> None:
    play = _play(5, 3, 4)
    number = min(play.vectors)
    server = play.server
    advertised = play.clients[number].advertise()
    server.receive_advertisement(advertised)
    with pytest.raises(RefusedMessageError, match=f"client {number} is refused: it has sent this"):
        server.receive_advertisement(advertised)
    with pytest.raises(RefusedMessageError, match="client 7000 is refused: it does not take part"):
        server.receive_advertisement(replace(advertised, client=7000))
    other = max(play.vectors)
    with pytest.raises(RefusedMessageError, match="32 bytes"):
        server.receive_advertisement(Advertisement(other, bytes(3), bytes(32)))
    low_order = replace(play.clients[other].advertise(), masking_key=bytes(32))
    with pytest.raises(RefusedMessageError, match=f"client {other} is refused: its public key"):
        server.receive_advertisement(low_order)
    with pytest.raises(RefusedMessageError, match="too late"):
        server.receive_input(MaskedInput(number, Vector.zeros(play.setup)))


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_shares_of_another_length_lose_their_sender_and_no_more(length: int) -> None:
    play = _play(5, 3, 4)
    survivors = play.mask(play.share(play.advertise()))
    bad = min(survivors)
    wrong = play.clients[bad].reveal(survivors[bad])
    wrong = replace(wrong, seeds={owner: bytes(length) for owner in wrong.seeds})
    with pytest.raises(RefusedMessageError, match=f"client {bad} is refused: its shares are not"):
        play.server.receive_revealed(wrong)
    del survivors[bad]
    total = Vector.zeros(play.setup)
    for vector in play.vectors.values():
        total.add(vector)
    assert _same(play.open(survivors), total)


def test_an_input_of_another_length_or_type_is_refused() -> None:
    play = _play(4, 3, 3)
    play.share(play.advertise())
    number = min(play.vectors)
    for wrong in (
        Vector(np.zeros(1, np.uint32), np.zeros(3, np.uint64)),
        Vector(np.zeros(50, np.uint64), np.zeros(3, np.uint64)),
        Vector(np.zeros(50, np.uint32), np.zeros(2, np.uint64)),
    ):
        with pytest.raises(RefusedMessageError, match="length and type"):
            play.server.receive_input(MaskedInput(number, wrong))


@pytest.mark.parametrize("what", ["seeds", "keys"])
def test_wrong_shares_open_no_wrong_sum(what: str) -> None:
    play, number, _ = _upto_survivors()
    lost = max(play.vectors)
    survivors = dict.fromkeys((), play.server)
    assert not survivors
    for each in sorted(play.vectors)[:-1]:
        known = play.clients[each]
        alive = tuple(sorted(play.vectors)[:-1])
        message = known.reveal(Survivors(alive, (lost,)))
        if each == number:
            owner = number if what == "seeds" else lost
            shares = {**getattr(message, what), owner: secrets.token_bytes(32)}
            message = replace(message, **{what: shares})
        play.server.receive_revealed(message)
    named = number if what == "seeds" else lost
    with pytest.raises(SecureAggregationError, match=f"the shares of client {named} do not give"):
        play.server.total()


# --- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "points"), [(1, [1]), (2, [1, 2]), (5, [3, 9, 1, 257, 65535, 7])]
)
def test_shares_are_those_of_pycryptodome(threshold: int, points: list[int]) -> None:
    secret = secrets.token_bytes(48)
    shares = dict(zip(points, split(secret, threshold, points), strict=True))
    chosen = secrets.SystemRandom().sample(points, threshold)
    assert combined({point: shares[point] for point in chosen}, threshold) == secret
    for block in range(0, 48, 16):
        theirs = Shamir.combine([(p, shares[p][block : block + 16]) for p in chosen])
        assert theirs == secret[block : block + 16]
    block = secrets.token_bytes(16)
    assert combined(dict(Shamir.split(threshold, 6, block)[-threshold:]), threshold) == block


def test_fewer_shares_than_the_threshold_give_nothing() -> None:
    secret = secrets.token_bytes(32)
    shares = dict(enumerate(split(secret, 4, [1, 2, 3, 4, 5]), start=1))
    three = {point: shares[point] for point in (1, 3, 5)}
    with pytest.raises(ValueError, match="3 shares where 4"):
        combined(three, 4)
    assert combined(three, 3) != secret
    for wrong in ([0, 1], [1, 1], [1, 65536]):
        with pytest.raises(ValueError, match="points must differ"):
            split(secret, 2, wrong)


@pytest.mark.parametrize("clients", [2, 3, 7, 10])
@pytest.mark.parametrize("asked", [1, 2, 3, 6, 50])
def test_the_graph_is_regular_symmetric_connected_and_follows_from_the_session(
    clients: int, asked: int
) -> None:
    degree = degree_of(asked, clients)
    numbers, session = list(range(0, 3 * clients, 3)), secrets.token_bytes(32)
    graph = neighbours_of(numbers, degree, session)
    assert graph == neighbours_of(numbers[::-1], degree, session)
    assert degree == clients - 1 or degree in (asked, asked + 1)
    for client, peers in graph.items():
        assert len(peers) == degree
        assert client not in peers
        assert all(client in graph[peer] for peer in peers)
    reached = {numbers[0]}
    for _ in numbers:
        reached |= {peer for client in reached for peer in graph[client]}
    assert reached == set(numbers) or degree < 2


def test_a_secret_opens_by_no_two_disjoint_groups() -> None:
    for clients in range(2, 40):
        for asked in range(1, clients):
            degree = degree_of(asked, clients)
            assert 2 * share_threshold(clients // 2 + 1, degree, clients) > degree + 1


def test_masks_use_all_bits_of_their_key() -> None:
    key = bytearray(secrets.token_bytes(32))
    streams: set[bytes] = set()
    for bit in range(256):
        flipped = bytearray(key)
        flipped[bit // 8] ^= 1 << bit % 8
        array: NDArray[np.uint32] = np.zeros(4, np.uint32)
        add_masks([array], [(bytes(flipped), True)])
        streams.add(array.tobytes())
    assert len(streams) == 256
