"""The kinds of secure aggregation, by name, and what their keys mean."""

from __future__ import annotations

from .settings import SecAgg

__all__ = ["none", "secagg"]


def none() -> None:
    """None: the server has clients' updates as they are."""


def secagg(
    *,
    threshold: int | None = None,
    neighbours: int | None = None,
    bits: int = 32,
    range: float | None = None,  # noqa: A002 - the key's name
) -> SecAgg:
    """SecAgg+: the server learns the sum of a round's updates, and none of them.

    (Bonawitz et al. 2017; Bell et al. 2020.)

    Parameters
    ----------
    threshold
        Clients of a round that must be left at its end for the sum to be opened, more than half
        of clients_per_round; null: more than two thirds.
    neighbours
        With how many others each client shares masks and its secrets; null: with all. With fewer,
        a secret opens by more than half of a client and its neighbours.
    bits
        Of a masked value: 16, 32 or 64. The step of rounding follows from it and from range.
    range
        How far a single weight may go in a round: a client with more is left out, by name; null: 4,
        or the clip of federated.privacy where the server adds noise to a sum.
    """
    return SecAgg(threshold, neighbours, bits, range)
