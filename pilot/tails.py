"""The ends of logs, for reports to people."""

from __future__ import annotations

import logging
import os
from collections import deque
from pathlib import Path

from common.log import UtcFormatter
from pilot.payload.safefile import UnsafeFileError, open_regular

TAIL_BYTES = 8192
TAIL_LINES = 200


def file_tail(path: Path, size: int = TAIL_BYTES) -> str:
    """The last ``size`` bytes of a payload's file as text; empty when it is not there or no regular file."""
    try:
        descriptor = open_regular(path)
    except (OSError, UnsafeFileError):
        return ""
    with os.fdopen(descriptor, "rb") as stream:
        stream.seek(max(0, os.fstat(descriptor).st_size - size))
        return stream.read(size).decode("utf-8", "replace")


class TailHandler(logging.Handler):
    """Keeps the last lines of the log in memory."""

    def __init__(self, lines: int = TAIL_LINES) -> None:
        super().__init__()
        self.setFormatter(UtcFormatter())
        self._lines: deque[str] = deque(maxlen=lines)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self._lines.append(self.format(record))

    def text(self) -> str:
        """What is kept."""
        return "\n".join(list(self._lines))
