"""The processes of this machine that belong to payloads: one pass over /proc for all jobs, read directly.

What is not ours is read once and then passed by for as long as its entry in /proc is the same (a process that ends takes
its entry's inode number with it), so that a pass costs what our own processes cost, however many others there are.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
SAME_PASS_S = 0.5
"""Looks that follow one another this closely share a pass."""
PASSED_BY_S = 60.0
"""What is not ours is read again after so long, should a kernel number its entries otherwise."""
_READ = 4096
_GONE = (b"Z", b"X")
_IO = re.compile(rb"rchar: (\d+)\nwchar: (\d+)\n.*\nread_bytes: (\d+)\nwrite_bytes: (\d+)\n", re.DOTALL)
_PSS = re.compile(rb"^Pss: +(\d+) kB$", re.MULTILINE)
_SWAP_PSS = re.compile(rb"^SwapPss: +(\d+) kB$", re.MULTILINE)
_SWAP = re.compile(rb"^VmSwap:\s+(\d+) kB$", re.MULTILINE)
_CAUGHT = re.compile(rb"^SigCgt:\s+([0-9a-f]+)$", re.MULTILINE)
_OWNERS = re.compile(rb"^([UG])id:\s+([0-9\s]+?)$", re.MULTILINE)
_MEMORY = re.compile(rb"^Swap(Total|Free): +(\d+) kB$", re.MULTILINE)


class ProcessGone(Exception):
    """The process has ended, or is another user's."""


@dataclass(frozen=True)
class ProcessSeen:
    """A living process. Bytes; ``cpu_s`` its own CPU time, ``reaped_cpu_s`` that of its children that it has waited for.

    ``start`` (in ticks since the machine's boot) with ``pid`` names it for ever. ``faults`` counts the pages that it has
    touched for the first time since then or since they were shared.
    """

    pid: int
    parent: int
    group: int
    start: int
    name: str
    state: str
    rss: int
    faults: int
    threads: int
    cpu_s: float
    reaped_cpu_s: float


@dataclass(frozen=True)
class InOut:
    """Bytes that a process and the children that it has waited for read and wrote: by system calls (``asked_``), and
    from and to disks (``disk_``)."""

    asked_read: int = 0
    asked_written: int = 0
    disk_read: int = 0
    disk_written: int = 0

    def __add__(self, other: InOut) -> InOut:
        return InOut(
            self.asked_read + other.asked_read,
            self.asked_written + other.asked_written,
            self.disk_read + other.disk_read,
            self.disk_written + other.disk_written,
        )


def read_process(pid: int) -> ProcessSeen:
    """One process. Raises ProcessGone."""
    text = _read(f"/proc/{pid}/stat")
    head, _, tail = text.rpartition(b")")
    fields = tail.split()
    if len(fields) < 22 or (fields[0] in _GONE and int(fields[17]) <= 1):  # its first thread may end before the others
        raise ProcessGone(pid)
    return ProcessSeen(
        pid=pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        start=int(fields[19]),
        name=head.partition(b"(")[2].decode("utf-8", "replace"),
        state=fields[0].decode(),
        rss=int(fields[21]) * PAGE,
        faults=int(fields[7]) + int(fields[9]),
        threads=int(fields[17]),
        cpu_s=(int(fields[11]) + int(fields[12])) / TICKS,
        reaped_cpu_s=(int(fields[13]) + int(fields[14])) / TICKS,
    )


def in_out(pid: int) -> InOut:
    """What a process read and wrote. Raises ProcessGone."""
    found = _IO.search(_read(f"/proc/{pid}/io"))
    if found is None:
        raise ProcessGone(pid)
    return InOut(*(int(number) for number in found.groups()))


def proportional_bytes(pid: int) -> int:
    """Its memory with what it shares with others divided among them, swapped pages included; costs some 14 ms for each
    GB that is resident. Raises ProcessGone."""
    text = _read(f"/proc/{pid}/smaps_rollup")
    found = _PSS.search(text)
    if found is None:
        raise ProcessGone(pid)
    swapped = _SWAP_PSS.search(text)
    return (int(found[1]) + (int(swapped[1]) if swapped else 0)) * 1024


def swapped_bytes(pid: int) -> int:
    """What of it is swapped out. Raises ProcessGone."""
    found = _SWAP.search(_read(f"/proc/{pid}/status"))
    return int(found[1]) * 1024 if found else 0


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for that signal. Raises ProcessGone."""
    found = _CAUGHT.search(_read(f"/proc/{pid}/status"))
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


def owners(pid: int) -> tuple[list[int], list[int]]:
    """Users and groups of a process: real, effective, saved, and for files. Raises ProcessGone."""
    found = dict(_OWNERS.findall(_read(f"/proc/{pid}/status")))
    if len(found) != 2:
        raise ProcessGone(pid)
    return [int(number) for number in found[b"U"].split()], [int(number) for number in found[b"G"].split()]


def swap_in_use() -> bool:
    """Whether anything on this machine is swapped out: while nothing is, no process needs to be asked."""
    try:
        found = dict(_MEMORY.findall(_read("/proc/meminfo", 8192)))
    except ProcessGone:
        return False
    return int(found.get(b"Total", 0)) > int(found.get(b"Free", 0))


def _read(path: str, size: int = _READ) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ProcessGone(path) from error
    try:
        return os.read(descriptor, size)
    except OSError as error:
        raise ProcessGone(path) from error
    finally:
        os.close(descriptor)


class ProcessTable:
    """What the last pass over /proc saw of the trees below some roots. Trees are read on one thread, added and removed
    from any."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._roots: list[int] = []
        self._others: dict[int, int] = {}
        """Processes that are in no tree, and the inode numbers of their entries."""
        self._others_since = float("-inf")
        self._passed = float("-inf")
        self._lock = threading.Lock()
        self._children: dict[int, list[ProcessSeen]] = {}
        self._swaps = False
        self.passes = 0
        """How many there were."""

    def add(self, root: int) -> None:
        """From the next pass on, the tree below this process is seen too."""
        with self._lock:
            self._roots.append(root)
            self._others = {}  # its processes may have been seen before it was known whose they are
            self._passed = float("-inf")

    def remove(self, root: int) -> None:
        """This tree is not looked at any more."""
        with self._lock:
            if root in self._roots:
                self._roots.remove(root)

    def tree(self, root: int, max_age_s: float = SAME_PASS_S) -> list[ProcessSeen]:
        """All living processes below ``root``, itself left out, as a pass of at most that age saw them."""
        with self._lock:
            if not 0 <= self._clock() - self._passed < max_age_s:
                self._pass()
            return below(root, self._children)

    @property
    def swaps(self) -> bool:
        """Whether anything was swapped out at the last pass."""
        return self._swaps

    def _pass(self) -> None:
        now = self._clock()
        if now - self._others_since > PASSED_BY_S:
            self._others = {}
            self._others_since = now
        others = self._others
        children: dict[int, list[ProcessSeen]] = {}
        inodes: dict[int, int] = {}
        with os.scandir("/proc") as entries:
            for entry in entries:
                if not entry.name.isdigit():
                    continue
                pid, inode = int(entry.name), entry.inode()
                if others.get(pid) == inode:
                    inodes[pid] = inode
                    continue
                try:
                    seen = read_process(pid)
                except ProcessGone:
                    continue
                inodes[pid] = inode
                children.setdefault(seen.parent, []).append(seen)
        ours = set(self._roots)
        for root in self._roots:
            ours.update(seen.pid for seen in below(root, children))
        # A process that is in no tree cannot come into one: orphans go to their own tree's supervisor.
        self._others = {pid: inode for pid, inode in inodes.items() if pid not in ours}
        self._children = children
        self._swaps = swap_in_use()
        self._passed = now
        self.passes += 1


def below(root: int, children: dict[int, list[ProcessSeen]]) -> list[ProcessSeen]:
    """The processes below ``root``."""
    found: list[ProcessSeen] = []
    queue = [root]
    while queue:
        next_ones = children.get(queue.pop(), [])
        found += next_ones
        queue += [seen.pid for seen in next_ones]
    return found


def tree_of(root: int) -> list[ProcessSeen]:
    """The same for one tree, in a pass of its own."""
    table = ProcessTable()
    table.add(root)
    return table.tree(root)
