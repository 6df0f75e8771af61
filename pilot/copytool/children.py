"""Child processes of copytools: they end in time, with all that they started, and get their credentials privately."""

from __future__ import annotations

import contextlib
import logging
import os
import pkgutil
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Optional
from urllib.parse import parse_qsl

from common.errors import ErrorCode, PilotageError
from common.tokens import create_secret_file
from pilot.copytool.background import CANCEL_SLICE_S
from pilot.copytool.base import Direction, raise_if_cancelled, safe_url
from pilot.copytool.credentials import Credential

log = logging.getLogger(__name__)

#: How long a child that is told to end gets before it is killed, in seconds.
END_GRACE_S = 0.5
#: How often the end of a child that printed its last is looked for, in seconds: it must not be reaped yet, so that its
#: number still means its group, and the system has no wait of that kind with a time limit.
EXIT_SLICE_S = 0.02
#: The most that a child may print, in bytes; of its error output, what is kept.
OUTPUT_BYTES = 64 * 1024 * 1024
ERROR_BYTES = 64 * 1024

#: Variables that name a credential: a child gets those of its request, and no others.
CREDENTIAL_VARIABLES = frozenset(
    {
        "BEARER_TOKEN",
        "BEARER_TOKEN_FILE",
        "PILOTAGE_TOKEN_FILE",
        "X509_USER_CERT",
        "X509_USER_KEY",
        "X509_USER_PROXY",
    }
)


#: What a query holds when the URL itself is a permission, in lower case.
_SECRETS = frozenset({"access_token", "authz", "sig", "signature", "x-amz-signature", "x-goog-signature"})


class Limits(NamedTuple):
    """What ends a call before its time: ``cancel``, or ``deadline`` in monotonic seconds. ``shown`` names what it is
    about to people."""

    direction: Direction
    shown: str
    cancel: threading.Event
    deadline: float

    @property
    def seconds(self) -> float:
        """The time left."""
        return self.deadline - time.monotonic()

    def within(self, seconds: float) -> Limits:
        """The same, but over in so many seconds at the latest."""
        return self._replace(deadline=min(self.deadline, time.monotonic() + seconds))

    def check(self) -> None:
        """Raise the direction's error when cancelled or late."""
        raise_if_cancelled(self.cancel, self.direction)
        if self.seconds <= 0:
            raise PilotageError(self.direction.timeout, f"{self.shown}: not done in time")


class Watch(NamedTuple):
    """What shows that a child makes progress: ``count`` of its pid changes at least every ``stall_s`` seconds."""

    count: Callable[[int], int]
    stall_s: float


class Ended(NamedTuple):
    """How a child ended: its exit code (negative for a signal), its output and the end of its error output."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """The last words of its error output, else of its output, in one line."""
        lines = [line for line in (self.stderr or self.stdout).decode(errors="replace").splitlines() if line.strip()]
        return " ".join(" ".join(lines[-3:]).split())[-500:]


class Child:
    """A child process in a group of its own. Use as a context manager: nothing of the group outlives it.

    ``argv`` holds no secret. Raises :class:`PilotageError` ``MIDDLEWARE_IMPORT_FAILED`` when it cannot be started.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int] = ()) -> None:
        self._name = Path(argv[0]).name
        try:
            self._process = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(env),
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )
        except OSError as error:
            raise PilotageError(
                ErrorCode.MIDDLEWARE_IMPORT_FAILED, f"{argv[0]} cannot be started: {error.strerror or error}"
            ) from error
        self._output = bytearray()
        self._errors = bytearray()
        self._selector = selectors.DefaultSelector()
        for stream in self._pipes():
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ)

    def _pipes(self) -> list[IO[bytes]]:
        assert self._process.stdout is not None and self._process.stderr is not None
        return [self._process.stdout, self._process.stderr]

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.end()

    def send(self, data: bytes) -> None:
        """Write to the child's input; one that ended meanwhile is found out by who waits for it."""
        stream = self._process.stdin
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):
            stream.write(data)
            stream.flush()

    def close_input(self) -> None:
        """Tell the child that nothing more comes."""
        stream = self._process.stdin
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):
            stream.close()

    def line(self, limits: Limits, watch: Optional[Watch] = None) -> Optional[bytes]:
        """Wait for the next line of output; ``None`` when the child ended without one."""
        self._wait(lambda: b"\n" in self._output, limits, watch)
        line, newline, rest = bytes(self._output).partition(b"\n")
        if not newline:
            return None
        self._output[:] = rest
        return line

    def ended(self, limits: Limits, watch: Optional[Watch] = None) -> Ended:
        """Wait for the child's end."""
        self._wait(lambda: False, limits, watch)
        return self.end()

    def _wait(self, enough: Callable[[], bool], limits: Limits, watch: Optional[Watch]) -> None:
        """Read until it is enough or the child has ended; the direction's error when cancelled, late or stalled."""
        progress = _Progress(watch, self._process.pid)
        while not enough():
            self._read(min(CANCEL_SLICE_S, max(limits.seconds, 0)))
            if self._exited():
                self._drain()
                return
            limits.check()
            if progress.stalled():
                detail = f"{limits.shown}: no byte moved for {progress.stall_s:.0f} s"
                raise PilotageError(limits.direction.timeout, detail)

    def _read(self, timeout: float) -> bool:
        """Take some of what the child has printed, waiting for it so many seconds; whether there was anything."""
        if not self._selector.get_map():  # both closed: only the end is left to wait for
            self._exited_within(timeout)
            return False
        ready = self._selector.select(timeout)
        for key, _ in ready:
            try:
                data = os.read(key.fd, 1 << 16)
            except BlockingIOError:
                continue
            if not data:
                self._selector.unregister(key.fileobj)
            elif key.fileobj is self._process.stderr:
                self._errors += data
                del self._errors[:-ERROR_BYTES]
            else:
                self._output += data
                if len(self._output) > OUTPUT_BYTES:
                    raise PilotageError(ErrorCode.GENERAL_ERROR, f"{self._name} printed too much")
        return bool(ready)

    def _drain(self) -> None:
        """Take what is left of the output of a process that has ended; what it left behind may hold its pipes open."""
        while self._selector.get_map() and self._read(0):
            pass

    def end(self) -> Ended:
        """End the child and its group, politely first; calls after the first do nothing."""
        if self._process.returncode is None:
            self.close_input()
            if not self._exited():
                self._signal(signal.SIGTERM)
                self._exited_within(END_GRACE_S)
            self._signal(signal.SIGKILL)  # what it started and left behind, too
            self._process.wait()
            self._drain()
            self._selector.close()
            for stream in self._pipes():
                stream.close()
        return Ended(self._process.returncode, bytes(self._output), bytes(self._errors))

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _exited(self) -> bool:
        """Whether the process has ended; it is not reaped here."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _exited_within(self, seconds: float) -> bool:
        """Wait for the process's end so many seconds."""
        end, pause = time.monotonic() + seconds, threading.Event()
        while not self._exited():
            if time.monotonic() >= end:
                return False
            pause.wait(EXIT_SLICE_S)
        return True


class _Progress:
    """Notices when a counter stands still."""

    def __init__(self, watch: Optional[Watch], pid: int) -> None:
        self._watch = watch
        self._pid = pid
        self._count = -1
        self._since = time.monotonic()
        self.stall_s = watch.stall_s if watch else 0.0

    def stalled(self) -> bool:
        """Whether the counter stands still for too long."""
        if self._watch is None:
            return False
        count, now = self._watch.count(self._pid), time.monotonic()
        if count != self._count:
            self._count, self._since = count, now
        return now - self._since > self.stall_s


def run_child(
    argv: Sequence[str],
    env: Mapping[str, str],
    limits: Limits,
    *,
    pass_fds: Sequence[int] = (),
    watch: Optional[Watch] = None,
) -> Ended:
    """Run a command to its end, with nothing to read; the direction's error when cancelled, late or stalled."""
    limits.check()
    with Child(argv, env, pass_fds) as child:
        child.close_input()
        return child.ended(limits, watch)


class Program(NamedTuple):
    """A module of this package that runs in a child, under any Python of the node, whatever that can import.

    Its source goes in by the child's input: where the pilot runs from one file, no path leads to it.
    """

    name: str
    source: bytes

    @classmethod
    def load(cls, name: str) -> Program:
        """Read a module's source."""
        source = pkgutil.get_data("pilot.copytool", f"{name}.py")
        if source is None:
            raise PilotageError(ErrorCode.INTERNAL_PILOT_PROBLEM, f"{name} is not part of this installation")
        return cls(name, source)

    def start(self, python: str, env: Mapping[str, str], pass_fds: Sequence[int] = ()) -> Child:
        """Start it; what is sent to the child next is the program's own input."""
        run = f"import sys; exec(compile(sys.stdin.buffer.read(int(sys.argv[1])), {self.name!r}, 'exec'))"
        # -I: neither a site's PYTHONPATH nor the folder that we are in
        child = Child([python, "-I", "-c", run, str(len(self.source))], env, pass_fds)
        child.send(self.source)
        return child


def refuse_secrets(url: str) -> None:
    """Raise ``NO_STORAGE_PROTOCOL`` for a URL that holds a token or a signature: arguments can be seen by everybody."""
    names = {name.lower() for name, _ in parse_qsl(url.partition("?")[2], keep_blank_values=True)}
    if names & _SECRETS:
        detail = "its query is a secret, and the arguments of commands are none: use another copytool for it"
        raise PilotageError(ErrorCode.NO_STORAGE_PROTOCOL, f"{safe_url(url)}: {detail}")


def bytes_read(pid: int) -> int:
    """Give how many bytes a process has read so far, from files and pipes; 0 where that cannot be told."""
    try:
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "rchar":
                return int(value)
    except OSError:
        log.debug("the progress of process %d cannot be told", pid)
    return 0


def size_of(path: Path) -> int:
    """Give the size of a file that may not be there yet, in bytes."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def child_environment(environ: Mapping[str, str], credential: Credential, token_file: Optional[Path]) -> dict[str, str]:
    """Give a child's environment: ours without any credential of ours, with those of its request as files."""
    env = {name: value for name, value in environ.items() if name not in CREDENTIAL_VARIABLES}
    if credential.proxy_file is not None:
        env["X509_USER_PROXY"] = str(credential.proxy_file)
    if token_file is not None:
        env["BEARER_TOKEN_FILE"] = str(token_file)
    return env


@contextlib.contextmanager
def token_file(credential: Credential) -> Iterator[Optional[Path]]:
    """Give a file of mode 0600 with the credential's token, ``None`` when there is no token."""
    if credential.token_file is not None or credential.token is None:
        yield credential.token_file
        return
    with tempfile.TemporaryDirectory(prefix="pilotage-token-") as folder:
        path = Path(folder) / "token"
        create_secret_file(path, credential.token)
        yield path
