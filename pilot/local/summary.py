"""What came of a job that ran on this machine, for people and for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import msgspec
from rich.console import Console
from rich.markup import escape

from common.errors import ERRORS, ErrorCode
from common.quantities import format_duration, format_size
from common.states import JobState
from common.wire import Assignment, Metrics, OutputRole, UnitOutcome
from pilot.local.server import LocalServer

TAIL_LINES = 20


class ProducedOutput(msgspec.Struct):
    """An output that was collected."""

    name: str
    path: str
    size: int
    checksum: str
    events: Optional[int] = None
    attributes: dict[str, Any] = {}


class Summary(msgspec.Struct, kw_only=True):
    """The job's end. ``exit_code`` is the payload's own, ``error_code`` the pilot's; ``units`` counts by outcome."""

    stage: str
    state: str
    exit_code: Optional[int] = None
    error_code: Optional[int] = None
    error_name: Optional[str] = None
    error_detail: str = ""
    advice: str = ""
    units: dict[str, int] = {}
    metrics: Optional[Metrics] = None
    outputs: list[ProducedOutput] = []
    folder: str
    log: Optional[str] = None
    log_tail: str = ""

    @property
    def program_code(self) -> int:
        """What the command exits with: 0, the payload's own exit code, else 1."""
        if self.state == JobState.FINISHED.value:
            return 0
        return self.exit_code or 1


def summarize(assignment: Assignment, server: LocalServer, folder: Path) -> Summary:
    """From what the pilot reported; ``folder`` is that of this run."""
    report = server.report
    if report is None:
        code = server.end_code or int(ErrorCode.GENERAL_ERROR)
        reason = server.end_reason or "the pilot ended without a report: read pilot.log"
        return _with_error(
            Summary(stage=assignment.stage, state="not run", error_detail=reason, folder=str(folder)), code
        )
    outcomes = [unit.outcome for unit in report.units]
    counts = {outcome.value: outcomes.count(outcome) for outcome in UnitOutcome if outcome in outcomes}
    uploaded = {output.did.partition(":")[2] for output in report.outputs}
    records = [record for record in server.records.values() if record.name in uploaded]
    log = next((str(folder / record.name) for record in records if record.role is OutputRole.LOG), None)
    summary = Summary(
        stage=assignment.stage,
        state=report.state.value,
        exit_code=report.exit_code,
        error_detail=report.error_detail,
        units=counts,
        metrics=report.metrics,
        outputs=[
            ProducedOutput(
                record.name,
                str(folder / "outputs" / record.name),
                record.size,
                record.checksum,
                record.events,
                record.attributes,
            )
            for record in records
            if record.role is OutputRole.OUTPUT
        ],
        folder=str(folder),
        log=log,
        log_tail=report.log_tail,
    )
    return _with_error(summary, report.error_code)


def _with_error(summary: Summary, code: Optional[int]) -> Summary:
    if code is not None:
        summary.error_code = code
        known = ErrorCode(code) if code in set(ErrorCode) else None
        summary.error_name = known.name if known is not None else None
        summary.advice = ERRORS[known].words if known is not None else ""
    return summary


def show(summary: Summary, out: Console) -> None:
    """For people."""
    fine = summary.state == JobState.FINISHED.value
    out.print(f"[bold]stage {escape(summary.stage)}[/]: [{'green' if fine else 'red'}]{escape(summary.state)}[/]")
    if summary.error_code is not None:
        out.print(f"  error      {summary.error_code} {summary.error_name or ''}: {escape(summary.error_detail)}")
        out.print(f"             {escape(summary.advice)}")
    if summary.exit_code is not None:
        out.print(f"  exit code  {summary.exit_code}")
    if summary.units:
        out.print("  units      " + ", ".join(f"{count} {name}" for name, count in summary.units.items()))
    metrics = summary.metrics
    if metrics is not None:
        events = f", {metrics.events} events" if metrics.events else ""
        out.print(
            f"  used       {format_duration(metrics.wall_s)}, {metrics.cpu_s:.1f} s of CPU, "
            f"{metrics.max_rss_mb:.0f} MiB of memory, {metrics.work_dir_mb:.0f} MiB of disk{events}"
        )
    for output in summary.outputs:
        events = f", {output.events} events" if output.events is not None else ""
        out.print(f"  output     {escape(output.path)} ({format_size(output.size)}{events})")
    if summary.log is not None:
        out.print(f"  log        {escape(summary.log)}")
    out.print(f"  folder     {escape(summary.folder)}")
    if not fine and summary.log_tail:
        out.print("\nthe end of the payload's log:")
        for line in summary.log_tail.splitlines()[-TAIL_LINES:]:
            out.print(f"  {escape(line)}")
