"""Shares of secrets, the graph of neighbours, and masks."""

from __future__ import annotations

import secrets

import numpy as np
import pytest
from Crypto.Protocol.SecretSharing import Shamir
from numpy.typing import NDArray

from federated.secure_aggregation.graph import degree_of, neighbours_of, share_threshold
from federated.secure_aggregation.primitives import add_masks
from federated.secure_aggregation.shamir import combined, split


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
