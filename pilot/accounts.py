"""Running payloads as another user: accounts that a pilot which is root lends to its jobs, one to each.

A payload under an account of its own cannot look into the pilot, whether it runs in a container or not: the kernel keeps
another user out of its files, its /proc entries, its memory and its signals. The job's folder is handed over for the time::

    job-<id>/               root, the account's group may pass
        work/ mailbox/ tmp/ the account's
        bin/                root's, the account's group may read
        stdout stderr       root's, the account's group may write

An account is locked on this node while a job has it, whichever pilot runs the job. Nobody else may use these accounts:
every process of theirs is killed when a job ends, and before the next begins.
"""

from __future__ import annotations

import fcntl
import logging
import os
import pwd
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from common.errors import ErrorCode, PilotageError
from pilot.payload.folder import JobFolder

logger = logging.getLogger(__name__)

LOCKS = Path("/run/pilotage/accounts")
#: What the accounts pass through, or read images in, of the pilot's folder.
PASSED = ("jobs", "images")
_KILL_ROUNDS = 20
_KILL_TIMEOUT_S = 10


@dataclass(frozen=True)
class Account:
    """An account lent to the job in ``folder``; ``lock`` is the descriptor that holds it."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    folder: JobFolder
    lock: int

    def hand_over(self) -> None:
        """Make the job's folder the account's. Raises PilotageError (FILE_HANDLING_FAILED)."""
        try:
            os.chown(self.folder.root, -1, self.gid)
            self.folder.root.chmod(0o710)
            for path in (self.folder.work, self.folder.mailbox, self.folder.tmp):
                self.give(path)
            for path in (self.folder.bin, *self.folder.bin.rglob("*")):
                os.chown(path, -1, self.gid)
                mode = stat.S_IMODE(path.stat().st_mode)
                path.chmod(mode | (mode & 0o500) >> 3)
            if self.folder.credential.exists():  # storage clients want one that only its owner can read
                self.folder.credential.chmod(0o600)
                os.chown(self.folder.credential, self.uid, self.gid)
        except OSError as error:
            raise PilotageError(ErrorCode.FILE_HANDLING_FAILED, f"{self.folder.root}: {error}") from error

    def give(self, path: Path) -> None:
        """Make a folder that the payload cannot reach yet, and all in it, the account's; files that have a second name
        elsewhere stay whose they are. Raises OSError."""
        _chown_tree(path, os.geteuid(), self.uid, self.gid)

    def give_back(self) -> None:
        """End all processes of the account, take the folder back, and let the next job have the account."""
        try:
            self.kill_all()
            self.folder.root.chmod(0o700)
            for path in (self.folder.work, self.folder.mailbox, self.folder.tmp):
                _chown_tree(path, self.uid, os.geteuid(), os.getegid())
        except FileNotFoundError:
            logger.info("the folder of the job under account %s is gone", self.name)
        except OSError as error:
            logger.error("the folder of the job under account %s cannot be taken back: %s", self.name, error)
        finally:
            os.close(self.lock)

    def kill_all(self) -> None:
        """SIGKILL to every process of the account: in one step of the kernel, so that none escapes by forking."""
        for _ in range(_KILL_ROUNDS):
            if not _has_processes(self.uid):
                return
            subprocess.run(
                ["/bin/sh", "-c", "kill -9 -1"],
                user=self.uid,
                group=self.gid,
                extra_groups=[],
                cwd="/",
                env={},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_KILL_TIMEOUT_S,
                check=False,
            )
        logger.error("processes of account %s do not end", self.name)


class Accounts:
    """The accounts that this pilot may lend. Raises PilotageError (BAD_CONFIGURATION) that names what is wrong."""

    def __init__(self, names: Sequence[str], work_dir: Path, locks: Path = LOCKS) -> None:
        if os.geteuid() != 0:
            raise _bad("only a pilot that is root can run payloads as other users: leave it empty")
        self._entries: list[pwd.struct_passwd] = []
        for name in names:
            try:
                entry = pwd.getpwnam(name)
            except KeyError as error:
                raise _bad(f"there is no user {name!r} on this node") from error
            if entry.pw_uid == 0 or entry.pw_gid == 0:
                raise _bad(f"{name!r} is root, or in root's group")
            if any(entry.pw_uid == other.pw_uid or entry.pw_gid == other.pw_gid for other in self._entries):
                raise _bad(f"{name!r} shares its user or its primary group with another: each needs its own")
            self._entries.append(entry)
        self._locks = locks
        self._open_way(work_dir)

    @staticmethod
    def _open_way(work_dir: Path) -> None:
        """Let the accounts pass through the pilot's folder, whose other entries are closed one by one."""
        try:
            for path in work_dir.iterdir():
                path.chmod(0o711 if path.name in PASSED else 0o700 if path.is_dir() else 0o600)
            work_dir.chmod(0o711)
            closed = [str(path) for path in work_dir.resolve().parents if not path.stat().st_mode & 0o001]
        except OSError as error:
            raise PilotageError(ErrorCode.FILE_HANDLING_FAILED, f"{work_dir}: {error}") from error
        if closed:
            raise _bad(f"they cannot pass {closed[-1]} to their jobs: give it mode 0711, or choose another work_dir")

    def borrow(self, folder: JobFolder) -> Account:
        """An account for the job in ``folder``, which is handed over to it.

        Raises PilotageError: SETUP_FAILED when all are in use, FILE_HANDLING_FAILED.
        """
        for entry in self._entries:
            lock = self._lock(entry.pw_uid)
            if lock is None:
                continue
            groups = tuple(gid for gid in os.getgrouplist(entry.pw_name, entry.pw_gid) if gid != 0)
            account = Account(entry.pw_name, entry.pw_uid, entry.pw_gid, groups, folder, lock)
            try:
                account.kill_all()
                account.hand_over()
            except (PilotageError, OSError, subprocess.SubprocessError):
                os.close(lock)
                raise
            logger.info("the payload in %s runs as %s", folder.root, account.name)
            return account
        names = ", ".join(entry.pw_name for entry in self._entries)
        raise PilotageError(
            ErrorCode.SETUP_FAILED,
            f"payload_users: all accounts are in use ({names}): give one for each job side by side",
        )

    def _lock(self, uid: int) -> Optional[int]:
        try:
            self._locks.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._locks / f"{uid}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise PilotageError(ErrorCode.FILE_HANDLING_FAILED, f"{self._locks}: {error}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd


def _chown_tree(top: Path, owner: int, uid: int, gid: int) -> None:
    """Give what belongs to ``owner`` in a folder to ``uid``; never through a link, nor a file with a second name."""
    os.chown(top, uid, gid, follow_symlinks=False)
    for _path, folders, files, descriptor in os.fwalk(top, follow_symlinks=False):
        for name in (*folders, *files):
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if status.st_uid == owner and (stat.S_ISDIR(status.st_mode) or status.st_nlink == 1):
                os.chown(name, uid, gid, dir_fd=descriptor, follow_symlinks=False)


def _has_processes(uid: int) -> bool:
    """Whether a process of that user lives, by its real, effective, saved or file system id."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            lines = (folder / "status").read_text("ascii", "replace").splitlines()
        except OSError:
            continue  # ended while we looked
        fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        if str(uid) in fields["Uid"] and fields["State"][0] not in ("Z", "X"):
            return True
    return False


def _bad(detail: str) -> PilotageError:
    return PilotageError(ErrorCode.BAD_CONFIGURATION, f"[pilot] payload_users: {detail}")
