"""Data-parallel training without a framework: one process, or DDP under torchrun.

`--variant threads=T` sets the threads of torch in each process.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from job import Stopwatch, arguments, read, report
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    """Train, and print the times."""
    options = arguments(__doc__)
    torch.set_num_threads(int(options.variant.partition("=")[2] or 1))
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        dist.init_process_group("gloo")
    job = read(options.job)
    model: nn.Module = job.module()
    parallel = DistributedDataParallel(model) if ranks > 1 else model
    optimizer = job.optimizer(model)
    watch = Stopwatch()
    for epoch in range(job.epochs):
        watch.start()
        for rows in job.batches(epoch, rank, ranks):
            job.step(parallel, optimizer, job.inputs[rows], job.targets[rows])
            watch.lap()
        if rank == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, options.directory / f"{epoch}.pt")
    right = torch.tensor(job.correct(model, rank, ranks))
    if ranks > 1:
        dist.all_reduce(right)
        dist.destroy_process_group()
    if rank == 0:
        report(watch.seconds, int(right) / len(job.test_targets), ())


if __name__ == "__main__":
    sys.exit(main())
