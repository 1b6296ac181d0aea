"""What any command ends with: an expected error is one paragraph, and a code tells how it went."""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from heliotrope.config.explain import explain
from heliotrope.errors import ConfigError, HeliotropeError
from heliotrope.plugin_loading import exit_said
from heliotrope.system.redaction import masked

__all__ = ["guarded"]


def guarded(action: Callable[[], object], *, interruptible: bool = True) -> int:
    """Run `action`; print an expected error in one paragraph and return its exit code.

    SIGTERM raises `SystemExit` in it. What a signal raises is let through, but for a Ctrl-C of what
    is `interruptible`.
    """
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        action()
        return 0
    except HeliotropeError as error:
        _tell(f"error: {error}\n")
        return error.exit_code
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        _tell(f"error: {explain(error)}\n")
        return ConfigError.exit_code
    except SystemExit as error:
        if (said := exit_said(error)) is None:
            raise
        _tell(f"error: {said}\n")
        return HeliotropeError.exit_code
    except OSError as error:
        _tell(_full(error) or traceback.format_exc())
        return HeliotropeError.exit_code
    except Exception:  # noqa: BLE001 - not foreseen: tell all, and let a sweep go on
        _tell(traceback.format_exc())
        return HeliotropeError.exit_code
    except KeyboardInterrupt:
        if not interruptible:
            raise
        _tell("interrupted\n")
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


def _full(error: OSError) -> str | None:
    """Return what to say of a disk that is full, such as below the output; None of other errors."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    what = error.filename or "a file, or what is printed,"
    return (
        f"error: {what} could not be written: {error.strerror}. Make room there; a run goes on "
        "with resume=true.\n"
    )


def _tell(text: str) -> None:
    sys.stderr.write(masked(text))


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Turn SIGTERM into an exception, so that workers are stopped and files closed."""
    raise SystemExit(143)
