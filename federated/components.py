"""The parts of a simulated federation, built from a configuration and checked before any work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from heliotrope import registry
from heliotrope.config import Run
from heliotrope.config.checks.schedule import check_factors
from heliotrope.config.schedule import schedule_of
from heliotrope.data import Dataset, Exchange, Preparation, Traits, load
from heliotrope.data.private_fit import fitted_privately
from heliotrope.metrics.chosen import check_chosen_metrics
from heliotrope.plugin_loading import refusing_exits
from heliotrope.tasks import task_of
from heliotrope.training.trial import check_step

from .attack_setting import AttackSetting, attack_setting
from .attacks.data import TRIGGERED, triggered
from .attacks.names import attack_of
from .engine.alone import check_batches
from .engine.context import TrainingContext, assemble, divide, owners_of, poisoned, prepared_for
from .population.evaluated import clients_to_evaluate
from .population.root import root_examples
from .privacy.canaries import check_canaries, with_canary_clients
from .privacy.names import privacy_of
from .protection import check_protectable
from .secure_setting import SecureSetting, secure_setting
from .strategies import ModelFacts, build_strategy, reduces
from .strategies.state import check_savable
from .strategies.trial import after_a_round

__all__ = ["Components", "build_components", "components_of"]


@dataclass(frozen=True)
class Components:
    """What a configuration means, found to fit before any work.

    Parameters
    ----------
    context
        What clients share.
    preparation, exchange
        How the data is prepared, and what clients and server send each other for it.
    notes
        Lines to be shown at the start.
    strategy
        The server's.
    reduce
        Whether workers send one sum each.
    attack
        Who attacks, and how; None if nobody does.
    root
        Positions of the training examples that are the server's own.
    content
        A hash of the data, for a ledger that runs share.
    data
        What a checkpoint keeps of the data: `heliotrope.data.Dataset.kept`.
    """

    context: TrainingContext
    preparation: Preparation
    exchange: Exchange
    notes: tuple[str, ...]
    facts: ModelFacts
    strategy: Strategy
    reduce: bool
    attack: AttackSetting | None
    root: NDArray[np.int64]
    secure: SecureSetting | None
    content: str | None
    data: dict[str, Any]


@refusing_exits()
def build_components(run: Run) -> Components:
    """Load and divide the data and build model and strategy, so that what is wrong shows here."""
    hashed = run.privacy.ledger is not None or run.federated.privacy.name != "none"
    dataset = load(run.data, run.seed, task=run.task_name, fold=run.data_fold, hashed=hashed)
    cfg = run.federated
    partition = divide(run, dataset)
    dataset = fitted_privately(run, dataset, privacy_of(cfg), partition)
    check_factors(schedule_of(cfg), cfg.lr_horizon or cfg.rounds, cfg.rounds)
    splits = {"validation": dataset.validation, "test": dataset.test}
    central = {name: split for name, split in splits.items() if len(split)}
    task = task_of(dataset, run)
    check_chosen_metrics(run, "federated", task.metrics.directions)
    if (stamped := triggered(attack_of(run.federated), task, dataset)) is not None:
        central[TRIGGERED] = stamped
    owners = owners_of(run, central, dataset.train, partition)
    train = prepared_for(partition, dataset)
    clients = with_canary_clients(partition, run.audit.canaries, run.seed)
    context = poisoned(assemble(run, task, train, clients, central, owners), dataset)
    context = replace(context, content=dataset.content, releases=dataset.releases)
    assert dataset.fitting is not None
    exchange = dataset.fitting.exchange(partition)
    root = root_examples(run, Traits.of(dataset.train))
    return components_of(run, context, dataset, exchange, root)


def components_of(
    run: Run,
    context: TrainingContext,
    dataset: Dataset,
    exchange: Exchange,
    root: NDArray[np.int64],
) -> Components:
    """Return the parts over clients that are known; see `Components`.

    Raises `ConfigError` if they do not fit together.
    """
    check_canaries(run, personal=bool(context.personal))
    notes = check_step(run, context.model, context.task)
    check_batches(context, run.model.name)
    if run.federated.holdout_fraction:
        clients_to_evaluate(run.federated, len(context.population.evaluating()))
    facts = ModelFacts.of(
        context.model,
        context.total_weight,
        len(context.population.training()),
        context.global_weights,
    )
    strategy = build_strategy(run, facts)
    check_savable(strategy)
    if not registry.entry("strategy", run.federated.strategy.name).built_in:
        weights, cohort = context.global_weights, run.federated.clients_per_round
        if (later := after_a_round(strategy, weights, cohort)) is not None:
            check_savable(later[0])
    attack = attack_setting(run, context, facts)
    check_protectable(run, context, strategy, exchange)
    secure = secure_setting(run, context, strategy)
    return Components(
        context=context,
        preparation=dataset.preparation,
        exchange=exchange,
        notes=(*dataset.notes, *notes),
        facts=facts,
        strategy=strategy,
        reduce=reduces(run.federated, strategy),
        attack=attack,
        root=root,
        secure=secure,
        content=dataset.content,
        data=dataset.kept,
    )
