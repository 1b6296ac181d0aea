"""One client's work, sequentially: the readable reference that `batched` must equal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from heliotrope.config import FederatedConfig, OptimizerConfig
from heliotrope.config_training import LossConfig
from heliotrope.data import Split
from heliotrope.evaluation import evaluate
from heliotrope.metrics import ClassificationMetrics
from heliotrope.tasks import Task
from heliotrope.training import Batch, Recipe, build_optimizer, penalty_of, train_batches

from .plan import Plan, make_plan
from .population import Population
from .time_limit import UNLIMITED, Limit

__all__ = [
    "Clients",
    "Failure",
    "Instruction",
    "Stack",
    "Update",
    "Weights",
    "evaluate_client",
    "set_weights",
    "train_client",
]

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Clients:
    """What every client of a run shares: the model to train in, the data, the settings.

    `central` are the splits that no client holds, by name: empty where none is evaluated.
    """

    model: nn.Module
    task: Task
    train: Split
    population: Population
    optimizer: OptimizerConfig
    loss: LossConfig
    federated: FederatedConfig
    run_seed: int
    evaluation_batch_size: int
    central: Mapping[str, Split]

    def on(self, device: torch.device) -> Clients:
        """Return the same with model and training data on `device`."""
        inputs, targets = self.train.inputs.to(device), self.train.targets.to(device)
        train = replace(self.train, inputs=inputs, targets=targets)
        return replace(self, model=self.model.to(device), train=train)

    def plan(self, server_round: int, cohort: Sequence[int], max_steps: int | None = None) -> Plan:
        """Return the local steps of `cohort` in a round."""
        return make_plan(
            self.population,
            cohort,
            (self.run_seed, server_round),
            self.federated.local_epochs,
            self.federated.batch_size,
            max_steps,
        )


@dataclass(frozen=True)
class Instruction:
    """What the strategy asks of the clients of a round.

    `controls` holds each client's control variate, added to its gradients: SCAFFOLD's c - c_i
    (Karimireddy et al. 2020, equation 3).
    """

    server_round: int
    proximal_mu: float = 0.0
    controls: Mapping[int, Weights] | None = None


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

    def rows(self) -> list[Update]:
        """Return each client's result."""
        return [
            Update(
                clients=(client,),
                arrays={name: value[row] for name, value in self.arrays.items()},
                examples=self.examples[row],
                loss_sum=self.loss_sums[row],
                seen=self.seen[row],
                steps=self.steps[row],
            )
            for row, client in enumerate(self.clients)
        ]

    def without(self, rows: Collection[int]) -> Stack:
        """Return the same without these rows."""
        if not rows:
            return self
        kept = [row for row in range(len(self.clients)) if row not in rows]
        return Stack(
            clients=tuple(self.clients[row] for row in kept),
            arrays={name: value[kept] for name, value in self.arrays.items()},
            examples=tuple(self.examples[row] for row in kept),
            loss_sums=tuple(self.loss_sums[row] for row in kept),
            seen=tuple(self.seen[row] for row in kept),
            steps=tuple(self.steps[row] for row in kept),
        )

    def rejections(self, weights: Weights) -> dict[int, str]:
        """Return the rows that must not be averaged with updates of `weights`, and why."""
        reasons: dict[int, str] = {}
        for name, value in self.arrays.items():
            wanted, shape = tuple(weights[name].shape), tuple(value.shape[1:])
            if shape != wanted:
                reason = f"update rejected: {name} has shape {shape} instead of {wanted}"
                return dict.fromkeys(range(len(self.clients)), reason)
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
    limit: Limit = UNLIMITED,
) -> Stack:
    """Train `client` from the global `weights` and return a stack of one."""
    model = clients.model
    set_weights(model, weights)

    plan = clients.plan(order.server_round, [client], limit.max_steps)
    train = clients.train

    def batches() -> Iterator[Batch]:
        for chosen, step_seed in plan.batches():
            limit.check()
            yield Batch(train.inputs[chosen], train.targets[chosen], len(chosen), step_seed)

    totals = train_batches(
        model,
        build_optimizer(clients.optimizer, model.parameters()),
        clients.task,
        batches(),
        _penalty(clients, order, client),
        Recipe(clip_norm=clients.optimizer.clip_norm),
    )
    return Stack(
        clients=(client,),
        arrays={name: torch.stack([value]) for name, value in model.state_dict().items()},
        examples=tuple(clients.population.train_sizes([client])),
        loss_sums=(totals.loss_sum,),
        seen=plan.seen,
        steps=plan.steps,
    )


def _penalty(clients: Clients, order: Instruction, client: int) -> Callable[[], Tensor] | None:
    """Return what a client's loss has besides the data's, if anything."""
    model = clients.model
    fixed = penalty_of(model, clients.loss, order.proximal_mu)
    if order.controls is None:
        return fixed
    control = {name: order.controls[client][name].to(p) for name, p in model.named_parameters()}

    def term() -> Tensor:
        linear = torch.stack([(p * control[name]).sum() for name, p in model.named_parameters()])
        return linear.sum() + (0.0 if fixed is None else fixed())

    return term


def evaluate_client(
    clients: Clients, weights: Weights, client: int, limit: Limit = UNLIMITED
) -> ClassificationMetrics:
    """Return the metrics of the global `weights` on the client's held-out examples."""
    set_weights(clients.model, weights)
    size, total = clients.evaluation_batch_size, clients.task.no_metrics()
    for batch in torch.split(torch.from_numpy(clients.population.holdout_indices(client)), size):
        limit.check()
        total = total + evaluate(clients.model, clients.task, clients.train, size, batch)
    return total


def set_weights(model: nn.Module, weights: Weights) -> None:
    """Copy `weights` into `model`, cast to its types."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(weights[name])
