"""Layers that torch cannot map train stacked as torch trains them one client at a time.

Outputs and gradients are compared with torch's own kernels: to 1e-5 of the largest in float32,
and to 1e-12 in float64, by plain autograd and by a captured step.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from federated.engine.capture import capture, eager_step
from federated.engine.layers.stackable import NotStackableError, Stackable
from tests.parity.stackable_models import MODELS, TOKENS, Attends, Recurrent
from tests.support import fresh_seed

_CLIENTS = 3
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def _inputs(
    model: str, shape: tuple[int, int], dtype: torch.dtype, draw: torch.Generator
) -> Tensor:
    if model.startswith(("embedding", "bags")):
        return torch.randint(TOKENS, (_CLIENTS, *shape), generator=draw)
    return torch.randn(_CLIENTS, *shape, 4, generator=draw, dtype=dtype)


class Problem:
    """A model, weights of some clients, and examples of each."""

    def __init__(self, name: str, shape: tuple[int, int], dtype: torch.dtype, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.model = MODELS[name]().to(dtype).train()
        self.names = [name for name, _ in self.model.named_parameters()]
        self.weights = [
            0.5 * torch.randn(_CLIENTS, *p.shape, generator=draw, dtype=dtype)
            for p in self.model.parameters()
        ]
        self.inputs = _inputs(name, shape, dtype, draw)
        self.shares = torch.randn(_CLIENTS, shape[0], generator=draw, dtype=dtype)

    def losses(
        self,
        parameters: Sequence[Tensor],
        _: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
    ) -> Tensor:
        """Return torch's losses, [B]: a fixed, uneven sum of all outputs."""
        weights = dict(zip(self.names, parameters, strict=True))
        outputs = functional_call(self.model, weights, (batch["x"],))
        return torch.tanh(outputs) @ torch.linspace(-1, 2, outputs.shape[-1]).to(outputs)

    def ours(self, *arguments: Any) -> Tensor:
        with Stackable(self.model):
            return self.losses(*arguments)

    def expected(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Return the sum of the losses and gradients, stacked, from torch, client by client."""
        results, dtype = [], dtype or self.shares.dtype
        inputs = self.inputs.to(dtype) if self.inputs.is_floating_point() else self.inputs
        for client in range(_CLIENTS):
            weights = [weight[client].to(dtype) for weight in self.weights]
            mine = ({"x": inputs[client]}, self.shares[client].to(dtype))
            total, gradients = eager_step(self.losses)(weights, {}, *mine)
            results.append([total, *gradients])
        return [torch.stack(result) for result in zip(*results, strict=True)]  # type: ignore[arg-type]

    def check(self, result: tuple[Tensor, Sequence[Any]]) -> None:
        """Assert that a step's result is torch's.

        To the tolerance of the type, or ten times as far as torch is from its own in float64.
        """
        exact = self.expected(torch.float64)
        for ours, theirs, true in zip([result[0], *result[1]], self.expected(), exact, strict=True):
            whole = ours[0] @ ours[1] if isinstance(ours, tuple) else ours
            own = float((theirs - true).norm())
            allowed = max(_TOLERANCE[theirs.dtype] * max(1.0, float(true.norm())), 10 * own)
            assert whole.shape == theirs.shape
            assert float((whole - theirs).norm()) <= allowed


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_a_stack_of_clients_is_trained_as_by_torch(name: str, dtype: torch.dtype) -> None:
    seed = fresh_seed()
    for shape in ((3, 4), (1, 1)):  # a batch of one, a sequence of one
        problem = Problem(name, shape, dtype, seed)
        batch = (problem.weights, {}, {"x": problem.inputs})
        step = eager_step(vmap(problem.ours, randomness="error"))
        problem.check(step(*batch, problem.shares))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", MODELS)
def test_a_captured_step_replays_as_torch_on_values_never_seen(name: str) -> None:
    seed = fresh_seed()
    seen, other = (Problem(name, (3, 4), torch.float64, seed + more) for more in (0, 1))
    seen_batch = (seen.weights, {}, {"x": seen.inputs}, seen.shares)
    step = capture(vmap(seen.ours, randomness="error"), *seen_batch)
    other.check(step(other.weights, {}, {"x": other.inputs}, other.shares))


@pytest.mark.parametrize("name", ["lstm-both-ways", "gru-plain", "encoder", "embedding-padding"])
def test_a_captured_step_of_one_client_is_torchs(name: str) -> None:
    problem = Problem(name, (3, 4), torch.float64, fresh_seed())
    one = ([w[0] for w in problem.weights], {}, {"x": problem.inputs[0]})
    total, gradients = capture(problem.ours, *one, problem.shares[0])(*one, problem.shares[0])
    for ours, theirs in zip([total, *gradients], problem.expected(), strict=True):
        whole = ours[0] @ ours[1] if isinstance(ours, tuple) else ours
        torch.testing.assert_close(
            whole, theirs[0], rtol=0.0, atol=1e-12 * max(1.0, float(theirs.abs().max()))
        )


class Wide(nn.Module):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.layer = nn.LSTM(4, units, 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        outputs, (h, c) = self.layer(x)
        return torch.cat([outputs.flatten(1), h.transpose(0, 1).flatten(1), c[0]], 1)


@pytest.mark.parametrize("units", [5, 80])  # written out over time, or by oneDNN's kernel
@pytest.mark.parametrize("clients", [1, 5])
def test_an_lstm_in_float32_is_torchs_whatever_it_is_computed_by(clients: int, units: int) -> None:
    model, draw = Wide(units), torch.Generator().manual_seed(fresh_seed())
    names = [name for name, _ in model.named_parameters()]

    def losses(p: Sequence[Tensor], _: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        weights = dict(zip(names, p, strict=True))
        return functional_call(model, weights, (batch["x"],)).square().mean(1)

    def ours(*arguments: Any) -> Tensor:
        with Stackable(model):
            return losses(*arguments)

    weights = [0.2 * torch.randn(clients, *p.shape, generator=draw) for p in model.parameters()]
    x, shares = torch.randn(clients, 3, 6, 4, generator=draw), torch.full((clients, 3), 1 / 3)
    step = capture(vmap(ours), weights, {}, {"x": x.flip(0)}, shares)
    # Three products of each weight, with 18 rows, but not with inputs that have no gradient.
    matrices = [w[0].numel() for name, w in zip(names, weights, strict=True) if "weight" in name]
    assert 2 * 18 * sum(matrices) <= step.work / clients <= 3 * 18 * sum(matrices)
    with torch.inference_mode():  # as steps are replayed
        total, gradients = step([w.clone() for w in weights], {}, {"x": x.clone()}, shares)
    for client in range(clients):
        mine = ([w[client] for w in weights], {}, {"x": x[client]}, shares[client])
        expected, exact = eager_step(losses)(*mine)
        torch.testing.assert_close(total[client], expected)
        for found, theirs in zip(gradients, exact, strict=True):
            whole = found[0] @ found[1] if isinstance(found, tuple) else found
            distance = float((whole[client] - theirs).norm())  # type: ignore[operator]
            assert distance <= 1e-5 * float(theirs.norm())  # type: ignore[union-attr]


class Halving:
    """A dropout that draws nothing, and counts."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, bool]] = []
        self.examples: list[int] = []

    def __call__(self, inputs: Tensor, /, p: float, training: bool) -> Tensor:
        self.calls.append((p, training))
        self.examples.append(len(inputs))
        return inputs * (1 - p) if training else inputs


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "build",
    [
        lambda: Recurrent(nn.LSTM, num_layers=3, dropout=0.25),
        lambda: Recurrent(nn.GRU, num_layers=3, dropout=0.25),
        lambda: Recurrent(nn.RNN, num_layers=3, dropout=0.25),
        lambda: Attends(dropout=0.25),
    ],
)
def test_the_dropout_inside_of_a_layer_is_the_given_one(
    build: Callable[[], nn.Module], training: bool
) -> None:
    model, draw = build().train(training), torch.Generator().manual_seed(fresh_seed())
    dropout = Halving()
    with Stackable(model, dropout):
        model(torch.randn(2, 3, 4, generator=draw))
    assert set(dropout.calls) == ({(0.25, True)} if training else set())
    assert all(count % 2 == 0 for count in dropout.examples)  # two examples, or heads of two


def test_a_weight_of_attention_that_is_dropped_is_dropped_for_all_values() -> None:
    """Once with the weights returned, once without: both give what the dropout left."""
    draw = torch.Generator().manual_seed(fresh_seed())
    layer, x = nn.MultiheadAttention(4, 2, dropout=0.25), torch.randn(3, 2, 4, generator=draw)
    with torch.no_grad(), Stackable(layer, Halving()):
        with_weights, weights = layer(x, x, x)
        without, _ = layer(x, x, x, need_weights=False)
    undropped, expected = layer.eval()(x, x, x)
    bias = layer.out_proj.bias
    torch.testing.assert_close(weights, 0.75 * expected)
    torch.testing.assert_close(with_weights - bias, 0.75 * (undropped - bias))
    torch.testing.assert_close(without, with_weights)


def _packed(x: Tensor) -> Tensor:
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), x.shape[1]))
    return nn.GRU(4, 5)(packed)[0].data


def _packed_by_hand(kind: type[nn.RNNBase]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        packed = nn.utils.rnn.PackedSequence(x[0], torch.ones(x.shape[1], dtype=torch.int64))
        outputs: Tensor = kind(4, 5)(packed)[0].data
        return outputs

    return run


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (_packed, "packs sequences"),
        (_packed_by_hand(nn.LSTM), "packs sequences"),
        (_packed_by_hand(nn.GRU), "packs sequences"),
        (_packed_by_hand(nn.RNN), "packs sequences"),
        (lambda x: nn.Embedding(9, 4, max_norm=1.0)(x.long()), "max_norm"),
        (lambda x: nn.Embedding(9, 4, scale_grad_by_freq=True)(x.long()), "scale_grad_by_freq"),
        (lambda x: nn.Embedding(9, 4, sparse=True)(x.long()), "sparse"),
        (lambda x: nn.EmbeddingBag(9, 4, sparse=True)(x[0].long()), "sparse"),
        (lambda x: torch.embedding(x[0], x[0].long(), -1, True), "scale_grad_by_freq"),
    ],
)
def test_what_a_stack_cannot_do_is_refused_by_name(
    forward: Callable[[Tensor], Tensor], why: str
) -> None:
    with pytest.raises(NotStackableError, match=why), Stackable(nn.Identity()):
        forward(torch.zeros(2, 3, 4))


@pytest.mark.parametrize("token", [TOKENS, -1])
def test_a_token_that_is_in_no_table_is_refused_and_not_read_from_another_client(
    token: int,
) -> None:
    problem = Problem("embedding", (3, 4), torch.float32, fresh_seed())
    tokens = problem.inputs.clone()
    tokens[1, 0, 0] = token
    with pytest.raises(IndexError, match="out of range"):
        vmap(problem.ours)(problem.weights, {}, {"x": tokens})


@pytest.mark.parametrize("name", ["lstm-plain", "attention", "embedding-padding"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    problem = Problem(name, (3, 4), torch.float32, fresh_seed())
    model, state = problem.model, copy.deepcopy(problem.model.state_dict())
    before = {id(layer): dict(vars(layer)) for layer in model.modules()}
    eager_step(vmap(problem.ours))(problem.weights, {}, {"x": problem.inputs}, problem.shares)
    for layer in model.modules():
        attributes = {key: value for key, value in vars(layer).items() if "_flat_weight" not in key}
        assert attributes == {key: before[id(layer)][key] for key in attributes}
        if isinstance(layer, nn.RNNBase):  # the list is made anew, of the layer's own weights
            assert all(w is p for w, p in zip(layer._flat_weights, layer.parameters(), strict=True))
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    copy.deepcopy(model)


def test_other_threads_do_not_see_the_substitution() -> None:
    layer = nn.Embedding(9, 4, max_norm=1.0)
    outside: list[bool] = []

    def train() -> None:
        outside.append(torch.isfinite(layer(torch.zeros(1, dtype=torch.int64))).all().item())

    with Stackable(layer):
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        with pytest.raises(NotStackableError):
            train()
    assert outside == [True]


def test_mapped_weights_share_no_block_of_memory() -> None:
    """What nn.LSTM asks for on a GPU: that of a mapped weight is not known."""

    def address(weight: Tensor) -> Tensor:
        return weight + weight.data_ptr()

    weights = torch.zeros(2, 3)
    with Stackable(nn.Identity()):
        torch.testing.assert_close(vmap(address)(weights), weights)
        assert weights.data_ptr() != 0
