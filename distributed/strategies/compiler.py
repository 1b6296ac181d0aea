"""What torch.compile needs of a machine."""

from __future__ import annotations

import os
import shutil

from heliotrope.errors import ResourceError

__all__ = ["check_compiler"]


def check_compiler() -> None:
    """Raise `ResourceError` if this machine has no C++ compiler."""
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise ResourceError(
            "distributed.compile=true needs a C++ compiler, but neither g++ nor clang++ is on "
            "PATH. Install one, or set distributed.compile=false."
        )
