"""What noise follows from: every setting by which sums differ, and none by which they do not."""

from __future__ import annotations

import pytest

from heliotrope.config import Mode
from heliotrope.runs.private_sums import decided_by, settings_of_sums
from tests.support import compose


def test_a_promise_says_by_which_examples_a_run_is_ended_or_chosen() -> None:
    stop = ("target.metric=validation/accuracy", "target.value=0.9")
    assert decided_by(compose("federated", "target.metric=null"), "federated") == []
    assert decided_by(compose("federated", *stop, "target.stop=false"), "federated") == []
    (said,) = decided_by(compose("federated", *stop), "federated")
    assert said.startswith("target.metric=validation/accuracy decides when the run ends")
    assert said.endswith("the examples of the validation split are not protected")
    early = "distributed.early_stopping.metric=test/loss"
    best = ("distributed.keep_best=2", "distributed.best_metric=validation/loss")
    told = decided_by(compose("distributed", *stop, early, *best), "distributed")
    assert [each.partition("=")[0] for each in told] == [
        "target.metric",
        "distributed.early_stopping.metric",
        "distributed.best_metric",
    ]


@pytest.mark.parametrize(
    ("mode", "override"),
    [
        ("federated", "optimizer.lr=0.3"),
        ("federated", "federated/privacy=central"),
        ("federated", "federated.clients_per_round=5"),
        ("federated", "federated.batch_size=5"),
        ("federated", "federated.local_epochs=2"),
        ("federated", "data.validation_fraction=0.2"),
        ("federated", "device=cuda"),
        ("distributed", "optimizer=adam"),
        ("distributed", "distributed.batch_size=16"),
        ("distributed", "model.hidden=[7]"),
    ],
)
def test_sums_of_other_settings_have_other_noise(mode: Mode, override: str) -> None:
    plain, other = compose(mode), compose(mode, *override.split())
    assert settings_of_sums(plain, mode) != settings_of_sums(other, mode)


@pytest.mark.parametrize(
    ("mode", "overrides"),
    [
        ("federated", "federated.client_training=sequential federated.lanes=2 name=other"),
        ("federated", "federated.rounds=99 federated.evaluate_every=3 federated.quorum=0.5"),
        ("federated", "distributed.batch_size=7 tracking.tensorboard=true"),
        ("distributed", "distributed.workers=4 distributed.accumulation_steps=2"),
        ("distributed", "distributed.epochs=9 federated.local_epochs=3"),
    ],
)
def test_the_same_sums_have_the_same_noise(mode: Mode, overrides: str) -> None:
    plain, other = compose(mode), compose(mode, *overrides.split())
    assert settings_of_sums(plain, mode) == settings_of_sums(other, mode)


@pytest.mark.parametrize("mode", ["federated", "distributed"])
def test_a_schedule_that_is_stretched_gives_other_sums(mode: Mode) -> None:
    schedule = f"{mode}.lr_schedule=cosine"
    one, other = (compose(mode, schedule, f"{mode}.lr_horizon={n}") for n in (20, 40))
    assert settings_of_sums(one, mode) != settings_of_sums(other, mode)
