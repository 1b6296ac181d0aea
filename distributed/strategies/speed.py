"""How fast training is, how close to what the hardware could do, and where a step's time goes."""

from __future__ import annotations

import re

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from heliotrope.system.stopwatch import Stopwatch
from heliotrope.tasks import Task

__all__ = ["Speed", "operations_per_example", "peak_operations"]

# Operations a second of one GPU: in float32, and in bfloat16 or float16 on tensor cores without
# sparsity. From NVIDIA's data sheets, where they tell it of one; the words of the name that torch
# gives for each, longer names first.
_PEAKS: dict[str, tuple[float | None, float]] = {
    "H100 80GB HBM3": (67e12, 989.4e12),
    "H100 PCIe": (51e12, 756e12),
    "H100 NVL": (60e12, 835.5e12),
    "H200 NVL": (60e12, 835.5e12),
    "H200": (67e12, 989.4e12),
    "B200": (None, 2250e12),
    "A100": (19.5e12, 312e12),
    "L40S": (91.6e12, 362e12),
    "L40": (90.5e12, 181e12),
    "L4": (30.3e12, 121e12),
}


def operations_per_example(model: nn.Module, task: Task) -> int:
    """Return the floating-point operations of a training step on one typical example.

    Those of matrix products and convolutions; the backward pass costs twice the forward one.
    """
    device = next(model.parameters()).device
    example = {name: value.to(device) for name, value in task.facts.example.items()}
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        task.call(model, example)
    model.train()
    return 3 * int(counter.get_total_flops())


def peak_operations(device: torch.device, precision: str) -> float | None:
    """Return the most operations a second of `device`, or None where they are not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = next((peaks for part, peaks in _PEAKS.items() if re.search(rf"\b{part}\b", name)), None)
    return None if known is None else known[precision != "fp32"]


class Speed:
    """Measures the steps of one of `workers` ranks, whose model is `model`, not yet wrapped.

    `watch` is for the training loop.
    """

    def __init__(self, model: nn.Module, task: Task, precision: str, workers: int) -> None:
        self.watch = Stopwatch()
        self._device = next(model.parameters()).device
        self._operations = operations_per_example(model, task)
        peak = peak_operations(self._device, precision)
        self._peak = None if peak is None else peak * workers

    def take(self, examples: float, wrapped: nn.Module) -> dict[str, float]:
        """Return how fast the steps since the last call were, in which all ranks saw `examples`.

        `step_ms` is an average step, the parts beside it add up to it. On a GPU they are left
        out: there the watch sees kernels queued, not done. `communication_ms` is a share of
        `forward_backward_ms`: how long the exchange of gradients goes on after the last of
        them is computed, as the DDP model `wrapped` samples it. `operations_per_second` is of
        all ranks together; `mfu` its share of what their GPUs can do, where that is known.
        """
        laps, steps = self.watch.seconds, self.watch.steps
        self.watch.reset()
        seconds = sum(laps.values())
        if not steps:
            return {}
        parts = laps if self._device.type == "cpu" else {}
        said = {
            f"{name}_ms": round(value / steps * 1e3, 4)
            for name, value in {"step": seconds, **parts}.items()
        }
        rate = examples / seconds
        operations = rate * self._operations
        said |= {"examples_per_second": round(rate, 1), "operations_per_second": round(operations)}
        if self._peak is not None:
            said["mfu"] = round(operations / self._peak, 4)
        return said | _communication(wrapped)


def _communication(wrapped: nn.Module) -> dict[str, float]:
    if not isinstance(wrapped, DistributedDataParallel):
        return {}
    # torch gives it no public name.
    sampled = wrapped._get_ddp_logging_data()  # type: ignore[no-untyped-call] # noqa: SLF001
    exchange = sampled.get("avg_backward_comm_time", 0)  # nanoseconds
    hidden = sampled.get("avg_backward_compute_comm_overlap_time", 0)
    return {"communication_ms": round((exchange - hidden) / 1e6, 4)} if exchange else {}
