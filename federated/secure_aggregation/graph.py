"""Who shares masks with whom: a Harary graph over clients in an order that nobody chose.

Bell et al. 2020, section 4. All clients and the server find the same graph from the round's
public randomness, and a client can check its neighbours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

__all__ = ["degree_of", "neighbours_of", "share_threshold"]


def degree_of(neighbours: int, clients: int) -> int:
    """Return how many neighbours each of `clients` has if about `neighbours` are asked for.

    A graph of odd degree needs an even number of clients: it then has one more. With all others
    as neighbours it is complete.
    """
    degree = min(neighbours, clients - 1)
    return degree + 1 if degree * clients % 2 else degree


def share_threshold(threshold: int, degree: int, clients: int) -> int:
    """Return how many shares open a secret of which a client and its neighbours hold one each.

    In a complete graph the round's threshold; in a sparse one a majority, so that no two disjoint
    groups of holders could open both secrets of a client.
    """
    return threshold if degree == clients - 1 else (degree + 1) // 2 + 1


def neighbours_of(
    clients: Sequence[int], degree: int, session: bytes
) -> dict[int, tuple[int, ...]]:
    """Return the neighbours of each client, sorted; `degree` is one of `degree_of`.

    In a circle in the order of the clients' hashes, each has those up to degree/2 places away on
    both sides, and with an odd degree the one opposite.
    """
    circle = sorted(clients, key=lambda client: _rank(client, session))
    total = len(circle)
    reach = [step for near in range(1, degree // 2 + 1) for step in (near, -near)]
    if degree % 2:
        reach.append(total // 2)
    return {
        client: tuple(sorted({circle[(place + step) % total] for step in reach}))
        for place, client in enumerate(circle)
    }


def _rank(client: int, session: bytes) -> bytes:
    return hashlib.sha256(b"heliotrope graph" + session + client.to_bytes(8, "big")).digest()
