"""Heliotrope's ways of local training in turn, in one process on one thread; `--variant CLIENTS`.

One client after another, captured steps, and a stack of all the clients. Times are processor
seconds of a round, so that other programs matter little.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

import torch
from configs import model_config
from dataset import examples_of, info_of
from problem import Problem, arguments, read

from federated.engine.context import TrainingContext, assemble
from federated.engine.execution import ExecutionPlan
from federated.pools.cohort_worker import CohortWorker
from federated.updates import Instruction
from heliotrope.config import DistributedConfig, FederatedConfig, Run, chosen
from heliotrope.data import Dataset, Partition, Preparation
from heliotrope.tasks import task_of

_WARM_UP = 2  # rounds that do not count


def main() -> None:
    """Train, and print the seconds of each way and how far their updates are apart."""
    options = arguments(__doc__)
    torch.set_num_threads(1)
    cohort = range(int(options.variant))
    ways = {
        "sequential": ExecutionPlan("sequential", 1),
        "captured": ExecutionPlan("captured", 1),
        "batched": ExecutionPlan("batched", 1, len(cohort)),
    }
    clients = _clients(read(options.problem))
    worker = CohortWorker(clients, threads=1)
    seconds: dict[str, list[float]] = {kind: [] for kind in ways}
    apart: list[float] = []
    for number in range(1, _WARM_UP + options.rounds + 1):
        updates = {}
        for kind, choice in ways.items():
            started = time.process_time()
            updates[kind] = _updates(worker, number, cohort, choice)
            if number > _WARM_UP:
                seconds[kind].append(time.process_time() - started)
        expected = updates["sequential"]
        for found in (updates["captured"], updates["batched"]):
            distances = (found - expected).norm(dim=1) / expected.norm(dim=1)
            apart += distances.tolist()
    versions = {"torch": torch.__version__}
    print(json.dumps({"seconds": seconds, "apart": apart, "versions": versions}))


def _clients(problem: Problem) -> TrainingContext:
    model = {key: value for key, value in problem.model.items() if key != "classes"}
    split, info = examples_of(problem), info_of(problem)
    prepared = Preparation((), "none", info.task)  # as the problem has it
    dataset = Dataset("benchmark", split, split, split, info, prepared)
    run = Run(
        name="benchmark",
        seed=problem.seed,
        model=model_config(**model),
        data=chosen("data", "fashion_mnist"),
        optimizer=chosen("optimizer", "sgd", lr=problem.lr),
        distributed=DistributedConfig(),
        federated=FederatedConfig(
            batch_size=problem.batch_size,
            local_epochs=problem.local_epochs,
            partition=chosen("federated/partition", "iid", clients=problem.clients),
            strategy=chosen("federated/strategy", "fedavg"),
        ),
    )
    parts = Partition(problem.indices.numpy(), problem.offsets.numpy())
    return assemble(run, task_of(dataset), split, parts)


def _updates(
    worker: CohortWorker, number: int, cohort: Sequence[int], choice: ExecutionPlan
) -> torch.Tensor:
    """Return the clients' changes of the weights, [clients, numbers]."""
    weights = worker.context.model.state_dict()
    start = {name: value.clone() for name, value in weights.items()}
    reply = worker.train(start, Instruction(number), cohort, choice, reduce=False)
    return torch.stack(
        [
            torch.cat([(value - start[name]).flatten() for name, value in update.arrays.items()])
            for update in reply.updates
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
