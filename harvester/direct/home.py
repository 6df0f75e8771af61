"""Files of direct jobs on their way between the server and a CE: one at a time, through a folder of mode 0700."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common.http import ProblemError
from harvester.api import HttpServerApi
from harvester.backends.arc_direct import MOST_FILES, ArcDirect
from harvester.backends.arc_rest import TooMuch

MOST_BYTES = 4 * 1024**3
"""Of one file: what the server takes is far less, and it says so."""
REFUSED = (400, 413, 422)
"""The server's answers to a file that it will never take."""


class Home:
    """Moves files through ``folder``."""

    def __init__(self, folder: Path, server: HttpServerApi) -> None:
        self._folder = folder
        self._server = server

    def give(self, mark: str, path: str, upload: Callable[[str, Path], None]) -> None:
        """Bring a file of a job from the server to where ``upload`` puts it. Raises PilotageError, OSError, BackendError."""
        with self._room() as file:
            self._server.direct_input(mark, path, file)
            upload(path, file)

    def bring(self, person: ArcDirect, mark: str, job: str) -> str | None:
        """Bring all that a job left to the server; why not all of it, or nothing; None when nothing is left of the job.

        Raises BackendError, PilotageError or OSError: it is to be tried again.
        """
        paths = person.files(job)
        if paths is None:
            return None
        for number, path in enumerate(paths):
            if number >= MOST_FILES:
                return f"it left more than {MOST_FILES} files"
            with self._room() as file:
                try:
                    if person.save(job, path, file, MOST_BYTES):
                        self._server.direct_result(mark, "/".join(path), file)
                except TooMuch as error:
                    return str(error)
                except ProblemError as error:
                    if error.status not in REFUSED:
                        raise
                    return f"{'/'.join(path)}: {error.problem.detail or error.detail}"
        return ""

    @contextmanager
    def _room(self) -> Iterator[Path]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            yield Path(folder) / "file"
