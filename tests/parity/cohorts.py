"""Cohorts of clients to train in every way, and the plain loop that they must agree with."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from federated.algorithms import ControlVariates, FedProx
from federated.algorithms.control_variates import STATE
from federated.engine.context import TrainingContext, assemble, divide
from federated.updates import Instruction
from heliotrope.config import Run
from heliotrope.data import Dataset, load
from heliotrope.models.layers.seeded import reseed
from heliotrope.tasks import task_of
from tests.support import (
    compose,
    with_images,
)

OPTIMIZERS = [
    "optimizer=sgd optimizer.lr=0.05",
    "optimizer=sgd optimizer.lr=0.01 optimizer.momentum=0.9 optimizer.weight_decay=0.01",
    "optimizer=sgd optimizer.lr=0.01 optimizer.momentum=0.8 optimizer.nesterov=true",
    "optimizer=adam optimizer.lr=0.003",
    "optimizer=adam optimizer.lr=0.003 optimizer.weight_decay=0.1 optimizer.betas=[0.8,0.9]",
    "optimizer=adamw optimizer.lr=0.003 optimizer.weight_decay=0.1",
    "optimizer=sgd optimizer.lr=0.05 optimizer.clip_norm=0.5",
    "optimizer=sgd optimizer.lr=0.05 optimizer.clip_norm=0.7 optimizer.momentum=0.9",
]
MODELS = [
    "model=mlp model.hidden=[12]",
    "model=mlp model.hidden=[12,8] model.dropout=0.4 model.activation=tanh",
    "model=cnn model.channels=[4] model.kernel_size=3 model.hidden=[8] model.dropout=0.3",
    "model=cnn model.channels=[3] model.kernel_size=3 model.flip=true model.shift=2",
]
KINDS = ("sequential", "captured", "batched")
PARTITIONS = [
    "federated/partition=dirichlet federated.partition.alpha=0.2",
    "federated/partition=quantity federated.partition.alpha=0.3",
    "federated/partition=iid",
]


def federated_run(*settings: str) -> Run:
    return compose("federated", *(word for setting in settings for word in setting.split()))


def context_of(run: Run) -> tuple[TrainingContext, Dataset]:
    dataset = load(run.data, run.seed)
    central = {"test": dataset.test}
    return assemble(run, task_of(dataset), dataset.train, divide(run, dataset), central), dataset


def context_in_double(run: Run) -> TrainingContext:
    """Float64 tells a wrong formula from rounding, which Adam can blow up to a whole step."""
    clients, dataset = context_of(run)
    clients.model.double()
    return replace(clients, train=with_images(dataset.train, Tensor.double))


def weights_of(clients: TrainingContext) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in clients.model.state_dict().items()}


def plain_loop(clients: TrainingContext, order: Instruction, client: int) -> dict[str, Tensor]:
    """Train one client as a reader of the papers would write it."""
    model = copy.deepcopy(clients.model).train()
    start = [p.detach().clone() for p in model.parameters()]
    cfg = clients.optimizer
    common = {"lr": cfg.lr, "weight_decay": cfg.weight_decay}
    optimizer: torch.optim.Optimizer
    if cfg.name in ("adam", "adamw"):
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[cfg.name]
        optimizer = kind(model.parameters(), betas=cfg.betas, eps=cfg.eps, **common)
    else:
        optimizer = torch.optim.SGD(
            model.parameters(), momentum=cfg.momentum, nesterov=cfg.nesterov, **common
        )
    for rows, step_seed in clients.plan(order.server_round, [client]).batches():
        reseed(model, step_seed)
        batch = clients.train.take(rows)
        loss = torch.nn.functional.cross_entropy(
            model(batch["image"]),
            batch["label"],
            label_smoothing=clients.task.label_smoothing,  # type: ignore[attr-defined]
        )
        for p in model.parameters():
            loss = loss + clients.loss.l1 * p.abs().sum() + clients.loss.l2 / 2 * p.square().sum()
        for (name, p), w in zip(model.named_parameters(), start, strict=True):
            for algorithm in order.algorithms:
                if isinstance(algorithm, FedProx):
                    loss = loss + algorithm.mu / 2 * ((p - w) ** 2).sum()
                elif isinstance(algorithm, ControlVariates):
                    control = algorithm.server[name] - order.states_of(client)[f"{STATE}{name}"]
                    loss = loss + (control * p).sum()
        optimizer.zero_grad()
        loss.backward()
        if cfg.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_norm)
        optimizer.step()
    return model.state_dict()


def rounding_after(steps: int) -> float:
    """Float64's rounding after `steps`: training multiplies it, as it does any difference."""
    return 1e-9 if steps <= 60 else 1e-3


def assert_agree(
    arrays: Mapping[str, Tensor], expected: Mapping[str, Tensor], rounding: float = 1e-9
) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(arrays[name], value, rtol=rounding, atol=rounding)
