"""One rank under torchrun: `python -m distributed.worker_main ORDER`, started by the launcher.

ORDER is JSON: directory, checkpoint, started, threads, device, and `answer`, the file in which
rank 0 leaves what came of it. The rest of the configuration is in the directory's config.yaml.
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
from heliotrope.rundir import RunDirectory

from .attempt import Attempt, Share
from .rank import run_process
from .under_torchrun import place_from_environment

_log = logging.getLogger(__name__)


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
    trained = run_process(attempt, place, load(run.data, run.seed))
    if place.rank == 0:
        Path(order["answer"]).write_text(trained.to_json())


def _die_with(parent: int) -> None:
    """End this process when the one that started it is gone, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # end at once; the driver has the last word
    _die_with(os.getppid())
    errors = get_error_handler()
    errors.initialize()
    try:
        _main(json.loads(sys.argv[1]))
    except Exception as error:  # noqa: BLE001 - the launcher raises it
        _log.exception("failed")
        errors.record_exception(error)
        os._exit(1)  # leaving the process group in order could wait for a dead peer
