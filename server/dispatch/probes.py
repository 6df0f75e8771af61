"""Probe jobs: what one is to do, what its report changes, and the table that people look at."""

from __future__ import annotations

from msgspec import structs

from common.events import EventKind
from common.wire import Assignment, ProbeReport, ProbeRequest, ProbeTable, ReplicaSpec, StageSpec
from server.dispatch.context import Dispatcher, Look
from server.dispatch.errors import NotFound, Unprocessable
from server.engine.credentials import File
from server.engine.probes import (
    Place,
    Verdict,
    environment_ok,
    environment_words,
    is_own_work,
    order_of,
    places_of,
    used_files,
    verdicts,
)
from server.store import events, probes, workflows
from server.store.database import Connection
from server.store.jobs import JobRow
from server.store.probes import Open, Told

NO_BARS: frozenset[tuple[str, str, bool]] = frozenset()
"""Probes try what others leave alone: how else would it ever be used again?"""


def with_order(dispatcher: Dispatcher, look: Look, spec: StageSpec, made: Assignment) -> Assignment:
    """The assignment, of a probe with what it is to do: nothing, if its place has a newer one."""
    if not is_own_work(spec):
        return made
    with dispatcher.database.read() as connection:
        found = probes.of_task(connection, made.task_id)
        others = probes.unreported(connection, made.task_id, made.job_id)
    place = found.place if found is not None else Place(spec.sites[0])
    left = [*others, *(found.leftovers if found is not None else ())]
    knobs = look.knobs
    limits = knobs.probe_storage_s, knobs.probe_total_s
    order = order_of(look.world.without(NO_BARS), place, made.job_id, left, limits, knobs.probe_cvmfs)
    if found is None:
        order = structs.replace(order, storages=[], cvmfs=[], gpus=0)
    made.probe = order
    return made


def files_of(connection: Connection, look: Look, spec: StageSpec, job: JobRow) -> tuple[list[ReplicaSpec], list[File]]:
    """What a job that is a probe may read and write; nothing for any other."""
    found = probes.of_task(connection, job.task_id) if is_own_work(spec) else None
    return ([], []) if found is None else used_files(look.world, found.place, job.id)


def note(connection: Connection, look: Look, job: JobRow, report: ProbeReport, now: float) -> None:
    """Keep a probe's report, in the transaction that ends its job. One that a newer probe has replaced says nothing.

    Raises:
        Unprocessable: the job is no probe.
    """
    found = probes.of_task(connection, job.task_id, lock=True)
    if found is None:
        task = workflows.get_task(connection, job.task_id)
        if task is None or is_own_work(task.spec):
            return
        raise Unprocessable(f"job {job.id} is no probe", [("$.probe", "leave it out")])
    judged = verdicts(probes.known(connection, found.place), report.storages, look.world, now)
    told = _told(connection, job, found, report, now)
    probes.keep(connection, found.place, told, judged, now)
    changes = [_event(job, found.place, each, now) for each in judged if each.changed]
    events.add(connection, *changes, *_environment_event(job, found, told, now))


def _told(connection: Connection, job: JobRow, found: Open, report: ProbeReport, now: float) -> Told:
    ok = environment_ok(report.environment)
    same = found.environment_ok == ok and found.environment_since is not None
    since = found.environment_since if same and found.environment_since is not None else now
    return Told(job.id, job.queue, probes.host_of(connection, job.id), report.environment, ok, since)


def _event(job: JobRow, place: Place, verdict: Verdict, now: float) -> events.Event:
    outcome = verdict.outcome
    detail: dict[str, object] = {
        "operation": verdict.operation.value,
        "storage": verdict.storage,
        "gpu": place.gpu,
    }
    if outcome.ok:
        detail["failed_s"] = round(verdict.failed_s, 1)
    else:
        detail |= {"error_code": outcome.error_code, "error_detail": outcome.error_detail[:500]}
    return _of_place(job, place, outcome.ok, detail, now)


def _environment_event(job: JobRow, found: Open, told: Told, now: float) -> list[events.Event]:
    before = found.environment_ok
    if told.environment_ok is before or (told.environment_ok and before is None):
        return []
    detail: dict[str, object] = {"operation": "environment", "gpu": found.place.gpu}
    if told.environment_ok:
        detail["failed_s"] = round(now - (found.environment_since or now), 1)
    else:
        detail["error_detail"] = environment_words(told.environment)
    return [_of_place(job, found.place, told.environment_ok, detail, now)]


def _of_place(job: JobRow, place: Place, ok: bool, detail: dict[str, object], now: float) -> events.Event:
    kind = EventKind.PROBE_MENDED if ok else EventKind.PROBE_FAILED
    return events.Event(now, kind, "site", place.site, job.task_id, job.id, detail=detail)


def table(dispatcher: Dispatcher) -> ProbeTable:
    """The places that are probed, and what was found at each storage."""
    knobs = dispatcher.looks.get().knobs
    with dispatcher.database.read() as connection:
        return ProbeTable(
            interval_s=knobs.probe_interval_s,
            use=knobs.probe_use,
            places=probes.places(connection),
            results=probes.results(connection),
        )


def probe_now(dispatcher: Dispatcher, request: ProbeRequest) -> ProbeTable:
    """Have a site probed by the next slot, and not when it is due. A probe that waits already, or runs, is left as it is.

    Raises:
        NotFound: there is no such site, or no queue of it takes probes.
    """
    now = dispatcher.now()
    world = dispatcher.looks.fresh().world
    if request.site not in world.sites:
        raise NotFound(f"there is no site {request.site!r}; known: {', '.join(world.sites) or 'none yet'}")
    there = sorted(each for each in places_of(world, now) if each.site == request.site)
    if not there:
        raise NotFound(f"no queue of site {request.site} takes probes now: set one online or to test")
    with dispatcher.database.write() as connection:
        for place in there:
            probes.add_place(connection, place, now)
        probes.hurry(connection, request.site, now)
    return table(dispatcher)
