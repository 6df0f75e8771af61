"""What ``pilotage harvester status``, ``check``, ``workers`` and ``sweep`` print for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.cli.render import STYLES, state
from common.quantities import format_about
from common.states import FINAL_WORKER_STATES, WorkerState
from harvester.checks import Check, Verdict, until
from harvester.config import HarvesterConfig
from harvester.credentials.keeper import CredentialState
from harvester.explain import shape_text, table
from harvester.service import LastCycle
from harvester.store import Worker

MARK_CHARS = 12
"""Characters of a mark that tell workers apart for people; JSON has all of it."""
_VERDICTS = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILED: "red"}


@dataclass(frozen=True)
class Status:
    """All that ``status`` shows; ``unusable`` says why the files, as they are now, can't be put in force."""

    config: HarvesterConfig
    unusable: str
    running: bool
    last: LastCycle | None
    counts: Mapping[tuple[str, WorkerState], int]
    drained: frozenset[str]
    credentials: Sequence[CredentialState]
    now: float

    @property
    def queues(self) -> list[str]:
        """Those of the configuration, and those that have workers still."""
        return sorted({*self.config.queues, *(queue for queue, _ in self.counts)})


def print_status(out: Console, status: Status) -> None:
    """The harvester, its queues, its credentials, and what a person must look at."""
    word = Text("running", style="green") if status.running else Text("not running", style="red")
    out.print(Text.assemble("harvester ", (status.config.name, "bold"), " is ", word, _last(status)))
    out.print(_queues(status))
    if status.unusable:
        _print_hanging(out, Text("the configuration can't be used: ", style="red"), status.unusable)
    if status.credentials:
        out.print(_credentials(status))
    problems = status.last.problems if status.last is not None else []
    if problems:
        out.print(Text(f"{len(problems)} problem{'' if len(problems) == 1 else 's'} in the last cycle", style="bold"))
    for problem in problems:
        _print_hanging(out, Text("  ! ", style="red"), problem)
    if not problems and status.running:
        out.print(Text("no problems", style="green"))


def _last(status: Status) -> str:
    if status.last is None:
        return "; it has not run a cycle yet"
    ago = format_about(max(0.0, status.now - status.last.started))
    return f"; last cycle {ago} ago, took {format_about(status.last.duration_s)}"


def _queues(status: Status) -> Table:
    shown = table("queue", "backend", "alive", "most", "workers", "ended", "")
    for column in ("alive", "most"):
        shown.columns[["queue", "backend", "alive", "most"].index(column)].justify = "right"
    for name in status.queues:
        queue = status.config.queues.get(name)
        of_queue = {one: status.counts.get((name, one), 0) for one in WorkerState}
        alive = {one.value: n for one, n in of_queue.items() if one not in FINAL_WORKER_STATES}
        ended = {one.value: n for one, n in of_queue.items() if one in FINAL_WORKER_STATES}
        notes = [
            word
            for word, holds in (
                ("drained", name in status.drained),
                ("not configured", queue is None and not status.unusable),
            )
            if holds
        ]
        shown.add_row(
            Text(name, style="bold"),
            queue.backend if queue is not None else "",
            str(sum(alive.values())),
            str(queue.max_workers) if queue is not None else "",
            _counts(alive),
            _counts(ended),
            Text(", ".join(notes), style="yellow"),
        )
    return shown


def _counts(by_state: Mapping[str, int]) -> Text:
    parts = [Text(f"{count} {name}", style=STYLES.get(name, "")) for name, count in by_state.items() if count]
    return Text(", ").join(parts)


def _credentials(status: Status) -> Table:
    named = any(one.attributes for one in status.credentials)
    wrong = any(one.problem for one in status.credentials)
    shown = table("credential", "kind", "end", *(["attributes"] if named else []), *(["problem"] if wrong else []))
    for one in status.credentials:
        cells = [Text(one.name, style="bold"), Text(one.kind), _end(one, status.now)]
        if named:
            cells.append(Text(", ".join(one.attributes)))
        if wrong:
            cells.append(Text(one.problem, style="red"))
        shown.add_row(*cells)
    return shown


def _end(one: CredentialState, now: float) -> Text:
    if one.expires is None and one.obtained is None:
        return Text("there is none yet", style="red")
    ended = one.expires is not None and one.expires <= now
    return Text(until(one.expires, now), style="red" if ended else "")


def print_workers(out: Console, workers: Sequence[Worker], now: float) -> None:
    """A row for each worker."""
    if not workers:
        out.print("no workers")
        return
    shown = table("worker", "queue", "state", "for", "shape", "batch id", "reason")
    for one in workers:
        shown.add_row(
            Text(one.mark[:MARK_CHARS]),
            Text(one.queue),
            state(one.state.value),
            format_about(max(0.0, now - one.updated)),
            Text(shape_text(one.shape)),
            Text(one.batch_id),
            Text(_why(one)),
        )
    out.print(shown)


def _why(worker: Worker) -> str:
    """Its reason, unless that says no more than its state."""
    reason = worker.reason if worker.reason != worker.state.value else ""
    return reason or ("its end was asked for" if worker.cancel else "")


def print_checks(out: Console, found: Iterable[Check]) -> int:
    """A line for each check as it comes, with the remedy below; how many have failed."""
    failed = 0
    for check in found:
        failed += check.verdict is Verdict.FAILED
        style = _VERDICTS[check.verdict]
        words = f"{check.what}: {check.words}" if check.words else check.what
        _print_hanging(out, Text(f"{check.verdict.value:<8}", style=style), words)
        if check.remedy:
            _print_hanging(out, Text(" " * 8 + "-> ", style="bold"), check.remedy)
    return failed


def _print_hanging(out: Console, head: Text, words: str) -> None:
    """Words that go on below themselves, not below their head."""
    lines = textwrap.wrap(words, max(20, out.width - len(head) - 1), break_long_words=False, break_on_hyphens=False)
    for index, line in enumerate(lines or [""]):
        out.print(Text.assemble(head if index == 0 else " " * len(head), line), soft_wrap=True)
