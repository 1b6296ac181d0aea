"""Checkpoints written while training goes on.

The weights and the optimizer's state do not change until the optimizer's next step, so they are
copied beside the forward and backward pass that come before it: that step waits for the copy,
and the copy is then written while training goes on. One checkpoint is in flight at most.

A process that writes its part of a checkpoint makes no copy: it has its part because there is no
room for more. There, the optimizer's next step waits until the part is in its files.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from heliotrope.runs import checkpoint
from heliotrope.runs.checkpoint import Checkpoint, Shard
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.events import Tracker
from heliotrope.system.tensor_file import raw_bytes

from ..attempt import RunAttempt
from ..topology import Topology

__all__ = ["Saver", "saver_of"]

_log = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of a run under `root`; a context manager, which awaits the last.

    With `part`, its part of each; `tracker` is that of the process which has number 0. An error
    of the writer is raised by the next call of `save` or `raise_if_failed`, or at the end of the
    block: a `CheckpointError`.
    """

    def __init__(
        self,
        root: Path,
        optimizer: Optimizer,
        tracker: Tracker | None,
        keep_last: int,
        part: Shard | None = None,
    ) -> None:
        self._root = root
        self._tracker = tracker
        self._keep_last = keep_last
        self._part = part
        self._abandoned = False
        self._copied = threading.Event()
        self._copied.set()
        self._copies: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        optimizer.register_step_pre_hook(lambda *_: self.wait_for_copy())

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._abandoned = kind is not None  # other parts may never be written
        if self._thread is not None:
            self._thread.join()
        if kind is None:
            self.raise_if_failed()

    def save(self, present: Checkpoint, keep: Collection[int]) -> None:
        """Begin to write `present`; the tensors in it may change at the optimizer's next step.

        Those whose progress is in `keep` are not dropped. Waits for the one before to be written.
        """
        if self._thread is not None:
            self._thread.join()
        self.raise_if_failed()
        self._copied.clear()
        arguments = (present, keep)
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self._thread.start()

    def raise_if_failed(self) -> None:
        """Raise the writer's error, if there is one; costs nothing to call at each step."""
        if self._error is not None:
            raise self._error

    def wait_for_copy(self) -> None:
        """Return when what is to be saved may change; the optimizer calls it before it steps."""
        self._copied.wait()

    def _write(self, present: Checkpoint, keep: Collection[int]) -> None:
        try:
            if self._part is None:
                present = replace(
                    present,
                    model=self._copy("model", present.model),
                    arrays=self._copy("arrays", present.arrays),
                )
                self._may_change()
            self._save(present, keep)
        except Exception as error:  # noqa: BLE001 - raised again in the thread that trains
            self._error = error
        finally:
            self._copied.set()

    def _save(self, present: Checkpoint, keep: Collection[int]) -> None:
        if self._tracker is None:
            assert self._part is not None
            checkpoint.save_shard(self._root, present, self._part, self._may_change)
            return
        self._tracker.sync()
        others = (self._part, lambda: not self._abandoned, self._may_change)
        path = checkpoint.save(self._root, present, self._keep_last, keep, *others)
        _log.info("checkpoint %s is written", path.name)

    def _may_change(self) -> None:
        """Let the optimizer step; what is left to do has the processor after it."""
        if not self._copied.is_set():
            self._copied.set()
            _give_way()

    def _copy(self, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy into memory that is kept for the next time: new memory takes twice as long."""
        copies = {}
        for name, tensor in tensors.items():
            kept = self._copies.get(f"{kind}/{name}")
            if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
                kept = torch.empty(tensor.shape, dtype=tensor.dtype)
                self._copies[f"{kind}/{name}"] = kept
            if tensor.device.type == "cpu" and tensor.is_contiguous():
                np.copyto(np.asarray(raw_bytes(kept)), np.asarray(raw_bytes(tensor)))
            else:
                kept.copy_(tensor.detach())
            copies[name] = kept
        return copies


def saver_of(
    attempt: RunAttempt, topology: Topology, optimizer: Optimizer, tracker: Tracker | None
) -> Saver | None:
    """Return rank 0's saver, or that of this rank's part; None if this rank has none."""
    cfg, part = attempt.run.distributed, None
    if cfg.sharded_checkpoints:
        patience = cfg.collective_timeout
        part = Shard(topology.rank, topology.world_size, attempt.start.token, patience)
    if tracker is None and part is None:
        return None
    root = RunDirectory(attempt.directory).checkpoints
    return Saver(root, optimizer, tracker, cfg.keep_last, part)


def _give_way() -> None:
    """Let the threads that train have the processor before this one, where the system can."""
    if hasattr(os, "setpriority"):
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        except OSError:  # cosmetic
            _log.debug("the writer keeps its priority")
