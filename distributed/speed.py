"""How fast training is, how close to what the hardware could do, and where a step's time goes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from heliotrope.stopwatch import Stopwatch
from heliotrope.tasks import Task

__all__ = ["operations_per_example", "peak_operations", "timing"]

# Operations a second of one GPU: in float32, and in bfloat16 or float16 on tensor cores without
# sparsity. From NVIDIA's data sheets; the part of the name that torch gives for each.
_PEAKS = {
    "H100 80GB HBM3": (67e12, 989.4e12),
    "H100 PCIe": (51e12, 756e12),
    "H200": (67e12, 989.4e12),
    "A100": (19.5e12, 312e12),
    "L40S": (91.6e12, 362e12),
    "L4": (30.3e12, 121e12),
}


def operations_per_example(model: nn.Module, task: Task) -> int:
    """Return the floating-point operations of a training step on one example.

    Those of matrix products and convolutions; the backward pass costs twice the forward one.
    """
    example = torch.zeros((1, *task.input_shape), device=next(model.parameters()).device)
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example)
    model.train()
    return 3 * int(counter.get_total_flops())


def peak_operations(device: torch.device, precision: str) -> float | None:
    """Return the most operations a second of `device`, or None where they are not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = next((peaks for part, peaks in _PEAKS.items() if part in name), None)
    return None if known is None else known[precision != "fp32"]


def timing(watch: Stopwatch, wrapped: nn.Module, device: torch.device) -> dict[str, float]:
    """Return the milliseconds of an average step and of its parts; empty before the first.

    The parts add up to the step. On a GPU they are left out: there the watch sees kernels
    queued, not done. `communication_ms` is a share of `forward_backward_ms`: how long the
    exchange of gradients goes on after the last of them is computed, as DDP samples it.
    """
    if not watch.steps:
        return {}
    whole = {"step_ms": sum(watch.seconds.values())}
    parts = {f"{name}_ms": seconds for name, seconds in watch.seconds.items()}
    said = whole | (parts if device.type == "cpu" else {})
    said = {name: round(seconds / watch.steps * 1e3, 4) for name, seconds in said.items()}
    return said | _communication(wrapped)


def _communication(wrapped: nn.Module) -> dict[str, float]:
    if not isinstance(wrapped, DistributedDataParallel):
        return {}
    # torch gives it no public name.
    sampled = wrapped._get_ddp_logging_data()  # type: ignore[no-untyped-call] # noqa: SLF001
    exchange = sampled.get("avg_backward_comm_time", 0)  # nanoseconds
    hidden = sampled.get("avg_backward_compute_comm_overlap_time", 0)
    return {"communication_ms": round((exchange - hidden) / 1e6, 4)} if exchange else {}
