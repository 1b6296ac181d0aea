"""One rank under torchrun, started by the launcher: `torchrun_worker ORDER`.

ORDER is JSON: directory, checkpoint, start, threads, device, and `scratch`, the folder in which
the driver's word is found and rank 0's answer left. The rest of the configuration is in the
directory's config.yaml.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from heliotrope.config import from_resolved
from heliotrope.errors import HeliotropeError
from heliotrope.plugin_loading import raised
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.pruning import PruningRule
from heliotrope.system.process_exit import leave

from ..attempt import AttemptStart, RunAttempt, WorkerResources
from ..loop.training_data import training_data
from ..topology import topology_from_environment
from .failures import RankError
from .process import train_process
from .torchrun_files import ABORT, ANSWER, STEPPED, STOP, TRACKED

_log = logging.getLogger(__name__)

_GRACE = 0.5  # seconds for the driver, which had the same signal, to leave its word


def _main(order: dict[str, Any]) -> None:
    start = AttemptStart.from_dict(order["start"])
    directory = Path(order["directory"])
    run = from_resolved(RunDirectory(directory).config, trusted=True)
    run.tracking.mlflow = os.environ.get(TRACKED)
    attempt = RunAttempt(
        run=run,
        directory=directory,
        checkpoint=None if order["checkpoint"] is None else int(order["checkpoint"]),
        start=start,
        resources=WorkerResources(int(order["threads"]), order["device"]),
        pruning=PruningRule.read(directory),
    )
    topology = topology_from_environment()
    scratch = Path(order["scratch"])
    stepped = False

    def asked() -> bool:  # after a step
        nonlocal stepped
        if not stepped:
            (scratch / STEPPED).touch()
            stepped = True
        return (scratch / STOP).exists()

    trained = train_process(attempt, topology, training_data(run), asked)
    if topology.rank == 0:
        (scratch / ANSWER).write_text(trained.to_json())


def _die_with(parent: int, scratch: Path) -> None:
    """End this process when its parent says so, or is gone, however that ended."""

    def watch() -> None:
        while os.getppid() == parent and not (scratch / ABORT).exists():
            time.sleep(0.1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def _hear(scratch: Path) -> None:
    """Take signals as the driver does: those sent to the whole group are its to answer.

    SIGTERM without its word comes from the agent, because another rank has failed. A thread
    waits for it, which also hears it while this rank waits for that one.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.read(reader, 1):
            time.sleep(_GRACE)
            if not (scratch / STOP).exists():
                os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="signals").start()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    _die_with(os.getppid(), Path(given["scratch"]))
    _hear(Path(given["scratch"]))
    errors = get_error_handler()
    errors.initialize()
    try:
        _main(given)
    except Exception as error:  # noqa: BLE001 - the launcher raises it
        _log.exception("failed")
        known = isinstance(error, HeliotropeError)
        errors.record_exception(error if known else RankError(raised(error, "")))
        os._exit(1)  # leaving the process group in order could wait for a dead peer
    leave(0)  # torch's own threads end now and then by an abort while libraries unload
