"""The same job with Lightning's Trainer, DDP over processes on CPUs."""

from __future__ import annotations

import sys

import lightning
import torch
from job import Job, Stopwatch, arguments, read, report
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


class Module(lightning.LightningModule):
    """The job's model and loss."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.layers = job.module()
        self.watch = Stopwatch()
        self.right = 0.0

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of a batch."""
        return cross_entropy(self.layers(batch[0]), batch[1])

    def on_train_epoch_start(self) -> None:
        """Start the watch."""
        self.watch.start()

    def on_train_batch_end(self, *_: object) -> None:
        """Note a step."""
        self.watch.lap()

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Measure a batch."""
        right = (self.layers(batch[0]).argmax(dim=1) == batch[1]).float().mean()
        self.log("accuracy", right, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the job's optimizer."""
        return self.job.optimizer(self.layers)


def main() -> None:
    """Train, and print the times."""
    options = arguments(__doc__)
    torch.set_num_threads(1)
    job = read(options.job)
    ranks = int(options.variant.partition("=")[2] or 2)
    train = TensorDataset(job.inputs, job.targets)
    test = TensorDataset(job.test_inputs, job.test_targets)
    module = Module(job)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp",
        max_epochs=job.epochs,
        default_root_dir=options.directory,
        callbacks=[ModelCheckpoint(dirpath=options.directory, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(train, batch_size=job.batch_size // ranks, shuffle=True))
    (measured,) = trainer.test(module, DataLoader(test, batch_size=1024), verbose=False)
    if trainer.is_global_zero:
        report(module.watch.seconds, measured["accuracy"], ("lightning",))


if __name__ == "__main__":
    sys.exit(main())
