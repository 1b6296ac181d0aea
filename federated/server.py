"""The round loop: draw, train, aggregate, evaluate, save; resumable after any round.

Flower's own `Strategy.start` cannot begin at a later round, so the loop is ours; it drives
the strategy's public configure and aggregate methods.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from heliotrope import checkpoint
from heliotrope.checkpoint import Checkpoint
from heliotrope.config import FederatedConfig, Run
from heliotrope.data import Scaling
from heliotrope.errors import QuorumError, RunFailedError
from heliotrope.evaluation import named
from heliotrope.metrics import ClassificationMetrics
from heliotrope.result import Target
from heliotrope.tracking import Clock, Progress, Tracker

from .choice import Choice
from .client import Clients
from .grid import CohortGrid
from .messages import read_arrays, to_record
from .strategies.state import restore, snapshot

__all__ = ["Server", "ServerState"]

_log = logging.getLogger(__name__)

_SAVE_SECONDS = 30.0  # a checkpoint is also due when the last one is this old


@dataclass
class ServerState:
    """What a round changes, and a checkpoint holds."""

    arrays: ArrayRecord
    server_round: int = 0
    counts: Progress = field(default_factory=Progress)
    clock: Clock = field(default_factory=Clock)
    startup_seconds: float | None = None


class Server:
    """Runs the rounds of one federated training."""

    def __init__(
        self,
        run: Run,
        clients: Clients,
        scaling: Scaling,
        strategy: Strategy,
        grid: CohortGrid,
        tracker: Tracker,
        checkpoints: Path,
    ) -> None:
        self._run = run
        self._model = clients.model
        self._task = clients.task
        self._scaling = scaling
        self._population = clients.population
        self._strategy = strategy
        self._grid = grid
        self._tracker = tracker
        self._checkpoints = checkpoints
        self._evaluating = clients.population.evaluating()
        self._model_bytes = sum(v.nbytes for v in clients.model.state_dict().values())
        self._saved_at = time.monotonic()
        self.target = Target(run.target)
        self.state = ServerState(to_record(clients.model.state_dict()))
        self.final: dict[str, ClassificationMetrics] = {}

    @property
    def _cfg(self) -> FederatedConfig:
        return self._run.federated

    def train(self) -> ServerState:
        """Run the remaining rounds, or up to the target, and return the final state.

        Raises `QuorumError` if too few clients of a round succeed, `RunFailedError` if the
        strategy gives no usable model. The last checkpoint then holds the last good round.
        """
        stopped = self.target.stop
        while self.state.server_round < self._cfg.rounds and not stopped:
            measured_now = self._grid.choice is None  # and must be kept: it decides the rounding
            stopped = self._round(self.state.server_round + 1)
            old = time.monotonic() - self._saved_at > _SAVE_SECONDS
            due = self.state.server_round % self._cfg.checkpoint_every == 0
            if measured_now or stopped or old or due:
                self.save()
        if not self.final:  # nothing was left to train, or the last round was not evaluated
            self._evaluate(self._arrays())
        self.save()
        return self.state

    def _round(self, server_round: int) -> bool:
        """Run one round; True if the target says to stop."""
        if self.state.startup_seconds is None:
            self.state.startup_seconds = self.state.clock.seconds - self.state.clock.seconds_before
        started = time.monotonic()
        cohort = self._population.draw(server_round, self._cfg.clients_per_round)
        self._grid.offer(cohort)
        messages = self._strategy.configure_train(
            server_round, self.state.arrays, ConfigRecord(), self._grid
        )
        replies = self._grid.send_and_receive(messages)
        succeeded = sum(len(update.clients) for update in self._grid.updates)
        self._check_quorum(server_round, succeeded, len(cohort))
        arrays, _ = self._strategy.aggregate_train(server_round, replies)
        self._accept(server_round, arrays)
        self.state.clock.train_seconds += time.monotonic() - started
        self._account(len(cohort))
        self._emit("train", {"train/loss": self._train_loss()}, clients=len(cohort))
        last = server_round == self._cfg.rounds
        if last or server_round % self._cfg.evaluate_every == 0:
            return self._evaluate_round(server_round)
        return False

    def _check_quorum(self, server_round: int, succeeded: int, drawn: int) -> None:
        failures = self._grid.failures
        for failure in failures:
            _log.error(
                "round %d: client %d failed: %s", server_round, failure.client, failure.reason
            )
            self._tracker.emit(
                "failure", round=server_round, client=failure.client, reason=failure.reason
            )
        needed = max(1, math.ceil(self._cfg.quorum * drawn))
        if succeeded < needed:
            self.save()
            names = ", ".join(str(failure.client) for failure in failures[:8])
            remedy = (
                "Lower federated.quorum to go on without them, with resume=true "
                f"hydra.run.dir={self._checkpoints.parent}."
                if succeeded
                else "If they diverged, start again with a lower optimizer.lr."
            )
            raise QuorumError(
                f"round {server_round}: {succeeded} of {drawn} clients succeeded, "
                f"federated.quorum={self._cfg.quorum:g} asks for {needed}. Failed: client {names}"
                f"{', ...' if len(failures) > 8 else ''} ({failures[0].reason}). {remedy}"
            )

    def _accept(self, server_round: int, arrays: ArrayRecord | None) -> None:
        """Take the strategy's model as the new one, if it is one."""
        name = self._cfg.strategy.name
        if arrays is None:
            raise RunFailedError(
                f"round {server_round}: strategy {name} gave no model from "
                f"{self._cfg.clients_per_round - len(self._grid.failures)} updates; the run's "
                "log has its reason."
            )
        for key, value in read_arrays(arrays).items():
            if not bool(torch.isfinite(value).all()):
                raise RunFailedError(
                    f"round {server_round}: strategy {name} made {key} NaN or infinite. Lower "
                    "federated.strategy.eta or optimizer.lr."
                )
        self.state.arrays = arrays
        self.state.server_round = server_round

    def _account(self, cohort: int) -> None:
        counts = self.state.counts
        counts.steps += sum(update.steps for update in self._grid.updates)
        counts.examples_seen += sum(update.seen for update in self._grid.updates)
        counts.bytes_down += cohort * self._model_bytes
        succeeded = sum(len(update.clients) for update in self._grid.updates)
        counts.bytes_up += succeeded * self._model_bytes

    def _train_loss(self) -> float:
        seen = sum(update.seen for update in self._grid.updates)
        return sum(update.loss_sum for update in self._grid.updates) / seen

    def _arrays(self) -> dict[str, Tensor]:
        return read_arrays(self.state.arrays)

    def _evaluate_round(self, server_round: int) -> bool:
        values = self._evaluate(self._arrays())
        self._emit("evaluate", values)
        if self._evaluating:
            self._evaluate_clients(server_round)
        return self.target.observe(
            values, {"round": server_round}, self.state.counts, self.state.clock
        )

    def _evaluate(self, arrays: Mapping[str, Tensor]) -> dict[str, float]:
        """Central evaluation, by the shared module, on the validation and test splits."""
        self.final = self._grid.pool.evaluate_centrally(arrays)
        values: dict[str, float] = {}
        for name, metrics in self.final.items():
            values |= named(metrics, name)
        return values

    def _evaluate_clients(self, server_round: int) -> None:
        """Federated evaluation: every client on its held-out examples, sums added exactly."""
        self._grid.offer(self._evaluating)
        messages = self._strategy.configure_evaluate(
            server_round, self.state.arrays, ConfigRecord(), self._grid
        )
        replies = self._grid.send_and_receive(messages)
        self._check_quorum(server_round, len(self._grid.evaluations), len(self._evaluating))
        summed = self._strategy.aggregate_evaluate(server_round, replies)
        assert summed is not None
        total = type(self._task.no_metrics()).from_vector(_vector(summed["sums"]))
        self.state.counts.bytes_down += len(self._evaluating) * self._model_bytes
        clients = [
            {"client": client, "examples": metrics.count, **metrics.compute()}
            for client, metrics in self._grid.evaluations.items()
        ]
        self._emit("clients", named(total, "clients"), clients=clients)

    def _emit(self, event: str, values: Mapping[str, float], **fields: Any) -> None:
        unit = {"round": self.state.server_round}
        self._tracker.progress(event, self.state.counts, self.state.clock, unit, **values, **fields)

    def save(self) -> None:
        """Write a checkpoint of the last completed round."""
        arrays, shapes = snapshot(self._strategy)
        self._tracker.sync()
        checkpoint.save(
            self._checkpoints,
            Checkpoint(
                progress=self.state.server_round,
                model=self._arrays(),
                arrays=arrays,
                state={
                    "round": self.state.server_round,
                    "scaling": asdict(self._scaling),
                    "strategy": shapes,
                    "client_training": asdict(self._grid.choice) if self._grid.choice else None,
                    "counts": asdict(self.state.counts),
                    "seconds": self.state.clock.seconds,
                    "train_seconds": self.state.clock.train_seconds,
                    "target": self.target.saved(),
                    "metrics_offset": self._tracker.offset,
                },
            ),
        )
        self._saved_at = time.monotonic()

    def resume(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint; events after it are dropped, to be written again."""
        path = checkpoint.path_of(self._checkpoints, saved.progress)
        checkpoint.load_weights(self._model, saved.model, path)
        state = saved.state
        restore(self._strategy, saved.arrays, state["strategy"])
        choice = state["client_training"]
        self._grid.choice = None if choice is None else Choice(**choice)
        self._tracker.rewind(state["metrics_offset"])
        self.target.restore(state["target"])
        self.state.arrays = to_record(saved.model)
        self.state.server_round = saved.progress
        self.state.counts = Progress(**state["counts"])
        self.state.clock.seconds_before = state["seconds"]
        self.state.clock.train_seconds = state["train_seconds"]


def _vector(value: Any) -> Any:
    return torch.tensor(value, dtype=torch.float64).numpy()
