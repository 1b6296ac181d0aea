"""The clients of a run, from its configuration: the same in every pool and for deployed clients."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from heliotrope.config import FederatedConfig, OptimizerConfig, Run
from heliotrope.config.training import LossConfig
from heliotrope.data import Dataset, Examples, Partition, Traits, partition
from heliotrope.data.columns import Raw
from heliotrope.errors import ConfigError
from heliotrope.models import build
from heliotrope.models.pristine import Pristine
from heliotrope.privacy.ledger import Release
from heliotrope.seeding import isolated_rng, seed
from heliotrope.tasks import Task, example_weights

from ..attacks.data import attacked
from ..attacks.names import attack_of
from ..client_state import ClientStates, PersonalWeights, model_of_client
from ..population import Population
from ..population.root import root_examples
from ..privacy.canaries import CanaryClients, canary_clients
from ..privacy.names import record_of
from ..privacy.record import Record
from ..updates import Weights
from .batch_plan import BatchPlan, make_batch_plan
from .poisson_plan import make_poisson_plan

__all__ = ["TrainingContext", "assemble", "divide", "owners_of", "poisoned", "prepared_for"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingContext:
    """What every client of a run shares: the model as built, the data, the settings.

    Parameters
    ----------
    model, task
        The model as built, and what it learns.
    train, population
        The training examples of all clients, and which are whose.
    optimizer, loss, federated, run_seed, evaluation_batch_size
        Those of the run.
    central
        The splits that no client trains on, by name: empty where none is evaluated.
    owners
        Where a part of the weights is client state: which examples of each of these are evaluated
        by which client.
    canaries
        Those that are the last clients, if there are any.
    content
        A hash of the data, if there is one.
    releases
        Statistics of the clients' data that were released to prepare it.
    known_weights
        Those of the training examples, int64 [N], where clients alone have the rows: `train` then
        has the first of them, which are the server's own.
    """

    model: nn.Module
    task: Task
    train: Examples
    population: Population
    optimizer: OptimizerConfig
    loss: LossConfig
    federated: FederatedConfig
    run_seed: int
    evaluation_batch_size: int
    central: Mapping[str, Examples]
    owners: Mapping[str, Partition] = field(default_factory=dict)
    canaries: CanaryClients | None = None
    content: str | None = None
    releases: tuple[Release, ...] = ()
    known_weights: Tensor | None = None
    record: Record | None = field(init=False, repr=False)  # how each example is protected
    personal: PersonalWeights = field(init=False, repr=False)
    example_weights: Tensor = field(init=False, repr=False)  # of `train`, int64 [N] on the CPU
    _built: Pristine = field(init=False, repr=False)
    _alike: bool = field(init=False, repr=False)  # whether each example weighs 1

    def __post_init__(self) -> None:
        weights = self.known_weights
        weights = example_weights(self.task, self.train) if weights is None else weights
        object.__setattr__(self, "example_weights", weights)
        object.__setattr__(self, "_alike", bool((self.example_weights == 1).all()))
        object.__setattr__(self, "record", record_of(self.federated))
        object.__setattr__(self, "personal", PersonalWeights.of(self.model))
        object.__setattr__(self, "_built", Pristine(self.model))

    @property
    def total_weight(self) -> int:
        """Sum of the weights of all clients' training examples, as they weigh in a mean."""
        if self.record is not None:
            return len(self.train)
        planted = 0 if self.canaries is None else len(self.canaries.canaries)
        return int(self.example_weights.sum()) + planted * int(self.example_weights[:1].sum())

    def weights_of(self, clients: Sequence[int]) -> tuple[int, ...]:
        """Return the sum of the weights of the examples that each of `clients` trains on.

        Where examples are protected, their number: their weights would tell of them.
        """
        sizes = self.population.train_sizes(clients)
        if self._alike or self.record is not None:
            return tuple(sizes)
        positions = torch.from_numpy(self.population.train_examples(clients))
        of_each = torch.split(self.example_weights[positions], sizes)
        return tuple(int(part.sum()) for part in of_each)

    def row_weights(self, plan: BatchPlan) -> Tensor:
        """Return the weight of each batch of a plan, int64 [R]."""
        if self._alike:
            return plan.sizes
        inside = torch.arange(plan.positions.shape[1]) < plan.sizes[:, None]
        return (self.example_weights[plan.positions] * inside).sum(dim=1)

    def weights_seen(self, plan: BatchPlan) -> tuple[int, ...]:
        """Return the sum of the weights of each client's batches of a plan."""
        if self._alike:
            return plan.seen
        sums = torch.zeros(len(plan.clients), dtype=torch.int64)
        sums.index_add_(0, plan.clients_of_rows, self.row_weights(plan))
        return tuple(sums.tolist())

    @property
    def global_weights(self) -> Weights:
        """The weights that clients are sent and send, as built."""
        return self.personal.finish(self.model.state_dict())[0]

    def fresh_model(
        self, weights: Weights, states: ClientStates | None = None, client: int | None = None
    ) -> nn.Module:
        """Return a new module as built, whatever has run since, with `weights` in it.

        What is client state is that of `client` in `states`, or as built.
        """
        state = {} if states is None or client is None else states.of(client)
        return self._built.copy(self.personal.start(weights, state))

    def on(self, device: torch.device) -> TrainingContext:
        """Return the same with model and training data on `device`."""
        return replace(self, model=self.model.to(device), train=self.train.to(device))

    def plan(
        self,
        server_round: int,
        cohort: Sequence[int],
        max_steps: int | None = None,
        stream: Sequence[str] = (),
    ) -> BatchPlan:
        """Return the local steps of `cohort` in a round.

        Where examples are protected, those of another `stream` are drawn independently.
        """
        where, path = (self.population, cohort), (self.run_seed, server_round)
        lengths = self.federated.local_epochs, self.federated.batch_size
        if self.record is None:
            return make_batch_plan(*where, path, *lengths, max_steps)
        return make_poisson_plan(*where, path, *lengths, max_steps, stream)


def divide(run: Run, dataset: Dataset) -> Partition:
    """Return the training examples of each client: of all that are not the server's own.

    Raises `PartitionError` if the data cannot be divided as asked, `ConfigError` if a round
    needs more clients than there are.
    """
    traits = Traits.of(dataset.train)
    root = root_examples(run, traits)
    if len(root):
        rest = np.delete(np.arange(len(dataset.train)), root)
        parts = partition(run.federated.partition, traits.subset(rest), run.seed)
        divided = Partition(rest[parts.indices], parts.offsets, parts.named)
    else:
        divided = partition(run.federated.partition, traits, run.seed)
    cohort = run.federated.clients_per_round
    if cohort > len(divided):  # known only here for a natural partition
        raise ConfigError(
            f"federated.clients_per_round={cohort} is more than the {len(divided)} clients that "
            f"the data has. Set federated.clients_per_round={len(divided)} or lower."
        )
    return divided


def prepared_for(partition: Partition, dataset: Dataset) -> Examples:
    """Return the training examples as the clients prepare them."""
    if dataset.preparation.fit != "per_client" or dataset.fitting is None:
        return dataset.train
    return dataset.fitting.by_client(partition)


def poisoned(context: TrainingContext, dataset: Dataset) -> TrainingContext:
    """Return the clients of `dataset`, attackers with the training data that they have altered.

    Raises `ConfigError` if the attack that is simulated has no meaning for these examples.
    """
    attack, population = attack_of(context.federated), context.population
    if attack is None:
        return context

    def prepare(raw: Raw) -> Examples:
        if dataset.preparation.fit != "per_client" or dataset.fitting is None:
            return dataset.preparation.apply(raw)
        return replace(dataset.fitting, train=raw).by_client(population.partition)

    train = attacked(
        attack, context.task, context.train, population, dataset, prepare, context.run_seed
    )
    return replace(context, train=train)


def owners_of(
    run: Run, central: Mapping[str, Examples], train: Examples, partition: Partition
) -> dict[str, Partition]:
    """Return which examples of each central split are whose; nothing unless clients are groups.

    Those of groups that no client has are nobody's.
    """
    if run.federated.partition.name != "natural" or train.keys is None:
        return {}
    groups, found = np.unique(train.keys), {}
    for name, split in central.items():
        if split.keys is None:
            continue
        codes = np.searchsorted(groups, split.keys).clip(max=len(groups) - 1)
        rows = np.flatnonzero(groups[codes] == split.keys)
        owners = codes[rows].astype(np.int64)
        sizes = np.bincount(owners, minlength=len(partition))
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        found[name] = Partition(rows[np.argsort(owners, kind="stable")], offsets)
        if len(rows) < len(split):
            _log.warning(
                "%d examples of the %s split are no client's", len(split) - len(rows), name
            )
    return found


def assemble(
    run: Run,
    task: Task,
    train: Examples,
    partition: Partition,
    central: Mapping[str, Examples] | None = None,
    owners: Mapping[str, Partition] | None = None,
    known_weights: Tensor | None = None,
) -> TrainingContext:
    """Return the clients over already loaded and divided data, with a freshly built model.

    `partition` says whose the examples of `train` are; for `central`, `owners` and
    `known_weights` see `TrainingContext`. Clients whose training examples weigh nothing are never
    drawn.

    Raises
    ------
    ConfigError
        If too few others are left, if the model's weights are of a type that cannot be sent, or if
        a part of them is client state and a client is not one group of the data.
    """
    with isolated_rng(seed(run.seed, "init of a client")):
        model = model_of_client(build(run.model, task, run.seed))
    _check_model(run, model)
    context = TrainingContext(
        model=model,
        task=task,
        train=train,
        population=Population(partition, run.federated.holdout_fraction, run.seed),
        optimizer=run.optimizer,
        loss=run.loss,
        federated=run.federated,
        run_seed=run.seed,
        evaluation_batch_size=run.evaluation_batch_size,
        central=central or {},
        owners=owners or {},
        canaries=canary_clients(run, len(partition)),
        known_weights=known_weights,
    )
    weightless = _weightless(context)
    if weightless:
        kept = Population(partition, run.federated.holdout_fraction, run.seed, weightless)
        context = replace(context, population=kept)
    return context


def _check_model(run: Run, model: nn.Module) -> None:
    """Raise `ConfigError` if clients cannot keep or send the weights of `model`."""
    if PersonalWeights.of(model) and run.federated.partition.name != "natural":
        raise ConfigError(
            f"model={run.model.name} keeps weights for each client, which must be one group of the "
            f"data, but federated/partition={run.federated.partition.name} mixes the groups. "
            "Set federated/partition=natural."
        )
    if PersonalWeights.of(model) and run.federated.strategy.name == "fltrust":
        raise ConfigError(
            f"model={run.model.name} keeps weights for each client, and the server of federated/"
            "strategy=fltrust, which trains on its own examples, is none. Choose another "
            "federated/strategy, such as geometric_median."
        )
    for name, value in model.state_dict().items():
        if value.dtype == torch.bfloat16:
            raise ConfigError(
                f"model={run.model.name}: {name} is {value.dtype}, which Flower's arrays cannot "
                "hold. Keep the weights in float32; federated clients compute in the type of the "
                "weights."
            )


def _weightless(context: TrainingContext) -> list[int]:
    """Return the clients whose training examples weigh nothing together.

    Raises `ConfigError` if the others are too few for a round.
    """
    if bool(context.example_weights.all()):
        return []
    everyone = range(len(context.population))
    weightless: list[int] = np.flatnonzero(np.equal(context.weights_of(everyone), 0)).tolist()
    if not weightless:
        return []
    left, cohort = len(everyone) - len(weightless), context.federated.clients_per_round
    if cohort > left:
        remedy = f"Set federated.clients_per_round={left} or lower" if left else "Choose other data"
        raise ConfigError(
            f"federated.clients_per_round={cohort} is more than the {left} clients whose training "
            f"examples weigh anything for {type(context.task).__name__}: those of client "
            f"{weightless[0]} and {len(weightless) - 1} others do not. {remedy}."
        )
    return weightless
