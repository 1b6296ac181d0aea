"""Clients deployed as Flower's ClientApp answer as those of a simulation do, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from omegaconf import OmegaConf
from torch import Tensor

from federated.client_state import StateStore
from federated.components import build_components
from federated.engine.context import TrainingContext, assemble, divide
from federated.engine.execution import ExecutionPlan
from federated.flower.app import _training_context, client_app
from federated.flower.grid import CohortGrid
from federated.flower.messages import become_server, read_arrays, stamp, to_record
from federated.pools.inprocess import InProcessPool
from federated.strategies import ModelFacts, build_strategy
from federated.strategies.mean import MeanStrategy
from federated.updates import UNCLIPPED
from heliotrope.config import Run
from heliotrope.data import load
from heliotrope.errors import ConfigError, LedgerError, MessageError
from heliotrope.privacy.accountant import Mechanism, epsilon
from heliotrope.tasks import task_of
from tests.support import assert_same_tensors, compose


@pytest.fixture(autouse=True)
def _server() -> None:
    become_server()


_SMALL = (
    "federated.partition.clients=4",
    "federated.clients_per_round=3",
    "model.hidden=[4]",
    "seed=5",
)
_COHORTS = ([0, 1, 3], [1, 2, 3])


@pytest.mark.parametrize("attack", ["alie", "ipm", "mimic"])
def test_attackers_who_know_what_others_send_cannot_be_deployed(attack: str) -> None:
    run = compose("federated", *_SMALL, f"federated/attack={attack}")
    with pytest.raises(ConfigError, match=f"attack={attack} .*deployed client does not.*sign_flip"):
        client_app(run)


@pytest.mark.parametrize("attack", ["label_flip", "backdoor"])
def test_a_deployed_attacker_trains_on_what_a_simulated_one_does(attack: str) -> None:
    run = compose("federated", *_SMALL, f"federated/attack={attack}")
    (attacker,) = build_components(run).attack.attackers  # type: ignore[union-attr]
    deployed, simulated = (
        _training_context(OmegaConf.to_yaml(OmegaConf.structured(run))),
        (build_components(run).context),
    )
    rows = torch.from_numpy(simulated.population.train_indices(attacker))
    for name, value in simulated.train.take(rows).items():
        assert torch.equal(deployed.train.take(rows)[name], value)
    plain = build_components(compose("federated", *_SMALL)).context.train.take(rows)
    assert not torch.equal(plain["label"], deployed.train.take(rows)["label"])


def _clients(run: Run) -> TrainingContext:
    dataset = load(run.data, run.seed)
    return assemble(run, task_of(dataset), dataset.train, divide(run, dataset))


def _strategy(run: Run, clients: TrainingContext) -> MeanStrategy:
    built = build_strategy(run, ModelFacts.of(clients.model, clients.total_weight, 4))
    assert isinstance(built, MeanStrategy)
    return built


def _simulated(run: Run, clients: TrainingContext) -> dict[str, Tensor]:
    weights, strategy = clients.global_weights, _strategy(run, clients)
    store = StateStore(clients.personal, strategy.beside(weights))
    grid = CohortGrid(InProcessPool(clients, 1), reduce=False, states=store)
    grid.execution, arrays = ExecutionPlan("sequential", 1), to_record(weights)
    for number, cohort in enumerate(_COHORTS, start=1):
        messages = _messages(strategy, number, arrays, grid, cohort)
        arrays = _aggregated(strategy, number, grid.send_and_receive(messages))
        grid.keep_states()
    return read_arrays(arrays)


def _deployed(run: Run, clients: TrainingContext) -> tuple[dict[str, Tensor], list[Message]]:
    """Return the final model, and all replies of the clients."""
    strategy, app = _strategy(run, clients), client_app(run)
    nodes = [Context(1, i, {"partition-id": i}, RecordDict(), {}) for i in range(4)]
    grid = CohortGrid(InProcessPool(clients, 1), reduce=False)
    arrays, all_replies = to_record(clients.global_weights), []
    for number, cohort in enumerate(_COHORTS, start=1):
        messages = _messages(strategy, number, arrays, grid, cohort)
        replies = [app(stamp(each), nodes[each.metadata.dst_node_id]) for each in messages]
        arrays = _aggregated(strategy, number, replies)
        all_replies += replies
    return read_arrays(arrays), all_replies


def _messages(
    strategy: MeanStrategy,
    number: int,
    arrays: ArrayRecord,
    grid: CohortGrid,
    cohort: Sequence[int],
) -> list[Message]:
    grid.offer(cohort)
    return list(strategy.configure_train(number, arrays, ConfigRecord(), grid))


def _aggregated(strategy: MeanStrategy, number: int, replies: Sequence[Message]) -> ArrayRecord:
    arrays, _ = strategy.aggregate_train(number, replies)
    assert arrays is not None
    return arrays


@pytest.mark.parametrize(
    "settings", [("federated/strategy=scaffold",), ("federated.clip_update_norm=0.05",)]
)
def test_deployed_clients_train_as_simulated_ones(settings: Sequence[str]) -> None:
    run = compose("federated", *_SMALL, *settings)
    clients = _clients(run)
    found, _ = _deployed(run, clients)
    assert_same_tensors(found, _simulated(run, clients))


def test_a_deployed_client_sends_no_longer_update_than_it_may() -> None:
    run = compose("federated", *_SMALL, "federated.clip_update_norm=0.05")
    clients = _clients(run)
    _, replies = _deployed(run, clients)
    for reply in replies[:3]:  # of the first round
        (arrays,) = reply.content.array_records.values()
        sent, start = read_arrays(arrays), clients.global_weights
        steps = [(sent[name].double() - start[name].double()).flatten() for name in start]
        assert float(torch.cat(steps).norm()) == pytest.approx(0.05, rel=1e-4)


_PRIVATE = (
    "data.fit=none",
    "federated.privacy.noise_multiplier=0.5",
    "federated.privacy.delta=1e-3",
)
_LOCAL = ("federated/privacy=local", "federated.privacy.clip=0.05")


def _asked(clients: TrainingContext, **told: bool | float) -> Message:
    """Return what a server asks client 1 in round 1."""
    config = ConfigRecord({"server-round": 1, **told})
    content = RecordDict({"arrays": to_record(clients.global_weights), "config": config})
    return stamp(Message(content, dst_node_id=1, message_type="train"))


def _went(reply: Message, start: dict[str, Tensor]) -> Tensor:
    (arrays,) = reply.content.array_records.values()
    sent = read_arrays(arrays)
    return torch.cat(
        [(sent[name].double() - value.double()).flatten() for name, value in start.items()]
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("federated/privacy=central", "federated.privacy.clip=0.05"), {}),
        (("federated/privacy=adaptive",), {"clip": 0.05}),
        (("federated/privacy=ftrl", "federated.privacy.clip=0.05"), {}),
    ],
)
def test_a_deployed_client_clips_and_leaves_noise_to_a_trusted_server(
    settings: tuple[str, ...], told: dict[str, float]
) -> None:
    more = ("federated.privacy.count_noise=2",) if told else ()
    run = compose("federated", *_SMALL, *settings, *more, *_PRIVATE)
    clients = _clients(run)
    node = Context(1, 1, {"partition-id": 1}, RecordDict(), {})
    message = _asked(clients, **{"equal-weights": True, **told})
    replies = [client_app(run)(message, node) for _ in range(2)]
    lengths = [float(_went(reply, dict(clients.global_weights)).norm()) for reply in replies]
    assert lengths[0] == lengths[1] == pytest.approx(0.05, rel=1e-4)
    (metrics,) = replies[0].content.metric_records.values()
    assert metrics["num-examples"] == 1
    assert "the server" in str(replies[0].content.config_records["privacy"]["noise-source"])
    if told:
        (arrays,) = replies[0].content.array_records.values()
        assert int(read_arrays(arrays)[UNCLIPPED]) == 0


def test_a_deployed_client_with_local_privacy_trusts_nobody() -> None:
    """Whatever the server says of clip, noise and weights; and it counts what it has spent."""
    run = compose("federated", *_SMALL, "model.hidden=[64]", *_LOCAL, *_PRIVATE)
    clients = _clients(run)
    node = Context(1, 1, {"partition-id": 1}, RecordDict(), {})
    app, start = client_app(run), dict(clients.global_weights)
    messages = [_asked(clients, **{"equal-weights": False}) for _ in range(2)]
    replies = [app(message, node) for message in messages]
    one, other = (_went(reply, start) for reply in replies)
    deviation = 0.5 * 2 * 0.05
    assert not torch.equal(one, other)
    # The updates are the same but for the noise of each, clipped to 0.05 in thousands of numbers.
    assert float((one - other).var()) == pytest.approx(
        2 * deviation**2, rel=5 * (2 / len(one)) ** 0.5
    )
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 5 / len(one) ** 0.5
    (metrics,) = replies[1].content.metric_records.values()
    assert dict(metrics) == {"num-examples": 1}
    said = replies[1].content.config_records["privacy"]
    assert "os.urandom" in str(said["noise-source"])
    assert said["participations"] == 2
    spent = epsilon([(Mechanism("none", 0.5, 1, 1), 2)], 1e-3)
    assert said["epsilon"] == pytest.approx(spent.value)


def test_a_deployed_client_with_local_privacy_refuses_what_it_cannot_account_for() -> None:
    budget = epsilon([(Mechanism("none", 0.5, 1, 1), 1)], 1e-3).value + 1e-3
    local = (*_SMALL, *_LOCAL, *_PRIVATE, f"federated.privacy.target_epsilon={budget}")
    run = compose("federated", *local)
    clients = _clients(run)
    node = Context(1, 1, {"partition-id": 1}, RecordDict(), {})
    app = client_app(run)
    with pytest.raises(MessageError, match="more than an update"):
        app(_asked(clients, **{"start-loss": True}), node)
    evaluation = Message(_asked(clients).content, dst_node_id=1, message_type="evaluate")
    with pytest.raises(MessageError, match="evaluation"):
        app(stamp(evaluation), node)
    app(_asked(clients), node)  # what was refused has cost nothing
    with pytest.raises(MessageError, match="taken part in 1 rounds"):
        app(_asked(clients), node)
    with pytest.raises(ConfigError, match="noise_multiplier is not set"):
        client_app(compose("federated", *local, "federated.privacy.noise_multiplier=null"))


def test_a_deployed_client_keeps_to_its_budget_also_in_other_runs(tmp_path: Path) -> None:
    """Of Flower's state for a node, another run, or a SuperNode that begins anew, has nothing."""
    ledger = tmp_path / "spent.jsonl"
    mechanism, louder = (Mechanism("none", noise, 1, 1) for noise in (0.5, 1.0))
    budget = epsilon([(mechanism, 1), (louder, 1)], 1e-3).value + 1e-3
    local = (*_SMALL, *_LOCAL, *_PRIVATE, f"federated.privacy.target_epsilon={budget}")
    clients = _clients(compose("federated", *local))

    def taken(run_id: int, noise: float) -> Message:
        run = compose("federated", *local, f"federated.privacy.noise_multiplier={noise}")
        config = {"partition-id": 1, "privacy-ledger": str(ledger)}
        return client_app(run)(_asked(clients), Context(run_id, 1, config, RecordDict(), {}))

    said = [taken(n, noise).content.config_records["privacy"] for n, noise in ((1, 0.5), (2, 1.0))]
    assert [each["participations"] for each in said] == [1, 2]
    assert said[1]["epsilon"] == pytest.approx(budget - 1e-3)
    with pytest.raises(MessageError, match="taken part in 2 rounds"):
        taken(3, 1.0)
    assert len(ledger.read_text().splitlines()) == 2
    ledger = tmp_path / "missing" / "spent.jsonl"
    with pytest.raises(LedgerError, match=r"privacy-ledger=.*spent\.jsonl.*may write to"):
        taken(4, 1.0)
