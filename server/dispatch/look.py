"""Why a slot gets nothing, and how many pilots a queue should have."""

from __future__ import annotations

from common.wire import DemandReply, Offer, QueueSpec, Refusal, Shape, WhyReply
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound
from server.engine.demand import PROBED_TAGS, demand
from server.engine.matching import Candidate, Slot, effective_offer, match, queue_refusal
from server.store import candidates, jobs, pilots, workflows


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
        found = candidates.load(connection, claimable_only=False)
    if offer is not None:
        return _why(dispatcher, queue, effective_offer(offer, queue, None), found, "the offer that was given")
    note = "the last offer of a pilot of this queue"
    if last is None:
        note = "no pilot has asked yet: a slot as large as the queue's limits"
    return _why(dispatcher, queue, _usual_offer(queue, last), found, note)


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
        found = [each for each in candidates.load(connection, claimable_only=False) if each.task_id == task_id]
    return [why_of(dispatcher, queue, found) for queue in look.world.queues.values()]


def why_of(dispatcher: Dispatcher, queue: QueueSpec, found: list[Candidate]) -> WhyReply:
    """Why one queue's slots get nothing of some buckets."""
    with dispatcher.database.read() as connection:
        last = pilots.last_offer(connection, queue.name)
    return _why(dispatcher, queue, _usual_offer(queue, last), found, "")


def _why(dispatcher: Dispatcher, queue: QueueSpec, offer: Offer, found: list[Candidate], note: str) -> WhyReply:
    look = dispatcher.looks.get()
    slot = Slot(queue, offer)
    matches, refusals = match(found, slot, look.world, look.share_order, dispatcher.now())
    if not found:
        refused = queue_refusal(slot, look.world)
        note += f"; {refused[1]}" if refused else "; no task has ready units"
    return WhyReply(
        queue=queue.name,
        offer=offer,
        refusals=refusals,
        matched=[
            Refusal(
                each.candidate.task_id,
                each.candidate.bucket_id,
                "",
                f"{each.candidate.ready_units} ready units at distance {each.distance}, rank {each.rank:g}",
            )
            for each in matches
        ],
        note=note.lstrip("; "),
    )


def full_offer(queue: QueueSpec) -> Offer:
    """The largest slot that a queue allows."""
    return Offer(
        cores=max(1, queue.cores),
        memory_mb=queue.memory_mb,
        disk_mb=queue.disk_mb,
        wall_s=queue.wall_s,
        tags=[*queue.tags, *PROBED_TAGS],
    )


def demand_of(dispatcher: Dispatcher, name: str) -> DemandReply:
    """How many pilots of which shape a queue should have now."""
    look = dispatcher.looks.get()
    queue = look.world.queues.get(name)
    if queue is None:
        raise NotFound(f"there is no queue {name!r}")
    with dispatcher.database.read() as connection:
        busy = jobs.busy_pilots(connection, name)
    shapes = demand(queue, look.candidates, look.world, busy, dispatcher.now())
    return DemandReply(queue, shapes, look.idle_pilots.get(name, 0))
