"""How many pilots each queue should have: computed for all queues at once, by an agent, and on request while it is cheap."""

from __future__ import annotations

from collections.abc import Iterable

from common.wire import DemandReply
from server.dispatch.context import Dispatcher, Look
from server.dispatch.demand_book import Busy, DemandBook
from server.dispatch.errors import NotFound
from server.dispatch.watching import process_name
from server.engine.demand import Split, split
from server.engine.demand_queues import Load
from server.engine.matching import Candidate, Traits
from server.engine.sizing import cpu_per_event
from server.store import candidates, harvesters, pilots, processes, pushed
from server.store import demand as store
from server.store.database import Connection
from server.store.demand import Numbers, Stored

LEAST_S = 1.0
"""What is younger is not computed again on request."""
AT_ONCE_S = 0.1
"""A request computes what took no longer the last time; else it gets what the agent has found."""
COST = 50
"""Computing takes at most this part of the time: what takes 1 s is done every 50 s."""
AGENT_GONE_S = 60.0
"""What is older by this than it should be was forgotten by the agent: a request computes it all the same."""
COUNT_S = 0.1
"""How long busy pilots are counted in one go: the queues take turns."""
QUEUES_AT_ONCE = 20
TASKS_AT_ONCE = 1000


def demand_of(dispatcher: Dispatcher, name: str, *, explain: bool = False, harvester: str | None = None) -> DemandReply:
    """How many pilots of which shape a queue should have now.

    With ``explain`` also what falls to it of which work, and which filters keep the rest from it; for a ``harvester``
    also the workers that others have there.

    Raises:
        NotFound: there is no such queue.
    """
    look = dispatcher.looks.get()
    queue = look.world.queues.get(name)
    if queue is None:
        raise NotFound(f"there is no queue {name!r}")
    with dispatcher.database.read() as connection:
        found = store.get(connection, name)
        own = dispatcher.idle.by_queue(dispatcher.clock.monotonic())
        idle = processes.idle_pilots(connection, dispatcher.now(), process_name(), own)
        others = harvesters.other_workers(connection, name, harvester, dispatcher.now()) if harvester else []
    if _to_be_computed(found, dispatcher.now()):
        found = _compute_unless_done(dispatcher, name)
    reply = DemandReply(queue, idle_pilots=idle.get(name, 0), others=others)
    if found is not None:
        numbers = found.numbers
        reply.shapes, reply.computed = numbers.shapes, found.computed
        reply.running, reply.waiting = numbers.running, numbers.waiting
    if explain:
        with dispatcher.demand.mutex:
            told = _split(dispatcher, look, name)[0].explanation
        if told is not None:
            reply.parts, reply.refused = told.parts, list(told.refused.values())
    return reply


def _to_be_computed(found: Stored | None, now: float) -> bool:
    if found is None:
        return True
    cheap = found.seconds <= AT_ONCE_S
    return is_due(found.computed, found.seconds, LEAST_S if cheap else AGENT_GONE_S, now)


def is_due(computed: float, seconds: float, least_s: float, now: float) -> bool:
    """Whether it is time again. What was computed in the future is from before the clock was set back."""
    return not 0 <= now - computed < max(least_s, COST * seconds)


def _compute_unless_done(dispatcher: Dispatcher, name: str) -> Stored | None:
    with dispatcher.demand.mutex:
        with dispatcher.database.read() as connection:
            found = store.get(connection, name)
        if not _to_be_computed(found, dispatcher.now()):
            return found
        return compute(dispatcher).get(name)


def compute(dispatcher: Dispatcher) -> dict[str, Stored]:
    """Compute the demand of all queues and write it down; with the book's mutex held."""
    started, now = dispatcher.clock.monotonic(), dispatcher.now()
    look = dispatcher.looks.get()
    found, loads = _split(dispatcher, look, None)
    book = dispatcher.demand
    with dispatcher.database.read() as connection:
        # They wait, but not for work: what is ready is for others beside them.
        expected = pushed.by_shape(connection)
    seconds = max(0.0, dispatcher.clock.monotonic() - started)
    rows = {
        name: Stored(
            name,
            now,
            seconds,
            Numbers(
                found.of(name, [*book.busy[name].shapes, *expected.get(name, ())]),
                loads[name].running,
                loads[name].waiting,
            ),
        )
        for name in look.world.queues
    }
    with dispatcher.database.write(durable=False) as connection:
        store.put(connection, list(rows.values()))
    return rows


def _split(dispatcher: Dispatcher, look: Look, explain: str | None) -> tuple[Split, dict[str, Load]]:
    known = dispatcher.looks.candidates()
    book = dispatcher.demand
    with dispatcher.database.read() as connection:
        units = candidates.ready_units(connection)
        waiting = pilots.waiting_by_queue(connection)
        _count_busy(dispatcher, connection, look)
        ready = [(each, n) for each in known if (n := units.get(each.bucket_id, 0)) > 0]
        _learn_events(connection, book, ready)
    loads = {name: Load(book.busy[name].n, waiting.get(name, 0)) for name in look.world.queues}
    moment = look.moment(dispatcher.now())
    return split(ready, moment, loads, look.knobs, book.events, book.per_job, explain), loads


def _count_busy(dispatcher: Dispatcher, connection: Connection, look: Look) -> None:
    """Count the pilots that hold jobs, in the queues that were counted the longest ago first, for :data:`COUNT_S`."""
    book, clock = dispatcher.demand, dispatcher.clock
    book.busy = {name: book.busy.get(name, Busy(float("-inf"), [])) for name in look.world.queues}
    names = sorted(book.busy, key=lambda name: book.busy[name].time)
    started = clock.monotonic()
    for first in range(0, len(names), QUEUES_AT_ONCE):
        found = pilots.busy_by_shape(connection, names[first : first + QUEUES_AT_ONCE])
        for name, shapes in found.items():
            book.busy[name] = Busy(clock.monotonic(), shapes)
        if clock.monotonic() - started > COUNT_S:
            return


def _learn_events(connection: Connection, book: DemandBook, ready: Iterable[tuple[Candidate, int]]) -> None:
    """Find out how many events a unit has, of tasks whose jobs are cut by events."""
    tasks = {each.traits.task_id: each.traits for each, _ in ready}
    book.events = {task_id: n for task_id, n in book.events.items() if task_id in tasks}
    unknown = [task_id for task_id, traits in tasks.items() if task_id not in book.events and _counts_events(traits)]
    if unknown:
        book.events.update(store.events_of_units(connection, unknown[:TASKS_AT_ONCE]))


def _counts_events(traits: Traits) -> bool:
    spec = traits.spec
    if spec.merge is not None or spec.files_per_job is not None:
        return False
    return spec.events_per_job is not None or cpu_per_event(spec, traits.measured) is not None
