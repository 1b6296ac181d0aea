"""One client's work, sequentially: the readable reference that `batched` must equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn

from heliotrope.config import FederatedConfig, OptimizerConfig
from heliotrope.data import Split
from heliotrope.evaluation import evaluate
from heliotrope.metrics import ClassificationMetrics
from heliotrope.seeding import seed
from heliotrope.tasks import Task
from heliotrope.training import Batch, build_optimizer, proximal_term, train_batches

from .population import Population, local_batches

__all__ = [
    "Clients",
    "Failure",
    "Instruction",
    "Stack",
    "Update",
    "Weights",
    "evaluate_client",
    "train_client",
]

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Clients:
    """What every client of a run shares: the model to train in, the data, the settings."""

    model: nn.Module
    task: Task
    train: Split
    population: Population
    optimizer: OptimizerConfig
    federated: FederatedConfig
    run_seed: int
    evaluation_batch_size: int

    def on(self, device: torch.device) -> Clients:
        """Return the same with model and training data on `device`."""
        inputs, targets = self.train.inputs.to(device), self.train.targets.to(device)
        train = replace(self.train, inputs=inputs, targets=targets)
        return replace(self, model=self.model.to(device), train=train)

    def batches(self, server_round: int, client: int) -> Iterator[Tensor]:
        """Yield the example positions of each local step of `client`, int64 [<= batch_size]."""
        for batch in local_batches(
            self.population.train_indices(client),
            self.federated.local_epochs,
            self.federated.batch_size,
            (self.run_seed, server_round, client),
        ):
            yield torch.from_numpy(batch)

    def step_seed(self, server_round: int, client: int, step: int) -> int:
        """Return the seed of one local step's dropout masks."""
        return seed(self.run_seed, "dropout", server_round, client, step)


@dataclass(frozen=True)
class Instruction:
    """What the strategy asks of the clients of a round."""

    server_round: int
    proximal_mu: float = 0.0


@dataclass(frozen=True)
class Update:
    """Weights after local training, of one client or the weighted mean of several.

    `examples` is the weight in the strategy's mean (the clients' numbers of examples);
    `seen` counts examples with repetition over local epochs; `loss_sum` their losses.
    """

    clients: tuple[int, ...]
    arrays: Weights
    examples: int
    loss_sum: float
    seen: int
    steps: int


@dataclass(frozen=True)
class Stack:
    """The results of K clients: arrays [K, *shape], numbers [K], as in `Update`."""

    clients: tuple[int, ...]
    arrays: Weights
    examples: tuple[int, ...]
    loss_sums: tuple[float, ...]
    seen: tuple[int, ...]
    steps: tuple[int, ...]

    def row(self, row: int) -> Update:
        """Return one client's result."""
        return Update(
            clients=(self.clients[row],),
            arrays={name: value[row] for name, value in self.arrays.items()},
            examples=self.examples[row],
            loss_sum=self.loss_sums[row],
            seen=self.seen[row],
            steps=self.steps[row],
        )

    def rejections(self) -> dict[int, str]:
        """Return the rows that must not be averaged, and why."""
        reasons: dict[int, str] = {}
        for name, value in self.arrays.items():
            if not value.is_floating_point() or bool(torch.isfinite(value).all()):
                continue
            finite = torch.isfinite(value).flatten(1).all(dim=1)
            for row in torch.nonzero(~finite).view(-1).tolist():
                reason = f"update rejected: {name} holds NaN or infinite values"
                reasons.setdefault(row, reason)
        return reasons


@dataclass(frozen=True)
class Failure:
    """A client that gave no usable update, and why."""

    client: int
    reason: str


def train_client(
    clients: Clients,
    weights: Weights,
    order: Instruction,
    client: int,
    max_steps: int | None = None,
) -> Stack:
    """Train `client` from the global `weights`; at most `max_steps` local steps if given.

    Returns a stack of one.
    """
    model = clients.model
    set_weights(model, weights)

    def batches() -> Iterator[Batch]:
        plan = clients.batches(order.server_round, client)
        for step, chosen in enumerate(islice(plan, max_steps)):
            yield Batch(
                clients.train.inputs[chosen],
                clients.train.targets[chosen],
                len(chosen),
                clients.step_seed(order.server_round, client, step),
            )

    totals = train_batches(
        model,
        build_optimizer(clients.optimizer, model.parameters()),
        clients.task,
        batches(),
        proximal_term(model, order.proximal_mu),
    )
    return Stack(
        clients=(client,),
        arrays={name: torch.stack([value]) for name, value in model.state_dict().items()},
        examples=(clients.population.train_size(client),),
        loss_sums=(totals.loss_sum,),
        seen=(totals.examples,),
        steps=(totals.steps,),
    )


def evaluate_client(clients: Clients, weights: Weights, client: int) -> ClassificationMetrics:
    """Return the metrics of the global `weights` on the client's held-out examples."""
    set_weights(clients.model, weights)
    indices = torch.from_numpy(clients.population.holdout_indices(client))
    return evaluate(
        clients.model, clients.task, clients.train, clients.evaluation_batch_size, indices
    )


def set_weights(model: nn.Module, weights: Weights) -> None:
    """Copy `weights` into `model`, cast to its types."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(weights[name])
