"""The models of the exemplars: shapes, padding, dropout, recomputation, and what does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from distributed.strategies.recompute import recompute
from heliotrope.config import chosen
from heliotrope.data import Batch, Examples
from heliotrope.data.info import MISSING, UNSEEN
from heliotrope.errors import ConfigError
from heliotrope.models import build, parameter_count
from heliotrope.models.char_lstm import char_lstm
from heliotrope.models.embedding_bag import embedding_bag
from heliotrope.models.gpt import gpt
from heliotrope.models.gru import gru
from heliotrope.models.layers.seeded import reseed
from heliotrope.models.logistic import logistic
from heliotrope.models.matrix_factorization import MatrixFactorization, matrix_factorization
from heliotrope.models.mlp import mlp
from heliotrope.models.two_towers import two_towers
from heliotrope.tasks import NextToken, Task
from tests.exemplars import EXEMPLARS
from tests.support import fresh_seed, global_random_state_untouched

TEXTS = ["embedding_bag", "gru", "char_lstm", "gpt"]


class FewOutputs(NextToken):
    """Has fewer outputs than there are tokens."""

    num_outputs = 3


def problem(name: str, count: int = 12) -> tuple[nn.Module, Task, Examples]:
    """Return a model, its task and some examples."""
    seed = fresh_seed()
    examples = EXEMPLARS[name].examples(count, seed)
    task = EXEMPLARS[name].task_of(examples)
    return EXEMPLARS[name].model_of(task, seed), task, examples


def wider(batch: Batch, more: int, token: int = 3) -> Batch:
    """Return a batch of texts with as many more places, full of some token."""
    tokens = nn.functional.pad(batch["tokens"], (0, more), value=token)
    return {**batch, "tokens": tokens}


@pytest.mark.parametrize("name", EXEMPLARS)
def test_outputs_fit_the_task(name: str) -> None:
    model, task, examples = problem(name)
    outputs = task.call(model, examples.take(torch.arange(5)))
    assert (len(outputs), outputs.shape[-1]) == (5, task.num_outputs)
    assert bool(outputs.isfinite().all())


@pytest.mark.parametrize("name", EXEMPLARS)
def test_weights_are_drawn_from_nowhere_else(name: str) -> None:
    with global_random_state_untouched():
        problem(name)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", TEXTS)
def test_what_a_model_makes_of_a_text_does_not_depend_on_its_padding(
    name: str, training: bool
) -> None:
    model, task, examples = problem(name)
    model.train(training)
    batch = examples.take(torch.arange(len(examples)))
    width = batch["tokens"].shape[1]
    places = torch.arange(width)
    padding = places >= batch["tokens_length"].unsqueeze(1)
    other = {**batch, "tokens": batch["tokens"].masked_fill(padding, 5)}
    found = []
    context = getattr(model, "positions", torch.empty(width + 9, 0)).shape[0]
    for given in (batch, other, wider(batch, context - width)):
        reseed(model, 7)
        outputs = task.call(model, given)
        if outputs.dim() == 3:
            outputs = outputs[:, :width].masked_fill(padding.unsqueeze(2), 0.0)
        found.append(outputs)
    for outputs in found[1:]:
        torch.testing.assert_close(outputs, found[0])


def test_a_text_without_a_word_is_no_number_but_has_outputs() -> None:
    for family in (embedding_bag, gru):
        task = problem("gru")[1]
        model = family(task)
        tokens = torch.randint(11, (2, 8))
        outputs = model(tokens, torch.zeros(2, dtype=torch.int64))
        assert torch.equal(outputs[0], outputs[1])
        assert bool(outputs.isfinite().all())


@pytest.mark.parametrize("name", ["char_lstm", "gpt"])
def test_a_language_model_does_not_see_what_comes_later(name: str) -> None:
    model, task, examples = problem(name)
    model.eval()
    batch = examples.take(torch.arange(4))
    later = batch["tokens"].clone()
    later[:, 5:] = (later[:, 5:] + 1) % 11
    outputs, others = (task.call(model, {**batch, "tokens": t}) for t in (batch["tokens"], later))
    torch.testing.assert_close(outputs[:, :5], others[:, :5])
    assert not torch.allclose(outputs[:, 5:], others[:, 5:])


@pytest.mark.parametrize("name", EXEMPLARS)
def test_parts_of_a_batch_with_widths_of_their_own_give_the_gradient_of_the_whole(
    name: str,
) -> None:
    model, task, examples = problem(name, 17)
    model.double()
    batch = examples.take(torch.arange(17))
    whole = _gradients(model, task, [(batch, 0)])
    cuts = [slice(0, 4), slice(4, 5), slice(5, 17)]
    parts = [
        (examples.subset(rows).take(torch.arange(rows.stop - rows.start)), rows.start)
        for rows in cuts
    ]
    torch.testing.assert_close(_gradients(model, task, parts), whole)


def _gradients(model: nn.Module, task: Task, parts: list[tuple[Batch, int]]) -> list[Tensor]:
    model.zero_grad()
    for batch, first in parts:
        reseed(model, 99, first)
        given = {n: v.double() if v.is_floating_point() else v for n, v in batch.items()}
        task.losses(task.call(model, given), given).sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_dropout_of_a_sequence_is_the_same_at_all_of_its_places() -> None:
    model = char_lstm(problem("char_lstm")[1], width=50, dropout=0.5)
    reseed(model, fresh_seed())
    dropped = model.reader.dropout(torch.ones(4, 9, 50))
    assert torch.equal(dropped, dropped[:, :1].expand(4, 9, 50))
    assert not torch.equal(dropped[0], dropped[1])
    assert 0.2 < float((dropped == 0).float().mean()) < 0.8


@pytest.mark.parametrize(
    "name", ["logistic", "mlp", "embedding_bag", "gru", "char_lstm", "gpt", "two_towers"]
)
def test_activations_can_be_recomputed(name: str) -> None:
    model, task, examples = problem(name)
    batch = {"first": (examples.take(torch.arange(12)), 0)}
    expected = _gradients(model.double(), task, [*batch.values()])
    recompute(model)
    torch.testing.assert_close(_gradients(model, task, [*batch.values()]), expected)


def test_the_vector_of_a_user_can_be_taken_out_of_the_model() -> None:
    model, _, examples = problem("matrix_factorization")
    assert isinstance(model, MatrixFactorization)
    own = {name for name, _ in model.named_parameters() if name.startswith(model.personal)}
    assert own == {"user.vector.weight", "user.bias.weight"}
    one = model.for_one()
    with torch.no_grad():
        one.user.vector.weight.copy_(model.user.vector.weight[4:5])
        one.user.bias.weight.copy_(model.user.bias.weight[4:5])
    items = examples.take(torch.arange(12))["item"]
    fours = torch.full_like(items, 4)
    assert torch.equal(one(fours, items), model(fours, items))


@pytest.mark.parametrize("name", [*TEXTS, "gpt-tied", "two_towers"])
def test_an_unknown_word_tells_nothing_before_it_is_trained(name: str) -> None:
    """Where training has all words in its vocabulary, its vector stays as it begins."""
    model = problem(name)[0]
    vectors = [
        layer.weight[:3]
        for layer in model.modules()
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag)
    ]
    assert [v.abs().sum(dim=1).gt(0).tolist() for v in vectors] == [[True, False, True]]


@pytest.mark.parametrize("value", [UNSEEN, MISSING])
@pytest.mark.parametrize("embedding", [0, 5])
def test_a_category_that_training_has_not_seen_tells_nothing(embedding: int, value: int) -> None:
    """Its weights are never trained: as drawn, they would move logits by one either way."""
    task, examples = problem("mlp")[1:]
    model = mlp(task, hidden=[], embedding=embedding)
    batch = examples.take(torch.arange(12))
    unseen = {**batch, "category": torch.full_like(batch["category"], value)}
    (linear,) = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    numbers = batch["numeric"]
    told = numbers @ linear.weight[:, : numbers.shape[1]].T + linear.bias
    torch.testing.assert_close(task.call(model, unseen), told)
    assert (task.call(model, batch) - told).abs().max() > 1e-3


def test_vectors_have_one_length_but_for_the_temperature() -> None:
    task, examples = problem("two_towers")[1:]
    model = two_towers(task, temperature=0.25)
    outputs = task.call(model, examples.take(torch.arange(12)))
    lengths = outputs.norm(dim=2)
    torch.testing.assert_close(lengths, torch.tensor([4.0, 1.0]).expand(12, 2))


def test_sizes_are_those_of_the_peers() -> None:
    task = problem("char_lstm")[1]
    small = gpt(task, width=64, layers=2, heads=4, context=64)
    block = 2 * 2 * 64 + (64 * 192 + 192) + (64 * 64 + 64) + (64 * 256 + 256) + (256 * 64 + 64)
    assert parameter_count(small) == 2 * 11 * 64 + 64 * 64 + 2 * block + 2 * 64
    lstm = char_lstm(task, width=8, hidden=128)
    assert parameter_count(lstm) == 11 * 8 + 4 * 128 * (8 + 128 + 2) + 128 * 11 + 11


@pytest.mark.parametrize(
    ("name", "build", "why"),
    [
        ("gru", logistic, "model=logistic takes numbers and categories, but data=small has tokens"),
        ("mlp", gru, r"model=gru takes tokens, tokens_length, but data=small gives numeric, categ"),
        ("mlp", matrix_factorization, "takes user, item, but data=small gives numeric"),
        ("mlp", lambda task: mlp(task, embedding=-1), r"model\.embedding=-1 must be at least 0"),
        ("gru", lambda task: gru(task, layers=0), r"model\.layers=0 must be at least 1"),
        ("gru", lambda task: gru(task, dropout=1.0), r"model\.dropout=1\.0 must lie in \[0, 1\)"),
        ("gru", lambda task: embedding_bag(task, width=0), r"model\.width=0 must be at least 1"),
        ("gru", gpt, r"model=gpt takes tokens, but data=small gives tokens, tokens_length\."),
        (
            "gpt",
            lambda task: gpt(FewOutputs(task.facts), tied=True),
            r"as many outputs as tokens.* 3 and data=small 11",
        ),
        ("two_towers", lambda task: two_towers(task, channels=[2] * 4), r"image 4 times, .* 8x9"),
        ("two_towers", lambda task: two_towers(task, temperature=0.0), r"model\.temperature=0\.0"),
        ("two_towers", lambda task: two_towers(task, kernel_size=2), r"kernel_size=2 must be odd"),
        ("two_towers", lambda task: two_towers(task, channels=[]), r"leaves no convolution"),
        ("gpt", lambda task: gpt(task, heads=5), r"width=64 is not divided by model\.heads=5"),
        ("gpt", lambda task: gpt(task, context=7), r"model\.context=7 is less than the \d+ tokens"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(
    name: str, build: Callable[[Task], nn.Module], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        build(problem(name)[1])


def test_a_text_beyond_the_context_is_refused_by_the_key() -> None:
    model, task, examples = problem("gpt")
    batch = wider(examples.take(torch.arange(2)), 20)
    with pytest.raises(ConfigError, match=r"model\.context=19 is less than the \d+ tokens"):
        task.call(model, batch)


@pytest.mark.parametrize("name", EXEMPLARS)
def test_a_model_that_does_not_fit_names_one_that_does(name: str) -> None:
    exemplar = EXEMPLARS[name]
    task = exemplar.task_of(exemplar.examples(3, seed=0))
    with pytest.raises(ConfigError, match="model=cnn takes images") as caught:
        build(chosen("model", "cnn"), task, 0)
    advised = re.findall(r"model=(\w+)", str(caught.value).partition("Set ")[2])
    assert name.partition("-")[0] in advised
    for other in advised:
        build(chosen("model", other), task, 0)
