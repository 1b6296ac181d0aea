"""One rank under torchrun: `python -m distributed.worker_main ORDER`, started by the launcher.

ORDER is JSON: directory, checkpoint, started, threads, device, and `scratch`, the folder in which
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

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from heliotrope.config import from_resolved
from heliotrope.data import load
from heliotrope.leaving import leave
from heliotrope.rundir import RunDirectory

from .attempt import Attempt, Share
from .rank import run_process
from .scratch import ABORT, ANSWER, STOP
from .under_torchrun import place_from_environment

_log = logging.getLogger(__name__)

_GRACE = 0.5  # seconds for the driver, which had the same signal, to leave its word


def _main(order: dict[str, str]) -> None:
    directory = Path(order["directory"])
    run = from_resolved(RunDirectory(directory).config)
    attempt = Attempt(
        run=run,
        directory=directory,
        checkpoint=None if order["checkpoint"] is None else int(order["checkpoint"]),
        started=float(order["started"]),
        share=Share(int(order["threads"]), order["device"]),
    )
    place = place_from_environment()
    stop = Path(order["scratch"]) / STOP
    trained = run_process(attempt, place, load(run.data, run.seed), stop.exists)
    if place.rank == 0:
        (Path(order["scratch"]) / ANSWER).write_text(trained.to_json())


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
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told)
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.read(heard, 1):
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
        errors.record_exception(error)
        os._exit(1)  # leaving the process group in order could wait for a dead peer
    leave(0)  # torch's own threads end now and then by an abort while libraries unload
