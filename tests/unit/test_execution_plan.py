"""How a cohort is to be trained: a rule decides, and nothing is timed."""

from __future__ import annotations

from federated.engine.context import TrainingContext
from federated.engine.execution import Decision, ExecutionPlan, decide
from federated.engine.time_limit import Watch
from tests.parity.cohorts import MODELS, PARTITIONS, context_of, federated_run


def _decide(clients: TrainingContext, threads: int = 2) -> Decision:
    return decide(clients, 4, threads, (), Watch())


def test_clients_with_a_time_limit_have_no_lanes() -> None:
    """A client is cut off by a signal, which only the main thread hears."""
    for timeout, most in (("null", 2), ("5", 1)):
        clients, _ = context_of(
            federated_run(
                "model=mlp model.hidden=[2000,200] federated.client_training=captured",
                f"federated.client_timeout={timeout} federated.batch_size=16",
            )
        )
        choice = _decide(clients).execution
        assert choice is not None
        assert choice.lanes == most


def test_lanes_and_stacks_are_as_asked_for() -> None:
    for kind, key, asked in (("captured", "lanes", 3), ("batched", "stack_size", 3)):
        settings = f"federated.client_training={kind} federated.{key}={asked}"
        clients, _ = context_of(federated_run(MODELS[0], PARTITIONS[2], settings))
        choice = _decide(clients).execution
        assert choice == ExecutionPlan(kind, 1, **{key.removesuffix("_size"): asked})


def test_an_optimizer_without_a_stacked_form_trains_one_client_at_a_time() -> None:
    clients, _ = context_of(federated_run("optimizer=adafactor", MODELS[0], PARTITIONS[2]))
    decision = _decide(clients)
    assert decision.execution is not None
    assert decision.execution.kind == "sequential"
    assert "optimizer=adafactor" in decision.line()
    for kind in ("batched", "captured"):
        clients.federated.client_training = kind
        assert _decide(clients).execution is None


def test_the_choice_is_the_same_every_time() -> None:
    """It follows a rule: nothing is timed."""
    for model in MODELS:
        run = federated_run(model, PARTITIONS[0], "seed=5")
        first, again = (_decide(context_of(run)[0]) for _ in range(2))
        assert first == again


def test_a_poisson_cohort_that_is_larger_than_expected_is_one_stack() -> None:
    """A second stack of the few that are too many would take as many steps as the first."""
    settings = (
        "federated/privacy=central federated.privacy.noise_multiplier=1 data.fit=none "
        "federated.clients_per_round=4"
    )
    many = "federated.partition.clients=60"
    for sampling, more, most in (
        ("poisson", many, 4 + 5 * 2),
        ("poisson", "federated.partition.clients=6", 6),
        ("poisson", f"{many} federated.stack_size=7", 7),
        ("fixed", many, 4),
    ):
        keys = f"{settings} federated.privacy.sampling={sampling} {more}"
        clients, _ = context_of(federated_run(MODELS[0], PARTITIONS[0], keys))
        choice = _decide(clients).execution
        assert choice == ExecutionPlan("batched", 1, most)
