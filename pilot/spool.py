"""Final reports on disk: what a pilot could not deliver before it died is delivered by the next one.

Below ``<work-dir>/spool`` (mode 0700), each file 0600: ``<pilot>-<job>.json`` holds a report, ``<pilot>.token`` the
pilot's token, without which the server would not take the report.

A file is replaced in one step but not forced to the disk: it has to survive the pilot, not a power cut, after which
the server simply gives the units to another job.
"""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from common.errors import ErrorCode, PilotageError
from common.tokens import read_secret_file, write_secret_file
from common.wire import FinishRequest, UploadedOutput

logger = logging.getLogger(__name__)


class SpooledReport(msgspec.Struct, kw_only=True):
    """A final report that waits. ``uploaded`` is what to remove should the server not want the job any more."""

    server: str
    pilot_id: int
    job_id: int
    report: FinishRequest
    uploaded: list[UploadedOutput] = []


@dataclass(frozen=True)
class Spool:
    """The reports below ``folder``. Raises PilotageError (FILE_HANDLING_FAILED) where it cannot write."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Spool:
        """The spool in ``folder``, made if it is not there; nobody else may be writing there."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_parts(folder)
        except OSError as error:
            raise _failed(folder, error) from error
        return cls(folder)

    def put(self, entry: SpooledReport) -> None:
        """Write a report, replacing an earlier one of the same job."""
        try:
            replace_file(self._path(entry.pilot_id, entry.job_id), msgspec.json.encode(entry))
        except OSError as error:
            raise _failed(self.folder, error) from error

    def remove(self, pilot_id: int, job_id: int) -> None:
        """Forget a report; one that is not there is fine."""
        try:
            self._path(pilot_id, job_id).unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failed(self.folder, error) from error

    def reports(self) -> list[SpooledReport]:
        """All reports that wait, by pilot and job. A file that cannot be read is left alone and logged."""
        found = []
        for path in sorted(self.folder.glob("*-*.json")):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=SpooledReport))
            except (OSError, msgspec.DecodeError) as error:
                logger.error("%s: this spooled report cannot be read and is left there: %s", path, error)
        return sorted(found, key=lambda entry: (entry.pilot_id, entry.job_id))

    def save_token(self, pilot_id: int, token: str) -> None:
        """Keep the pilot's token beside its reports."""
        try:
            write_secret_file(self._token_path(pilot_id), token)
        except OSError as error:
            raise _failed(self.folder, error) from error

    def token(self, pilot_id: int) -> str:
        """The pilot's token. Raises SecretFileError."""
        return read_secret_file(self._token_path(pilot_id))

    def remove_idle_tokens(self) -> None:
        """Remove the tokens of pilots that have no report here."""
        wanted = {f"{entry.pilot_id}.token" for entry in self.reports()}
        for path in self.folder.glob("*.token"):
            if path.name not in wanted:
                path.unlink()

    def _path(self, pilot_id: int, job_id: int) -> Path:
        return self.folder / f"{pilot_id}-{job_id}.json"

    def _token_path(self, pilot_id: int) -> Path:
        return self.folder / f"{pilot_id}.token"


def replace_file(path: Path, content: bytes) -> None:
    """Put ``content`` into a file of mode 0600 in one step. Raises OSError."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def remove_parts(folder: Path, name: str = "") -> None:
    """Remove what was left by a writer that was killed: parts of files called ``name``, else of all. Raises OSError."""
    for path in folder.glob(f".{name}*"):
        path.unlink()


def _failed(folder: Path, error: OSError) -> PilotageError:
    return PilotageError(ErrorCode.FILE_HANDLING_FAILED, f"{folder}: {error.strerror or error}")
