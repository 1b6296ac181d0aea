"""What clients and the server of a secure sum refuse, by the name of who sent it."""

from __future__ import annotations

import secrets
from dataclasses import replace

import numpy as np
import pytest

from federated.secure_aggregation.client import Client
from federated.secure_aggregation.messages import (
    Advertisement,
    ForwardedShares,
    MaskedInput,
    RefusedMessageError,
    Survivors,
    Vector,
)
from heliotrope.errors import SecureAggregationError
from tests.secure_play import Play, new_play, new_setup, random_vectors, same


def _upto_survivors() -> tuple[Play, int, Survivors]:
    play = new_play(6, 4, 5)
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
    play = new_play(4, 3, 3)
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
    setup = new_setup(3, 2)
    play = Play(setup, random_vectors(setup, range(5)))
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
    play = Play(minority, random_vectors(minority, range(5)))
    with pytest.raises(RefusedMessageError, match="2 of 5 holders open its secrets"):
        play.clients[0].share_keys(play.advertise()[0])
    for wrong in (replace(setup, bits=8), replace(setup, threshold=1), replace(setup, session=b"")):
        with pytest.raises(RefusedMessageError):
            Client(0, wrong)


def test_the_server_refuses_what_nobody_could_have_sent() -> None:
    play = new_play(5, 3, 4)
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
    play = new_play(5, 3, 4)
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
    assert same(play.open(survivors), total)


def test_an_input_of_another_length_or_type_is_refused() -> None:
    play = new_play(4, 3, 3)
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
