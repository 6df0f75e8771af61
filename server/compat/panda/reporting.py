"""What a PanDA pilot, or Harvester for it, says of a job, and what it is told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from common.checksums import parse_checksum
from common.errors import ErrorCode, PilotageError
from common.states import JobState
from common.wire import Metrics, PeekKind, PeekOrder
from common.wire.peeks import MOST_TEXT
from server.compat.bodies import json_of
from server.compat.panda.fields import NONE, Fields
from server.compat.panda.words import JOB_STATES, KILLED, error_of
from server.dispatch import foreign_reports
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Gone, Invalid, NotFound
from server.dispatch.foreign_reports import Delivered, End
from server.store.foreign import ForeignJob

KILL = "tobekilled"
DEBUG_OFF = "debugoff"
MOST_FILES = 10_000
KB, MB = 1024.0, 1024.0 * 1024.0
_WORDS = 1000
_LOG = 16_000
_METRIC = re.compile(r"(\w{1,64})=(\S{1,64})")
_NO_LOG = "pilots of PanDA show no log of their own while they run"


def report(dispatcher: Dispatcher, caller: str, job_id: int, pilot: str, state: str, fields: Fields) -> str | None:
    """Take down what is said of a job; the command for its pilot, if there is one. A job that is gone is to be killed.

    ``fields`` are those of ``updateJob``.

    Raises:
        Invalid: there is no such state, or the files that it left cannot be read.
        NotFound: there was never such a job.
        NotYours: it is another caller's or another pilot's.
        Conflict: its end was reported before, with another content.
    """
    ours = JOB_STATES.get(state)
    if ours is None:
        raise Invalid(f"a job has no state {state!r}", [("$.state", f"one of {', '.join(JOB_STATES)}")])
    files = _files(fields.raw("xml"))
    job = foreign_reports.mine(dispatcher, caller, job_id, pilot)
    if ours is JobState.SENT:
        ours = JobState.STARTING
    # A user's job that a later one might mend is reported as held, with a negative number, and never again.
    given_up = ours is JobState.HOLDING and fields.signed("pilotErrorCode") != 0
    if ours in (JobState.FINISHED, JobState.FAILED, JobState.CANCELLED) or given_up:
        return _end(dispatcher, job, JobState.FAILED if given_up else ours, fields, files)
    return _beat(dispatcher, job, ours, fields)


def _beat(dispatcher: Dispatcher, job: ForeignJob, state: JobState, fields: Fields) -> str | None:
    told = foreign_reports.beat(dispatcher, job, state, metrics_of(fields), fields.end_of("stdout", MOST_TEXT))
    if told.kill:
        return KILL
    if told.peek is not None:
        command = command_of(told.peek)
        if command is None:
            foreign_reports.not_shown(dispatcher, job, told.peek.peek_id, _NO_LOG)
        return command
    return DEBUG_OFF if told.answered else None


def command_of(order: PeekOrder) -> str | None:
    """A request to look at a job in PanDA's words; None: such pilots cannot show that. Never is anything of it shell text
    that a person wrote, but for a path, which must be plain."""
    path = order.path if re.fullmatch(r"[A-Za-z0-9._+/=@-]*", order.path) else ""
    if path != order.path or path.startswith("-"):
        return None
    known = {"stdout": "payload.stdout", "stderr": "payload.stderr", "": "payload.stdout"}
    if order.kind == PeekKind.TAIL:
        return f"tail {known.get(path, path)}"
    if order.kind == PeekKind.LS:
        return f"ls -l {path}".strip()
    if order.kind == PeekKind.PS:
        return "ps -ef"
    if order.kind == PeekKind.DU:
        return "du -sk ."
    if order.kind == PeekKind.GDB and order.pid is not None:
        return f"gdb --pid {order.pid}"
    return None


def _end(
    dispatcher: Dispatcher, job: ForeignJob, state: JobState, fields: Fields, files: list[Delivered]
) -> str | None:
    code, words = None, ""
    if state is not JobState.FINISHED:
        found = error_of(fields.signed("pilotErrorCode"), _payload_code(fields) or 0)
        if state is JobState.CANCELLED:
            found = ErrorCode.USER_KILL
        state = JobState.CANCELLED if found in KILLED else JobState.FAILED
        code, words = int(found), _why(fields)
    end = End(
        state=state,
        delivered=files,
        error_code=code,
        error_detail=words,
        exit_code=_payload_code(fields),
        metrics=metrics_of(fields),
        log_tail=fields.end_of("pilotLog", _LOG) or fields.end_of("stdout", _LOG),
    )
    try:
        foreign_reports.confirm(dispatcher, job, end)
    except (Gone, NotFound):
        return KILL
    return None


def _payload_code(fields: Fields) -> int | None:
    """The payload's exit code, as far as it is told."""
    for name in ("transExitCode", "exeErrorCode"):
        if fields.text(name):
            found = fields.signed(name)
            if found:
                return found
    return 0 if fields.text("transExitCode") or fields.text("exeErrorCode") else None


def _why(fields: Fields) -> str:
    """The words of a failed job, with the numbers that they came with."""
    parts = []
    for number, diag in (("pilotErrorCode", "pilotErrorDiag"), ("exeErrorCode", "exeErrorDiag")):
        words = fields.text(diag, _WORDS)
        if fields.signed(number) or words:
            parts.append(f"{number} {fields.signed(number)}: {words}" if words else f"{number} {fields.signed(number)}")
    return "; ".join(parts)


def _files(said: Any) -> list[Delivered]:
    """The files that a job left: JSON in a text, or as it is. Raises Invalid."""
    if isinstance(said, str):
        if said.strip() in ("", NONE):
            return []
        said = json_of(said.encode("utf-8", "replace"))
    if said is None:
        return []
    if not isinstance(said, dict) or len(said) > MOST_FILES:
        raise Invalid("xml names no files", [("$.xml", "give an object with a file's name, size, checksum and place")])
    return [_file(lfn, each) for lfn, each in said.items()]


def _file(lfn: str, said: Any) -> Delivered:
    if not isinstance(said, Mapping):
        raise Invalid(f"xml says nothing of {lfn[:255]!r}", [("$.xml", "give an object for each file")])
    fields = Fields(said)
    size = fields.number("fsize")
    try:
        checksum = str(parse_checksum(f"adler32:{fields.text('adler32')}"))
    except PilotageError as error:
        raise Invalid(f"xml: {lfn[:255]!r}: {error.detail}", [("$.xml", "give its adler32")]) from error
    if size is None or not 0 <= size < 2**53:
        raise Invalid(f"xml: the size of {lfn[:255]!r} is missing", [("$.xml", "give its fsize in bytes")])
    return Delivered(lfn, int(size), checksum, fields.text("endpoint"), fields.text("surl", 4096))


def metrics_of(fields: Fields) -> Metrics | None:
    """What was measured, in our units. What is odd is not known."""
    told = dict(_METRIC.findall(fields.text("jobMetrics", 4096)))
    more = Fields(told)
    times = [_seconds(part) for part in fields.text("pilotTiming").split("|")]
    times += [0.0] * (5 - len(times))
    start, end = fields.number("startTime"), fields.number("endTime")
    found = Metrics(
        wall_s=_amount(end - start) if start is not None and end is not None else times[2],
        cpu_s=_amount(fields.number("cpuConsumptionTime")),
        max_rss_mb=_amount(fields.number("maxRSS")) / KB,
        max_pss_mb=_amount(fields.number("maxPSS")) / KB,
        max_swap_mb=_amount(fields.number("maxSWAP")) / KB,
        read_bytes=int(_amount(fields.number("totRBYTES"))),
        written_bytes=int(_amount(fields.number("totWBYTES"))),
        events=more.count("nEvents"),
        work_dir_mb=_amount(more.number("workDirSize")) / MB,
        stage_in_s=times[1],
        stage_out_s=times[3],
    )
    return found if found != Metrics() else None


def _seconds(text: str) -> float:
    return _amount(Fields({"s": text}).number("s"))


def _amount(value: float | None) -> float:
    """A figure that can be one."""
    return value if value is not None and 0 <= value < 2**53 else 0.0
