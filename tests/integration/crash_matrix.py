"""``kill -9`` of harvester at each point at which it writes something, then a restart: a harness for any batch system.

Harvester runs in a process of its own over the backends that a configuration names, and a server that remembers in a
file. The first run goes undisturbed and lists the points: just before and just after each call that changes a file, the
server or the batch system. Then, for each point, a harvester of its own is killed there and started again::

    rows = crash_matrix(tmp_path, make_config, list_marks)
    print(as_table(rows))
    assert not [row for row in rows if row.wrong]
"""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common.clock import SystemClock
from common.states import WorkerState
from harvester.config import HarvesterConfig
from harvester.cycle import Cycle
from harvester.outcome import Outcome
from harvester.secret_files import SecretFiles
from harvester.service import make_backends
from harvester.store import Store
from tests.harvester_world import FakeServer

PILOTS = 3
"""Workers that each queue should have."""
DEADLINE_S = 240.0
SHOWN_S = 30.0
"""A worker that is there turns up in a list of all of them within that time."""
PAUSE_S = 0.05

WRITES = {
    "secrets": ("write", "remove", "sweep"),
    "store": ("plan", "apply", "mark_reported", "forget"),
    "server": ("report",),
    "backend": ("submit", "kill", "clean"),
}
"""The methods at which something outside the process is changed, by the part of the cycle that they belong to."""

ARRIVED = frozenset({WorkerState.SUBMITTED, WorkerState.RUNNING, WorkerState.HELD})


@dataclass
class Row:
    """What became of the workers when harvester was killed at ``point``; lists hold marks.

    ``found``: in the batch system when harvester was killed, and harvester's again after the restart. ``doubled``: twice
    in the batch system. ``lost``: harvester's, but not in the batch system. ``orphaned``: there, but not harvester's.
    """

    number: int
    point: str
    found: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    orphaned: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> bool:
        """Whether something went wrong."""
        return bool(self.doubled or self.lost or self.orphaned or self.problems)


def crash_matrix(
    folder: Path,
    make_config: Callable[[Path], HarvesterConfig],
    list_marks: Callable[[Path], Sequence[str]],
    *,
    inner: Sequence[str] = (),
    cycles: int = 2,
    chosen: Callable[[str], bool] = lambda point: True,
    finish: Callable[[Path], None] = lambda folder: None,
) -> list[Row]:
    """A row for each of the ``chosen`` points at which harvester writes something within ``cycles`` cycles.

    ``make_config`` gets a folder of its own for each run, with the ``state_dir`` to use: ``folder / "state"``.
    ``list_marks`` lists the mark of every worker that the batch system was ever given in that run, once for each time
    (those that were there before are left out here). ``inner`` names further calls to be killed at, such as
    ``harvester.backends.fake:FakeBatchSystem.take``: those between two workers of one bulk call. ``finish`` ends what
    workers are left of a run; they were asked to end before.
    """
    points = _points(folder / "undisturbed", make_config, inner, cycles)
    finish(folder / "undisturbed")
    rows = []
    for number, point in enumerate(points):
        if not chosen(point):
            continue
        own = folder / str(number)
        try:
            rows.append(_row(Row(number, point), own, make_config, list_marks, inner, cycles))
        finally:
            finish(own)
    return rows


def as_table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| write point | found | doubled | lost | orphaned |", "|---|---|---|---|---|"]
    for row in rows:
        counts = " | ".join(str(len(marks)) for marks in (row.found, row.doubled, row.lost, row.orphaned))
        lines.append(f"| {row.number} {row.point} | {counts} |" + "; ".join(row.problems))
    return "\n".join(lines)


# ---------------------------------------------------------------- in the process that is killed


class Harvester:
    """The objects of a harvester over ``folder``."""

    def __init__(self, config: HarvesterConfig, folder: Path) -> None:
        clock = SystemClock()
        state_dir = Path(config.state_dir)
        state_dir.mkdir(parents=True, exist_ok=True)
        backends = make_backends(config, state_dir, clock)
        self.backends = list({id(backend): backend for backend in backends.values()}.values())
        self.store = Store(state_dir / "harvester.db", clock)
        self.secrets = SecretFiles(state_dir / "secrets")
        self.server = FakeServer(folder, PILOTS)
        self.cycle = Cycle(config, backends, self.store, self.secrets, self.server, clock)

    def watch(self, inner: Sequence[str], at: Callable[[str], None]) -> None:
        """Have ``at`` called before and after every call that writes."""
        parts = [("secrets", self.secrets), ("store", self.store), ("server", self.server)]
        for name, part in [*parts, *(("backend", backend) for backend in self.backends)]:
            for method in WRITES[name]:
                if hasattr(part, method):
                    setattr(part, method, partial(_watched, getattr(part, method), f"{name}.{method}", at))
        for dotted in inner:
            owner, _, method = dotted.rpartition(".")
            setattr(pkgutil.resolve_name(owner), method, _method(pkgutil.resolve_name(dotted), method, at))


def _method(call: Callable[..., Any], name: str, at: Callable[[str], None]) -> Callable[..., Any]:
    def watched(*arguments: Any, **named: Any) -> Any:
        return _watched(call, name, at, *arguments, **named)

    return watched


def _watched(call: Callable[..., Any], name: str, at: Callable[[str], None], *arguments: Any, **named: Any) -> Any:
    at(f"before {name}")
    result = call(*arguments, **named)
    at(f"after {name}")
    return result


def _run(config: HarvesterConfig, folder: Path, inner: Sequence[str], cycles: int, kill_at: int | None) -> None:
    """A harvester's life: its start and some cycles. It writes down the points that it passes, and dies at one."""
    seen = [0]

    def at(point: str) -> None:
        if seen[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen[0] += 1
        with (folder / "points").open("a") as file:
            file.write(f"{point}\n")

    harvester = Harvester(config, folder)
    harvester.watch(inner, at)
    harvester.cycle.sweep()
    for _ in range(cycles):
        done = harvester.cycle.run(threading.Event())
        (folder / "problems").write_text("\n".join(done.problems))
        threading.Event().wait(PAUSE_S)


# ---------------------------------------------------------------- beside it


def _killed(config: HarvesterConfig, folder: Path, inner: Sequence[str], cycles: int, kill_at: int | None) -> int:
    """How a harvester in a process of its own ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_run, args=(config, folder, inner, cycles, kill_at), daemon=True)
    process.start()
    process.join(DEADLINE_S)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"harvester hung in {folder}")
    assert process.exitcode is not None
    return process.exitcode


def _points(
    folder: Path, make_config: Callable[[Path], HarvesterConfig], inner: Sequence[str], cycles: int
) -> list[str]:
    folder.mkdir(parents=True)
    config = make_config(folder)
    assert _killed(config, folder, inner, cycles, None) == 0, "an undisturbed harvester went wrong"
    assert not (folder / "problems").read_text(), (folder / "problems").read_text()
    _ask_to_end(Harvester(config, folder), config)
    return (folder / "points").read_text().splitlines()


def _row(
    row: Row,
    folder: Path,
    make_config: Callable[[Path], HarvesterConfig],
    list_marks: Callable[[Path], Sequence[str]],
    inner: Sequence[str],
    cycles: int,
) -> Row:
    folder.mkdir()
    config = make_config(folder)
    before = set(list_marks(folder))
    status = _killed(config, folder, inner, cycles, row.number)
    if status != -signal.SIGKILL:
        row.problems.append(f"it was to be killed there, and ended by itself with {status}")
    arrived = {mark for mark in list_marks(folder) if mark not in before}
    harvester = Harvester(config, folder)
    try:
        wanted = PILOTS * len(config.queues)
        _restarted(row, harvester, wanted)
        _judge(row, harvester, wanted, arrived, _given(harvester, lambda: list_marks(folder), before))
        _ask_to_end(harvester, config)
    finally:
        harvester.store.close()
    return row


def _restarted(row: Row, harvester: Harvester, wanted: int) -> None:
    """Run cycles until all workers that should be are in the batch system, and the server has heard of it."""
    give_up = time.monotonic() + DEADLINE_S
    harvester.cycle.sweep()
    for _ in range(2):
        harvester.cycle.run(threading.Event())
    while True:
        live = harvester.store.live()
        if len(live) >= wanted and all(one.state in ARRIVED and one.reported for one in live):
            return
        if time.monotonic() >= give_up:
            row.problems.append(f"after {DEADLINE_S:.0f} s it had {Counter(one.state.value for one in live)}")
            return
        done = harvester.cycle.run(threading.Event())
        row.problems = [problem for problem in row.problems if problem.startswith("it was")] + done.problems
        threading.Event().wait(PAUSE_S)


def _given(harvester: Harvester, list_marks: Callable[[], Sequence[str]], before: set[str]) -> list[str]:
    """Every worker that the batch system was ever given; it is asked again as long as one that lives is not among them.

    What a batch system writes down of its jobs it writes anew now and then: who looks just then misses one.
    """
    live = {worker.mark for worker in harvester.store.live()}
    give_up = time.monotonic() + SHOWN_S
    while True:
        given = [mark for mark in list_marks() if mark not in before]
        if live <= set(given) or time.monotonic() > give_up:
            return given
        threading.Event().wait(PAUSE_S)


def _judge(row: Row, harvester: Harvester, wanted: int, arrived: set[str], given: Sequence[str]) -> None:
    live = {worker.mark: worker for worker in harvester.store.live()}
    told = {report.mark: report.state for report in harvester.server.reports()}
    announced = {report.mark for report in harvester.server.reports() if report.secret_hash}
    row.found = sorted(arrived & live.keys())
    row.doubled = sorted(mark for mark, count in Counter(given).items() if count > 1)
    row.lost = sorted(live.keys() - set(given))
    row.orphaned = sorted(set(given) - live.keys())
    checks = {
        f"{len(live)} workers live": len(live) == wanted,
        "a worker ended": not harvester.store.ended(100),
        "a worker was submitted before it was announced": set(given) <= announced,
        "the server does not know the last state": all(told[mark] is live[mark].state for mark in live),
        "a secret was left": not any(harvester.secrets.read(mark) for mark in live),
    }
    row.problems += [what for what, good in checks.items() if not good]


def _ask_to_end(harvester: Harvester, config: HarvesterConfig) -> None:
    harvester.store.request_cancel(list(config.queues))
    done = Outcome()
    for step in (harvester.cycle.recover, harvester.cycle.observe, harvester.cycle.cancel):
        step(done)
