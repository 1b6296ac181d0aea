"""FedAvg without a framework, as a good engineer would write it for this machine.

`--variant threads=T` is one process whose torch has T threads; `processes=P` is P of one thread
each, which share data and weights through memory and divide each cohort among them.
"""

from __future__ import annotations

import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.multiprocessing as mp
from problem import Problem, arguments, read, report, train_locally
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters


class Trainer:
    """Trains clients one after another in one model whose weights are views of one vector."""

    def __init__(self, problem: Problem, rank: int) -> None:
        self._problem = problem
        self._model = problem.module()
        self._flat = parameters_to_vector(self._model.parameters()).detach().clone()
        vector_to_parameters(self._flat, self._model.parameters())
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=problem.lr)
        self._generator = torch.Generator().manual_seed(problem.seed + rank)

    def add_up(self, cohort: list[int], start: Tensor, total: Tensor) -> None:
        """Put the sum of the clients' weights, times their examples, into `total`."""
        total.zero_()
        for client in cohort:
            self._flat.copy_(start)
            train_locally(self._model, self._optimizer, self._problem, client, self._generator)
            total.add_(self._flat, alpha=len(self._problem.rows(client)))


def serve(path: Path, rank: int, pipe: Connection, start: Tensor, total: Tensor) -> None:
    """Train the clients that arrive on `pipe`, until it brings None."""
    torch.set_num_threads(1)
    trainer = Trainer(read(path), rank)
    pipe.send("ready")
    while (cohort := pipe.recv()) is not None:
        trainer.add_up(cohort, start, total)
        pipe.send("done")


def divide(cohort: list[int], sizes: list[int], parts: int) -> list[list[int]]:
    """Deal the clients out, longest first, each to the part with the least to do."""
    loads, divided = [0] * parts, [[] for _ in range(parts)]
    for client in sorted(cohort, key=lambda c: -sizes[c]):
        part = loads.index(min(loads))
        divided[part].append(client)
        loads[part] += sizes[client]
    return divided


def main() -> None:
    """Train, and print the times."""
    options = arguments(__doc__)
    problem = read(options.problem)
    kind, _, number = options.variant.partition("=")
    processes = int(number) if kind == "processes" else 1
    torch.set_num_threads(int(number) if kind == "threads" else 1)

    start = parameters_to_vector(problem.module().parameters()).detach().clone().share_memory_()
    totals = [torch.zeros_like(start).share_memory_() for _ in range(processes)]
    context = mp.get_context("spawn")
    pipes, others = [], []
    for rank in range(1, processes):
        mine, theirs = context.Pipe()
        work = (options.problem, rank, theirs, start, totals[rank])
        others.append(context.Process(target=serve, args=work, daemon=True))
        others[-1].start()
        pipes.append(mine)
    trainer = Trainer(problem, 0)
    for pipe in pipes:
        pipe.recv()

    sizes = problem.offsets.diff().tolist()
    generator = torch.Generator().manual_seed(problem.seed)
    times = [time.time()]
    for _ in range(options.rounds):
        drawn = torch.randperm(problem.clients, generator=generator)
        cohort = drawn[: problem.clients_per_round].tolist()
        parts = divide(cohort, sizes, processes)
        for pipe, part in zip(pipes, parts[1:], strict=True):
            pipe.send(part)
        trainer.add_up(parts[0], start, totals[0])
        for pipe in pipes:
            pipe.recv()
        torch.sum(torch.stack(totals), dim=0, out=start)
        start.div_(sum(sizes[client] for client in cohort))
        times.append(time.time())

    for pipe, process in zip(pipes, others, strict=True):
        pipe.send(None)
        process.join()
    model: nn.Module = problem.module()
    vector_to_parameters(start, model.parameters())
    report(options, times, dict(model.named_parameters()), ())


if __name__ == "__main__":
    sys.exit(main())
