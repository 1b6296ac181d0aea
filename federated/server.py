"""The round loop: draw, train, aggregate, evaluate, save; resumable after any round.

Flower's own `Strategy.start` cannot begin at a later round, so the loop is ours; it drives
the strategy's public configure and aggregate methods.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message

from heliotrope.config import FederatedConfig, Run
from heliotrope.config.schedule import schedule_of
from heliotrope.evaluation import named
from heliotrope.metrics import Metrics
from heliotrope.runs.checkpoint import Checkpoint
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.events import Tracker
from heliotrope.runs.outcome import Target
from heliotrope.runs.pruning import Pruning, PruningRule

from .attacks.data import TRIGGERED
from .components import Components
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
from .server_state import RoundSaver, ServerState
from .strategies import adds_evaluations
from .strategies.mean import MeanStrategy
from .strategies.robust import RobustStrategy

__all__ = ["Server"]

_log = logging.getLogger(__name__)


class Server:
    """Runs the rounds of one federated training."""

    def __init__(
        self,
        run: Run,
        components: Components,
        grid: CohortGrid,
        tracker: Tracker,
        directory: RunDirectory,
        say: Callable[[str], None],
        protection: Protection | None = None,
    ) -> None:
        context = components.context
        self._run = run
        self._start = context.global_weights
        self._task = context.task
        self._population = context.population
        self._strategy = components.strategy
        self._grid = grid
        self._tracker = tracker
        self._directory = directory.path
        self.protection = protection
        self._say = say  # a line to the person who watches
        holding = len(context.population.evaluating())
        self._evaluating = clients_to_evaluate(run.federated, holding) if holding else 0
        self._said_alone = False
        self._model_bytes = sum(v.nbytes for v in context.global_weights.values())
        pruning = Pruning(PruningRule.read(self._directory), self._last_round)
        self.target = Target(run.target, context.task.metrics.directions, pruning)
        self.state = ServerState(to_record(context.global_weights))
        self.final: dict[str, Metrics] = {}
        self.attacked: dict[str, float] = {}  # how far a backdoor has come, by its metric
        self.success: dict[str, float] = {}  # the same, as result.json says it of the attack
        self._saver = RoundSaver(run, components, grid, tracker, directory, self.target, protection)

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
        self._saver.note(self.state)
        with self.state.clock.kept_in(self._directory):
            try:
                self._train()
            except BaseException:
                self._saver.save_last(self.state)
                raise
        return self.state

    def _train(self) -> None:
        stopped = self.target.stop or self._evaluate_if_due()
        while self.state.server_round < self._last_round and not stopped:
            self._round(self.state.server_round + 1)
            stopped = self._evaluate_if_due()
            due = self.state.server_round % self._cfg.checkpoint_every == 0
            if stopped or due or self._saver.is_old:
                self._saver.save(self.state)
        if not self.final:  # nothing was left to train, or the last round was not evaluated
            self._observe(self._evaluate())
            self._saver.note(self.state)
        self._saver.save(self.state)

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
        self._saver.note(self.state)

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
        """Evaluate the present round if that is still to be done; True if the run is to end there.

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
        self._saver.note(self.state)
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

    def resume(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint; events after it are dropped, to be written again."""
        self._saver.restore(saved, self.state)
