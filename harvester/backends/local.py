"""Workers as processes of this machine: for one machine with many cores, for tests and for the demo.

Each worker has a folder ``<workers_dir>/<mark>/`` (mode 0700):

====================  ==================================================================================
``secret``            the worker's secret, mode 0600
``work/``             the pilot's work dir
``stdout, stderr``    what the pilot wrote
``process``, ``exit``  who runs it and how it ended, both written by :mod:`harvester.backends.local_wrapper`
``term``              when it was first asked to end
====================  ==================================================================================

Workers run in sessions of their own and outlive harvester.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional, TypeVar

import msgspec

from common.clock import Clock
from common.config import ConfigError
from common.states import WorkerState
from common.tokens import write_secret_file
from harvester.backends import local_wrapper
from harvester.backends.base import (
    MARK_VARIABLE,
    BackendError,
    BatchLoad,
    StatusOutcome,
    SubmitOutcome,
    SubmitResult,
    WorkerRef,
    WorkerSpec,
    fill,
    read_options,
)
from harvester.backends.processes import ProcessId, find_by_variable, is_alive, send_signal, session_members

log = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)


class LocalState(Enum):
    """The states that a local worker shows."""

    STARTING = "starting"
    """Its wrapper has been started and hasn't got to the pilot yet."""
    RUNNING = "running"
    """Its session has living processes."""
    EXITED = "exited"
    """The pilot ended with exit code 0."""
    FAILED = "failed"
    """The pilot ended with another exit code, by a signal, or could not be started."""
    VANISHED = "vanished"
    """All its processes are gone and nothing was left about how: killed from outside, or the machine was restarted."""


STATES: dict[LocalState, WorkerState] = {
    LocalState.STARTING: WorkerState.SUBMITTED,
    LocalState.RUNNING: WorkerState.RUNNING,
    LocalState.EXITED: WorkerState.FINISHED,
    LocalState.FAILED: WorkerState.FAILED,
    LocalState.VANISHED: WorkerState.FAILED,
}
"""What each local state means to harvester."""


class LocalOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Options of the backend. ``kill_grace_s``: how long a worker that was asked to end may take."""

    workers_dir: Optional[str] = None
    kill_grace_s: Annotated[float, msgspec.Meta(ge=0)] = 30.0


class _Process(msgspec.Struct):
    pid: int
    ticks: int
    boot: str


class _Exit(msgspec.Struct):
    exit_code: Optional[int] = None
    signal: Optional[int] = None
    reason: str = ""


class LocalBackend:
    """Runs workers as local processes. ``workers_dir`` is made if it isn't there."""

    def __init__(self, workers_dir: Path, clock: Clock, kill_grace_s: float = 30.0) -> None:
        self._workers_dir = workers_dir
        self._clock = clock
        self._kill_grace_s = kill_grace_s
        self._children: dict[str, tuple[subprocess.Popen[bytes], ProcessId]] = {}

    @classmethod
    def create(cls, options: Mapping[str, Any], state_dir: Path, clock: Clock) -> LocalBackend:
        """Make one from its options; ``workers_dir`` defaults to ``<state_dir>/workers``."""
        read = read_options(options, LocalOptions)
        if read.workers_dir is not None and not Path(read.workers_dir).is_absolute():
            raise ConfigError(f"options.workers_dir: {read.workers_dir!r} must be an absolute path")
        return cls(Path(read.workers_dir or state_dir / "workers"), clock, read.kill_grace_s)

    def submit(self, specs: Sequence[WorkerSpec]) -> list[SubmitOutcome]:
        """Start a wrapper for each worker."""
        try:
            self._workers_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BackendError(f"{self._workers_dir}: {error.strerror}") from error
        return [self._submit_one(spec) for spec in specs]

    def status(self, refs: Sequence[WorkerRef]) -> dict[str, StatusOutcome]:
        """Look at each worker's folder and processes."""
        self._reap()
        return {ref.mark: self._status_one(ref) for ref in refs}

    def find_by_marks(self, marks: Sequence[str]) -> dict[str, WorkerRef]:
        """Found by what its wrapper left in its folder; else by the mark in the environment of a wrapper that has only
        just been started.

        The kernel shows an environment some microseconds after a process was started. A child of this very backend is
        remembered until then; harvester itself takes longer to come back after a crash; and if all that fails, the
        second wrapper of a worker runs nothing.
        """
        try:
            found = self._processes(marks)
            absent = set(marks) - found.keys()
            if absent:
                found.update(find_by_variable(MARK_VARIABLE, absent))
                # A wrapper may have written its file, run and ended between the two looks.
                found.update(self._processes(absent - found.keys()))
        except OSError as error:
            raise BackendError(str(error)) from error
        return {mark: WorkerRef(mark, str(process)) for mark, process in found.items()}

    def kill(self, refs: Sequence[WorkerRef]) -> dict[str, str]:
        """SIGTERM to the pilot; when the grace is over (seen at a later call), SIGKILL to its whole session."""
        refused: dict[str, str] = {}
        for ref in refs:
            try:
                self._kill_one(ref)
            except OSError as error:
                refused[ref.mark] = str(error)
        return refused

    def backlog(self, submit: Mapping[str, Any]) -> BatchLoad:
        """Count the workers in ``workers_dir``, whoever started them. None waits: each is started at once."""
        try:
            marks = [path.name for path in self._workers_dir.iterdir()] if self._workers_dir.is_dir() else []
            processes = [self._process(mark) for mark in marks]
        except OSError as error:
            raise BackendError(f"{self._workers_dir}: {error}") from error
        return BatchLoad(0, sum(process is not None and _lives(process) for process in processes))

    def list_workers(self) -> list[WorkerRef]:
        """The folders whose workers live."""
        try:
            marks = [path.name for path in self._workers_dir.iterdir()] if self._workers_dir.is_dir() else []
            found = self._processes(marks)
            return [
                WorkerRef(mark, str(process))
                for mark, process in found.items()
                if self._exit(mark) is None and _lives(process)
            ]
        except OSError as error:
            raise BackendError(str(error)) from error

    def fetch_logs(self, folders: Mapping[WorkerRef, Path]) -> dict[str, str]:
        """Copy what the pilot wrote, and what its wrapper did."""
        failed: dict[str, str] = {}
        for ref, target in folders.items():
            source = self._folder(ref.mark)
            if not source.is_dir():
                failed[ref.mark] = f"{source}: it is gone"
                continue
            try:
                for name in ("stdout", "stderr", "wrapper.log"):
                    if (source / name).is_file() and not (source / name).is_symlink():
                        shutil.copyfile(source / name, target / name)
            except OSError as error:
                failed[ref.mark] = str(error)
        return failed

    def clean(self, refs: Sequence[WorkerRef]) -> None:
        """Remove the folders of workers that have ended."""
        for ref in refs:
            folder = self._folder(ref.mark)
            try:
                shutil.rmtree(folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                log.warning("%s: cannot be removed: %s", folder, error)

    def _folder(self, mark: str) -> Path:
        return self._workers_dir / mark

    def _submit_one(self, spec: WorkerSpec) -> SubmitOutcome:
        folder = self._folder(spec.mark)
        try:
            running = self._process(spec.mark)
            if running is not None:
                return SubmitOutcome(spec.mark, SubmitResult.ACCEPTED, str(running))
            child = self._start(spec, folder)
        except OSError as error:
            # Popen has reaped the child when it raises: nothing was started.
            return SubmitOutcome(spec.mark, SubmitResult.REFUSED, reason=f"{folder}: {error}")
        # It can't have been reaped yet, so that its pid is still its own, even when it has ended.
        ticks, _, _ = local_wrapper.identity(child.pid)
        process = ProcessId(ticks, child.pid, local_wrapper.boot_id())
        self._children[spec.mark] = child, process
        return SubmitOutcome(spec.mark, SubmitResult.ACCEPTED, str(process))

    def _start(self, spec: WorkerSpec, folder: Path) -> subprocess.Popen[bytes]:
        work_dir, secret_file = folder / "work", folder / "secret"
        folder.mkdir(mode=0o700, exist_ok=True)
        work_dir.mkdir(mode=0o700, exist_ok=True)
        write_secret_file(secret_file, spec.secret)
        for name, source in spec.files.items():
            shutil.copy2(source, folder / name)
        places = {"folder": str(folder), "secret_file": str(secret_file), "work_dir": str(work_dir)}
        command = fill(spec.command, places)
        with (folder / "wrapper.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", local_wrapper.__file__, str(folder), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=work_dir,
                env={**_inherited(os.environ), **spec.environment, MARK_VARIABLE: spec.mark},
                start_new_session=True,
            )

    def _status_one(self, ref: WorkerRef) -> StatusOutcome:
        try:
            exited = self._exit(ref.mark)
            claimed = self._process(ref.mark)
            process = claimed or ProcessId.parse(ref.batch_id)
            if exited is None and (process is None or not self._folder(ref.mark).is_dir()):
                return StatusOutcome.denied("it has no folder here")
            if exited is None and process is not None and _lives(process):
                return _outcome(LocalState.RUNNING if claimed else LocalState.STARTING)
            # Read again: it may have ended between the first look at the file and the look at its processes.
            exited = exited or self._exit(ref.mark)
        except OSError as error:
            return StatusOutcome.unknown(str(error))
        return _ended(exited) if exited else _outcome(LocalState.VANISHED, "it ended without leaving an exit status")

    def _kill_one(self, ref: WorkerRef) -> None:
        process = self._process(ref.mark) or ProcessId.parse(ref.batch_id)
        if process is None or not _lives(process):
            return
        asked = self._folder(ref.mark) / "term"
        asked_at = _content(asked)
        now = self._clock.now()
        if not asked_at:
            send_signal(process, signal.SIGTERM)
            asked.write_text(str(now), encoding="ascii")
        elif now >= float(asked_at) + self._kill_grace_s:
            for member in session_members(process):
                send_signal(member, signal.SIGKILL)

    def _processes(self, marks: Iterable[str]) -> dict[str, ProcessId]:
        children = {mark: process for mark, (_, process) in self._children.items()}
        return {mark: process for mark in marks if (process := self._process(mark) or children.get(mark))}

    def _process(self, mark: str) -> ProcessId | None:
        read = _read(self._folder(mark) / "process", _Process)
        return None if read is None else ProcessId(read.ticks, read.pid, read.boot)

    def _exit(self, mark: str) -> _Exit | None:
        return _read(self._folder(mark) / "exit", _Exit)

    def _reap(self) -> None:
        self._children = {mark: (child, who) for mark, (child, who) in self._children.items() if child.poll() is None}


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _read(path: Path, kind: type[T]) -> T | None:
    """What the wrapper wrote; None if it isn't there. Raises OSError when it can't be read or makes no sense."""
    content = _content(path)
    try:
        return None if content is None else msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise OSError(errno.EIO, f"it is damaged: {error}", str(path)) from error


def _lives(process: ProcessId) -> bool:
    return is_alive(process) or bool(session_members(process))


def _outcome(state: LocalState, reason: str = "", exit_code: int | None = None) -> StatusOutcome:
    return StatusOutcome.of(STATES[state], state.value, reason, exit_code)


def _ended(how: _Exit) -> StatusOutcome:
    if how.signal is not None:
        return _outcome(LocalState.FAILED, f"its pilot was ended by {signal.Signals(how.signal).name}", -how.signal)
    if how.exit_code == 0:
        return _outcome(LocalState.EXITED, "", 0)
    return _outcome(LocalState.FAILED, how.reason or f"its pilot ended with exit code {how.exit_code}", how.exit_code)


def _inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Harvester's own environment, less what configures harvester."""
    return {name: value for name, value in environ.items() if not name.startswith("PILOTAGE_")}
