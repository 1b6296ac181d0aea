"""Every strategy against its paper's formulas, written out in float64."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from numpy.typing import NDArray
from torch import Tensor, nn

from federated.aggregation import Reduction, mean_of
from federated.flower.grid import CohortGrid
from federated.flower.messages import read_arrays, stamp, to_record, train_reply
from federated.strategies import ModelFacts, build_strategy
from federated.strategies.mean import MeanStrategy
from federated.updates import Stack, Update
from heliotrope import registry
from heliotrope.errors import RunFailedError
from tests.support import compose, fresh_seed

_Vector = NDArray[np.float64]
_CLIENTS = 11


@dataclass
class _Reply:
    """What one client answers: its examples, weights and loss at the global weights."""

    examples: int
    arrays: Mapping[str, Tensor]
    loss: float = 1.0


_Answer = Callable[[int, Mapping[str, Tensor]], Sequence[_Reply]]  # of a round, to weights


def _build(name: str, model: nn.Module, *settings: str) -> Any:
    run = compose(
        "federated",
        f"federated/strategy={name}",
        f"federated.clients_per_round={_CLIENTS}",
        f"federated.partition.clients={_CLIENTS}",
        "optimizer.lr=0.25",
        *settings,
    )
    return build_strategy(run, ModelFacts.of(model, 10_000, clients=2 * _CLIENTS))


def _train(
    strategy: Any, start: Mapping[str, Tensor], answer: _Answer, rounds: int = 3
) -> list[dict[str, Tensor]]:
    """Return the global arrays after each round."""
    grid = CohortGrid(None, reduce=False)  # type: ignore[arg-type]  # only its node ids are asked
    arrays, found = to_record(start), []
    for number in range(1, rounds + 1):
        replies = answer(number, read_arrays(arrays))
        grid.offer(range(len(replies)))
        messages = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        (sent,) = messages[0].content.array_records.values()
        beside = {n: torch.zeros_like(v) for n, v in read_arrays(sent).items() if n not in arrays}
        answers = []
        for message in messages:
            client = message.metadata.dst_node_id
            reply = replies[client]
            whole = {**reply.arrays, **beside}
            update = Update((client,), whole, reply.examples, 7.0, *[reply.examples] * 2, 1)
            answers.append(train_reply(update, stamp(message), reply.loss))
        arrays, _ = strategy.aggregate_train(number, answers)
        found.append(read_arrays(arrays))
    return found


def _random_answers(seed: int, scale: float = 0.1) -> _Answer:
    def answer(number: int, weights: Mapping[str, Tensor]) -> list[_Reply]:
        draw = np.random.default_rng((seed, number))
        replies = []
        for _ in range(_CLIENTS):
            arrays = {}
            for name, value in weights.items():
                step = torch.from_numpy(draw.normal(0.02, scale, tuple(value.shape)))
                moved = value.double() + step
                arrays[name] = (
                    moved.float()
                    if value.is_floating_point()
                    else value + torch.from_numpy(draw.integers(1, 9, tuple(value.shape)))
                )
            replies.append(_Reply(int(draw.integers(1, 50)), arrays, float(draw.uniform(0.1, 3))))
        return replies

    return answer


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def _flat(arrays: Mapping[str, Tensor]) -> _Vector:
    names = [name for name, _ in _model().named_parameters()]
    return np.concatenate([arrays[name].double().numpy().ravel() for name in names])


def _clients(replies: Sequence[_Reply]) -> _Vector:
    return np.stack([_flat(reply.arrays) for reply in replies])


def _weighted(replies: Sequence[_Reply], values: _Vector) -> _Vector:
    examples = np.array([reply.examples for reply in replies], np.float64)
    mean: _Vector = (examples[:, None] * values).sum(axis=0) / examples.sum()
    return mean


_Step = Callable[[int, _Vector, dict[str, Any]], _Vector]


def _fedavg(_number: int, delta: _Vector, _state: dict[str, Any]) -> _Vector:
    return delta


def _fedavgm(_number: int, delta: _Vector, state: dict[str, Any]) -> _Vector:
    state["v"] = 0.9 * state.get("v", 0.0) + delta
    return np.asarray(1.0 * state["v"])


def _adaptive(number: int, delta: _Vector, state: dict[str, Any], rule: str) -> _Vector:
    eta, beta_1, beta_2, tau = 0.01, 0.0 if rule == "adagrad" else 0.9, 0.99, 1e-3
    v0 = 0.0 if rule == "corrected" else tau**2
    m, v = state.get("m", np.zeros_like(delta)), state.get("v", np.full_like(delta, v0))
    m = beta_1 * m + (1 - beta_1) * delta
    if rule == "adagrad":
        v = v + delta**2
    elif rule == "yogi":
        v = v - (1 - beta_2) * delta**2 * np.sign(v - delta**2)
    else:
        v = beta_2 * v + (1 - beta_2) * delta**2
    state |= {"m": m, "v": v}
    if rule == "corrected":
        eta *= np.sqrt(1 - beta_2**number) / (1 - beta_1**number)
    return np.asarray(eta * m / (np.sqrt(v) + tau))


_STEPS: dict[str, _Step] = {
    "fedavg": _fedavg,
    "fedprox": _fedavg,
    "fedavgm": _fedavgm,
    "fedadam": lambda n, d, s: _adaptive(n, d, s, "adam"),
    "fedadam_corrected": lambda n, d, s: _adaptive(n, d, s, "corrected"),
    "fedyogi": lambda n, d, s: _adaptive(n, d, s, "yogi"),
    "fedadagrad": lambda n, d, s: _adaptive(n, d, s, "adagrad"),
}


@pytest.mark.parametrize("name", _STEPS)
def test_server_optimizers_take_the_steps_of_their_papers(name: str) -> None:
    model, answer = _model(), _random_answers(fresh_seed())
    state: dict[str, Any] = {}
    found = _train(_build(name, model), model.state_dict(), answer)

    before: Mapping[str, Tensor] = model.state_dict()
    for number, after in enumerate(found, start=1):
        replies = answer(number, before)
        delta = _weighted(replies, _clients(replies) - _flat(before))
        expected = _flat(before) + _STEPS[name](number, delta, state)
        # Half a unit in the last place of float32, which is rounded to once.
        np.testing.assert_allclose(_flat(after), expected, rtol=2**-24 * 1.0001, atol=1e-12)
        before = after


def test_the_first_corrected_step_of_fedadam_is_adams() -> None:
    model = nn.Linear(1, 1, bias=False)
    start = {"weight": torch.zeros(1, 1)}
    strategy = _build("fedadam_corrected", model, "federated.strategy.tau=1e-12")
    (after,) = _train(
        strategy, start, lambda _n, _w: [_Reply(1, {"weight": torch.ones(1, 1)})], rounds=1
    )
    assert after["weight"].item() == pytest.approx(0.01, rel=1e-7)  # 0.00742 of Flower's


_FED = [n for n in registry.names("strategy") if not n.startswith("flower_") and n != "fltrust"]


@pytest.mark.parametrize("name", _FED)  # of fltrust, which trains by itself: test_fltrust.py
def test_buffers_are_combined_by_the_rule_of_the_clients_and_never_stepped(name: str) -> None:
    model, answer = _model(), _random_answers(fresh_seed())
    (after,) = _train(_build(name, model), model.state_dict(), answer, rounds=1)
    replies = answer(1, model.state_dict())
    counter, mean = "1.num_batches_tracked", "1.running_mean"
    assert after[counter].dtype == torch.int64
    values = np.stack([r.arrays[mean].double().numpy() for r in replies])
    counts = np.array([[float(r.arrays[counter])] for r in replies])
    if name in _STEPS or name in ("qfedavg", "scaffold"):
        np.testing.assert_allclose(after[mean], _weighted(replies, values), rtol=1e-6)
        assert after[counter] == np.rint(_weighted(replies, counts))
    elif name in ("krum", "multikrum", "fedmedian", "norm_bounding", "centered_clipping"):
        np.testing.assert_allclose(after[mean], np.median(values, axis=0), rtol=1e-6)
        assert after[counter] == np.rint(np.median(counts))
    else:
        assert (after[mean].double().numpy() >= values.min(axis=0)).all()
        assert (after[mean].double().numpy() <= values.max(axis=0)).all()


@pytest.mark.parametrize("name", [n for n in registry.names("strategy") if n.startswith("flower_")])
def test_flowers_own_classes_never_see_a_buffer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "collect", lambda: 0)  # Bulyan and QFedAvg call it for every update
    model, answer = _model(), _random_answers(fresh_seed())
    (after,) = _train(_build(name, model), model.state_dict(), answer, rounds=1)
    replies = answer(1, model.state_dict())
    assert list(after) == list(model.state_dict())
    counts = np.array([[float(r.arrays["1.num_batches_tracked"])] for r in replies])
    assert after["1.num_batches_tracked"].dtype == torch.int64
    assert after["1.num_batches_tracked"] == np.rint(_weighted(replies, counts))
    values = np.stack([r.arrays["1.running_var"].double().numpy() for r in replies])
    np.testing.assert_allclose(after["1.running_var"], _weighted(replies, values), rtol=1e-6)


def test_qfedavg_is_that_of_the_paper_with_losses_at_the_global_weights() -> None:
    model, answer = _model(), _random_answers(fresh_seed())
    found = _train(_build("qfedavg", model, "federated.strategy.q=0.7"), model.state_dict(), answer)
    before: Mapping[str, Tensor] = model.state_dict()
    q, smooth = 0.7, 1 / 0.25
    for number, after in enumerate(found, start=1):
        replies = answer(number, before)
        ways = smooth * (_flat(before) - _clients(replies))
        losses = np.array([reply.loss for reply in replies])
        h = q * losses ** (q - 1) * (ways**2).sum(axis=1) + smooth * losses**q
        expected = _flat(before) - (losses[:, None] ** q * ways).sum(axis=0) / h.sum()
        np.testing.assert_allclose(_flat(after), expected, rtol=2**-24 * 1.0001, atol=1e-12)
        before = after


@pytest.mark.parametrize(("q", "scale"), [(10.0, 1e37), (5.0, 1e200), (40.0, 1e-9)])
def test_qfedavg_with_powers_that_no_float_holds(q: float, scale: float) -> None:
    """Losses that are all scaled change only the first term of h: here to nothing, or to all."""
    model, random = _model(), _random_answers(fresh_seed())

    def answer(number: int, weights: Mapping[str, Tensor]) -> list[_Reply]:
        replies = random(number, weights)
        return [_Reply(r.examples, r.arrays, scale * r.loss) for r in replies]

    build = _build("qfedavg", model, f"federated.strategy.q={q}")
    [after] = _train(build, model.state_dict(), answer, rounds=1)
    before, replies, smooth = model.state_dict(), answer(1, model.state_dict()), 1 / 0.25
    ways = smooth * (_flat(before) - _clients(replies))
    losses = np.array([reply.loss for reply in replies])
    shares = (losses / losses.max()) ** q
    h = shares * (q / losses * (ways**2).sum(axis=1) + smooth)
    expected = _flat(before) - (shares[:, None] * ways).sum(axis=0) / h.sum()
    np.testing.assert_allclose(_flat(after), expected, rtol=2**-24 * 1.0001, atol=1e-12)


def _krum_order(clients: _Vector, bad: int) -> list[int]:
    """Places by Krum's score, by its definition."""
    scores = []
    for own in clients:
        squares = sorted(((own - other) ** 2).sum() for other in clients)
        scores.append(sum(squares[1 : max(1, len(clients) - bad - 2) + 1]))  # without itself
    return [int(place) for place in np.argsort(scores, kind="stable")]


@pytest.mark.parametrize("scale", [0.1, 1e-7])  # steps of 1e-7: norms would cancel in float32
@pytest.mark.parametrize("bad", [0, 2])
def test_krum_and_multikrum_take_whom_exact_distances_choose(bad: int, scale: float) -> None:
    model, answer = nn.Linear(40, 30), _random_answers(fresh_seed(), scale)
    setting = f"federated.strategy.num_malicious_nodes={bad}"
    weights = [r.arrays for r in answer(1, model.state_dict())]
    flat = np.stack([np.concatenate([a[n].double().numpy().ravel() for n in a]) for a in weights])
    order = _krum_order(flat, bad)
    (one,) = _train(_build("krum", model, setting), model.state_dict(), answer, rounds=1)
    assert all(torch.equal(one[name], weights[order[0]][name]) for name in one)
    (many,) = _train(
        _build("multikrum", model, setting, "federated.strategy.num_nodes_to_select=4"),
        model.state_dict(),
        answer,
        rounds=1,
    )
    for name, value in many.items():
        mean = torch.stack([weights[place][name].double() for place in order[:4]]).mean(dim=0)
        torch.testing.assert_close(value, mean.float(), rtol=2e-7, atol=0)


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_bulyan_is_that_of_the_paper(bad: int) -> None:
    model, answer = _model(), _random_answers(fresh_seed())
    setting = f"federated.strategy.num_malicious_nodes={bad}"
    (after,) = _train(_build("bulyan", model, setting), model.state_dict(), answer, rounds=1)
    clients = _clients(answer(1, model.state_dict()))
    left = list(range(_CLIENTS))
    taken = [left.pop(_krum_order(clients[left], bad)[0]) for _ in range(_CLIENTS - 2 * bad)]
    chosen = clients[taken]
    expected = np.empty(chosen.shape[1])
    for at, values in enumerate(chosen.T):
        nearest = np.argsort(np.abs(values - np.median(values)), kind="stable")
        expected[at] = values[nearest[: len(values) - 2 * bad]].mean()
    np.testing.assert_allclose(_flat(after), expected, rtol=1e-7)


def test_median_and_trimmed_mean_by_coordinate() -> None:
    model, answer = _model(), _random_answers(fresh_seed())
    clients = np.sort(_clients(answer(1, model.state_dict())), axis=0)
    (median,) = _train(_build("fedmedian", model), model.state_dict(), answer, rounds=1)
    np.testing.assert_allclose(_flat(median), np.median(clients, axis=0), rtol=1e-7)
    trimmed = _build("fedtrimmedavg", model, "federated.strategy.beta=0.2")
    (mean,) = _train(trimmed, model.state_dict(), answer, rounds=1)
    np.testing.assert_allclose(_flat(mean), clients[2:-2].mean(axis=0), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "settings", "needed"),
    [
        ("fedtrimmedavg", ("federated.strategy.beta=0.1",), 10),
        ("krum", ("federated.strategy.num_malicious_nodes=4",), 11),
        ("bulyan", ("federated.strategy.num_malicious_nodes=2",), 11),
    ],
)
def test_a_round_with_too_few_replies_fails_by_name(
    name: str, settings: Sequence[str], needed: int
) -> None:
    model, answer = _model(), _random_answers(fresh_seed())
    strategy = _build(name, model, *settings)
    few = lambda number, weights: answer(number, weights)[: needed - 1]  # noqa: E731
    with pytest.raises(RunFailedError, match=f"updates of {needed} clients.* has {needed - 1}"):
        _train(strategy, model.state_dict(), few, rounds=1)


@pytest.mark.parametrize("name", [*_STEPS])
def test_replies_and_their_sum_make_the_same_bits(name: str) -> None:
    model, answer = _model(), _random_answers(fresh_seed())
    start = model.state_dict()
    unreduced = _train(_build(name, model), start, answer)
    strategy = _build(name, model)
    assert isinstance(strategy, MeanStrategy)
    grid = CohortGrid(None, reduce=True)  # type: ignore[arg-type]  # only its node ids are asked
    grid.offer(range(_CLIENTS))
    for number, expected in enumerate(unreduced, start=1):
        replies = answer(number, start)
        partials = []
        for part in (range(4), range(4, _CLIENTS)):
            reduction = Reduction(start, 10_000)
            for client in part:
                reply = replies[client]
                arrays = {n: value[None] for n, value in reply.arrays.items()}
                reduction.add(Stack((client,), arrays, (reply.examples,), (0.0,), *[(1,)] * 3))
            whole = reduction.partial()
            assert whole is not None
            partials.append(whole)
        list(strategy.configure_train(number, to_record(start), ConfigRecord(), grid))
        start = read_arrays(strategy.aggregate_mean(number, mean_of(partials, start)))
        assert all(torch.equal(start[name], expected[name]) for name in expected)


def test_a_byzantine_client_does_not_move_a_robust_round() -> None:
    """The rules hold for every pair of bad clients, whatever examples they claim."""
    model, answer = nn.Linear(2, 2), _random_answers(fresh_seed())
    start = model.state_dict()
    two_bad = "federated.strategy.num_malicious_nodes=2"
    strategies = [
        _build(name, model, *settings)
        for name, settings in (
            ("krum", [two_bad]),
            ("multikrum", [two_bad]),
            ("bulyan", [two_bad]),
            ("fedmedian", []),
            ("fedtrimmedavg", ["federated.strategy.beta=0.2"]),
        )
    ]
    for bad in combinations(range(_CLIENTS), 2):

        def attacked(
            number: int, weights: Mapping[str, Tensor], bad: tuple[int, ...] = bad
        ) -> list[_Reply]:
            replies = list(answer(number, weights))
            for client in bad:
                replies[client] = _Reply(10**6, {n: w + 1e6 for n, w in weights.items()})
            return replies

        for strategy in strategies:
            (after,) = _train(strategy, start, attacked, 1)
            assert all(float((value - start[n]).abs().max()) < 1 for n, value in after.items())
