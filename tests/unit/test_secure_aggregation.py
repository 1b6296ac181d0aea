"""The secure sum: exact, drop-outs survived, and nothing but sums seen."""

from __future__ import annotations

import secrets
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from federated.secure_aggregation.graph import neighbours_of
from federated.secure_aggregation.messages import (
    Advertisement,
    EncryptedShares,
    MaskedInput,
    RevealedShares,
    Vector,
)
from federated.secure_aggregation.session import Session
from heliotrope.errors import SecureAggregationError
from tests.secure_play import Play, new_play, new_setup, same, sum_of

_STAGES = (1, 2, 3, 4)


# --- sums ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize(
    ("clients", "threshold", "neighbours", "size"),
    [(2, 2, 1, 1), (3, 2, 2, 1), (3, 3, 2, 40_000), (8, 6, 7, 33), (11, 8, 4, 7), (9, 6, 5, 2)],
)
def test_the_sum_is_that_of_whole_numbers_modulo_2_to_the_bits(
    clients: int, threshold: int, neighbours: int, size: int, bits: int
) -> None:
    play = new_play(clients, threshold, neighbours, bits, size)
    assert same(play.run(), sum_of(play.setup, list(play.vectors.values())))
    assert play.server.included == tuple(play.vectors)


def test_zeros_and_a_vector_without_values_are_added_up() -> None:
    setup = replace(new_setup(2, 2), size=0)
    play = Play(setup, {number: Vector.zeros(setup) for number in range(3)})
    total = play.run()
    assert total.values.size == 0
    assert total.numbers.tolist() == [0, 0, 0]


# --- drop-outs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("neighbours", [9, 6])
@pytest.mark.parametrize("stage", _STAGES)
def test_as_many_drop_outs_as_the_threshold_allows_are_survived_at_each_stage(
    stage: int, neighbours: int
) -> None:
    play = new_play(10, 7, neighbours)
    lost = frozenset(secrets.SystemRandom().sample(list(play.vectors), 3))
    play.leaving[stage] = lost
    counted = [v for number, v in play.vectors.items() if stage == 4 or number not in lost]
    assert same(play.run(), sum_of(play.setup, counted))


@pytest.mark.parametrize("stage", _STAGES)
def test_one_drop_out_more_is_an_error_that_names_the_stage_and_who_is_lost(stage: int) -> None:
    play = new_play(10, 7, 9)
    lost = sorted(play.vectors)[:4]
    play.leaving[stage] = frozenset(lost)
    named = ["advertise keys", "share keys", "masked input", "unmasking"][stage - 1]
    with pytest.raises(SecureAggregationError) as caught:
        play.run()
    assert f"stage {stage} ({named})" in str(caught.value)
    assert "6 of 10 clients are left" in str(caught.value)
    assert ", ".join(map(str, lost)) in str(caught.value)


def test_drop_outs_of_all_stages_together_are_survived() -> None:
    play = new_play(12, 8, 11)
    for stage, number in zip(_STAGES, sorted(play.vectors), strict=False):
        play.leaving[stage] = frozenset([number])
    counted = [v for number, v in sorted(play.vectors.items())][3:]
    assert same(play.run(), sum_of(play.setup, counted))


def test_a_neighbourhood_that_is_lost_in_a_sparse_graph_is_an_error_that_names_its_client() -> None:
    play = new_play(20, 11, 4)
    graph = neighbours_of(list(play.vectors), 4, play.setup.session)
    client, others = next(iter(graph.items()))
    lost = frozenset(others[:3])  # three of five shares are needed
    play.leaving[4] = lost
    closed = [c for c, peers in graph.items() if len(lost & {c, *peers}) > 2]
    assert client in closed
    with pytest.raises(SecureAggregationError, match=rf"seed of client {min(closed)} cannot be"):
        play.run()


def test_a_neighbourhood_that_is_lost_before_its_inputs_is_an_error_by_name() -> None:
    setup = new_setup(4, 2)
    session = Session(setup, range(7))
    lost = neighbours_of(range(7), 2, setup.session)[3]  # 3 will not tell the others' shares
    for number in set(range(7)) - set(lost):
        assert session.receive(session.masks[number].masked(Vector.zeros(setup))) is None
    with pytest.raises(SecureAggregationError, match="cannot be opened"):
        session.total(dict.fromkeys(lost, "it is gone"))


# --- what the server sees -----------------------------------------------------------------------


def _inputs(play: Play) -> dict[int, Vector]:
    return {m.client: m.vector for m in play.sent if isinstance(m, MaskedInput)}


def test_masked_values_and_numbers_are_uniform() -> None:
    """Chi-square over bytes and over the top bits; zeros, ones and the largest as inputs."""
    setup = replace(new_setup(2, 2), size=60_000, numbers=30_000)
    vectors = {
        0: Vector.zeros(setup),
        1: Vector(np.ones(60_000, np.uint32), np.ones(30_000, np.uint64)),
        2: Vector(np.full(60_000, 2**32 - 1, np.uint32), np.zeros(30_000, np.uint64)),
    }
    play = Play(setup, vectors)
    play.run()
    for vector in _inputs(play).values():
        for part in vector.parts:
            octets = np.bincount(part.view(np.uint8), minlength=256)
            assert stats.chisquare(octets).pvalue > 1e-6
            high = np.bincount((part >> (8 * part.itemsize - 6)).astype(np.int64), minlength=64)
            assert stats.chisquare(high).pvalue > 1e-6


def test_what_the_server_sees_is_alike_when_two_clients_swap_their_inputs() -> None:
    """With a fixed sum, what client 0 sends does not tell which of two inputs it had."""
    setup = new_setup(2, 2, size=1)
    none = Vector.zeros(setup)
    small, large = (replace(none, values=np.array([n], np.uint32)) for n in (5, 4_000_000))

    def seen(swapped: bool) -> tuple[int, int, int]:
        first, second = (large, small) if swapped else (small, large)
        new = replace(setup, session=secrets.token_bytes(32))
        play = Play(new, {0: first, 1: second, 2: none})
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
    play = new_play(6, 4, 5)
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
    play = new_play(4, 3, 3)
    play.run()
    for number, vector in _inputs(play).items():
        assert not np.any(vector.numbers == play.vectors[number].numbers)


# --- what clients refuse ------------------------------------------------------------------------


def test_no_client_ever_reveals_both_shares_of_one_peer() -> None:
    play = new_play(9, 5, 8)
    lost = frozenset(sorted(play.vectors)[:3])
    play.leaving[3] = lost
    play.run()
    revealed = [m for m in play.sent if isinstance(m, RevealedShares)]
    assert len(revealed) == 6
    for message in revealed:
        assert not message.seeds.keys() & message.keys.keys()
        assert message.keys.keys() == lost
        assert message.client in message.seeds
