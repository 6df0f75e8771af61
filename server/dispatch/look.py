"""Why a slot gets nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from common.wire import Offer, PilotView, QueueSpec, Refusal, Shape, WhyReply
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound
from server.engine.demand_queues import PROBED_TAGS
from server.engine.foreign import copying
from server.engine.matching import Candidate, Slot, effective_offer, match, slot_refusal
from server.engine.shares import service_order
from server.store import candidates, foreign, job_counts, pilots, workflows
from server.store.codes import PilotState

MOST_BUCKETS = 20_000
"""Buckets that one question goes through."""
MOST_LINES = 200
"""Reasons, and buckets that match, of one answer."""


def why_queue(dispatcher: Dispatcher, name: str, offer: Offer | None) -> WhyReply:
    """For each bucket with ready units the filter that refuses a slot of the queue, or that it matches.

    Without an ``offer``, the last one that a pilot of the queue made is taken; without any, the queue's own limits.
    """
    look = dispatcher.looks.get()
    queue = look.world.queues.get(name)
    if queue is None:
        raise NotFound(f"there is no queue {name!r}; known: {', '.join(look.world.queues) or 'none yet'}")
    with dispatcher.database.read() as connection:
        last = pilots.last_offer(connection, name)
        in_vain = foreign.last_offer(connection, name)
        found = candidates.counted(connection, look.knobs, limit=MOST_BUCKETS + 1)
    if offer is not None:
        return _why(dispatcher, Slot(queue, effective_offer(offer, queue, None)), found, "the offer that was given")
    note = "the last offer of a pilot of this queue"
    if last is None and in_vain is not None:
        last = in_vain[0], Shape(cores=0)
        note = f"what a pilot of another system asked for in vain {dispatcher.now() - in_vain[1]:.0f} s ago"
    if last is None:
        note = "no pilot has asked yet: a slot as large as the queue's limits"
    return _why(dispatcher, Slot(queue, _usual_offer(queue, last)), found, note)


def why_pilot(dispatcher: Dispatcher, pilot_id: int) -> WhyReply:
    """The same for a pilot's last offer, on its host.

    Raises:
        NotFound: there is no such pilot, or its queue is gone.
    """
    look = dispatcher.looks.get()
    with dispatcher.database.read() as connection:
        pilot = pilots.get(connection, pilot_id)
        offer = pilots.last_offer_of(connection, pilot_id)
    if pilot is None:
        raise NotFound(f"there is no pilot {pilot_id}")
    queue = look.world.queues.get(pilot.queue)
    if queue is None:
        raise NotFound(f"queue {pilot.queue} of pilot {pilot_id} was deleted")
    note = f"what pilot {pilot_id} on {pilot.host or 'an unknown host'} offered last"
    if offer is None:
        offer, note = full_offer(queue), f"pilot {pilot_id} has not asked yet: a slot as large as the queue's limits"
    if pilot.state == PilotState.EXPECTED:
        note += "; it is expected, and has jobs that wait for it"
    elif pilot.state != PilotState.ACTIVE:
        note += f"; it is {pilot.state.name.lower()} and gets nothing any more"
    with dispatcher.database.read() as connection:
        found = candidates.counted(connection, look.knobs, limit=MOST_BUCKETS + 1)
    return _why(dispatcher, Slot(queue, effective_offer(offer, queue, pilot.shape), pilot.host), found, note)


def pilot(dispatcher: Dispatcher, pilot_id: int) -> PilotView:
    """A pilot, where it runs, and what became of it.

    Raises:
        NotFound: there is no such pilot.
    """
    with dispatcher.database.read() as connection:
        found = pilots.view(connection, pilot_id)
    if found is None:
        raise NotFound(f"there is no pilot {pilot_id}")
    return found


def _usual_offer(queue: QueueSpec, last: tuple[Offer, Shape] | None) -> Offer:
    if last is None:
        return full_offer(queue)
    return effective_offer(last[0], queue, last[1])


def why_task(dispatcher: Dispatcher, task_id: int) -> list[WhyReply]:
    """For each queue, why a slot of it gets nothing of the task, or that it does."""
    look = dispatcher.looks.get()
    with dispatcher.database.read() as connection:
        if workflows.get_task(connection, task_id) is None:
            raise NotFound(f"there is no task {task_id}")
        found = candidates.counted(connection, look.knobs, task_id=task_id, limit=MOST_BUCKETS + 1)
    return [why_of(dispatcher, queue, found) for queue in look.world.queues.values()]


def why_of(dispatcher: Dispatcher, queue: QueueSpec, found: list[Candidate]) -> WhyReply:
    """Why one queue's slots get nothing of some buckets."""
    with dispatcher.database.read() as connection:
        last = pilots.last_offer(connection, queue.name)
        in_vain = foreign.last_offer(connection, queue.name)
    if last is None and in_vain is not None:
        last = in_vain[0], Shape(cores=0)
    return _why(dispatcher, Slot(queue, _usual_offer(queue, last)), found, "")


def _why(dispatcher: Dispatcher, slot: Slot, found: list[Candidate], note: str) -> WhyReply:
    look = dispatcher.looks.get()
    moment = look.moment(dispatcher.now())
    if slot.offer.foreign is not None:
        slot = replace(slot, queue=copying(slot.queue))
    slot = slot.before_downtime(look.world, moment.now)
    if len(found) > MOST_BUCKETS:
        del found[MOST_BUCKETS:]
        note += f"; only the first {MOST_BUCKETS} buckets were looked at: ask for a task, or with a smaller offer"
    with dispatcher.database.read() as connection:
        order = service_order(look.shares, job_counts.in_use(connection, "share"))
    matches, refusals = match(found, slot, moment, order)
    if not found:
        refused = slot_refusal(slot, moment)
        note += f"; {refused[1]}" if refused else "; no task has ready units"
    told = _together(refusals)
    if len(told) > MOST_LINES:
        note += f"; {len(told) - MOST_LINES} more reasons are left out"
    if len(matches) > MOST_LINES:
        note += f"; {len(matches) - MOST_LINES} more buckets match"
    return WhyReply(
        queue=slot.queue.name,
        offer=slot.offer,
        refusals=told[:MOST_LINES],
        matched=[
            Refusal(
                each.candidate.traits.task_id,
                each.candidate.bucket_id,
                "",
                f"{each.candidate.ready_units} ready units at distance {each.distance}, rank {each.rank:g}",
            )
            for each in matches[:MOST_LINES]
        ],
        note=note.lstrip("; "),
    )


def _together(refusals: Iterable[Refusal]) -> list[Refusal]:
    """Each reason once, with how many buckets of how many tasks it stands for; what stands for most comes first."""
    found: dict[tuple[str, str], Refusal] = {}
    tasks: dict[tuple[str, str], set[int]] = {}
    for each in refusals:
        key = each.filter, each.detail
        if key in found:
            found[key].buckets += 1
        else:
            found[key] = each
        tasks.setdefault(key, set()).add(each.task_id)
    for key, of_tasks in tasks.items():
        found[key].tasks = len(of_tasks)
    return sorted(found.values(), key=lambda each: (-each.buckets, each.task_id, each.bucket_id))


def full_offer(queue: QueueSpec) -> Offer:
    """The largest slot that a queue allows."""
    return Offer(
        cores=max(1, queue.cores),
        memory_mb=queue.memory_mb,
        disk_mb=queue.disk_mb,
        wall_s=queue.wall_s,
        tags=[*queue.tags, *PROBED_TAGS],
    )
