"""The demo's processes: started with their own logs, watched, and all stopped at the end, their descendants included."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Optional

import click
import psutil

log = logging.getLogger(__name__)

PR_SET_CHILD_SUBREAPER = 36
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_S = 25.0
"""How long a process may take to end after SIGTERM: a pilot has 20 s to upload its log and to report."""
LAST_WORDS_S = 1.0
"""How long to wait for the end of the log of a program that has died."""
TAIL_LINES = 15


class DemoError(click.ClickException):
    """The demo cannot go on; the words are for the person who runs it."""


@dataclass
class Component:
    """One program that the demo started; ``found`` is what it said when it was ready."""

    name: str
    process: subprocess.Popen[bytes]
    log_file: Path
    ready: Optional[re.Pattern[bytes]] = None
    found: Optional[str] = None
    decided: threading.Event = field(default_factory=threading.Event)
    leaving: bool = False
    """Whether it was told to end."""

    def copy_log(self) -> None:
        """Copy what the program writes into its log, and look for the line that says that it is ready."""
        stream = self.process.stdout
        with self.log_file.open("ab", buffering=0) as file:
            for line in stream or ():
                file.write(line)
                match = self.ready.search(line) if self.ready and not self.decided.is_set() else None
                if match:
                    self.found = match[1].decode()
                    self.decided.set()


class Processes:
    """Starts programs and watches them; as a context manager it stops all of them at its end, however it ends."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self._environment = dict(environment)
        self._folder = folder
        self._components: list[Component] = []
        self._died = threading.Event()
        self._stopping = False
        self._others = set(psutil.Process().children())

    def __enter__(self) -> Processes:
        # Workers outlive harvester; what loses its parent becomes our child and can be found and stopped.
        _adopt_orphans(True)
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if kind is not None:
            click.echo("stopping everything …", err=True)
        # A second Ctrl-C must not leave half of them behind.
        before = {number: signal.signal(number, signal.SIG_IGN) for number in INTERRUPTS}
        try:
            self.stop()
        finally:
            _adopt_orphans(False)
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, argv: Sequence[str], log_file: Path) -> bytes:
        """Run a short command to its end; what it printed.

        Raises:
            DemoError: it failed.
        """
        with log_file.open("ab") as output:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd=self._folder,
                env=self._environment,
                check=False,
            )
        if done.returncode != 0:
            raise DemoError(f"{_command(argv)} ended with exit code {done.returncode}\n{tail(log_file)}")
        return done.stdout

    def start(
        self,
        name: str,
        argv: Sequence[str],
        ready: Optional[re.Pattern[bytes]] = None,
        more: Optional[Mapping[str, str]] = None,
    ) -> str:
        """Start a program whose standard error goes to ``<name>.log``; with ``ready``, wait until a line matches it.

        ``more`` is added to its environment. The text of the pattern's first group, or an empty one. Raises DemoError when the program ends before.
        """
        log_file = self._folder / f"{name}.log"
        # A session of its own: Ctrl-C is for the demo, which then stops its programs in their order.
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            env={**self._environment, **(more or {})},
            start_new_session=True,
        )
        component = Component(name, process, log_file, ready)
        self._components.append(component)
        # Two threads, because a program's own children may hold its output open when it is dead.
        copier = threading.Thread(target=component.copy_log, name=f"log of {name}", daemon=True)
        copier.start()
        threading.Thread(target=self._await_end, args=(component, copier), name=f"end of {name}", daemon=True).start()
        if ready is None:
            return ""
        component.decided.wait()
        if component.found is None:
            raise DemoError(self.obituary())
        return component.found

    def wait(self, seconds: float) -> bool:
        """Wait so long; true, at once, when a program has died."""
        return self._died.wait(seconds)

    def obituary(self) -> str:
        """Which programs died, and the ends of their logs; empty when all live."""
        dead = [one for one in self._components if one.process.poll() is not None]
        return "\n".join(
            f"{one.name} died ({_how(one.process.returncode)}); the end of {one.log_file}:\n{tail(one.log_file)}"
            for one in dead
        )

    def logs(self) -> list[Path]:
        """The logs of all programs."""
        return [component.log_file for component in self._components]

    def pid(self, name: str) -> int:
        """The number of the process of program ``name``."""
        return next(component.process.pid for component in self._components if component.name == name)

    def children(self, name: str) -> int:
        """How many living child processes the program ``name`` has."""
        try:
            found = psutil.Process(self.pid(name)).children()
            return sum(child.status() != psutil.STATUS_ZOMBIE for child in found)
        except psutil.NoSuchProcess:
            return 0

    def end(self, name: str) -> None:
        """Have one program end, and wait for that."""
        component = next(component for component in self._components if component.name == name)
        component.leaving = True
        self._end(component)

    def stop(self) -> None:
        """Stop everything: the programs in the reverse order of their start, each with what it leaves behind."""
        self._stopping = True
        for component in reversed(self._components):
            self._end(component)
            self._stop_orphans()
        self._kill_rest()
        self._components.clear()

    def _end(self, component: Component) -> None:
        if component.process.poll() is None:
            component.process.terminate()
            try:
                component.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                log.warning("%s did not end in %g s and is killed", component.name, STOP_S)
                component.process.kill()
                component.process.wait()

    def _stop_orphans(self) -> None:
        """End what a program left behind: its workers are our children now."""
        known = {component.process.pid for component in self._components}
        orphans = [child for child in self._children() if child.pid not in known]
        for orphan in orphans:
            _signal(orphan.terminate)
        psutil.wait_procs(orphans, timeout=STOP_S)

    def _kill_rest(self) -> None:
        """Until none is left: what loses its parent by this comes to us."""
        while children := self._children():
            for process in [one for child in children for one in (child, *_descendants(child))]:
                log.warning("process %d did not end and is killed", process.pid)
                _signal(process.kill)
            psutil.wait_procs(children)

    def _children(self) -> list[psutil.Process]:
        """Our children, but none that we had before the demo began."""
        return [child for child in psutil.Process().children() if child not in self._others]

    def _await_end(self, component: Component, copier: threading.Thread) -> None:
        component.process.wait()
        # Its last words are the ones that tell why; but a child of it may never close the log.
        copier.join(LAST_WORDS_S)
        component.decided.set()
        if not self._stopping and not component.leaving:
            self._died.set()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end a command as Ctrl-C does: in good order, with all the programs that it started."""

    def end(number: int, frame: Optional[FrameType]) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _adopt_orphans(yes: bool) -> None:
    """Whether descendants that lose their parent become children of this process (prctl(2))."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0) != 0:
        raise DemoError(f"this system hands no orphans over: {os.strerror(ctypes.get_errno())}")


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, indented; a word instead when there is nothing."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            last = list(deque(file, maxlen=lines))
    except OSError as error:
        return f"  (it cannot be read: {error.strerror})"
    return "".join(f"  {text.rstrip()}\n" for text in last).rstrip("\n") or "  (it is empty)"


def _command(argv: Sequence[str]) -> str:
    """A command as people know it, without the way to our Python."""
    words = list(argv)
    return " ".join(["pilotage", *words[words.index("common.cli.main") + 1 :]] if "common.cli.main" in words else words)


def _how(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _signal(send: Callable[[], None]) -> None:
    """Send a signal to a process that may be gone already."""
    try:
        send()
    except psutil.NoSuchProcess:
        pass
