"""The pilot's own folder: one pilot at a time, and what it must remember should it be started again.

::

    <work-dir>/          mode 0700
        lock             held while a pilot runs here; the kernel lets go of it however the pilot ends
        pilot.json       who this pilot is, and the question to the server that is still open
        pilot.log        its log
        spool/           final reports that wait for the server
        jobs/            one folder for each job
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from pathlib import Path
from typing import Optional

import msgspec

from common.errors import ErrorCode, PilotageError
from pilot.spool import Spool, remove_parts, replace_file


class Identity(msgspec.Struct):
    """What a pilot that was killed and started again says in order to be the same one.

    ``nonce`` goes with the registration; ``request_id`` and ``ahead_id`` are the claims that were not answered yet, the
    second for a job that begins later.
    """

    server: str
    worker: str
    nonce: str
    request_id: Optional[str] = None
    ahead_id: Optional[str] = None


class WorkDir:
    """The folder of one pilot, locked. Raises PilotageError (MKDIR_FAILED, or BAD_CONFIGURATION when it is taken)."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.jobs.mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise PilotageError(ErrorCode.MKDIR_FAILED, f"work_dir {self.root}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            detail = f"work_dir {self.root}: another pilot runs here; give each pilot a folder of its own"
            raise PilotageError(ErrorCode.BAD_CONFIGURATION, detail) from error
        try:
            remove_parts(self.root, self._identity.name)
            self.spool = Spool.open(self.root / "spool")
        except OSError as error:
            os.close(self._lock)
            raise PilotageError(ErrorCode.FILE_HANDLING_FAILED, f"work_dir {self.root}: {error.strerror}") from error

    @property
    def jobs(self) -> Path:
        """Where the jobs' folders are."""
        return self.root / "jobs"

    @property
    def log(self) -> Path:
        """The pilot's log."""
        return self.root / "pilot.log"

    def close(self) -> None:
        """Let the next pilot in."""
        os.close(self._lock)

    def remove(self) -> None:
        """Remove the folder, with all that is in it; one in which a report waits stays. Raises OSError."""
        if not self.spool.reports():
            shutil.rmtree(self.root)

    def identity(self, server: str, worker: str) -> Identity:
        """Who this pilot is: the one that died here without a farewell, else a new one."""
        known = self._read()
        if known is not None and (known.server, known.worker) == (server, worker):
            return known
        fresh = Identity(server=server, worker=worker, nonce=secrets.token_hex(16))
        self.remember(fresh)
        return fresh

    def remember(self, identity: Identity) -> None:
        """Keep ``identity`` for a pilot that is started here after this one has died."""
        try:
            replace_file(self._identity, msgspec.json.encode(identity))
        except OSError as error:
            raise PilotageError(ErrorCode.FILE_HANDLING_FAILED, f"{self._identity}: {error.strerror}") from error

    def forget(self) -> None:
        """This pilot has left in good order: the next one here is another."""
        self._identity.unlink(missing_ok=True)

    @property
    def _identity(self) -> Path:
        return self.root / "pilot.json"

    def _read(self) -> Optional[Identity]:
        try:
            return msgspec.json.decode(self._identity.read_bytes(), type=Identity)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
