"""TensorBoard and MLflow as listeners of a run's events; both packages are optional.

What they show are the numbers of metrics.jsonl under the same names, by optimizer steps.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from heliotrope.config import Run
from heliotrope.config_training import TrackingConfig
from heliotrope.errors import ConfigError
from heliotrope.rundir import flat
from heliotrope.tracking import Event

__all__ = ["check_installed", "listeners", "tell_end"]

_log = logging.getLogger(__name__)

_SHOWN = ("step", "train", "evaluate", "clients")
_STATUS = {"completed": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}  # MLflow's names
_PATIENCE = 10.0  # seconds: MLflow tries for minutes to reach a server that is gone


class _Listener(Protocol):
    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


def check_installed(cfg: TrackingConfig) -> None:
    """Raise `ConfigError` if a package that `cfg` needs is not there, without importing it."""
    for name, wanted in (("tensorboard", cfg.tensorboard), ("mlflow", cfg.mlflow is not None)):
        if wanted and find_spec(name) is None:
            value = str(getattr(cfg, name)).lower() if name == "tensorboard" else cfg.mlflow
            raise ConfigError(
                f"tracking.{name}={value} needs the package {name}, which is not installed. "
                f"Run pip install heliotrope[{name}], or leave the key out."
            )


def listeners(run: Run, directory: Path) -> tuple[_Listener, ...]:
    """Return the trackers that `run` asks for, to be given to a `Tracker`, which closes them.

    Each works in a thread of its own. One that fails, such as for a server that is gone, is
    logged and left out from then on; one that is slow is left behind at the end.
    """
    wanted: list[_Listener] = []
    if run.tracking.tensorboard:
        wanted.append(_TensorBoard(directory / "tensorboard"))
    if run.tracking.mlflow is not None:
        wanted.append(_MlFlow(run, run.tracking.mlflow, directory / ".mlflow"))
    return tuple(_Beside(listener) for listener in wanted)


def tell_end(run: Run, directory: Path, status: str) -> None:
    """Tell the trackers how a run ended that was not completed: `failed` or `interrupted`."""
    for listener in listeners(run, directory):
        listener({"event": "end", "time": time.time(), "status": status})
        listener.close()


def _values(event: Event) -> Iterator[tuple[str, float]]:
    """Yield the numbers of an event, such as `test/loss` and `timing/step_ms`."""
    for name, value in event.items():
        if "/" in name and isinstance(value, int | float):
            yield name, float(value)
    for name, value in event.get("timing", {}).items():
        yield f"timing/{name}", float(value)


class _TensorBoard:
    """Writes event files that TensorBoard shows."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None

    def __call__(self, event: Event) -> None:
        if event["event"] not in _SHOWN:
            return
        steps = event["steps"]
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # A resumed run says again what came after its checkpoint: the old points go.
            make: Any = SummaryWriter
            self._writer = make(str(self._directory), purge_step=steps)
        for name, value in _values(event):
            self._writer.add_scalar(name, value, steps, walltime=event["time"])
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _MlFlow:
    """Logs into one MLflow run, whose id the run's directory keeps for a resume."""

    def __init__(self, run: Run, uri: str, kept: Path) -> None:
        self._run = run
        self._uri = uri
        self._kept = kept
        self._client: Any = None

    def __call__(self, event: Event) -> None:
        status = event.get("status", "completed")
        if event["event"] not in (*_SHOWN, "end"):
            return
        if status in ("failed", "interrupted") and not self._kept.exists():  # it never began
            return
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        self._client = self._client or MlflowClient(self._uri)
        if not self._kept.exists():
            self._kept.write_text(self._new_run())
        run_id = self._kept.read_text()
        if event["event"] == "end":
            self._client.set_terminated(run_id, _STATUS[status])
            return
        when, steps = int(event["time"] * 1000), event["steps"]
        metrics = [Metric(name, value, when, steps) for name, value in _values(event)]
        self._client.log_batch(run_id, metrics=metrics)

    def _new_run(self) -> str:
        from mlflow.entities import Param

        found = self._client.get_experiment_by_name(self._run.name)
        experiment = (
            self._client.create_experiment(self._run.name) if found is None else found.experiment_id
        )
        made = self._client.create_run(experiment, run_name=self._kept.parent.name)
        values = flat(asdict(self._run))
        params = [Param(key, str(value)) for key, value in values.items()]
        self._client.log_batch(made.info.run_id, params=params[:100])  # MLflow takes no more
        return str(made.info.run_id)

    def close(self) -> None: ...


class _Beside:
    """Runs a tracker in a thread: neither its failure nor a slow server may hold up the run."""

    def __init__(self, listener: _Listener) -> None:
        self._listener = listener
        self._events: SimpleQueue[Event | None] = SimpleQueue()  # None is the end of them
        self._thread = threading.Thread(target=self._pass_on, daemon=True, name="tracker")
        self._thread.start()

    def __call__(self, event: Event) -> None:
        if self._thread.is_alive():
            self._events.put(event)

    def close(self) -> None:
        self._events.put(None)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            _log.error("a tracker has not taken all events in %g s: left behind", _PATIENCE)

    def _pass_on(self) -> None:
        try:
            with closing(self._listener):
                while (event := self._events.get()) is not None:
                    self._listener(event)
        except Exception:  # noqa: BLE001 - cosmetic beside the run's results
            _log.exception("a tracker failed; the run goes on without it")
