"""What every service fixture needs: a reason when it cannot be had, a free port, a process with a deadline."""

from __future__ import annotations

import contextlib
import importlib
import os
import pwd
import random
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn, Optional, TypeVar

import pytest

T = TypeVar("T")

START_DEADLINE = 180.0  # seconds that a server may take to answer, on a machine with a slow disk and other work
STOP_DEADLINE = 60.0  # seconds between the polite signal and SIGKILL
POLL_INTERVAL = 0.05
# Below Linux's range of ephemeral ports (32768 and up), so that no outgoing connection takes the port
# between the search for it and the server's bind.
PORTS = range(20000, 32000)


class ServiceUnavailable(Exception):
    """The service cannot be had on this machine; the message says why and what would help."""


class ServiceFailed(RuntimeError):
    """The service is installed but did not do what it should: an error of the test run, never a skip."""


def require(obtain: Callable[[], T]) -> T:
    """Return what ``obtain`` gives; where it raises ServiceUnavailable, skip the test, or fail it when CI=true."""
    try:
        return obtain()
    except ServiceUnavailable as reason:
        give_up(str(reason))


def give_up(reason: str) -> NoReturn:
    """End the test for want of a service: a skip on a person's machine, a failure when CI=true."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"CI=true demands every real service: {reason}", pytrace=False)
    pytest.skip(reason)


def require_module(name: str) -> ModuleType:
    """The Python module ``name``; where it cannot be imported, skip the test, or fail it when CI=true."""

    def obtain() -> ModuleType:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise ServiceUnavailable(f"Python module {name} cannot be imported ({error}): pip install it") from error

    return require(obtain)


def free_port() -> int:
    """A port that nothing on 127.0.0.1 holds now, outside the range that outgoing connections use."""
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServiceFailed(f"no free port found between {PORTS.start} and {PORTS.stop}")


def hold_port() -> socket.socket:
    """A free port (its ``getsockname()[1]``) that stays so while the socket is open, for a server that starts much later.

    On some machines outgoing connections use any port. The server itself must set SO_REUSEADDR.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", free_port()))
    return held


def run(
    command: Sequence[str | Path],
    *,
    timeout: float = 300.0,
    env: Optional[Mapping[str, str]] = None,
    cwd: Optional[Path] = None,
) -> str:
    """Run a command to its end and return its standard output.

    Raises ServiceFailed, with the end of the command's output, when it exits non-zero or passes ``timeout`` seconds.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, timeout=timeout, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired as error:
        raise ServiceFailed(f"{' '.join(words)}: not done after {timeout:g} s") from error
    except OSError as error:
        raise ServiceFailed(f"{' '.join(words)}: {error}") from error
    if done.returncode != 0:
        raise ServiceFailed(f"{' '.join(words)}: exit {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def wait_until(condition: Callable[[], bool], what: str, deadline: float = START_DEADLINE) -> None:
    """Return once ``condition()`` holds; raise ServiceFailed naming ``what`` after ``deadline`` seconds."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise ServiceFailed(f"{what}: not within {deadline:g} s")
        time.sleep(POLL_INTERVAL)


def switch_to(user: str, death_signal: str = "KILL") -> list[str]:
    """The words before a command that make it run as ``user`` (when we are root) and end with this process.

    Raises ServiceUnavailable when we are root and there is no such user.
    """
    words = ["setpriv", "--pdeathsig", death_signal]
    if os.geteuid() != 0:
        return words
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ServiceUnavailable(f"no user {user!r} on this machine: create it to run the service as root") from None
    return [*words, "--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid), "--init-groups"]


def give_to(user: str, *paths: Path) -> None:
    """Make ``user`` the owner of the paths, when we are root (otherwise the service runs as ourselves)."""
    if os.geteuid() == 0:
        for path in paths:
            shutil.chown(path, user, pwd.getpwnam(user).pw_gid)


class Service:
    """A server process on loopback, in a process group of its own, stopped by its own pid.

    ``command`` is the whole command line; ``answers`` says whether the server serves now; ``log`` takes its output.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        answers: Callable[[], bool],
        *,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[Path] = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.log = log
        self._command = [str(word) for word in command]
        self.answers = answers
        self._env = env
        self._cwd = cwd
        self._stop_signal = stop_signal
        self._process: Optional[subprocess.Popen[bytes]] = None

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The server's process id; raises ServiceFailed when it is stopped."""
        if self._process is None:
            raise ServiceFailed(f"{self.name} is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the server and return when it answers; raise ServiceFailed with the end of its log if it doesn't."""
        if self.running:
            return
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,
            )
        try:
            wait_until(lambda: not self.running or self.answers(), f"{self.name} answers")
            if not self.running:
                raise ServiceFailed(f"{self.name} ended with exit code {self._process.returncode}")
        except ServiceFailed as error:
            self.stop()
            raise ServiceFailed(f"{error}\n{self.log_tail()}") from error

    def stop(self) -> None:
        """End the server and whatever is left of its process group; nothing to do when it is stopped."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        # The leader is reaped last: until then nobody else can get its number, so the signals cannot go astray.
        process_end = os.pidfd_open(process.pid)
        try:
            signal.pidfd_send_signal(process_end, self._stop_signal)
            waiter = select.poll()
            waiter.register(process_end, select.POLLIN)
            waiter.poll(STOP_DEADLINE * 1000)
        finally:
            os.close(process_end)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """The server is down inside the block and serves again after it, whatever happens there."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def log_tail(self, characters: int = 3000) -> str:
        """The end of the server's log."""
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""


@pytest.fixture(scope="session")
def services_folder() -> Iterator[Path]:
    """A folder for the state of all services, removed at the end.

    Not pytest's own temporary folder: that one is closed to other users, and servers run as users of their own.
    """
    folder = Path(tempfile.mkdtemp(prefix="pilotage-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
