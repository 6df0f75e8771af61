"""The folder of one job and who may write where.

::

    <scratch>/job-<id>/     mode 0700
        work/               the payload's current directory: inputs are put here, outputs are picked up here
        mailbox/            the FIFOs of get-file
        tmp/                the payload's TMPDIR
        bin/                read-only for a payload in a container: jobscript, inputs.txt, counters.txt, the get-file
                            scripts
        stdout  stderr      the payload's log files
        process-<label>.stdout  .stderr   those of the processes around it
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from common.errors import ErrorCode, PilotageError

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class JobFolder:
    """The paths of one job's folder; ``root`` is absolute."""

    root: Path

    @classmethod
    def create(cls, scratch: Path, job_id: str) -> JobFolder:
        """Makes the folder of a job below ``scratch``. Raises PilotageError (MKDIR_FAILED), also when it exists: what
        another attempt left behind must not be taken for this one's outputs."""
        if not _JOB_ID.fullmatch(job_id):
            raise PilotageError(ErrorCode.MKDIR_FAILED, f"job id {job_id!r} cannot be part of a folder's name")
        folder = cls(scratch.absolute() / f"job-{job_id}")
        try:
            for path in (folder.root, folder.work, folder.mailbox, folder.tmp, folder.bin):
                path.mkdir(mode=0o700)
        except OSError as error:
            raise PilotageError(ErrorCode.MKDIR_FAILED, f"{error}") from error
        return folder

    @property
    def work(self) -> Path:
        """The payload's current directory."""
        return self.root / "work"

    @property
    def mailbox(self) -> Path:
        """Where get-file and the pilot talk."""
        return self.root / "mailbox"

    @property
    def tmp(self) -> Path:
        """The payload's TMPDIR."""
        return self.root / "tmp"

    @property
    def bin(self) -> Path:
        """What the pilot prepared for the payload."""
        return self.root / "bin"

    @property
    def credential(self) -> Path:
        """What the payload shows to the storage that it reads from directly; the pilot keeps it fresh."""
        return self.bin / "storage-credential"

    @property
    def stdout(self) -> Path:
        """The payload's standard output."""
        return self.root / "stdout"

    @property
    def stderr(self) -> Path:
        """The payload's standard error."""
        return self.root / "stderr"

    def process_log(self, label: str, stream: str) -> Path:
        """Where a process around the payload writes its ``stdout`` or ``stderr``."""
        return self.root / f"process-{label}.{stream}"

    def remove(self) -> None:
        """Removes the folder, never following links. Raises PilotageError (FILE_HANDLING_FAILED)."""
        try:
            shutil.rmtree(self.root)
        except FileNotFoundError:
            return
        except OSError as error:
            raise PilotageError(ErrorCode.FILE_HANDLING_FAILED, f"cannot remove {self.root}: {error}") from error
