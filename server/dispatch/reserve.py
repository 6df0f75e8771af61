"""Workers outside of the pilots' slots reserve files of projects, and give them back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from common.states import TaskState, UnitState
from common.wire.projects import (
    FileRelease,
    ProjectFileView,
    ProjectState,
    ReleasedFile,
    ReleaseReply,
    ReleaseRequest,
    ReserveReply,
    ReserveRequest,
)
from server.dispatch import reserve_together, rights
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Forbidden, Invalid, NotFound
from server.dispatch.reserve_together import Reserving
from server.engine.access import Caller
from server.engine.projects import (
    Facts,
    Outcome,
    end_of_tier,
    may_look,
    may_work,
    outcome_of,
    project_state,
    replica_views,
)
from server.engine.world import World
from server.store import projects, reservations, workflows
from server.store.database import Connection, IntegrityError
from server.store.reservations import Again, Releasing, ReservedFile, Standing

FOREIGN_CHANGE_S = 0.5
"""How often a waiting request looks for what other processes changed."""
RETRY_S = 2.0
"""When to ask again."""
MOST_TRIES = 4
"""How often one request looks into a bucket whose first file is not where it was thought to be."""


def known(dispatcher: Dispatcher, caller: Caller, project_id: int) -> Facts:
    """A project that the caller may know of.

    Raises:
        NotFound: there is none, or the caller may not know.
    """
    facts = dispatcher.projects.facts(dispatcher.database, project_id)
    if facts is None or not may_look(caller, facts, rights.isolation_of(dispatcher)):
        raise NotFound(f"there is no project {project_id}")
    return facts


def mine(dispatcher: Dispatcher, caller: Caller, project_id: int) -> Facts:
    """A project that the caller may work on.

    Raises:
        Forbidden: the caller is none of those who may.
        NotFound: there is none, or the caller may not know.
    """
    facts = known(dispatcher, caller, project_id)
    if not may_work(caller, facts):
        raise Forbidden(
            f"project {project_id} belongs to {facts.owner}; {caller.name} is none of its users and has none of its roles"
        )
    return facts


# ---------------------------------------------------------------- reserving


def reserve(dispatcher: Dispatcher, caller: Caller, project_id: int, request: ReserveRequest) -> ReserveReply:
    """Files for a worker, the nearest first; or none, and whether to ask again.

    Waits up to ``wait_s`` for a file, if one of the few places for waiting is free. An abandoned project comes back.

    Raises:
        Forbidden: the caller may not work on this project.
    """
    facts = mine(dispatcher, caller, project_id)
    seen = dispatcher.changes()
    reply = _try(dispatcher, facts, request)
    if _is_over(reply) or request.wait_s <= 0 or not dispatcher.polls.acquire(blocking=False):
        return reply
    try:
        return _wait(dispatcher, facts, request, reply, seen)
    finally:
        dispatcher.polls.release()


def _is_over(reply: ReserveReply) -> bool:
    return bool(reply.files) or reply.state is not ProjectState.ACTIVE


def _wait(
    dispatcher: Dispatcher, facts: Facts, request: ReserveRequest, reply: ReserveReply, seen: int
) -> ReserveReply:
    longest = dispatcher.looks.get().knobs.acquire_wait_s
    deadline = dispatcher.clock.monotonic() + min(request.wait_s, longest)
    while not (_is_over(reply) or dispatcher.stopping.is_set()):
        left = deadline - dispatcher.clock.monotonic()
        if left <= 0:
            return ReserveReply(state=reply.state)  # it has waited already
        dispatcher.wait_for_change(seen, min(left, FOREIGN_CHANGE_S))
        seen = dispatcher.changes()
        reply = _try(dispatcher, facts, request)
    return reply


def _try(dispatcher: Dispatcher, facts: Facts, request: ReserveRequest, *, revived: bool = False) -> ReserveReply:
    world = dispatcher.looks.get().world
    now = dispatcher.now()
    try:
        found = _reserve(dispatcher, facts, request, world, now)
    except IntegrityError:
        found = []  # the same request was served at the same moment, or before
    if found:
        _heard(dispatcher, facts, now)
        expires = None if facts.worker_timeout_s is None else now + facts.worker_timeout_s
        return _reply(facts, [_reserved(facts, each, request, world, now, expires) for each in found])
    reply = _nothing(dispatcher, facts, request, world)
    if reply.state is ProjectState.ABANDONED and not revived:
        revive(dispatcher, facts, now)
        return _try(dispatcher, facts, request, revived=True)
    if reply.state is ProjectState.ACTIVE and not reply.files:
        _heard(dispatcher, facts, now)
    return reply


def _reserve(
    dispatcher: Dispatcher, facts: Facts, request: ReserveRequest, world: World, now: float
) -> list[ReservedFile]:
    asked = Reserving(facts, request, dispatcher.projects.reach(world, request.cpu_site), now)
    found = reserve_together.reserve(dispatcher, asked)
    if len(found) == request.count:
        return found
    walk = _Walk(dispatcher, asked, found)
    return dispatcher.database.together(walk.run)


@dataclass
class _Walk:
    """Goes through the buckets of a project, the best first, until there are files enough; some may be ``before`` it."""

    dispatcher: Dispatcher
    asked: Reserving
    before: list[ReservedFile]

    def run(self, connection: Connection) -> list[ReservedFile]:
        """In most cases one statement."""
        book, clock, asked = self.dispatcher.projects, self.dispatcher.clock, self.asked
        tried: Counter[int] = Counter()
        found = list(self.before)
        while len(found) < asked.request.count:
            sources = book.in_order(connection, clock, asked.facts, asked.reach)
            source = next((each for each in sources if tried[each.id] < MOST_TRIES), None)
            if source is None:
                break
            floor, end = source.floor, end_of_tier(source.floor)
            files = reservations.reserve(connection, asked.terms(source.id, len(found)), floor, end)
            if files:
                book.taken(source, files[-1].seq)
                found += files
                continue
            first = reservations.first_ready(connection, source.id)
            book.begins(source, first, clock)
            # What lies where nothing could be had is locked by somebody; otherwise the floor was wrong.
            locked = first is None or floor <= first < end
            tried[source.id] = MOST_TRIES if locked else tried[source.id] + 1
        return found


def _nothing(dispatcher: Dispatcher, facts: Facts, request: ReserveRequest, world: World) -> ReserveReply:
    """An answer without files stands only if this request got none before."""
    with dispatcher.database.one_read() as connection:
        again = reservations.of_request(connection, facts.id, request.worker, request.request_id)
        state = projects.state(connection, facts.id)
    if again:
        return _reply(facts, [_repeated(facts, each, request, world) for each in again])
    if state is None:
        dispatcher.projects.drop(facts.id)
        raise NotFound(f"there is no project {facts.id}")
    over = project_state(state) is not ProjectState.ACTIVE
    return ReserveReply(state=project_state(state), retry_after_s=0.0 if over else RETRY_S)


def _reply(facts: Facts, files: list[ProjectFileView]) -> ReserveReply:
    return ReserveReply(files=files, attributes=dict(facts.attributes))


def _reserved(
    facts: Facts,
    file: ReservedFile,
    request: ReserveRequest,
    world: World,
    since: float,
    expires: float | None,
    state: UnitState = UnitState.RESERVED,
) -> ProjectFileView:
    return ProjectFileView(
        id=file.id,
        did=file.did,
        state=state,
        size=file.size,
        events=file.events,
        checksum=file.checksum,
        worker=request.worker,
        attempts=file.attempts,
        reserved=since,
        expires=expires,
        attributes={**facts.file_attributes, **file.attributes},
        replicas=replica_views(file.replicas, world, request.cpu_site, all_=False),
    )


def _repeated(facts: Facts, again: Again, request: ReserveRequest, world: World) -> ProjectFileView:
    return _reserved(facts, again.file, request, world, again.reserved, again.expires, again.state)


# ---------------------------------------------------------------- signs of life


def _heard(dispatcher: Dispatcher, facts: Facts, now: float) -> None:
    """A worker was heard of: written down now and then, so that no row is written by all of them all the time."""
    if dispatcher.projects.is_due(facts, now):
        revive(dispatcher, facts, now)


def revive(dispatcher: Dispatcher, facts: Facts, now: float, who: str = "agent") -> None:
    """Write down a sign of life; an abandoned project is active again."""
    with dispatcher.database.write(durable=False) as connection:
        state = projects.state(connection, facts.id)
        if state is TaskState.PAUSED:
            row = workflows.get_task(connection, facts.id, lock=True)
            if row is not None and row.state is TaskState.PAUSED:
                target = row.resume_state or TaskState.RUNNING
                workflows.move(connection, row, target, now, reason="a worker was heard of", who=who)
        if state is not None and project_state(state) in (ProjectState.ACTIVE, ProjectState.ABANDONED):
            projects.seen(connection, facts, now)


# ---------------------------------------------------------------- releasing


def release(dispatcher: Dispatcher, caller: Caller, project_id: int, request: ReleaseRequest) -> ReleaseReply:
    """Say what became of files; whether that was taken, file by file. Said again, it is answered as the first time.

    Raises:
        Invalid: a file is named twice.
        Forbidden: the caller may not work on this project.
    """
    facts = mine(dispatcher, caller, project_id)
    wanted = _outcomes(request.files)
    now = dispatcher.now()
    moved = reserve_together.release(dispatcher, Releasing(facts.id, request.worker, wanted, now))
    _heard(dispatcher, facts, now)
    back = [each for each in moved.values() if each.state is UnitState.READY]
    for each in back:
        dispatcher.projects.came_back(facts.id, each.bucket_id, each.seq)
    if back:
        dispatcher.changed()
    refused = [did for did in wanted if did not in moved]
    standings: dict[str, Standing] = {}
    if refused:
        with dispatcher.database.read() as connection:
            standings = reservations.standings(connection, facts.id, refused)
    return ReleaseReply(
        [
            ReleasedFile(did, True, moved[did].state)
            if did in moved
            else judged(did, outcome, standings.get(did), request.worker)
            for did, outcome in wanted.items()
        ]
    )


def _outcomes(files: Sequence[FileRelease]) -> dict[str, Outcome]:
    wanted: dict[str, Outcome] = {}
    for number, each in enumerate(files):
        if each.did in wanted:
            raise Invalid(f"{each.did} is there twice", [(f"$.files[{number}].did", "name each file once")])
        wanted[each.did] = outcome_of(each.outcome, each.retry)
    return wanted


def judged(did: str, outcome: Outcome, standing: Standing | None, worker: str) -> ReleasedFile:
    """The answer about a file that the worker does not hold: it may have said so before."""
    if standing is None:
        return ReleasedFile(did, False, None, "the project has no such file")
    if standing.worker != worker:
        words = "another worker has it" if standing.state is UnitState.RESERVED else "this worker does not have it"
        return ReleasedFile(did, False, standing.state, words)
    if standing.outcome is outcome:
        return ReleasedFile(did, True, standing.state)
    words = _ENDED[standing.outcome] if standing.outcome is not None else "it was cancelled"
    return ReleasedFile(did, False, standing.state, words)


_ENDED = {
    Outcome.TIMED_OUT: "the worker held it for too long: it was taken away",
    Outcome.REVOKED: "it was restarted or cancelled, and so taken away",
    Outcome.DONE: "this worker has said already that it is done",
    Outcome.RETRY: "this worker has given it back already",
    Outcome.FAILED: "this worker has said already that it failed",
}
