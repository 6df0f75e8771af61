"""Register outputs: confirmed jobs wait until the catalogue knows what they wrote.

The catalogue is called outside of any transaction, and what its answers bring about is written conditionally: after a
crash, or beside a second agent, the same calls are made again, which the registrar takes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Sequence

from common.errors import ErrorCode
from common.states import JobState, UnitState
from server.catalogs.registration import (
    Answer,
    Confirming,
    Outcome,
    OutputFile,
    Place,
    Registrar,
    Unavailable,
    load_registrar,
)
from server.dispatch.books import attach_outputs
from server.dispatch.context import Dispatcher
from server.dispatch.settle import Said, held_units, settle_units
from server.engine.provenance import UnitOrigin
from server.store import commits, datasets, events, jobs, outputs, provenance, registrations, units
from server.store.codes import OutputState
from server.store.database import Connection
from server.store.outputs import OutputRow
from server.store.registrations import Phase, Waiting

logger = logging.getLogger(__name__)

JOBS = 200
"""Jobs whose outputs go to the catalogue in one call."""


class NoRegistrar(Exception):
    """Outputs wait for a registration, and nobody is there to do it."""


def register_outputs(dispatcher: Dispatcher) -> int:
    """Register the outputs of a batch of confirmed jobs; how many jobs were carried on.

    Raises:
        NoRegistrar: some wait, and the configuration names no registrar. They go on waiting.
        PluginError: the registrar cannot be loaded.
    """
    with dispatcher.database.read() as connection:
        waiting = registrations.due(connection, dispatcher.now(), JOBS)
    if not waiting:
        return 0
    name = dispatcher.config.registrar
    if not name:
        raise NoRegistrar(
            f"job {waiting[0].job_id} waits for the registration of its outputs: set [server] registrar, or the"
            " registration of the storages and tasks to none"
        )
    registrar = dispatcher.plugins.registrars.get(name)
    return carry_on(dispatcher, registrar if registrar is not None else _registrar(name), waiting)


@functools.lru_cache(maxsize=1)
def _registrar(name: str) -> Registrar:
    return load_registrar(name)


def carry_on(dispatcher: Dispatcher, registrar: Registrar, waiting: Sequence[Waiting]) -> int:
    """The next step for each of the jobs; how many were carried on. The others are tried again later."""
    ended = [each for each in waiting if each.phase == Phase.CONFIRM]
    waiting = [each for each in waiting if each.phase != Phase.CONFIRM]
    gone = [each.job_id for each in waiting if not each.alive]
    killed = [each for each in waiting if each.alive and each.killed is not None and each.phase == Phase.REGISTER]
    fresh = [each for each in waiting if each.alive and each.killed is None and each.phase == Phase.REGISTER]
    unwanted = [each for each in waiting if each.alive and each.phase == Phase.WITHDRAW] + killed
    if gone or killed:
        with dispatcher.database.write() as connection:
            registrations.forget(connection, gone)
            _give_up(connection, [(each.job_id, each.killed or "") for each in killed], dispatcher.now())
    done = _register(dispatcher, registrar, fresh) if fresh else 0
    done += _withdraw(dispatcher, registrar, unwanted) if unwanted else 0
    done += _confirm(dispatcher, registrar, ended) if ended else 0
    if done:
        dispatcher.changed()
    return len(gone) + done


def _register(dispatcher: Dispatcher, registrar: Registrar, waiting: Sequence[Waiting]) -> int:
    ids = [each.job_id for each in waiting]
    with dispatcher.database.write() as connection:
        rows = outputs.of_jobs(connection, ids, [OutputState.UPLOADED])
        attach_outputs(dispatcher, connection, rows, dispatcher.now())
        files = _files(dispatcher, connection, rows)
    answers = _ask(registrar.register, files)
    good, refused, later = _sorted(ids, rows, answers)
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        done = _succeed(connection, good, now, isinstance(registrar, Confirming))
        _give_up(connection, list(refused.items()), now)
        _put_off(dispatcher, connection, waiting, later, now)
    return done + len(refused)


def _withdraw(dispatcher: Dispatcher, registrar: Registrar, waiting: Sequence[Waiting]) -> int:
    ids = [each.job_id for each in waiting]
    with dispatcher.database.read() as connection:
        rows = outputs.of_jobs(connection, ids, [OutputState.UPLOADED])
        files = _files(dispatcher, connection, rows)
    _, refused, later = _sorted(ids, rows, _ask(registrar.withdraw, files))
    for job_id, words in refused.items():
        # Nothing more can be done: the job must not wait for it for ever.
        logger.error("outputs of job %d stay in the catalogue, though their files will be removed: %s", job_id, words)
    done = 0
    for each in waiting:
        if each.job_id not in later:
            with dispatcher.database.write() as connection:
                done += _fail(dispatcher, connection, each.job_id, refused.get(each.job_id, ""))
    with dispatcher.database.write() as connection:
        # The reason for the withdrawal stays; what keeps it from its end goes to the log.
        reasons = {each.job_id: each.error or each.killed or "" for each in waiting if each.job_id in later}
        _put_off(dispatcher, connection, waiting, reasons, dispatcher.now())
    return done


def _confirm(dispatcher: Dispatcher, registrar: Registrar, waiting: Sequence[Waiting]) -> int:
    """Tell the catalogue of jobs that have ended well; how many it was told of."""
    ids = [each.job_id for each in waiting]
    later: dict[int, str] = {}
    if isinstance(registrar, Confirming):
        with dispatcher.database.read() as connection:
            rows = outputs.of_jobs(connection, ids, [OutputState.CONFIRMED])
            files = _files(dispatcher, connection, rows)
        _, refused, later = _sorted(ids, rows, _ask(registrar.confirm, files))
        for job_id, words in refused.items():
            logger.warning("the catalogue does not want to know that job %d has ended well: %s", job_id, words)
    with dispatcher.database.write() as connection:
        registrations.forget(connection, [job_id for job_id in ids if job_id not in later])
        _put_off(dispatcher, connection, waiting, later, dispatcher.now())
    return len(ids) - len(later)


def _files(dispatcher: Dispatcher, connection: Connection, rows: Sequence[OutputRow]) -> list[OutputFile]:
    world = dispatcher.looks.get().world
    places = datasets.memberships(connection, [row.id for row in rows])
    units_of = provenance.units(connection, {row.job_id for row in rows})
    parents = {job_id: _parents(found) for job_id, found in units_of.items()}
    found = []
    for row in rows:
        urls = world.urls(row.storage, row.path, "", write=False) if row.storage in world.storages else []
        found.append(
            OutputFile(
                did=row.did,
                storage=row.storage,
                path=row.path,
                url=urls[0] if urls else "",
                size=row.size,
                checksum=row.checksum,
                events=row.events,
                attributes=row.attributes,
                datasets=tuple(Place(at.did, at.storage, at.lifetime_days, at.expires) for at in places[row.id]),
                parents=parents[row.job_id],
            )
        )
    return found


def _parents(held: Sequence[UnitOrigin]) -> tuple[str, ...]:
    """The files that a job has processed."""
    processed = (UnitState.OUTPUTTING.value, UnitState.DONE.value)
    return tuple(dict.fromkeys(each.did for each in held if each.did is not None and each.state in processed))


def _ask(call: object, files: Sequence[OutputFile]) -> Sequence[Answer]:
    """Ask the catalogue. Whatever goes wrong with it (it is foreign code) says nothing about the files."""
    if not files:
        return []
    try:
        answers: Sequence[Answer] = call(files)  # type: ignore[operator]
    except Unavailable as error:
        return [Answer(Outcome.AGAIN, str(error))] * len(files)
    except Exception as error:
        logger.exception("the registrar failed")
        return [Answer(Outcome.AGAIN, f"{type(error).__name__}: {error}")] * len(files)
    if len(answers) != len(files):
        logger.error("the registrar answered for %d of %d files", len(answers), len(files))
        return [Answer(Outcome.AGAIN, "the registrar did not answer for each file")] * len(files)
    return answers


def _sorted(
    job_ids: Sequence[int], rows: Sequence[OutputRow], answers: Sequence[Answer]
) -> tuple[list[int], dict[int, str], dict[int, str]]:
    """Jobs all of whose files are done, jobs with a file that is refused (and why), jobs to be tried again (and why)."""
    refused: dict[int, str] = {}
    later: dict[int, str] = {}
    for row, answer in zip(rows, answers, strict=True):
        if answer.outcome == Outcome.REFUSED:
            refused.setdefault(row.job_id, answer.words or f"{row.did} is refused")
        elif answer.outcome == Outcome.AGAIN:
            later.setdefault(row.job_id, answer.words)
    good = [job_id for job_id in job_ids if job_id not in refused and job_id not in later]
    return good, refused, {job_id: words for job_id, words in later.items() if job_id not in refused}


def _succeed(connection: Connection, job_ids: Collection[int], now: float, to_confirm: bool) -> int:
    held = jobs.hold_confirmed(connection, sorted(job_ids))
    still = registrations.still(connection, [each.id for each in held], Phase.REGISTER)
    # One that was killed meanwhile is taken out of the catalogue again, at its next turn.
    held = [each for each in held if each.id in still and each.kill_reason is None]
    if not held:
        return 0
    commits.finish_registered(connection, held, now)
    if to_confirm:
        registrations.registered(connection, [each.id for each in held], now)
    else:
        registrations.forget(connection, [each.id for each in held])
    events.add(
        connection,
        *(
            events.Event(
                now, "JOB_FINISHED", "job", each.id, each.task_id, each.id, source=each.state,
                target=JobState.FINISHED, detail={"registered": True},
            )
            for each in held
        ),
    )  # fmt: skip
    return len(held)


def _give_up(connection: Connection, refused: Sequence[tuple[int, str]], now: float) -> None:
    registrations.withdraw(connection, [job_id for job_id, _ in refused], [words for _, words in refused], now)


def _put_off(
    dispatcher: Dispatcher, connection: Connection, waiting: Sequence[Waiting], later: dict[int, str], now: float
) -> None:
    knobs = dispatcher.looks.get().knobs
    rows = []
    for each in waiting:
        if each.job_id in later:
            wait_s = min(knobs.registration_retry_max_s, knobs.registration_retry_s * 2.0 ** min(each.tries, 30))
            rows.append((each.job_id, now + wait_s, later[each.job_id]))
    registrations.put_off(connection, rows)


def _fail(dispatcher: Dispatcher, connection: Connection, job_id: int, left_behind: str) -> int:
    """End a job whose outputs the catalogue does not take, or that was killed: its units go where the rules say."""
    now = dispatcher.now()
    held = jobs.hold_confirmed(connection, [job_id])
    words = registrations.reason(connection, job_id, Phase.WITHDRAW)
    if not held or words is None:
        return 0
    job = held[0]
    killed = job.kill_reason is not None
    state = JobState.CANCELLED if killed else JobState.FAILED
    code = ErrorCode.TASK_CANCELLED if killed else ErrorCode.OUTPUTS_NOT_REGISTERED
    said = Said(state, error_code=int(code), error_detail=words)
    settle_units(connection, dispatcher.looks.get(), job, held_units(units.of_job(connection, job_id)), said, now)
    commits.fail_confirmed(connection, job, state, int(code), words, now)
    registrations.forget(connection, [job_id])
    detail: dict[str, object] = {"error_code": int(code), "error_detail": words[:500]}
    if left_behind:
        detail["left_in_catalogue"] = left_behind[:500]
    kind = f"JOB_{state.name}"
    event = events.Event(now, kind, "job", job.id, job.task_id, job.id, source=job.state, target=state, detail=detail)
    events.add(connection, event)
    dispatcher.came_back(job.bucket_id)
    return 1
