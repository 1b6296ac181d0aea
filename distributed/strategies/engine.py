"""The model in training, with all that is updated beside it and must be saved with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from heliotrope import registry
from heliotrope.config import Run
from heliotrope.models import build
from heliotrope.runs import checkpoint
from heliotrope.runs.checkpoint import Checkpoint
from heliotrope.runs.checkpoint_files import Below
from heliotrope.seeding import hashed_number, isolated_rng
from heliotrope.tasks import Task
from heliotrope.training import optimizer_state
from heliotrope.training.joint import Gather
from heliotrope.training.loop import Recipe, Stepper, TrainingBatch, TrainTotals, penalty_of
from heliotrope.training.optimizers import build_optimizer

from ..communication.exchange import gathered_rows
from ..communication.process_group import data_parallel
from ..communication.traffic import HALF, ModelSize, traffic
from ..topology import Topology
from .buffers import SharedBuffers
from .ema import Ema
from .profiling import StepProfiler
from .recompute import recompute
from .speed import Speed

__all__ = ["Engine", "Snapshot"]

_RAW = "weights/"  # in a checkpoint with averaged weights, the prefix of those in training


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint keeps of an engine: exported weights, other arrays, and the rest."""

    model: Mapping[str, Tensor]
    arrays: Mapping[str, Tensor]
    rest: dict[str, Any]


class Engine:
    """One rank's `model` and its optimizer, wrapped for training with the other ranks.

    `model` lies on its device already, unless it is to be divided; a profile is written below
    `directory`, the run's.
    The loop that uses it: `begin`; for each batch `step`, then `after_step`; `finish`.
    """

    passes_exchange: bool = False
    """Whether a forward pass exchanges weights, so that all ranks must make the same number."""

    def __init__(
        self, run: Run, model: nn.Module, task: Task, topology: Topology, directory: Path
    ) -> None:
        self._cfg = cfg = run.distributed
        self._model, self._task = model, task
        self._device = self._device_of(model)
        self._buffers = SharedBuffers(model, topology)
        size = ModelSize.of(model, self._buffers.nbytes)
        self._sent = traffic(cfg, size, topology.world_size)
        self._profiler: StepProfiler | None = None
        if cfg.profile and topology.rank == 0:
            self._profiler = StepProfiler(directory / "profile" / "trace.json")
        if cfg.activation_checkpointing:
            recompute(model)
        self._ours = registry.entry("model", run.model.name).built_in
        optimizer = registry.entry("optimizer", run.optimizer.name)
        of_ours = type(task).__module__.startswith("heliotrope.")
        self._own_code = not (self._ours and optimizer.built_in and of_ours)
        self._exchanging = self._exchanging_model(model, task, topology)
        self._wrapped = self._exchanging
        counted = self._in_float32(run, topology, directory)
        self._speed = Speed(counted, task, cfg.precision, topology.world_size)
        if cfg.compile:
            self._wrapped = self._compiled(self._wrapped)
        self.optimizer = build_optimizer(run.optimizer, model.parameters())
        self._penalty = penalty_of(model, run.loss)
        self._ema: Ema | None = None
        if cfg.ema_decay is not None:
            average = self._another(run, topology, directory)
            self._ema = ema = Ema(average, model, cfg.ema_decay)
            # Not after a step that the scaler left out.
            self.optimizer.register_step_post_hook(lambda *_: ema.update())
        self._scaler = GradScaler(self._device.type) if cfg.precision == "fp16" else None
        self._recipe = Recipe(
            accumulation_steps=cfg.accumulation_steps,
            clip_norm=run.optimizer.clip_norm,
            around_forward=self._forward_context(),
            scaler=self._scaler,
            after_update=None if self._profiler is None else self._profiler.after_step,
            watch=self._speed.watch,
            gather=self._gather(topology),
        )

    def _exchanging_model(self, model: nn.Module, task: Task, topology: Topology) -> nn.Module:
        return data_parallel(model, task, topology, uses_all=self._ours)

    def _gather(self, topology: Topology) -> Gather:
        """Return what brings together the outputs whose losses depend on one another."""
        return partial(gathered_rows, topology=topology)

    def _compiled(self, model: nn.Module) -> nn.Module:
        """Return `model` compiled for one shape at a time: inductor counts no places in others."""
        return cast(nn.Module, torch.compile(model, dynamic=False))

    def _device_of(self, model: nn.Module) -> torch.device:
        return next(model.parameters()).device

    def _another(self, run: Run, topology: Topology, directory: Path) -> nn.Module:  # noqa: ARG002 - others need them
        """Return a second model, as it begins, held as the one that is trained is."""
        return build(run.model, self._task, run.seed).to(self._device)

    def _in_float32(self, run: Run, topology: Topology, directory: Path) -> nn.Module:  # noqa: ARG002 - others need them
        """Return the model, or one like it, such that its passes are in float32."""
        return self._model

    def begin(self, totals: TrainTotals) -> None:
        """Go into training: the losses and weights of the steps up to `finish` join `totals`."""
        if self._profiler is not None:
            self._profiler.before_steps()
        self._stepper = Stepper(
            self._wrapped, self.optimizer, self._task, self._penalty, self._recipe, totals
        )

    def step(self, batch: TrainingBatch) -> None:
        """Take one optimizer step on this rank's part of a global batch, also an empty one."""
        with self._seeded(batch):
            self._stepper.step(batch)

    def _seeded(self, batch: TrainingBatch) -> AbstractContextManager[None]:
        """Return the context in which what a user's code draws follows from the step and the rank.

        Our own code draws from streams of its own, so it is spared the time.
        """
        if not self._own_code:
            return nullcontext()
        drawn = hashed_number(batch.seed, batch.first)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(drawn)
        return isolated_rng(drawn)

    def after_step(self, step: int, steps: int) -> tuple[int, int]:  # noqa: ARG002 - others need it
        """Do what is due after a step, the `step`-th of an epoch of `steps`, on every rank.

        Return the bytes that all workers together sent in it; see `communication.traffic`.
        """
        self._buffers.update()
        if self._ema is not None:
            self._ema.copy_buffers()
        return self._sent

    def finish(self) -> None:
        """Complete the totals that `begin` was given; waits for a GPU."""
        self._stepper.finish()

    def note_losses(self, note: Callable[[Tensor], None]) -> None:
        """Let `note` have the sum of the losses, [], of each step from now on."""
        self._recipe = replace(self._recipe, note_loss=note)

    def take_timing(self, examples: float) -> dict[str, float]:
        """Return how fast the steps since the last call were; see `Speed.take`."""
        return self._speed.take(examples, self._exchanging)

    def close(self) -> None:
        """End what goes on beside the training."""
        if self._profiler is not None:
            self._profiler.close()

    def _forward_context(self) -> Callable[[TrainingBatch], AbstractContextManager[object]]:
        plain = self._autocast is None and not self._cfg.compile
        return nullcontext if plain else self._around_forward

    @property
    def _autocast(self) -> torch.dtype | None:
        """What operations of the forward pass are cast to."""
        return HALF.get(self._cfg.precision)

    def _around_forward(self, batch: TrainingBatch) -> AbstractContextManager[object]:
        context = ExitStack()
        if self._autocast is not None:
            context.enter_context(torch.autocast(self._device.type, self._autocast))
        if self._cfg.compile and not len(batch):  # compiled convolutions need examples
            context.enter_context(torch.compiler.set_stance("force_eager"))
        return context

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Have the model whose weights count inside the block: the averaged one, if there is one.

        Every rank must enter it.
        """
        yield self._exported

    @property
    def _exported(self) -> nn.Module:
        return self._model if self._ema is None else self._ema.model

    def snapshot(self) -> Snapshot:
        """Return references to everything that a checkpoint must hold."""
        arrays, rest = optimizer_state.flatten(self.optimizer)
        if self._ema is not None:
            raw = self._model.state_dict()
            arrays |= {f"{_RAW}{name}": value for name, value in raw.items()}
        scaler = None if self._scaler is None else self._scaler.state_dict()
        averaged = None if self._ema is None else self._ema.steps
        others = {"optimizer": rest, "scaler": scaler, "ema_steps": averaged}
        return Snapshot(self._exported.state_dict(), arrays, others)

    def restore(self, saved: Checkpoint, path: Path) -> None:
        """Go on from the checkpoint at `path`."""
        self._load(self._exported, saved.model, path)
        names = [name for name in saved.arrays if not name.startswith(_RAW)]
        if self._ema is not None:
            self._load(self._model, Below(_RAW, saved.arrays), path)
            self._ema.steps = saved.state["ema_steps"]
        if self._scaler is not None:
            self._scaler.load_state_dict(saved.state["scaler"])
        arrays = {name: self._placed(name, saved.arrays[name]) for name in names}
        optimizer_state.restore(self.optimizer, arrays, saved.state["optimizer"])

    def _load(self, model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
        checkpoint.load_weights(model, weights, path)

    def _placed(self, name: str, value: Tensor) -> Tensor:  # noqa: ARG002 - others need it
        """Return a copy of an array of the optimizer's state, as it is held here."""
        return value.clone()
