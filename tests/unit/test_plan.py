"""`heliotrope plan`: what a launch would need, in numbers that runs then have."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distributed.planning.launch import Launch, Units
from distributed.planning.measurement import Measurement, StepTime, measured
from federated.job import run_job
from federated.planning.rounds import Rounds
from heliotrope.cli import _imported, main
from heliotrope.data import load
from heliotrope.models import build
from heliotrope.planning.network import Network, bandwidth_of, seconds_of
from heliotrope.system.tensor_memory import peak_tensor_bytes
from heliotrope.tasks import task_of
from tests.support import compose, fresh_seed

_SMALL = (
    "experiment=quickstart",
    "model.hidden=[8]",
    "federated.clients_per_round=3",
)

_LARGE = ("distributed.workers=64", "distributed.batch_size=256")


def test_both_modes_are_planned_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *_SMALL, *_LARGE, "output=plan.svg"]) == 0
    said = capsys.readouterr().out
    for word in ("ddp", "fsdp", "hsdp 8 x 8", "local_sgd", "diloco", "1024", "1,000,000"):
        assert word in said, said
    assert "1.25 GB/s" in said  # 10Gb
    assert [path.name for path in tmp_path.iterdir()] == ["plan.svg"]
    assert "seconds an epoch" in (tmp_path / "plan.svg").read_text()


def test_one_mode_alone_and_a_faster_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *_SMALL, "plan.mode=federated", "plan.client_bandwidth=80Mb"]) == 0
    said = capsys.readouterr().out
    assert "10 MB/s" in said
    assert "ddp" not in said


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("plan.bandwidth=100", "plan.bandwidth=100 is no bandwidth"),
        ("plan.bandwidth=0Gb", "plan.bandwidth=100Gb"),
        ("plan.client_bandwidth=10gb", "plan.client_bandwidth=10gb"),
        ("plan.latency=5", "plan.latency=20us"),
        ("plan.bandwith=1Gb", "Did you mean 'plan.bandwidth'?"),
        ("plan.latency", "plan.latency=50us"),
        ("plan.mode=fedrated", "Did you mean 'federated'?"),
        ("output=nowhere/plan.svg", "no folder nowhere"),
        ("--plot", "no flags"),
        ("distributed.workerz=2", "Did you mean 'distributed.workers'?"),
    ],
)
def test_a_wrong_argument_is_refused(
    word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *_SMALL, word]) == 2
    assert said in capsys.readouterr().err


def test_a_protected_run_is_measured_without_its_examples(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gradients of single examples need more memory, no other strategy is open, nothing charged."""
    monkeypatch.chdir(tmp_path)

    def take(*_: object) -> None:
        raise AssertionError("an example was taken")

    plain = launch_of("model.hidden=[300]", workers=2)
    private = (
        "distributed/privacy=dpsgd",
        "distributed.privacy.noise_multiplier=1",
        "data.fit=none",
    )
    monkeypatch.setattr("heliotrope.data.examples.Examples.take", take)
    protected = launch_of("model.hidden=[300]", *private, workers=2)
    assert protected.memory.total > plain.memory.total
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *_SMALL, "plan.mode=distributed", *private]) == 0
    assert "fsdp" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_units_of_bits_and_bytes() -> None:
    assert bandwidth_of("k", "100Gb") == bandwidth_of("k", "100Gbit/s") == 12.5e9
    assert bandwidth_of("k", "12GB") == bandwidth_of("k", "12GB/s") == 12e9
    assert bandwidth_of("k", "2.5kb") == 312.5
    assert seconds_of("k", "20us") == pytest.approx(2e-5)
    assert seconds_of("k", "0ms") == 0


_STRATEGIES = [
    ("federated/strategy=scaffold",),
    ("federated/strategy=flower_fedadam",),
    (
        "federated.holdout_fraction=0.3",
        "federated.evaluate_clients=2",
        "federated.evaluate_every=2",
    ),
    (
        "federated/privacy=adaptive",
        "federated.privacy.noise_multiplier=1.5",
        "data.fit=none",
        "federated.privacy.sampling=fixed",
        "federated.privacy.count_noise=4",
    ),
    ("federated/secure_aggregation=secagg",),
]


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("more", _STRATEGIES, ids=lambda more: more[0])
def test_a_federated_runs_bytes_are_those_of_its_plan(
    more: tuple[str, ...], tmp_path: Path
) -> None:
    keys = (*_SMALL, "federated.clients_per_round=4", "federated.rounds=3", *more)
    run = compose("federated", *keys)
    traffic = _imported("federated.planning.traffic").RunTraffic.of(
        run, _imported("federated.components").build_components(run)
    )
    run_job(run, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["bytes_up"], result["bytes_down"]) == (traffic.up, traffic.down)


def test_the_slowest_of_a_cohort_is_its_mean_over_drawn_cohorts() -> None:
    seed = fresh_seed()
    draw = np.random.default_rng(seed)
    steps = draw.integers(1, 100, 37)
    link = Network(1e9, 0.0)
    rounds = Rounds(steps, 0.5, 0.1, 2, 1000, link, link)
    for cohort in (1, 2, 9, 400):
        drawn = draw.choice(steps, (20_000, cohort)).max(axis=1).mean() * 0.5
        assert rounds.training_seconds(cohort) == pytest.approx(drawn, rel=0.03), seed
    assert rounds.simulated_round_seconds(1) == pytest.approx(steps.mean() * 0.1)
    assert rounds.simulated_round_seconds(10) == pytest.approx(5 * steps.mean() * 0.1)


def test_a_servers_link_is_shared_by_its_clients() -> None:
    rounds = Rounds(np.array([10]), 0.1, 0.1, 1, 10**6, Network(1e8, 0.001), Network(1e6, 0.05))
    assert rounds.transfer_seconds(1) == pytest.approx(2 * 1.05)
    assert rounds.transfer_seconds(1000) == pytest.approx(2 * 10.001)
    most = rounds.most_clients()
    own = 2 * 1.05 + 1.0
    assert rounds.transfer_seconds(most) <= own < rounds.transfer_seconds(most + 1)


def test_peaks_are_of_what_lives_at_the_same_time() -> None:
    def work() -> None:
        for _ in range(3):
            torch.ones(1_000_000)  # 4 MB, freed at once
        both = [torch.ones(500_000), torch.ones(500_000)]
        del both

    peak = peak_tensor_bytes(work, torch.device("cpu"))
    assert peak == pytest.approx(4e6, rel=0.01)


def launch_of(*overrides: str, workers: int, found: Measurement | None = None) -> Launch:
    run = compose("distributed", *_SMALL, *overrides)
    dataset = load(run.data, run.seed)
    task = task_of(dataset, run)
    count = len(dataset.train)
    found = found or measured(run, dataset, task, 16, 1)
    return Launch(
        run.distributed, workers, count, found, Units.of(build(run.model, task, run.seed))
    )


def test_memory_is_counted_by_what_holds_it() -> None:
    """Adam keeps two numbers for each weight; whole weights, or a part of each."""
    keys = ("model.hidden=[300]", "optimizer=adam", "distributed.batch_size=32")
    two = launch_of(*keys, workers=2)
    weights = 4 * sum(rows * size // 4 for rows, size in two.units.shapes)
    assert two.memory.weights == two.memory.gradients == weights
    assert two.memory.optimizer == pytest.approx(2 * weights, rel=0.001)
    assert two.memory.activations > 32 // 2 * 300 * 4
    four = launch_of(*keys, "distributed.strategy=fsdp", workers=4, found=two.found)
    assert four.memory.weights == pytest.approx(weights / 4, rel=0.1)
    assert four.memory.optimizer == pytest.approx(weights / 2, rel=0.1)
    local = launch_of(*keys, "distributed.strategy=diloco", workers=4, found=two.found)
    assert local.memory.copies == 3 * weights  # agreed weights, their gradient, and a momentum


@pytest.mark.parametrize(
    ("outer", "units", "half", "whole"),
    [
        (0, (8, 8, 8, 8), 1, 24),  # weights of two layers, gradients of a third
        (0, (8, 8, 8, 8), 2, 16),  # weights in half precision
        (0, (1, 8, 8, 2), 1, 18),  # the two large layers, when the last one's gradients leave
        (0, (8,), 1, 8),
        (6, (), 1, 12),  # weights and gradients
        (6, (2, 4), 2, 9 + 5),  # in the pass of the first
    ],
)
def test_of_sharded_layers_those_beside_the_one_in_work_are_whole(
    outer: int, units: tuple[int, ...], half: int, whole: int
) -> None:
    assert Units(outer, units, ()).gathered_bytes(half) == whole


def test_a_step_grows_evenly_from_two_examples_on() -> None:
    time = StepTime(examples=10, seconds=0.9, least=0.1, update=0.05, copied=0.0)
    assert time.of(10) == pytest.approx(0.95)
    assert time.of(6) == pytest.approx(0.55)
    assert time.of(0) == time.of(1) == time.of(2) == pytest.approx(0.15)
    assert time.of(18) == pytest.approx(1.75)
    assert time.of(10, shard=0.2) == pytest.approx(0.91)


def test_what_is_gathered_and_reduced_is_copied_as_well() -> None:
    ddp = launch_of(workers=4)
    found = replace(ddp.found, time=StepTime(16, 0.9, 0.1, 0.0, copied=1e-6))
    gradients = found.gradient_bytes
    assert launch_of(workers=4, found=found).compute_seconds == found.time.of(8)
    for more, times in (
        ((), 3),
        (("distributed.precision=bf16",), 2),
        (("distributed.accumulation_steps=2",), 5),
    ):
        keys = ("distributed.strategy=fsdp", *more)
        sharded = launch_of(*keys, workers=4, found=found)
        copied = sharded.compute_seconds - found.time.of(sharded.local_examples)
        assert copied == pytest.approx(times * gradients * 1e-6)
        assert sharded.on(1).compute_seconds == found.time.of(sharded.on(1).local_examples)


def test_a_ring_sends_almost_twice_the_gradients_and_waits_for_each_message() -> None:
    network = Network(1e6, 0.001)
    four = launch_of(workers=4)
    gradients = four.found.gradient_bytes
    assert four.exchange_seconds(network) == pytest.approx(
        2 * 3 / 4 * gradients / 1e6 + 2 * 3 * 0.001
    )
    alone = launch_of(workers=1, found=four.found)
    assert alone.exchange_seconds(network) == 0
    assert alone.steps == four.steps
    local = launch_of("distributed.strategy=local_sgd", workers=4, found=four.found)
    assert local.exchanges == -(-local.steps // local.cfg.diloco.local_steps)
    assert re.fullmatch(r"hsdp \d x \d", four.on(8).hybrid().name)
    assert four.on(7).hybrid() is None
