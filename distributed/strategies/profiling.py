"""A trace of a few training steps, for chrome://tracing or Perfetto."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.profiler import profile, schedule

__all__ = ["StepProfiler"]

_log = logging.getLogger(__name__)

_SKIPPED, _WARM, _TRACED = 2, 1, 3  # steps: the first ones load libraries and settle caches


class StepProfiler:
    """Traces some of the first steps of this process into `path`; the rest run at full speed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._steps = 0
        self._profile: profile | None = None

    def before_steps(self) -> None:
        """Begin; to be called right before the first step."""
        if self._profile is None and not self._steps:
            self._profile = profile(
                schedule=schedule(wait=_SKIPPED, warmup=_WARM, active=_TRACED, repeat=1),
                on_trace_ready=self._write,
                record_shapes=True,
            )
            self._profile.start()

    def after_step(self) -> None:
        """Count a step; the last of those to be traced writes the file."""
        if self._profile is None:
            return
        self._steps += 1
        self._profile.step()
        if self._steps == _SKIPPED + _WARM + _TRACED:
            self.close()

    def close(self) -> None:
        """Stop tracing; a run of few steps writes what there is."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
            if not self._path.exists():
                _log.warning(
                    "%s is not written: the run has no more than %d steps",
                    self._path,
                    _SKIPPED + _WARM,
                )

    def _write(self, trace: torch.profiler.profile) -> None:
        self._path.parent.mkdir(exist_ok=True)
        trace.export_chrome_trace(str(self._path))
        _log.info("trace of %d steps in %s", _TRACED, self._path)
