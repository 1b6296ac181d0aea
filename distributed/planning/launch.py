"""A launch: a strategy on a number of workers, and the part of a step that is not exchanged.

Memory is that of one rank in training, by what holds it; see docs/scale.md for where the formulas
are from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import nn

from heliotrope.config import DistributedConfig, MeshConfig
from heliotrope.planning.network import Network

from ..communication.traffic import HALF, traffic
from .measurement import Measurement

__all__ = ["Launch", "RankMemory", "Units"]

_NODE = 8  # the most workers that HSDP divides weights among: those of a machine with 8 GPUs
_FIRST_BUCKET, _BUCKET = 2**20, 25 * 2**20  # bytes that DDP sends together, as torch has it
_EXCHANGED = {"fp32": 3.0, "int8": 4.25}  # copies of the weights that an exchange makes at one time
_PRIVATE = 3.0  # of the gradients, in a protected step: the noise, this rank's sum, and that of all
_ALONE = 2.0  # that it makes where there is no other worker


@dataclass(frozen=True)
class Units:
    """The parts of a model that FSDP gathers one after the other.

    Parameters
    ----------
    outer_bytes
        The weights outside of all units, which stay gathered during a step.
    unit_bytes
        The weights of each, in the model's order, in which they are taken to be used.
    shapes
        First dimension, and bytes of a row, of every weight.
    """

    outer_bytes: int
    unit_bytes: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, model: nn.Module) -> Units:
        """Return those of `model`, which is not sharded yet."""
        from ..strategies.fsdp import sharded_parts  # here: it takes most of a second to import

        seen: set[int] = set()
        sizes = []
        for part in sharded_parts(model):
            own = [p for p in part.parameters() if id(p) not in seen]
            seen |= {id(p) for p in own}
            sizes.append(sum(p.nbytes for p in own))
        outer = [p for p in model.parameters() if id(p) not in seen]
        rows = [
            (len(p), p[0].nbytes) if p.ndim and len(p) else (1, p.nbytes)
            for p in model.parameters()
        ]
        return cls(sum(p.nbytes for p in outer), tuple(sizes), tuple(rows))

    @property
    def count(self) -> int:
        """How many are gathered, the weights outside as one."""
        return len(self.unit_bytes) + bool(self.outer_bytes)

    def gathered_bytes(self, half: int) -> int:
        """Return the most that is whole at one time in a backward pass.

        Without the gradients of the unit whose pass it is: its weights and those of the one before
        it, which are gathered meanwhile, both divided by `half`; and the gradients of the one after
        it, on their way. With them, what is outside.
        """
        outer, sizes = self.outer_bytes, (0, *self.unit_bytes, 0)
        units = (
            (before + own) / half + after
            for before, own, after in zip(sizes, sizes[1:], sizes[2:], strict=False)
        )
        return int(outer * (1 + 1 / half) + max(units, default=0))

    def share(self, shards: int) -> float:
        """Return the part of the weights that the first rank holds, which has the most of each."""
        whole = sum(rows * size for rows, size in self.shapes)
        return sum(-(-rows // shards) * size for rows, size in self.shapes) / max(1, whole)


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank: `copies` are other sets of weights, `activations` what a step adds."""

    weights: int
    gradients: int
    optimizer: int
    copies: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.copies + self.activations


@dataclass(frozen=True)
class Launch:
    """`distributed.strategy` on a number of workers.

    Parameters
    ----------
    cfg
        With the strategy and the mesh that are meant.
    workers
        How many.
    examples
        Of the training split.
    found
        Measured of one worker.
    units
        Of the model.
    """

    cfg: DistributedConfig
    workers: int
    examples: int
    found: Measurement
    units: Units

    def on(self, workers: int) -> Launch:
        """Return the same on another number of workers, with as many replicas as divide it."""
        mesh = MeshConfig(math.gcd(workers, self.cfg.mesh.replicate))
        return replace(self, cfg=replace(self.cfg, mesh=mesh), workers=workers)

    def hybrid(self) -> Launch | None:
        """Return the same with HSDP: the run's mesh, or replicas of machines of up to 8 workers.

        None if the workers cannot be divided so.
        """
        replicas = self.cfg.mesh.replicate
        if replicas == 1:
            shards = [s for s in range(2, _NODE + 1) if self.workers % s == 0 and self.workers > s]
            if not shards:
                return None
            replicas = self.workers // shards[-1]
        cfg = replace(self.cfg, strategy="fsdp", mesh=MeshConfig(replicas))
        return replace(self, cfg=cfg)

    @property
    def name(self) -> str:
        """The strategy, with the mesh of HSDP."""
        if self._replicas == 1:
            return self.cfg.strategy
        return f"hsdp {self._replicas} x {self._shards}"

    @property
    def local_examples(self) -> int:
        """The most examples of a step that one worker has."""
        return -(-min(self.cfg.batch_size, self.examples) // self.workers)

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return -(-self.examples // self.cfg.batch_size)

    @property
    def exchanges(self) -> int:
        """Of an epoch."""
        return -(-self.steps // self.cfg.diloco.local_steps) if self._local else self.steps

    @property
    def exchange_bytes(self) -> tuple[int, int]:
        """What all workers send in an exchange, in both halves."""
        return traffic(self.cfg, self.found.size, self.workers)

    @property
    def compute_seconds(self) -> float:
        """A step without an exchange, but with what is copied into and out of messages."""
        time = self.found.time
        return time.of(self.local_examples, self._share) + self._copied_bytes * time.copied

    def exchange_seconds(self, network: Network) -> float:
        """Return how long an exchange takes, of which nothing is hidden behind computation."""
        if self.workers == 1:
            return 0.0
        return network.seconds(sum(self.exchange_bytes) / self.workers, self._messages)

    def step_seconds(self, network: Network) -> float:
        """Return the average step's time, with its part of the exchanges."""
        return self.compute_seconds + self.exchange_seconds(network) * self.exchanges / self.steps

    def epoch_seconds(self, network: Network) -> float:
        """Return how long the steps of an epoch take."""
        return self.steps * self.step_seconds(network)

    @property
    def memory(self) -> RankMemory:
        """That of the first rank."""
        found, weights = self.found, self.found.weight_bytes
        if self._local:
            return self._local_memory()
        averages = 0 if self.cfg.ema_decay is None else weights
        if self.cfg.strategy == "fsdp" and self.cfg.precision in HALF and not averages:
            averages = weights  # evaluated in float32, by a second model
        if self.cfg.strategy == "fsdp" and self._shards > 1:
            return self._sharded_memory(averages)
        kept = found.step_bytes if self.workers == 1 else found.kept_bytes
        activations = kept - found.gradient_bytes
        if self._private and self.workers > 1:
            activations = max(activations, int(_PRIVATE * found.gradient_bytes))
        return RankMemory(
            weights, found.gradient_bytes, found.optimizer_bytes, averages, activations
        )

    def _local_memory(self) -> RankMemory:
        """Workers keep the weights that they agreed on, with a gradient and a momentum."""
        found, cfg = self.found, self.cfg
        each = 4 * found.size.weights
        momentum = each if cfg.strategy == "diloco" and cfg.diloco.momentum else 0
        copies = found.weight_bytes + each + momentum
        copied = _ALONE if self.workers == 1 else _EXCHANGED[cfg.diloco.exchange]
        activations = max(found.step_bytes - found.gradient_bytes, int(copied * each))
        return RankMemory(
            found.weight_bytes, found.gradient_bytes, found.optimizer_bytes, copies, activations
        )

    def _sharded_memory(self, averages: int) -> RankMemory:
        """Weights are gathered unit by unit.

        The gradients of the unit in a backward pass are part of what was measured: a gradient is
        whole before it is added to one that is kept.
        """
        found, share = self.found, self._share
        gathered = self.units.gathered_bytes(2 if self.cfg.precision in HALF else 1)
        activations = found.kept_bytes - found.gradient_bytes + gathered
        parts = (found.weight_bytes, found.gradient_bytes, found.optimizer_bytes, averages)
        weights, gradients, optimizer, copies = (int(share * part) for part in parts)
        return RankMemory(weights, gradients, optimizer, copies, activations)

    @property
    def _local(self) -> bool:
        return self.cfg.strategy in ("local_sgd", "diloco")

    @property
    def _private(self) -> bool:
        return self.cfg.privacy.name != "none"

    @property
    def _shards(self) -> int:
        return self.workers // self._replicas

    @property
    def _replicas(self) -> int:
        return self.cfg.mesh.replicate if self.cfg.strategy == "fsdp" else 1

    @property
    def _share(self) -> float:
        """The part of the weights that the first rank updates."""
        return self.units.share(self._shards) if self.cfg.strategy == "fsdp" else 1.0

    @property
    def _copied_bytes(self) -> float:
        """What a rank of FSDP copies in a step: weights after each gathering, gradients once."""
        if self.cfg.strategy != "fsdp" or self._shards == 1:
            return 0.0
        gathered = 2 * self.cfg.accumulation_steps / (2 if self.cfg.precision in HALF else 1)
        return (gathered + 1) * self.found.gradient_bytes

    @property
    def _messages(self) -> int:
        """How many messages of an exchange a worker sends one after the other."""
        buffers = math.ceil(math.log2(self.workers)) if self.found.size.buffer_bytes else 0
        if self._local:
            return 2 * (self.workers - 1) * (1 if self.cfg.diloco.exchange == "fp32" else 2)
        if self.cfg.strategy == "fsdp":
            passes = 2 * self.cfg.accumulation_steps + 1
            within, between = self._shards - 1, 2 * (self._replicas - 1)
            return self.units.count * (within * passes + between) + buffers
        if self._private:
            return 2 * (self.workers - 1) + buffers
        later = max(0, self.found.gradient_bytes - _FIRST_BUCKET)
        return 2 * (self.workers - 1) * (1 + -(-later // _BUCKET)) + buffers
