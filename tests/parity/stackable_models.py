"""Models of a layer each, in the ways that users call it: what `test_stackable` trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["MODELS", "TOKENS", "Attends", "Recurrent"]

TOKENS = 11  # rows of every table


class Recurrent(nn.Module):
    """All that a recurrent layer returns, with or without initial states that are learned."""

    def __init__(self, kind: type[nn.RNNBase], *, states: bool = False, **how: Any) -> None:
        super().__init__()
        self.layer = kind(4, 5, **how)
        self.states = nn.ParameterList()
        layer = self.layer
        count = layer.num_layers * (2 if layer.bidirectional else 1)
        if states:
            self.states.append(torch.randn(count, 1, layer.proj_size or 5))
        if states and kind is nn.LSTM:
            self.states.append(torch.randn(count, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        batch_first = self.layer.batch_first
        x = x if batch_first else x.transpose(0, 1)
        initial: Any = [s.expand(-1, x.shape[0 if batch_first else 1], -1) for s in self.states]
        if not initial:
            outputs, final = self.layer(x)
        else:
            outputs, final = self.layer(x, tuple(initial) if len(initial) == 2 else initial[0])
        final = final if isinstance(final, tuple) else (final,)
        outputs = outputs if batch_first else outputs.transpose(0, 1)
        return torch.cat([outputs.flatten(1), *(f.transpose(0, 1).flatten(1) for f in final)], 1)


class LastState(nn.Module):
    """As a classifier of sequences uses it: nothing but the last state, of one layer of two."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(4, 5, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        final = self.layer(x)[1]
        return (final[1] if isinstance(final, tuple) else final)[-1]


class Unbatched(nn.Module):
    """Each example of a batch by itself, without a dimension for the batch."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.MultiheadAttention):
            return torch.stack([self.layer(each, each, each)[0] for each in x]).flatten(1)
        return torch.stack([self.layer(each)[0] for each in x]).flatten(1)


class Cells(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for time in range(x.shape[1]):
            state = self.cell(x[:, time], state)
        return state[0] if isinstance(state, tuple) else state


class Attends(nn.Module):
    """Attention with its weights, if there are any."""

    def __init__(self, *, heads: int = 2, mask: str | None = None, **how: Any) -> None:
        super().__init__()
        self.how = {key: how.pop(key) for key in ("need_weights", "is_causal") if key in how}
        self.how |= {key: how.pop(key) for key in ("average_attn_weights",) if key in how}
        self.layer = nn.MultiheadAttention(4, heads, **how)
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        batch, times, _ = x.shape
        keys = x[..., : self.layer.kdim].flip(1)
        values = x[..., : self.layer.vdim]
        how = dict(self.how)
        if self.mask == "causal":
            how["attn_mask"] = torch.ones(times, times, dtype=torch.bool).triu(1)
        elif self.mask == "each":
            mask = (x @ x.transpose(1, 2)).detach().repeat_interleave(self.layer.num_heads, 0)
            how["attn_mask"] = mask
        elif self.mask == "padding":
            how["key_padding_mask"] = x[..., 0] > 0.5
            how["key_padding_mask"][:, 0] = False
        elif self.mask == "both":
            how["key_padding_mask"] = torch.zeros(batch, times).masked_fill(x[..., 0] > 1, -1.0)
            how["attn_mask"] = torch.linspace(-1, 1, times * times).view(times, times).to(x)
            how["key_padding_mask"] = how["key_padding_mask"].to(x)
        query = x
        if not self.layer.batch_first:
            query, keys, values = (t.transpose(0, 1) for t in (query, keys, values))
        outputs, weights = self.layer(query, keys, values, **how)
        outputs = outputs if self.layer.batch_first else outputs.transpose(0, 1)
        return torch.cat(
            [outputs.flatten(1)] + ([] if weights is None else [weights.flatten(1)]), 1
        )


class Scaled(nn.Module):
    """The bare function, as the authors of language models call it."""

    def __init__(self, *, mask: str | None = None, groups: int = 1, **how: Any) -> None:
        super().__init__()
        self.heads, self.mask, self.how = (4, mask, how)
        self.query, self.key = nn.Linear(4, 8), nn.Linear(4, 8 // groups)
        self.value = nn.Linear(4, 12 // groups)
        self.bias = nn.Parameter(torch.randn(1, 1, 1)) if mask == "learned" else None

    def forward(self, x: Tensor) -> Tensor:
        times, how = x.shape[1], dict(self.how)
        query = self.query(x).unflatten(-1, (4, -1)).transpose(1, 2)
        key = self.key(x).unflatten(-1, (-1, 2)).transpose(1, 2)
        value = self.value(x).unflatten(-1, (-1, 3)).transpose(1, 2)
        if self.mask == "boolean":
            how["attn_mask"] = torch.ones(times, times, dtype=torch.bool).tril()
        elif self.mask == "nowhere":  # a query that may look at no key
            how["attn_mask"] = torch.ones(times, times, dtype=torch.bool).tril(-1)
        elif self.mask == "learned":
            distance = torch.arange(times)[:, None] - torch.arange(times)
            how["attn_mask"] = self.bias * distance.to(x)
        found = functional.scaled_dot_product_attention(query, key, value, **how)
        return found.flatten(1)


class Encoder(nn.Module):
    def __init__(self, *, mask: str | None = None, layers: int = 2, **how: Any) -> None:
        super().__init__()
        how = {"dim_feedforward": 6, "dropout": 0.0, "batch_first": True} | how
        layer = nn.TransformerEncoderLayer(4, 2, **how)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        how: dict[str, Any] = {}
        if self.mask == "causal":
            how["mask"] = nn.Transformer.generate_square_subsequent_mask(x.shape[1]).to(x)
        elif self.mask == "padding":
            how["src_key_padding_mask"] = x[..., 0] > 1.5
        batch_first = self.layers.layers[0].self_attn.batch_first
        outputs = self.layers(x if batch_first else x.transpose(0, 1), **how)
        return (outputs if batch_first else outputs.transpose(0, 1)).flatten(1)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Transformer(4, 2, 1, 1, 6, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        outputs: Tensor = self.layers(x, x.flip(1), tgt_mask=mask, tgt_is_causal=True)
        return outputs.flatten(1)


class Embeds(nn.Module):
    def __init__(self, *, int32: bool = False, tied: bool = False, **how: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(TOKENS, 5, **how)
        self.out = nn.Linear(5, TOKENS)
        self.int32 = int32
        if tied:
            self.out.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.table(x.int() if self.int32 else x)).flatten(1)


class Bags(nn.Module):
    def __init__(self, *, given: str = "rows", **how: Any) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(TOKENS, 5, **how)
        self.weigh = nn.Parameter(torch.randn(TOKENS)) if given.startswith("weighed") else None
        self.given = given

    def forward(self, x: Tensor) -> Tensor:
        each = None if self.weigh is None else self.weigh[x]
        if "offsets" not in self.given:
            return self.table(x, per_sample_weights=each)
        # The first bag of each example takes one token, the second all others, a third none.
        starts = torch.arange(len(x)) * x.shape[1]
        offsets = torch.stack([starts, starts + 1, starts + x.shape[1]], 1).flatten()
        if self.table.include_last_offset:
            offsets = torch.cat([offsets, torch.tensor([x.numel()])])
        each = None if each is None else each.flatten()
        return self.table(x.flatten(), offsets, per_sample_weights=each).view(len(x), -1)


class OwnForward(nn.LSTM):
    """A subclass with a forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(2 * x)[0].flatten(1)


_KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
_RECURRENT: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch-first": {"batch_first": True},
    "no-bias": {"bias": False, "batch_first": True},
    "two-layers": {"num_layers": 2},
    "both-ways": {"bidirectional": True},
    "both-ways-three-layers": {"bidirectional": True, "num_layers": 3, "batch_first": True},
    "initial-states": {"states": True},
    "initial-states-all": {"states": True, "bidirectional": True, "num_layers": 2, "bias": False},
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    **{
        f"{name}-{option}": lambda kind=kind, how=how: Recurrent(kind, **how)
        for name, kind in _KINDS.items()
        for option, how in _RECURRENT.items()
    },
    **{f"{name}-last": lambda kind=kind: LastState(kind) for name, kind in _KINDS.items()},
    **{
        f"{name}-unbatched": lambda kind=kind: Unbatched(kind(4, 5, 2, bidirectional=True))
        for name, kind in _KINDS.items()
    },
    "rnn-relu": lambda: Recurrent(nn.RNN, nonlinearity="relu", num_layers=2),
    "lstm-projected": lambda: Recurrent(nn.LSTM, proj_size=3, num_layers=2, states=True),
    "lstm-projected-both-ways": lambda: Recurrent(
        nn.LSTM, proj_size=2, bidirectional=True, bias=False, num_layers=2
    ),
    "lstm-subclass": lambda: OwnForward(4, 5, batch_first=True),
    "lstm-cell": lambda: Cells(nn.LSTMCell(4, 5)),
    "gru-cell": lambda: Cells(nn.GRUCell(4, 5, bias=False)),
    "rnn-cell": lambda: Cells(nn.RNNCell(4, 5)),
    "rnn-relu-cell": lambda: Cells(nn.RNNCell(4, 5, nonlinearity="relu")),
    "attention": Attends,
    "attention-one-head": lambda: Attends(heads=1, batch_first=True),
    "attention-heads-of-one": lambda: Attends(heads=4, need_weights=False),
    "attention-each-head": lambda: Attends(average_attn_weights=False, bias=False),
    "attention-unbatched": lambda: Unbatched(nn.MultiheadAttention(4, 2)),
    "attention-sizes": lambda: Attends(kdim=3, vdim=2, batch_first=True),
    "attention-sizes-no-weights": lambda: Attends(kdim=3, vdim=2, need_weights=False),
    "attention-bias-kv": lambda: Attends(add_bias_kv=True, add_zero_attn=True, mask="causal"),
    "attention-bias-kv-no-weights": lambda: Attends(
        add_bias_kv=True, add_zero_attn=True, need_weights=False, mask="padding"
    ),
    "attention-causal": lambda: Attends(mask="causal", is_causal=True, need_weights=False),
    "attention-causal-weights": lambda: Attends(mask="causal", batch_first=True),
    "attention-padding": lambda: Attends(mask="padding", need_weights=False, batch_first=True),
    "attention-padding-weights": lambda: Attends(mask="padding"),
    "attention-both-masks": lambda: Attends(mask="both", need_weights=False),
    "attention-mask-of-each": lambda: Attends(mask="each", need_weights=False),
    "scaled": Scaled,
    "scaled-scale": lambda: Scaled(scale=0.3, is_causal=True),
    "scaled-boolean": lambda: Scaled(mask="boolean"),
    "scaled-nowhere": lambda: Scaled(mask="nowhere"),
    "scaled-learned": lambda: Scaled(mask="learned"),
    "scaled-groups": lambda: Scaled(groups=2, enable_gqa=True, is_causal=True),
    "encoder": Encoder,
    "encoder-norm-first": lambda: Encoder(norm_first=True, activation="gelu", bias=False),
    "encoder-causal": lambda: Encoder(mask="causal"),
    "encoder-times-first": lambda: Encoder(mask="causal", batch_first=False, layers=1),
    "encoder-padding": lambda: Encoder(mask="padding"),
    "transformer": Decoder,
    "embedding": Embeds,
    "embedding-int32": lambda: Embeds(int32=True),
    "embedding-padding": lambda: Embeds(padding_idx=2),
    "embedding-padding-last": lambda: Embeds(padding_idx=-1, int32=True),
    "embedding-tied": lambda: Embeds(tied=True, padding_idx=0),
    **{
        f"bags-{mode}-{given}-{padding}": lambda mode=mode, given=given, padding=padding: Bags(
            mode=mode, given=given, padding_idx=padding
        )
        for mode in ("sum", "mean", "max")
        for given in ("rows", "offsets")
        for padding in (None, 3)
    },
    "bags-weighed": lambda: Bags(mode="sum", given="weighed"),
    "bags-weighed-offsets": lambda: Bags(mode="sum", given="weighed-offsets", padding_idx=-2),
    "bags-last-offset": lambda: Bags(mode="mean", given="offsets", include_last_offset=True),
}
