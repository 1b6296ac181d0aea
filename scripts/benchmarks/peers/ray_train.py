"""The same job as Ray Train's documentation writes it: report with a checkpoint every epoch."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from job import Stopwatch, arguments, read, report
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from torch.utils.data import DataLoader, TensorDataset


def train(config: dict[str, Any]) -> None:
    """Train as one worker."""
    torch.set_num_threads(1)
    context = ray.train.get_context()
    job = read(Path(config["job"]))
    rank, ranks = context.get_world_rank(), context.get_world_size()
    model = prepare_model(job.module())
    optimizer = job.optimizer(model)
    data = TensorDataset(job.inputs, job.targets)
    loader = prepare_data_loader(DataLoader(data, batch_size=job.batch_size // ranks, shuffle=True))
    watch = Stopwatch()
    for epoch in range(job.epochs):
        if ranks > 1:
            loader.sampler.set_epoch(epoch)
        watch.start()
        for inputs, targets in loader:
            job.step(model, optimizer, inputs, targets)
            watch.lap()
        metrics: dict[str, Any] = {"epoch": epoch}
        if epoch == job.epochs - 1:
            plain = model.module if ranks > 1 else model
            right = torch.tensor(job.correct(plain, rank, ranks))
            if ranks > 1:
                dist.all_reduce(right)
            metrics |= {"steps": watch.seconds, "accuracy": int(right) / len(job.test_targets)}
        with tempfile.TemporaryDirectory() as folder:
            if rank == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(state, Path(folder) / "state.pt")
                ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
            else:
                ray.train.report(metrics)


def main() -> None:
    """Train, and print the times."""
    options = arguments(__doc__)
    here = str(Path(__file__).resolve().parent)
    runtime = {"env_vars": {"PYTHONPATH": here, "OMP_NUM_THREADS": "1"}}
    ray.init(num_cpus=len(os.sched_getaffinity(0)), runtime_env=runtime)
    trainer = TorchTrainer(
        train,
        train_loop_config={"job": str(options.job.resolve())},
        scaling_config=ScalingConfig(num_workers=int(options.variant.partition("=")[2] or 2)),
        run_config=RunConfig(name="benchmark", storage_path=str(options.directory.resolve())),
    )
    result = trainer.fit()
    assert result.metrics is not None
    report(result.metrics["steps"], result.metrics["accuracy"], ("ray",))


if __name__ == "__main__":
    sys.exit(main())
