"""Processes of this machine, named so that a recycled pid is never taken for the process that had it before."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harvester.backends.local_wrapper import boot_id, identity


@dataclass(frozen=True, order=True)
class ProcessId:
    """A process, unmistakably: its pid, its start in clock ticks since boot, and which boot.

    psutil's ``create_time`` is derived from the wall clock and moves when that is set; these three are written to disk
    and compared much later, so they must not move.
    """

    ticks: int
    pid: int
    boot: str

    def __str__(self) -> str:
        return f"{self.pid}:{self.ticks}:{self.boot}"

    @classmethod
    def parse(cls, text: str) -> ProcessId | None:
        """The process that :meth:`__str__` wrote down; None if ``text`` is something else."""
        pid, _, rest = text.partition(":")
        ticks, _, boot = rest.partition(":")
        if pid.isdecimal() and ticks.isdecimal() and boot:
            return cls(int(ticks), int(pid), boot)
        return None


def identify(pid: int) -> ProcessId | None:
    """The process that has ``pid`` now; None if there is none, or only its remains (a zombie)."""
    found = _stat(pid)
    return ProcessId(found[0], pid, boot_id()) if found else None


def is_alive(process: ProcessId) -> bool:
    """Whether the process runs still."""
    return identify(process.pid) == process


def session_members(leader: ProcessId) -> list[ProcessId]:
    """The living processes of the session that ``leader`` began.

    The kernel gives a pid to nobody else while a session of that number has members: so they are the leader's own even
    when it is dead, unless its pid has a new owner already, and then it has none left.
    """
    boot = boot_id()
    if leader.boot != boot:
        return []
    owner = _stat(leader.pid)
    if owner is not None and owner[0] != leader.ticks:
        return []
    found = ((pid, _stat(pid)) for pid in _pids())
    return [ProcessId(stat[0], pid, boot) for pid, stat in found if stat is not None and stat[1] == leader.pid]


def find_by_variable(name: str, values: set[str]) -> dict[str, ProcessId]:
    """For each of ``values``, the oldest process of ours that began with the environment variable ``name`` set to it."""
    prefix = f"{name}=".encode()
    found: dict[str, ProcessId] = {}
    for pid in _pids():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # ended meanwhile, or somebody else's
            continue
        value = next(
            (item[len(prefix) :].decode("utf-8", "replace") for item in variables if item.startswith(prefix)), ""
        )
        process = identify(pid) if value in values else None
        if process is not None:
            found[value] = min(process, found.get(value, process))
    return found


def send_signal(process: ProcessId, number: signal.Signals) -> bool:
    """Send a signal to this very process; False if it has ended.

    Raises PermissionError: it belongs to somebody else.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        # The descriptor holds on to whoever has the pid now: checked after it was opened, it can't change any more.
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def _stat(pid: int) -> tuple[int, int] | None:
    """Start and session of a living process."""
    try:
        ticks, state, session = identity(pid)
    except OSError:
        return None
    return None if state in "ZX" else (ticks, session)


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdecimal())  # noqa: PTH208 - names alone are wanted
