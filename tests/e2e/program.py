"""Programs as real processes: started, watched, stopped by their own pids."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Optional, TypeVar, Union

import psutil

T = TypeVar("T")

START_S = 180.0
"""How long a program may take until it is ready. Deadlines are for machines with a slow disk and other work: none that
passes ever uses them up."""
STOP_S = 90.0
"""How long it may take to end: a pilot has 20 s to upload its log and to report."""
POLL_S = 0.05


class Deadline(AssertionError):
    """What was waited for did not happen."""


def wait_for(condition: Callable[[], Optional[T]], what: Union[str, Callable[[], str]], deadline: float) -> T:
    """What ``condition`` gives as soon as it is true; raises Deadline with ``what`` after ``deadline`` seconds."""
    end = time.monotonic() + deadline
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise Deadline(f"not within {deadline:g} s: {what() if callable(what) else what}")
        time.sleep(POLL_S)


def pilotage(*arguments: str) -> list[str]:
    """The command ``pilotage`` of the Python that runs the tests."""
    return [sys.executable, "-m", "common.cli.main", *arguments]


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def processes_of(folder: Path) -> list[psutil.Process]:
    """The living processes that were told of the folder: by their command, their working directory or their environment."""
    found, wanted = [], str(folder)
    for process in psutil.process_iter():
        try:
            told = [*process.cmdline(), process.cwd(), *process.environ().values()]
            if process.pid != os.getpid() and any(wanted in text for text in told) and not gone(process):
                found.append(process)
        # The last one comes of a process that ends while it is looked at.
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue
    return found


class Program:
    """One program of ours as a process in a session of its own; its output goes to ``log``."""

    def __init__(
        self, name: str, argv: Sequence[str], folder: Path, environment: Mapping[str, str], ready: Callable[[], bool]
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._argv = list(argv)
        self._folder = folder
        self._environment = dict(environment)
        self._ready = ready
        self._process: Optional[subprocess.Popen[bytes]] = None

    @property
    def pid(self) -> int:
        """The main process; raises AssertionError when it is not running."""
        assert self._process is not None and self.running, f"{self.name} is not running\n{self.tail()}"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the main process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> Optional[int]:
        """How its last run ended, below zero by a signal; None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self, *, wait: bool = True) -> None:
        """Start it and, unless told otherwise, wait until it is ready."""
        assert not self.running, f"{self.name} runs already"
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=self._environment,
                start_new_session=True,
            )
        if wait:
            wait_for(lambda: not self.running or self._ready(), lambda: f"{self.name} ready\n{self.tail()}", START_S)
            assert self.running, f"{self.name} ended with {self._process.poll()}\n{self.tail()}"

    def stop(self, deadline: float = STOP_S) -> int:
        """SIGTERM; its exit code. Fails when it, or a child of it, is still there after ``deadline`` seconds."""
        return self._end(signal.SIGTERM, deadline)

    def kill9(self, deadline: float = STOP_S) -> None:
        """SIGKILL to the main process alone; returns when its helper processes have noticed and left."""
        if self.running and self._process is not None:
            # It gets no further while its helpers are looked up.
            self._process.send_signal(signal.SIGSTOP)
        self._end(signal.SIGKILL, deadline)

    def kill9_all(self, deadline: float = STOP_S) -> None:
        """SIGKILL to the main process and its helpers, stopped first so that none of them sees another one die."""
        family = self._family()
        assert self._process is not None and family, f"{self.name} was not running\n{self.tail()}"
        for send in (psutil.Process.suspend, psutil.Process.kill):
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    send(process)
        self._process.wait(deadline)
        wait_for(lambda: all(map(gone, family)), lambda: f"{self.name}: {family} end", deadline)

    def freeze(self) -> None:
        """SIGSTOP to the main process and its children: it is there, but answers nothing."""
        for process in self._family():
            process.suspend()

    def thaw(self) -> None:
        """The end of :meth:`freeze`."""
        for process in self._family():
            process.resume()

    def destroy(self) -> None:
        """Whatever is left of it is killed: for the end of a test that failed."""
        if self._process is None:
            return
        for process in self._family():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def text(self) -> str:
        """All that it has written."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self, characters: int = 3000) -> str:
        """The end of its log."""
        return f"--- {self.log}\n{self.text()[-characters:]}"

    def _end(self, number: signal.Signals, deadline: float) -> int:
        family = self._family()
        assert self._process is not None and family, f"{self.name} was not running\n{self.tail()}"
        self._process.send_signal(number)
        try:
            code = self._process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise Deadline(f"{self.name} did not end within {deadline:g} s of {number.name}\n{self.tail()}") from None
        left = [process for process in family if not gone(process)]
        wait_for(lambda: all(map(gone, left)), lambda: f"{self.name} left {left}\n{self.tail()}", deadline)
        return code

    def _family(self) -> list[psutil.Process]:
        if self._process is None or self._process.poll() is not None:
            return []
        with suppress(psutil.NoSuchProcess):
            main = psutil.Process(self._process.pid)
            # Workers are in sessions of their own: they are no part of harvester.
            children = main.children(recursive=True)
            return [main, *(child for child in children if _session(child) == main.pid)]
        return []


def _session(process: psutil.Process) -> int:
    with suppress(ProcessLookupError):
        return os.getsid(process.pid)
    return -1


def words_of(process: psutil.Process) -> list[str]:
    """The command line of a process; empty when it is gone."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return list(process.cmdline())
    return []


def without_forks(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that no other one of them has started: a child has its parent's command line until it runs its own program."""
    pids = {process.pid for process in processes}
    return [process for process in processes if _parent(process) not in pids]


def _parent(process: psutil.Process) -> int:
    with suppress(psutil.NoSuchProcess):
        return process.ppid()
    return -1
