"""The pilot's side of the supervisor: start a payload, hear of its end within milliseconds, kill its whole tree."""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Protocol, Union

from common.errors import SIGNAL_ERRORS, ErrorCode, PilotageError
from pilot.guard import Guard

logger = logging.getLogger(__name__)

SUPERVISOR = Path(__file__).with_name("supervisor.py")
#: Environment variable with a random value that every process of one payload inherits, so that what survives a
#: supervisor that was killed can be found.
MARK = "PILOTAGE_MARK"
#: What a Python may need to start at all; nothing else of the pilot's environment is handed on.
_SUPERVISOR_ENVIRONMENT = ("LD_LIBRARY_PATH",)
_NOT_EXECUTABLE = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.EISDIR, errno.E2BIG)
_LEFTOVER_ROUNDS = 100
_LEFTOVER_WAIT_S = 0.1


@dataclass(frozen=True)
class Around:
    """A process around the payload: ``when`` is ``before``, ``beside`` or ``after``; ``error`` what its failure means for
    the job (None: nothing); ``timeout_s`` how long it may run (0: as long as it takes)."""

    label: str
    when: str
    argv: list[str]
    stdout: Path
    stderr: Path
    timeout_s: float = 0.0
    error: Optional[ErrorCode] = None


class RunsAs(Protocol):
    """Another user that a payload runs as (:class:`pilot.accounts.Account`)."""

    @property
    def uid(self) -> int: ...

    @property
    def gid(self) -> int: ...

    @property
    def groups(self) -> tuple[int, ...]: ...

    def give_back(self) -> None:
        """Called once, when no process of the payload is left, before anybody is told of its end."""


@dataclass(frozen=True)
class PayloadSpec:
    """What to execute: ``argv`` with the whole environment ``env``, in ``cwd``, its output appended to two files, and the
    processes ``around`` it, in the same environment; those after it find its exit code in ``exit_code_as``. ``account``: run it as that user; it is given
    back at the end, also when the payload could not be started."""

    argv: list[str]
    cwd: Path
    stdout: Path
    stderr: Path
    env: dict[str, str] = field(default_factory=dict)
    umask: int = 0o022
    nice: int = 0
    around: tuple[Around, ...] = ()
    exit_code_as: str = "PILOTAGE_EXIT_CODE"
    account: Optional[RunsAs] = None


@dataclass(frozen=True)
class PayloadStarted:
    """The payload runs as process ``pid``."""

    pid: int


@dataclass(frozen=True)
class SideEnd:
    """How a process around the payload ended; ``problem`` is why it could not be started."""

    label: str
    exit_code: Optional[int] = None
    signal: Optional[str] = None
    timed_out: bool = False
    failed: bool = False
    problem: Optional[str] = None

    @property
    def words(self) -> str:
        """For people."""
        if self.problem is not None:
            return f"could not be started: {self.problem}"
        how = f"was ended by {self.signal}" if self.signal else f"ended with exit code {self.exit_code}"
        return f"ran out of its time and {how}" if self.timed_out else how


@dataclass(frozen=True)
class PayloadEnd:
    """How a payload ended, all its processes included.

    ``exit_code`` or ``signal`` (name) of the main process, one of them None (both, if a process before it failed);
    ``core``: it dumped core; ``sides``: how those around it ended; ``killed`` is the reason given to
    :meth:`SupervisedProcess.kill`, if it was killed before it ended by itself. ``wall_s`` of the main process,
    ``cpu_s`` of the whole tree (without processes that the kernel could not account), ``max_rss_kb`` of the largest
    single process (never less than the supervisor's own at the fork), ``left_behind`` the processes that outlived
    the main one and were killed. ``error`` is None for exit code 0, else what the end by itself means; whoever killed
    the payload knows better.
    """

    exit_code: Optional[int] = None
    signal: Optional[str] = None
    killed: Optional[str] = None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    max_rss_kb: int = 0
    left_behind: int = 0
    error: Optional[ErrorCode] = None
    detail: str = ""
    core: bool = False
    sides: tuple[SideEnd, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the payload ended by itself with exit code 0."""
        return self.error is None and self.killed is None


PayloadEvent = Union[PayloadStarted, PayloadEnd]


class SupervisedProcess:
    """One payload under its supervisor. Make it with :meth:`start`; all methods may be called from any thread.

    ``on_event`` is called on this object's reader thread: first with :class:`PayloadStarted` (unless the payload
    could not be started), then once with :class:`PayloadEnd`, when no process of the payload is left.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        mark: str,
        spec: PayloadSpec,
        guard: Guard,
        on_event: Optional[Callable[[PayloadEvent], None]],
    ) -> None:
        self._process = process
        self._mark = mark
        self._around = spec.around
        self._account = spec.account
        self._guard = guard
        self._on_event = on_event
        self._began = time.monotonic()
        self._control = threading.Lock()
        self._ended = threading.Event()
        self._started = threading.Event()
        self._end: Optional[PayloadEnd] = None
        self._pid: Optional[int] = None

    @classmethod
    def start(cls, spec: PayloadSpec, on_event: Optional[Callable[[PayloadEvent], None]] = None) -> SupervisedProcess:
        """Starts supervisor and payload; returns at once. Raises PilotageError (SETUP_FAILED)."""
        mark = spec.env.get(MARK) or secrets.token_hex(16)
        try:
            guard = Guard.open()
        except OSError as error:
            raise _not_started(spec, error) from error
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", str(SUPERVISOR), str(guard.descriptor)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd="/",
                env={name: os.environ[name] for name in _SUPERVISOR_ENVIRONMENT if name in os.environ},
                start_new_session=True,
                pass_fds=(guard.descriptor,),
            )
        except OSError as error:
            guard.close()
            raise _not_started(spec, error) from error
        self = cls(process, mark, spec, guard, on_event)
        self._say(
            {
                "argv": spec.argv,
                "cwd": str(spec.cwd),
                "env": {**spec.env, MARK: mark},
                "stdout": str(spec.stdout),
                "stderr": str(spec.stderr),
                "umask": spec.umask,
                "nice": spec.nice,
                "user": None if spec.account is None else _user(spec.account),
                "exit_code_as": spec.exit_code_as,
                "around": [_said(around) for around in spec.around],
            }
        )
        threading.Thread(target=self._read, name=f"supervised-{process.pid}", daemon=True).start()
        return self

    @property
    def pid(self) -> Optional[int]:
        """The payload's main process; None until it has started."""
        return self._pid

    @property
    def supervisor_pid(self) -> int:
        """The supervisor: the root of the payload's process tree, and its session."""
        return self._process.pid

    @property
    def end(self) -> Optional[PayloadEnd]:
        """How it ended; None while it runs."""
        return self._end

    def wait_started(self, timeout: Optional[float] = None) -> bool:
        """Waits until the payload runs, or has ended or failed already; False after ``timeout`` seconds."""
        return self._started.wait(timeout)

    def wait(self, timeout: Optional[float] = None) -> PayloadEnd:
        """Waits for the end. Raises TimeoutError after ``timeout`` seconds."""
        self._ended.wait(timeout)
        if self._end is None:
            raise TimeoutError(f"the payload still runs after {timeout} s")
        return self._end

    def kill(self, why: str, grace_s: float = 5.0) -> None:
        """SIGTERM to the whole tree, SIGKILL to what is left after ``grace_s`` seconds (0: at once). Returns at once;
        a second call can only shorten the grace."""
        self._say({"kill": {"why": why, "grace_s": grace_s}})

    def signal(self, name: str) -> None:
        """Sends the signal of that name (``SIGUSR1``) to the payload's main process. Raises ValueError."""
        if name not in signal.Signals.__members__:
            raise ValueError(f"unknown signal {name!r}: use a name such as SIGUSR1")
        self._say({"signal": name})

    def destroy(self) -> None:
        """The last resort, for a supervisor that does not answer to :meth:`kill` (stopped by its payload, say): kills
        supervisor and payload at once; the end is SUPERVISOR_DIED."""
        if self._end is None:
            self._process.kill()

    def _say(self, message: dict[str, Any]) -> None:
        """Writes one line to the supervisor; one that has ended needs none (the reader thread learns of its end)."""
        data = json.dumps(message).encode() + b"\n"
        with self._control:
            stdin = self._process.stdin
            if stdin is None or stdin.closed:
                return
            try:
                while data:
                    data = data[os.write(stdin.fileno(), data) :]
            except BrokenPipeError:
                logger.debug("supervisor %d has gone", self._process.pid)

    def _read(self) -> None:
        """The reader thread: events from the supervisor until its stream ends."""
        end: Optional[PayloadEnd] = None
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                message = json.loads(line)
                if "started" in message:
                    self._pid = message["started"]["pid"]
                    if not self._started.is_set():
                        self._started.set()
                        self._tell(PayloadStarted(message["started"]["pid"]))
                        self._start_guard()
                elif "ended" in message:
                    end = _end_of(message["ended"], self._around)
                elif "failed" in message:
                    end = _failure(message["failed"])
        self._process.wait()
        with self._control:
            if self._process.stdin is not None:
                self._process.stdin.close()
        if end is None:
            end = self._supervisor_died()
        self._guard.close()
        if self._account is not None:
            self._account.give_back()
        self._end = end
        self._started.set()
        self._ended.set()
        self._tell(end)

    def _tell(self, event: PayloadEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def _start_guard(self) -> None:
        """Now, not before the payload, which would begin later for it."""
        try:
            self._guard.start(self._process.pid, f"{MARK}={self._mark}")
        except OSError as error:
            logger.warning("nobody guards the payload should pilot and supervisor be killed at once: %s", error)

    def _supervisor_died(self) -> PayloadEnd:
        killed = kill_leftovers(self._process.pid, self._mark, self._pid)
        code = self._process.returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        detail = f"the supervisor ended with {how}; {killed} processes of the payload were killed after it"
        logger.error("%s", detail)
        wall_s = round(time.monotonic() - self._began, 3)
        return PayloadEnd(wall_s=wall_s, left_behind=killed, error=ErrorCode.SUPERVISOR_DIED, detail=detail)


def _not_started(spec: PayloadSpec, error: OSError) -> PilotageError:
    if spec.account is not None:
        spec.account.give_back()
    return PilotageError(ErrorCode.SETUP_FAILED, f"cannot start the supervisor: {error}")


def _user(account: RunsAs) -> dict[str, Any]:
    return {"uid": account.uid, "gid": account.gid, "groups": list(account.groups)}


def _said(around: Around) -> dict[str, Any]:
    """A process around the payload as the supervisor is told of it."""
    return {
        "label": around.label,
        "when": around.when,
        "argv": around.argv,
        "stdout": str(around.stdout),
        "stderr": str(around.stderr),
        "timeout_s": around.timeout_s,
        "vital": around.error is not None,
    }


def _end_of(ended: dict[str, Any], around: tuple[Around, ...]) -> PayloadEnd:
    """What the end means: a failure before or beside the payload comes first, then its own, then one after it."""
    sides = tuple(SideEnd(**side) for side in ended.pop("sides", ()))
    said = {side.label: side for side in around}
    early: Optional[tuple[ErrorCode, str]] = None
    late: Optional[tuple[ErrorCode, str]] = None
    for side in sides:
        code = said[side.label].error
        if code is not None and side.failed:
            if said[side.label].when == "after":
                late = late or (code, f"the process {side.label} {side.words}")
            else:
                early = early or (code, f"the process {side.label} {side.words}")
    error, detail = early or _own_end(ended) or late or (None, "")
    return PayloadEnd(**ended, error=error, detail=detail, sides=sides)


def _own_end(ended: dict[str, Any]) -> Optional[tuple[ErrorCode, str]]:
    if ended["signal"] is not None:
        name = ended["signal"]
        return SIGNAL_ERRORS.get(name, ErrorCode.KILL_SIGNAL), f"the payload was ended by {name}"
    if ended["exit_code"] is None:
        return ErrorCode.PAYLOAD_FAILED, "the payload was stopped before it began"
    if ended["exit_code"] != 0:
        return ErrorCode.PAYLOAD_FAILED, f"the payload ended with exit code {ended['exit_code']}"
    return None


def _failure(failed: dict[str, Any]) -> PayloadEnd:
    if failed["stage"] == "exec" and failed["errno"] in _NOT_EXECUTABLE:
        detail = (
            f"the payload's program cannot be executed (check its path, its mode and its shebang): {failed['message']}"
        )
        return PayloadEnd(error=ErrorCode.BAD_JOBSCRIPT, detail=detail)
    return PayloadEnd(error=ErrorCode.SETUP_FAILED, detail=f"the payload could not be started: {failed['message']}")


def kill_leftovers(session: int, mark: str, group: Optional[int] = None) -> int:
    """Kills every process of that session or with that mark in its environment; answers how many a look could find.

    ``group``: the payload's process group, which is killed unseen before all else: a walk over /proc can miss all of a
    payload that forks and ends all the time.
    For a supervisor that died: what left the session, cleaned its environment and runs as a grandchild is out of reach.
    """
    killed = set(_marked(session, f"{MARK}={mark}".encode()))
    if group is not None:
        _kill(-group)
    for _ in range(_LEFTOVER_ROUNDS):
        found = _marked(session, f"{MARK}={mark}".encode())
        if not found:
            break
        # Groups first: the kernel kills one in a single step, so that its members cannot escape by forking.
        groups = set(found.values()) - {os.getpgrp(), 0}
        for target in [*(-group for group in groups), *found]:
            _kill(target)
        killed.update(found)
        _wait_for_exit(list(found))
    return len(killed)


def _kill(target: int) -> None:
    """SIGKILL to a process or (negative) a group; one that has ended, or is another user's, is left."""
    try:
        os.kill(target, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        logger.debug("nobody to kill at %d", target)


def _marked(session: int, mark: bytes) -> dict[int, int]:
    """The living processes of that session or with that mark, and their process groups."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            state, _ppid, group, sid = (folder / "stat").read_bytes().rsplit(b")", 1)[1].split()[:4]
            if state in (b"Z", b"X"):
                continue
            if int(sid) == session or mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = int(group)
        except OSError:
            continue  # ended while we looked, or another user's
    return found


def _wait_for_exit(pids: list[int]) -> None:
    """Waits until one of the processes has ended; without pidfd (Linux < 5.3) a short timer."""
    poll = select.poll()
    fds = []
    for pid in pids:
        try:
            fds.append(os.pidfd_open(pid))
        except OSError:
            continue
        poll.register(fds[-1], select.POLLIN)
    poll.poll(_LEFTOVER_WAIT_S * 1000)
    for fd in fds:
        os.close(fd)
