"""What cannot be trained with record-level privacy is refused; which examples a step draws."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from distributed.driver import build_components
from distributed.loop.example_order import poisson_draws
from distributed.loop.single_worker import SingleWorker
from distributed.privacy.account import Account
from distributed.privacy.checks import check_private
from distributed.privacy.names import privacy_of
from heliotrope.config import Run
from heliotrope.errors import ConfigError
from heliotrope.privacy.accountant import Mechanism
from heliotrope.privacy.ledger import Ledger
from heliotrope.training.finders import Finding, find_batch_size, find_lr
from heliotrope.training.separable import check_separable
from tests.support import compose, fresh_seed, small_task

_PRIVATE = (
    "distributed/privacy=dpsgd",
    "distributed.privacy.noise_multiplier=1",
    "data.fit=none",
    "distributed.launcher=inline",
    "distributed.workers=1",
)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("distributed.privacy.clip=0", r"distributed\.privacy\.clip=0 must be above 0"),
        ("distributed.privacy.noise_multiplier=-1", "noise_multiplier=-1 must be above 0"),
        ("distributed.privacy.noise_multiplier=null", "noise_multiplier is not set"),
        ("distributed.privacy.delta=0.01", r"delta=0\.01 must lie above 0 and be at most 1/1294"),
        ("data.fit=training", r"data\.fit=training prepares all data by .* Set data\.fit=none"),
        ("distributed.strategy=diloco", r"Set distributed\.strategy=ddp"),
        ("distributed.strategy=local_sgd", r"Set distributed\.strategy=ddp"),
        ("distributed.precision=bf16", r"Set distributed\.precision=fp32"),
        ("distributed.mixup=0.2", r"Set distributed\.mixup=0"),
        ("distributed.compile=true", r"Set distributed\.compile=false"),
        ("distributed.activation_checkpointing=true", "Set it to false"),
        ("data=emoji", "compare examples with one another"),
    ],
)
def test_what_promises_nothing_is_refused_with_a_remedy(override: str, said: str) -> None:
    others = ["model=two_towers"] if override == "data=emoji" else []
    run = compose("distributed", *_PRIVATE, override, *others)
    with pytest.raises(ConfigError, match=said) as refused:
        build_components(run)
    assert refused.value.exit_code == 2


class _Counting(nn.Linear):
    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean += inputs.mean(dim=0)
        return super().forward(inputs)


class _Codebook(nn.Linear):
    """Follows its inputs in a weight that no optimizer trains."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.code = nn.Parameter(torch.zeros(4), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            with torch.no_grad():
                self.code.lerp_(inputs.mean(dim=0), 0.1)
        return super().forward(inputs + self.code)


class _Remembering(nn.Linear):
    """Follows its inputs in an attribute."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.seen = torch.zeros(4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = super().forward(inputs - self.seen)
        self.seen = inputs.detach().mean(dim=0)
        return outputs


class _Watched(nn.Linear):
    """Counts its passes, which tells of no example, and keeps the last outputs to be looked at."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.passes, self.last = 0, torch.zeros(1, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        outputs = super().forward(inputs) / (1 + 0.1 * self.passes)
        self.last = outputs.detach()
        return outputs


def test_a_model_that_keeps_nothing_of_examples_which_it_uses_is_let_through() -> None:
    check_separable("distributed/privacy=dpsgd", _Watched(), small_task(3, (4,)))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), "1 is a BatchNorm1d.* Use GroupNorm"),
        (_Counting(), "changes the model's buffer mean"),
        (_Codebook(), "changes the model's parameter code"),
        (_Remembering(), "changes with those that it was given before"),
    ],
)
def test_models_that_mix_examples_are_refused(model: nn.Module, said: str) -> None:
    run, task = compose("distributed", *_PRIVATE), small_task(3, (4,))
    dataset = build_components(compose("distributed")).dataset
    with pytest.raises(ConfigError, match=said):
        check_private(run, model, task, dataset)


@pytest.mark.parametrize(
    "find", [find_lr, partial(find_batch_size, trainer=SingleWorker)], ids=["lr", "batch_size"]
)
def test_steps_that_are_tried_before_a_run_are_refused(find: Callable[[Run], Finding]) -> None:
    with pytest.raises(ConfigError, match=r"Set distributed/privacy=none"):
        find(compose("distributed", *_PRIVATE))


def test_each_example_is_drawn_by_itself() -> None:
    run_seed = fresh_seed()
    draws = poisson_draws(run_seed, range(4000), 50, 5)
    sizes = torch.tensor([len(draw) for draw in draws], dtype=torch.float64)
    counts = torch.bincount(torch.cat(draws), minlength=50).double()
    assert abs(float(sizes.mean()) - 5) < 0.2  # six deviations
    assert abs(float(sizes.var()) - 4.5) < 0.8
    assert float((counts - 400).abs().max()) < 6 * 19
    assert 0 < int((sizes == 0).sum()) < 60  # 0.9^50 of them: 21
    others = poisson_draws(run_seed, range(5), 50, 5, ("another run",))
    assert not all(torch.equal(a, b) for a, b in zip(others, draws[:5], strict=True))
    later = poisson_draws(run_seed, range(70, 75), 50, 5)
    assert all(torch.equal(a, b) for a, b in zip(later, draws[70:75], strict=True))
    assert [len(draw) for draw in poisson_draws(run_seed, range(3), 4, 9)] == [4, 4, 4]


def test_a_budget_for_less_than_an_epoch_is_refused(tmp_path: Path) -> None:
    override = "distributed.privacy.target_epsilon=0.05"
    run = compose("distributed", *_PRIVATE, "distributed.privacy.noise_multiplier=4", override)
    privacy = privacy_of(run.distributed)
    assert privacy is not None
    account = Account(privacy, run, 1294, tmp_path / "privacy.jsonl")
    with (
        closing(account),
        pytest.raises(ConfigError, match=r"Set distributed\.privacy\.noise_multiplier=null"),
    ):
        account.last_epoch(0)


def test_a_run_that_goes_on_ends_where_it_would_have_and_pays_once(tmp_path: Path) -> None:
    override = ["distributed.privacy.target_epsilon=0.55", "distributed.epochs=40"]
    run = compose("distributed", *_PRIVATE, "distributed.privacy.noise_multiplier=4", *override)
    privacy = privacy_of(run.distributed)
    assert privacy is not None
    path = tmp_path / "privacy.jsonl"
    with closing(Account(privacy, run, 1294, path)) as account:
        last = account.last_epoch(0)
        assert 1 < last < 40
        bounds = []
        for epoch in range(1, last + 1):
            account.charge(epoch)
            bounds.append(account.bound(epoch))
        told = account.result()
        assert told["epsilon"] <= 0.55 < bounds[-1]
        assert told["releases"] == last * 41
    before = path.read_text()
    with closing(Account(privacy, run, 1294, path)) as again:  # it was killed in epoch 2
        assert again.last_epoch(1) == last
        assert again.bound(1) == bounds[0]
        again.charge(2)
        assert again.bound(2) == bounds[1]
        assert again.result() == told
    assert path.read_text() == before


def test_a_ledger_keeps_blocks_and_what_is_planned(tmp_path: Path) -> None:
    path, mechanism = tmp_path / "privacy.jsonl", Mechanism("poisson", 1.5, 32, 1000)
    ledger = Ledger(path)
    ledger.charge("planned", mechanism, 0)
    assert (ledger.latest, list(ledger.spent)) == (mechanism, [])
    for _ in range(2):
        ledger.charge("epoch 1", mechanism, 31)
    ledger.charge("epoch 2", mechanism, 31)
    kept = ledger.saved()
    ledger.close()
    path.write_bytes(path.read_bytes()[:-5])  # a crash in the middle of the last line
    again = Ledger(path)
    assert list(again.spent) == [(mechanism, 31)]
    again.restore(kept)
    assert list(again.spent) == [(mechanism, 62)]
    assert list(again.without({"epoch 2"})) == [(mechanism, 31)]
    again.close()
