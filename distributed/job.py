"""The driver of a data-parallel run: checks, attempts until one succeeds, then the results."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from heliotrope import checkpoint
from heliotrope.checkpoint import Checkpoint
from heliotrope.config import Run
from heliotrope.data import Dataset, load
from heliotrope.display import Display
from heliotrope.errors import RunFailedError, WorkerError
from heliotrope.finish import finish
from heliotrope.models import build, parameter_count
from heliotrope.resources import peak_rss_bytes
from heliotrope.result import Outcome
from heliotrope.rundir import RunDirectory
from heliotrope.tasks import Task, task_of
from heliotrope.tracking import Clock, Tracker, log_to, stop_logging

from . import fence
from .attempt import Attempt, Trained, WorkerFailure
from .launchers import Launcher, opened

__all__ = ["run_job"]

_log = logging.getLogger(__name__)
