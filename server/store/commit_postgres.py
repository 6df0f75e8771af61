"""Records and plain confirmations of several jobs at once, on PostgreSQL: one transaction, one way there and back.

A confirmation is plain when the job finished, all that it was given is processed and nothing has to be registered.
Whatever turns out to be otherwise is left as it was, for the long way of one job at a time.

The jobs' rows are locked by a statement of its own, so that the next one sees all that those who held them before have
written. Rows that somebody holds now are passed over: transactions that hold several never wait for one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import (
    CTE,
    BigInteger,
    Double,
    Integer,
    String,
    Text,
    any_,
    bindparam,
    case,
    cast,
    column,
    false,
    func,
    insert,
    literal_column,
    null,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql

from common.states import JobState, UnitState, allowed
from common.wire import OutputRole, Registration
from server.store import measurements, outputs
from server.store.codes import FIRST_FINAL_JOB_CODE, JOB_CODES, UNIT_CODES, OutputState
from server.store.jobs import JobEnd
from server.store.outputs import REGISTRATION_CODES, NewOutput, Place
from server.store.prepared import Piece, Prepared, Step
from server.store.schema import event, job, job_delta, output, task, unit, unit_delta
from server.store.schema_measurements import measurement
from server.store.schema_outputs import job_ended

MOST = 32
"""Jobs of one transaction; also what the planner expects of it."""
_EXPECTED: Any = literal_column(str(MOST))


@dataclass(frozen=True, slots=True)
class Recorded:
    """Outputs that a job is about to upload."""

    job_id: int
    task_id: int
    files: Sequence[NewOutput]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A job of which its pilot says that it finished and that these units are processed, each named once.

    ``sampled`` is what it measured, where its task may want to know that.
    """

    job_id: int
    end: JobEnd
    unit_ids: Sequence[int]
    dids: Sequence[str]
    detail: Mapping[str, object]
    sampled: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Written:
    """What was carried out: places by job and name, jobs that are confirmed. What is not in it was left as it was."""

    places: Mapping[int, Mapping[str, Place]]
    confirmed: frozenset[int]


def write(recorded: Sequence[Recorded], confirmed: Sequence[Confirmed], now: float) -> Piece[Written]:
    """Carry out what is plain. Each job may be named once; all in one transaction, which ends with this."""
    steps: list[Step] = []
    if recorded:
        steps.append((_RECORD, _given_to_record(recorded, now)))
    if confirmed:
        measured = any(each.sampled is not None for each in confirmed)
        steps.append((_LOCK, {"ids": [each.job_id for each in confirmed]}))
        steps.append((_CONFIRM[measured], {"rows": _text([_line(each) for each in confirmed]), "now": now}))

    def read(found: Sequence[Sequence[Any]]) -> Written:
        places: dict[int, dict[str, Place]] = {}
        for row in found[0] if recorded else ():
            places.setdefault(row.job_id, {})[row.name] = outputs.place_of(row)
        return Written(places, frozenset(row.job_id for row in found[-1]) if confirmed else frozenset())

    return Piece(steps, read)


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _given(name: str, kinds: Mapping[str, Any], most: Any) -> Any:
    rows = func.json_to_recordset(cast(bindparam(name, type_=Text), postgresql.JSON)).table_valued(
        *(column(each, kind) for each, kind in kinds.items())
    )
    return select(rows.render_derived(name="given", with_types=True)).limit(most).subquery("line")


# ---------------------------------------------------------------- record

_NOW = bindparam("now", type_=Double)
_NEVER: Any = literal_column("-1")
_OPEN = (func.coalesce(job.c.ended, _NEVER) == _NEVER, func.coalesce(job.c.confirmed, _NEVER) == _NEVER)
"""Said so that the index of live jobs is no way to them: a plan made while that was small walked all of it for ever."""


def _given_to_record(recorded: Sequence[Recorded], now: float) -> dict[str, Any]:
    rows = [
        {"job_id": each.job_id, "task_id": each.task_id, **outputs.given_of(file)}
        for each in recorded
        for file in each.files
    ]
    return {"ids": [each.job_id for each in recorded], "rows": _text(rows), "now": now}


def _ids() -> Any:
    return bindparam("ids", type_=postgresql.ARRAY(BigInteger))


def _open_jobs() -> Any:
    """Those of the jobs that are neither over nor confirmed, locked in the order of their ids."""
    open_ = select(job.c.id).where(job.c.id == any_(_ids()), *_OPEN)
    return open_.order_by(job.c.id).with_for_update(skip_locked=True)


def _record() -> Prepared:
    # One statement: a confirmation that came in between changed the job's row, which is asked again once it is locked.
    held = _open_jobs().cte("held").prefix_with("MATERIALIZED")
    line = _given("rows", {"job_id": BigInteger, "task_id": BigInteger, **outputs.GIVEN}, null())
    state: Any = literal_column(str(int(OutputState.RECORDED)))
    names = list(outputs.GIVEN)
    rows = select(line.c.job_id, line.c.task_id, state, _NOW, *(line.c[name] for name in names))
    statement = postgresql.insert(output).from_select(
        ["job_id", "task_id", "state", "recorded", *names], rows.join(held, held.c.id == line.c.job_id)
    )
    changed = {name: statement.excluded[name] for name in outputs.AMENDED}
    return Prepared(
        statement.on_conflict_do_update(index_elements=["job_id", "name"], set_=changed).returning(
            output.c.job_id, *outputs.PLACE
        )
    )


_RECORD = _record()


# ---------------------------------------------------------------- confirm

_SETTING: Any = literal_column("'pilotage.held'")
"""Where the one statement tells the other what it has locked; forgotten with the transaction."""
_COMMA: Any = literal_column("','")
_RESERVED: Any = literal_column(str(UNIT_CODES[UnitState.RESERVED]))
_OUTPUTTING: Any = literal_column(str(UNIT_CODES[UnitState.OUTPUTTING]))
_DONE: Any = literal_column(str(UNIT_CODES[UnitState.DONE]))
_FINISHED: Any = literal_column(str(JOB_CODES[JobState.FINISHED]))
_RECORDED: Any = literal_column(str(int(OutputState.RECORDED)))
_VISIBLE: Any = literal_column(str(int(OutputState.CONFIRMED)))
_ABANDONED: Any = literal_column(str(int(OutputState.ABANDONED)))
_LATER: Any = literal_column(str(REGISTRATION_CODES[Registration.SERVER]))
_ONE: Any = literal_column("1")
_SOURCES = {
    code: state.value
    for state, code in JOB_CODES.items()
    if code < FIRST_FINAL_JOB_CODE and allowed(state, JobState.FINISHED)
}


_KINDS: dict[str, Any] = {
    "job_id": BigInteger,
    "units": postgresql.ARRAY(BigInteger),
    "dids": postgresql.ARRAY(Text),
    "exit_code": Integer,
    "error_detail": Text,
    "log_tail": Text,
    "digest": String,
    "reply": Text,
    "metrics": Text,
    "detail": Text,
}
"""One confirmation as the statement reads it."""


def _line(each: Confirmed) -> dict[str, Any]:
    end = each.end
    return {
        "job_id": each.job_id,
        "units": each.unit_ids,
        "dids": each.dids,
        "exit_code": end.exit_code,
        "error_detail": _clean(end.error_detail),
        "log_tail": _clean(end.log_tail),
        "digest": end.digest,
        "reply": None if end.reply is None else _text(end.reply),
        "metrics": None if end.metrics is None else _text(end.metrics),
        "detail": _text(each.detail),
        **(each.sampled or {}),
    }


def _clean(words: str) -> str:
    # PostgreSQL keeps no NUL, nor takes one from JSON.
    return words.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in words else words


def _lock() -> Prepared:
    held = _open_jobs().subquery("held")
    names = func.coalesce(func.string_agg(cast(held.c.id, Text), _COMMA), literal_column("''"))
    return Prepared(select(func.set_config(_SETTING, names, true())))


_LOCK = _lock()


def _plain(kinds: Mapping[str, Any]) -> CTE:
    """The confirmations that are as they say, of the rows that are locked."""
    line = _given("rows", kinds, _EXPECTED)
    held = cast(func.string_to_array(func.current_setting(_SETTING), _COMMA), postgresql.ARRAY(BigInteger))
    said = case((unit.c.state == _RESERVED, unit.c.id == any_(line.c.units)), else_=false())
    units = (
        select(func.count().label("held"), func.count().filter(said).label("said"))
        .where(unit.c.job_id == line.c.job_id, unit.c.state.in_([_RESERVED, _OUTPUTTING]))
        .correlate(line)
        .lateral("units")
    )
    named = (
        select(func.count())
        .where(output.c.job_id == line.c.job_id, output.c.state == _RECORDED)
        .where(output.c.did == any_(line.c.dids), output.c.registration != _LATER)
        .correlate(line)
        .scalar_subquery()
    )
    return (
        select(line, job.c.task_id, job.c.queue, job.c.cores, job.c.site, job.c.state, job.c.started)
        .join(job, job.c.id == line.c.job_id)
        .join(units, true())
        .where(line.c.job_id == any_(held), job.c.state.in_([literal_column(str(code)) for code in _SOURCES]))
        .where(units.c.held == func.cardinality(line.c.units), units.c.said == units.c.held)
        .where(named == func.cardinality(line.c.dids))
        .cte("plain")
        .prefix_with("MATERIALIZED")
    )


def _all(values: Any) -> Any:
    # As an array, so that rows are looked up one by one, whatever the planner thinks of a table that it never counted.
    return any_(func.array(select(values).scalar_subquery()))


def _moved(plain: CTE) -> CTE:
    return (
        update(unit)
        .where(unit.c.id == _all(func.unnest(plain.c.units)), unit.c.state == _RESERVED)
        .values(state=_DONE)
        .returning(unit.c.job_id, unit.c.task_id, unit.c.bucket_id, unit.c.events)
        .cte("moved")
    )


def _settled(plain: CTE) -> CTE:
    listed = output.c.did == _all(func.unnest(plain.c.dids))
    return (
        update(output)
        .where(output.c.job_id == _all(plain.c.job_id), output.c.state == _RECORDED)
        .values(
            state=case((listed, _VISIBLE), else_=_ABANDONED),
            sweep_since=case((listed, null()), else_=_NOW),
        )
        .returning(output.c.job_id, output.c.size, output.c.role, output.c.state)
        .cte("settled")
    )


def _turned(plain: CTE) -> CTE:
    kept = ("exit_code", "error_detail", "log_tail", "digest", "reply")
    values: dict[str, Any] = {name: plain.c[name] for name in kept}
    values |= {"state": _FINISHED, "confirmed": _NOW, "ended": _NOW, "error_code": null()}
    values["metrics"] = func.coalesce(plain.c.metrics, job.c.metrics)
    return update(job).where(job.c.id == plain.c.job_id).values(values).cte("turned")


def _unit_deltas(moved: CTE) -> CTE:
    key = (moved.c.task_id, moved.c.bucket_id)
    rows = select(*key, _RESERVED, _DONE, func.count()).group_by(*key)
    return insert(unit_delta).from_select(["task_id", "bucket_id", "source", "state", "n"], rows).cte("unit_deltas")


def _job_deltas(plain: CTE) -> CTE:
    key = (plain.c.task_id, plain.c.queue, plain.c.state)
    rows = select(*key, _FINISHED, func.count(), func.sum(plain.c.cores)).group_by(*key)
    columns = ["task_id", "queue", "source", "state", "n", "cores"]
    return insert(job_delta).from_select(columns, rows).cte("job_deltas")


def _told(plain: CTE) -> CTE:
    names: dict[Any, Any] = {literal_column(str(code)): literal_column(f"'{word}'") for code, word in _SOURCES.items()}
    row: dict[str, Any] = {
        "time": _NOW,
        "kind": literal_column(f"'JOB_{JobState.FINISHED.name}'"),
        "subject": literal_column("'job'"),
        "subject_id": cast(plain.c.job_id, Text),
        "task_id": plain.c.task_id,
        "job_id": plain.c.job_id,
        "source": case(*((plain.c.state == code, word) for code, word in names.items())),
        "target": literal_column(f"'{JobState.FINISHED.value}'"),
        "detail": plain.c.detail,
    }
    return insert(event).from_select(list(row), select(*row.values())).cte("told")


def _sampled(plain: CTE, moved: CTE, settled: CTE) -> CTE:
    # A unit without an event count is one event.
    counted = func.sum(case((moved.c.events > _ONE, moved.c.events), else_=_ONE))
    done = (
        select(moved.c.job_id, func.count().label("units"), counted.label("events"))
        .group_by(moved.c.job_id)
        .subquery("done")
    )
    is_output = settled.c.role == literal_column(f"'{OutputRole.OUTPUT.value}'")
    written = (
        select(settled.c.job_id, func.sum(settled.c.size).label("size"))
        .where(is_output, settled.c.state == _VISIBLE)
        .group_by(settled.c.job_id)
        .subquery("written")
    )
    zero: Any = literal_column("0")
    ran = func.greatest(_NOW - plain.c.started, zero)
    row: dict[str, Any] = {
        "job_id": plain.c.job_id,
        "task_id": plain.c.task_id,
        "site": plain.c.site,
        "cores": plain.c.cores,
        "units": done.c.units,
        "events": case((plain.c.said_events > zero, plain.c.said_events), else_=done.c.events),
        "out_bytes": func.coalesce(written.c.size, zero),
        "wall_s": case((plain.c.said_wall_s > zero, plain.c.said_wall_s), else_=func.coalesce(ran, zero)),
        "ended": _NOW,
        **{name: plain.c[name] for name in measurements.GIVEN},
    }
    rows = (
        select(*row.values())
        .join(task, task.c.id == plain.c.task_id)
        .join(done, done.c.job_id == plain.c.job_id)
        .outerjoin(written, written.c.job_id == plain.c.job_id)
        .where(task.c.measuring, plain.c.said_wall_s.is_not(None))
    )
    return insert(measurement).from_select(list(row), rows).cte("sampled")


def _confirm(*, measured: bool) -> Prepared:
    plain = _plain(_KINDS | measurements.SAID if measured else _KINDS)
    moved, settled = _moved(plain), _settled(plain)
    booked = insert(job_ended).from_select(["job_id"], select(plain.c.job_id)).cte("booked")
    parts = [settled, _turned(plain), _unit_deltas(moved), _job_deltas(plain), _told(plain), booked]
    if measured:
        parts.append(_sampled(plain, moved, settled))
    return Prepared(select(plain.c.job_id).add_cte(*parts))


_CONFIRM = {measured: _confirm(measured=measured) for measured in (False, True)}
