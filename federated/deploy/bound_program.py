"""Runs a program that ends when the process which has started it does, even if that is killed.

    python -I bound_program.py PARENT COMMAND...

Becomes COMMAND, and is sent SIGTERM when PARENT, or the thread of it that started this, has ended
(prctl(2), PR_SET_PDEATHSIG: Linux only, elsewhere it is no more than COMMAND). Not imported: it
takes no longer to start than Python alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Bind this process to its parent, and become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has ended before it could be bound to
            raise SystemExit(1)
    os.execvp(command[0], command)  # noqa: S606 - the command of `Program`


if __name__ == "__main__":
    main()
