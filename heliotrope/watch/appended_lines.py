"""The lines of a file that grows, each once; from the first again where it was rewritten."""

from __future__ import annotations

import os
from pathlib import Path

from heliotrope.system.regular_files import open_regular

__all__ = ["AppendedLines"]

_COMPARED = 256  # bytes before what is new, by which a file that was rewritten is known


class AppendedLines:
    """Reads `path` in parts: call `read` until `behind` is False, and again once it has grown.

    A file that is not there has no lines. A line longer than what is read at once is left out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.behind = False  # there is more to read
        self._state: tuple[int, int, int] | None = None  # of the file when it was last read
        self._restart()

    def _restart(self) -> None:
        self._offset = 0
        self._before = b""  # the last bytes before the offset
        self._in_long_line = False

    def read(self, most: int) -> tuple[bool, list[bytes]]:
        """Return whether the lines begin anew, and those after the ones before; of `most` bytes."""
        try:
            descriptor, about = open_regular(self._path)
        except OSError:
            anew, self._state, self.behind = self._offset > 0, None, False
            self._restart()
            return anew, []
        try:
            state = (about.st_ino, about.st_size, about.st_mtime_ns)
            if state == self._state and not self.behind:
                return False, []
            anew = not self._goes_on(descriptor)
            if anew:
                self._restart()
            content = os.pread(descriptor, most, self._offset)
        finally:
            os.close(descriptor)
        self._state = state
        self.behind = len(content) == most
        return anew, self._whole_lines(content)

    def _goes_on(self, descriptor: int) -> bool:
        """Return whether the file still holds what stood before the offset."""
        compared = len(self._before)
        return os.pread(descriptor, compared, self._offset - compared) == self._before

    def _whole_lines(self, content: bytes) -> list[bytes]:
        end = content.rfind(b"\n") + 1
        if not end and self.behind:
            self._in_long_line, end = True, len(content)
            lines = []
        else:
            lines = content[:end].split(b"\n")[:-1]
            if lines and self._in_long_line:
                self._in_long_line = False
                del lines[0]
        self._offset += end
        self._before = (self._before + content[:end])[-_COMPARED:]
        return lines
