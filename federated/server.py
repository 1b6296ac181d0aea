"""The round loop: draw, train, aggregate, evaluate, save; resumable after any round.

Flower's own `Strategy.start` cannot begin at a later round, so the loop is ours; it drives
the strategy's public configure and aggregate methods.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from heliotrope.config import FederatedConfig, Run
from heliotrope.config.schedule import schedule_of
from heliotrope.data import Preparation
from heliotrope.errors import ConfigError, HeliotropeError, RunFailedError
from heliotrope.evaluation import named
from heliotrope.metrics import Metrics
from heliotrope.runs import checkpoint
from heliotrope.runs.changed_plugins import going_on
from heliotrope.runs.checkpoint import Checkpoint
from heliotrope.runs.clock import Clock
from heliotrope.runs.events import Progress, Tracker
from heliotrope.runs.outcome import Target

from .engine.context import TrainingContext
from .engine.execution import ExecutionPlan
from .flower.grid import CohortGrid
from .flower.messages import (
    CLIENT_MOMENTUM,
    LEARNING_RATE,
    read_arrays,
    sums_of,
    to_record,
)
from .population.evaluated import clients_to_evaluate, rows_due
from .protection import Protection
from .remedies import naming
from .round_checks import check_quorum, checked_model
from .strategies import adds_evaluations
from .strategies.mean import MeanStrategy
from .strategies.robust import RobustStrategy
from .strategies.state import restore, snapshot

__all__ = ["TRIGGERED", "Server", "ServerState"]

_log = logging.getLogger(__name__)

TRIGGERED = "attack"
"""The split of test examples with a backdoor's trigger, among those that no client holds."""

_SAVE_SECONDS = 30.0  # a checkpoint is also due when the last one is this old


@dataclass
class ServerState:
    """What a round changes, and a checkpoint holds."""

    arrays: ArrayRecord
    server_round: int = 0
    counts: Progress = field(default_factory=Progress)
    clock: Clock = field(default_factory=Clock)
    startup_seconds: float | None = None
    evaluated: bool = True  # this round, or there is nothing to evaluate yet


@dataclass(frozen=True)
class _Noted:
    """What a checkpoint holds, of the moment when it was noted."""

    model: ArrayRecord
    arrays: dict[str, Tensor]  # of the strategy
    state: dict[str, Any]


class Server:
    """Runs the rounds of one federated training."""

    def __init__(
        self,
        run: Run,
        context: TrainingContext,
        preparation: Preparation,
        strategy: Strategy,
        grid: CohortGrid,
        tracker: Tracker,
        checkpoints: Path,
        say: Callable[[str], None],
        protection: Protection | None = None,
    ) -> None:
        self._run = run
        self._start = context.global_weights
        self._task = context.task
        self._preparation = preparation.to_json()
        self._population = context.population
        self._strategy = strategy
        self._grid = grid
        self._tracker = tracker
        self._checkpoints = checkpoints
        self._directory = checkpoints.parent
        self.protection = protection
        self._say = say  # a line to the person who watches
        holding = len(context.population.evaluating())
        self._evaluating = clients_to_evaluate(run.federated, holding) if holding else 0
        self._said_alone = False
        self._model_bytes = sum(v.nbytes for v in context.global_weights.values())
        self._saved_at = time.monotonic()
        self.target = Target(run.target, context.task.metrics.directions)
        self.state = ServerState(to_record(context.global_weights))
        self.final: dict[str, Metrics] = {}
        self.attacked: dict[str, float] = {}  # how far a backdoor has come, by its metric
        self.success: dict[str, float] = {}  # the same, as result.json says it of the attack
        self._noted: _Noted
        self._saved: _Noted | None = None

    @property
    def _cfg(self) -> FederatedConfig:
        return self._run.federated

    @property
    def _last_round(self) -> int:
        return self._cfg.rounds if self.protection is None else self.protection.last_round

    def train(self) -> ServerState:
        """Run the remaining rounds, or up to the target, and return the final state.

        Raises `QuorumError` if too few clients of a round succeed, `RunFailedError` if the
        strategy gives no usable model. However it ends, by a signal too, the last checkpoint
        then holds the last whole round.
        """
        self._note_round()
        with self.state.clock.kept_in(self._directory):
            try:
                self._train()
            except BaseException:
                self._save_last_round()
                raise
        return self.state

    def _train(self) -> None:
        stopped = self.target.stop or self._evaluate_if_due()
        while self.state.server_round < self._last_round and not stopped:
            self._round(self.state.server_round + 1)
            stopped = self._evaluate_if_due()
            old = time.monotonic() - self._saved_at > _SAVE_SECONDS
            due = self.state.server_round % self._cfg.checkpoint_every == 0
            if stopped or old or due:
                self.save()
        if not self.final:  # nothing was left to train, or the last round was not evaluated
            self._observe(self._evaluate())
            self._note_round()
        self.save()

    def _round(self, server_round: int) -> None:
        """Train one round."""
        if self.state.startup_seconds is None:
            self.state.startup_seconds = self.state.clock.seconds - self.state.clock.seconds_before
        started = time.monotonic()
        cohort = self._draw(server_round)
        self._grid.offer(cohort)
        self._grid.noise = None if self.protection is None else self.protection.noise
        with self._strategys(server_round):
            messages = self._messages(server_round, cohort)
        replies = self._grid.send_and_receive(messages)
        succeeded = sum(len(update.clients) for update in self._grid.updates)
        if cohort:
            self._check_quorum(server_round, succeeded, len(cohort))
        mean = self._grid.mean
        if self.protection is not None:
            mean = self.protection.release(server_round, mean, self._start)
        with self._strategys(server_round):
            if mean is not None and isinstance(self._strategy, MeanStrategy):
                arrays: ArrayRecord | None = self._strategy.aggregate_mean(server_round, mean)
            elif not cohort:  # and nothing is released of nobody: the model stays
                arrays = self.state.arrays
            elif isinstance(self._strategy, RobustStrategy) and self._strategy.takes_updates:
                arrays = self._strategy.aggregate_updates(server_round, self._grid.updates)
            else:
                arrays, _ = self._strategy.aggregate_train(server_round, replies)
        self._accept(server_round, arrays)
        self.state.clock.train_seconds += time.monotonic() - started
        self._account(len(cohort))
        found = dict(self._grid.numbers)
        if isinstance(self._strategy, RobustStrategy):
            found |= self._strategy.numbers
        numbers = {f"train/{name}": value for name, value in found.items()}
        if self.protection is not None:
            numbers |= self.protection.numbers(server_round)
        self._emit("train", {"train/loss": self._train_loss(), **numbers}, clients=len(cohort))
        self.state.evaluated = False
        self._note_round()

    def _draw(self, server_round: int) -> list[int]:
        if self.protection is not None:
            return self.protection.draw(server_round)
        return self._population.draw(server_round, self._cfg.clients_per_round)

    def _messages(self, server_round: int, cohort: Sequence[int]) -> Iterable[Message]:
        """Return what the strategy tells the cohort; an empty one, of a private run, nothing."""
        if not cohort:
            if isinstance(self._strategy, MeanStrategy):
                self._strategy.begin_round(self.state.arrays)
            return []
        return self._strategy.configure_train(
            server_round, self.state.arrays, self._config(server_round), self._grid
        )

    def _strategys(self, server_round: int) -> AbstractContextManager[None]:
        """Name the strategy, and its line, if it raises an error in the block."""
        what = f"round {server_round}: federated/strategy={self._cfg.strategy.name}"
        return naming(self._run, self._directory, what)

    def _config(self, server_round: int) -> ConfigRecord:
        """Return what clients are told besides the weights, such as a rate of the round's own."""
        config = ConfigRecord()
        if self._cfg.client_momentum:
            config[CLIENT_MOMENTUM] = float(self._cfg.client_momentum)
        if self.protection is not None:
            config.update(self.protection.told(server_round))
        schedule, rounds = schedule_of(self._cfg), self._cfg.lr_horizon or self._cfg.rounds
        if schedule.changes:
            config[LEARNING_RATE] = self._run.optimizer.lr * schedule.factor(
                server_round - 1, rounds
            )
        return config

    def _check_quorum(self, server_round: int, succeeded: int, drawn: int) -> None:
        failures = self._grid.failures
        for failure in failures:
            _log.error(
                "round %d: client %d failed: %s", server_round, failure.client, failure.reason
            )
            self._tracker.emit(
                "failure", round=server_round, client=failure.client, reason=failure.reason
            )
        check_quorum(
            self._run, self._directory, server_round, failures, succeeded, drawn, self.state.arrays
        )

    def _accept(self, server_round: int, arrays: ArrayRecord | None) -> None:
        """Take the strategy's model as the new one, if it is one."""
        updates = self._cfg.clients_per_round - len(self._grid.failures)
        self.state.arrays = checked_model(
            self._run, server_round, self.state.arrays, arrays, updates
        )
        self.state.server_round = server_round
        self._grid.keep_states()

    def _account(self, cohort: int) -> None:
        counts = self.state.counts
        counts.steps += sum(update.steps for update in self._grid.updates)
        counts.examples_seen += sum(update.seen for update in self._grid.updates)
        counts.bytes_down += cohort * self._grid.bytes_each
        succeeded = sum(len(update.clients) for update in self._grid.updates)
        counts.bytes_up += succeeded * self._grid.bytes_each

    def _train_loss(self) -> float:
        weight = sum(update.weight_seen for update in self._grid.updates)
        return self._grid.loss_sum / max(1, weight)

    def _evaluate_if_due(self) -> bool:
        """Evaluate the present round if that is still to be done; True if the target says to stop.

        A run that was stopped between a round and its evaluation does it when it goes on.
        """
        server_round = self.state.server_round
        due = server_round == self._last_round or server_round % self._cfg.evaluate_every == 0
        if self.state.evaluated or not due:
            return False
        values = self._evaluate()
        self._emit("evaluate", values)
        if self._evaluating:
            self._evaluate_clients(server_round)
        stop = self._observe(values)
        self.state.evaluated = True
        self._note_round()
        return stop

    def _observe(self, values: Mapping[str, float]) -> bool:
        """Show the target an evaluation; return whether to stop."""
        unit = {"round": self.state.server_round}
        return self.target.observe(values, unit, self.state.counts, self.state.clock)

    def _evaluate(self) -> dict[str, float]:
        """Evaluate the validation and test splits by the shared module, centrally.

        Where clients keep a part of the weights, each evaluates its own examples of the splits.
        """
        arrays = read_arrays(self.state.arrays)
        states = self._grid.personal_of(range(len(self._population)))
        what = f"round {self.state.server_round}: the evaluation"
        with naming(self._run, self._directory, what):
            if states is None:
                self.final = self._grid.pool.evaluate_centrally(arrays)
            else:
                self.final = self._grid.pool.evaluate_splits_of(arrays, states)
        values: dict[str, float] = {}
        if TRIGGERED in self.final:  # all are labelled with the target
            right = self.final.pop(TRIGGERED).compute()["accuracy"]
            self.attacked = {f"{TRIGGERED}/success": right}
            self.success = {"success_rate": right}
        for name, metrics in self.final.items():
            values |= named(metrics, name)
        return values | self.attacked

    def _evaluate_clients(self, server_round: int) -> None:
        """Federated evaluation: clients on their held-out examples, sums added exactly."""
        drawn = self._population.draw_evaluating(server_round, self._evaluating)
        replies = None
        if adds_evaluations(self._strategy):  # a message takes longer than a client's evaluation
            self._grid.evaluate(read_arrays(self.state.arrays), drawn)
        else:
            self._grid.offer(drawn)
            with self._strategys(server_round):
                messages = self._strategy.configure_evaluate(
                    server_round, self.state.arrays, ConfigRecord(), self._grid
                )
            replies = self._grid.send_and_receive(messages)
        done = self._grid.evaluations
        assert done is not None
        if done.alone is not None and not self._said_alone:
            self._said_alone = True
            _log.warning("clients are evaluated one at a time: %s", done.alone)
            self._say(f"{self._run.model.name} is evaluated one client at a time: {done.alone}")
        self._check_quorum(server_round, len(done.clients), len(drawn))
        total = done.total
        if replies is not None:
            with self._strategys(server_round):
                summed = self._strategy.aggregate_evaluate(server_round, replies)
            assert summed is not None
            total = self._task.metrics.from_vector(sums_of(summed))
        self.state.counts.bytes_down += len(drawn) * self._model_bytes
        due = rows_due(self._cfg, server_round)
        rows = {"clients": done.rows()} if due else {}
        self._emit("clients", named(total, "clients"), evaluated=len(done.clients), **rows)

    def _emit(self, event: str, values: Mapping[str, float], **fields: Any) -> None:
        unit = {"round": self.state.server_round}
        self._tracker.progress(event, self.state.counts, self.state.clock, unit, **values, **fields)

    def _note_round(self) -> None:
        """Note what a checkpoint of the present state holds.

        The next round changes the strategy before its model is accepted, and may be cut off
        anywhere: then this is what is saved.
        """
        try:
            arrays, shapes = snapshot(self._strategy)
        except ConfigError as error:
            done = self.state.server_round
            if done == 0:  # nothing was trained yet
                raise
            raise RunFailedError(
                f"round {done}: {error} What was trained up to round {done - 1} is saved. Mend it "
                f"and go on: {going_on(self._run, self._directory)}."
            ) from error
        if self._grid.states is not None:
            arrays |= self._grid.states.snapshot()
        arrays |= self._grid.attackers_snapshot()
        self._noted = _Noted(
            self.state.arrays,
            arrays,
            {
                "round": self.state.server_round,
                "evaluated": self.state.evaluated,
                "preparation": self._preparation,
                "strategy": shapes,
                "counts": asdict(self.state.counts),
                "train_seconds": self.state.clock.train_seconds,
                "target": self.target.saved(),
                "metrics_offset": self._tracker.offset,
                "privacy": None if self.protection is None else self.protection.saved(),
            },
        )

    def save(self) -> None:
        """Write a checkpoint of the last whole round, evaluated or not."""
        noted = self._noted
        self._tracker.sync()
        checkpoint.save(
            self._checkpoints,
            Checkpoint(
                progress=noted.state["round"],
                model=read_arrays(noted.model),
                arrays=noted.arrays,
                state={
                    **noted.state,
                    "client_training": asdict(self._grid.execution)
                    if self._grid.execution
                    else None,
                    "seconds": self.state.clock.seconds,
                },
            ),
        )
        self._saved_at, self._saved = time.monotonic(), noted

    def _save_last_round(self) -> None:
        """Save it, if it is not saved yet; the reason why the run ends is told in any case."""
        try:
            if self._noted is not self._saved:
                self.save()
        except (HeliotropeError, OSError):
            _log.exception("the last round could not be saved")

    def resume(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint; events after it are dropped, to be written again."""
        path = checkpoint.path_of(self._checkpoints, saved.progress)
        checkpoint.check_weights(self._start, saved.model, path)
        with checkpoint.understood(path):
            self._restore(saved, path)

    def _restore(self, saved: Checkpoint, path: Path) -> None:
        state = saved.state
        checkpoint.check_preparation(self._preparation, state, path)
        restore(self._strategy, saved.arrays, state["strategy"])
        if self.protection is not None:
            self.protection.begin(saved.progress, state.get("privacy") or {})
        if self._grid.states is not None:
            self._grid.states.restore(saved.arrays)
        self._grid.restore_attackers(saved.arrays)
        execution = state["client_training"]
        self._grid.execution = None if execution is None else ExecutionPlan(**execution)
        self.target.restore(state["target"])
        self.state.arrays = to_record(saved.model)
        self.state.server_round = saved.progress
        self.state.evaluated = state.get("evaluated", True)  # before, only then it was saved
        self.state.counts = Progress(**state["counts"])
        self.state.clock.train_seconds = float(state["train_seconds"])
        # Last, for it drops what the run has said: of a state that makes sense, nothing fails now.
        seconds, offset = float(state["seconds"]), int(state["metrics_offset"])
        self.state.clock.resume(max(seconds, self._tracker.rewind(offset)))
