"""Which buckets a slot may claim from, in which order, and why not from the others (DESIGN section 3).

Every filter has a name; for each bucket the first one that says no is the answer to "why did this slot get nothing?".
What passes is ordered by the share that is furthest below its target, then by one rank
(100 - distance + priority / 100, so that locality and priority trade against each other), then by age.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from common.states import CLAIMABLE_TASK_STATES, ResourceState, TaskState
from common.wire import Gpu, GpuRequest, Offer, QueueSpec, Refusal, Requirements, Shape
from server.engine.world import FAR, NEVER, World


@dataclass(frozen=True)
class SiteFaults:
    """How often in a row jobs of a bucket failed at a site by the site's fault, and until when it gets no more."""

    n: int
    until: float


@dataclass(frozen=True)
class Candidate:
    """A bucket that may have ready units, with what matching needs of its task.

    ``unit_mb`` is the size of the largest input file among its units. ``output_storages`` are those that the task's
    outputs name, None for an output that names none. ``site_faults`` are the sites where it keeps failing.
    """

    bucket_id: int
    task_id: int
    task_state: TaskState
    locations: tuple[str, ...]
    requirements: Requirements
    share: str
    priority: int
    created: float
    ready_since: float
    units_per_job: int
    ready_units: int
    min_units: int = 1
    unit_mb: int = 0
    max_distance: int = FAR
    far_after_s: float = 0.0
    needs_container: bool = False
    output_storages: tuple[str | None, ...] = ()
    site_faults: Mapping[str, SiteFaults] = field(default_factory=dict)


@dataclass(frozen=True)
class Slot:
    """An offer at its place: what the slot can do, cut to what its queue and its worker's record allow."""

    queue: QueueSpec
    offer: Offer


@dataclass(frozen=True)
class Match:
    """A bucket that the slot may claim from."""

    candidate: Candidate
    distance: int
    rank: float


def effective_offer(offer: Offer, queue: QueueSpec, worker: Shape | None) -> Offer:
    """The least of what the slot says, what its queue allows, and what its worker was recorded with.

    What a pilot may claim follows from those records, never from what it says of itself. Zero in a limit means none.
    """
    shape = worker or Shape(cores=0)
    gpus = offer.gpus
    for limit in (queue.gpus, shape.gpus):
        if limit:
            gpus = gpus[:limit]
    return Offer(
        cores=_least(offer.cores, queue.cores, shape.cores),
        memory_mb=_least(offer.memory_mb, queue.memory_mb, shape.memory_mb),
        disk_mb=_least(offer.disk_mb, queue.disk_mb, shape.disk_mb),
        wall_s=_least(offer.wall_s, queue.wall_s, shape.wall_s),
        gpus=list(gpus),
        tags=sorted(set(offer.tags) | set(queue.tags)),
    )


def _least(*values: int) -> int:
    known = [value for value in values if value]
    return min(known) if known else 0


def match(
    candidates: Sequence[Candidate],
    slot: Slot,
    world: World,
    share_order: Mapping[str, tuple[float, ...]],
    now: float,
) -> tuple[list[Match], list[Refusal]]:
    """All buckets that the slot may claim from, best first, and for each other one the filter that refused it.

    ``share_order`` is :func:`server.engine.shares.service_order`'s; a share that it does not know comes first.
    """
    matches: list[Match] = []
    refusals: list[Refusal] = []
    for candidate in candidates:
        distance = world.nearest(slot.queue.site, candidate.locations)
        refusal = _first_refusal(candidate, slot, world, distance, now)
        if refusal is None:
            matches.append(Match(candidate, distance, rank(distance, candidate.priority)))
        else:
            name, detail = refusal
            refusals.append(Refusal(candidate.task_id, candidate.bucket_id, name, detail))
    matches.sort(
        key=lambda found: (
            share_order.get(found.candidate.share, ()),
            -found.rank,
            found.candidate.created,
            found.candidate.bucket_id,
        )
    )
    return matches, refusals


def rank(distance: int, priority: int) -> float:
    """100 - distance + priority / 100 (DESIGN section 3)."""
    return 100.0 - distance + priority / 100.0


def queue_refusal(slot: Slot, world: World) -> tuple[str, str] | None:
    """Why the slot's queue or site may get nothing at all, if so."""
    if slot.queue.status != ResourceState.ONLINE:
        return "queue", f"queue {slot.queue.name} is {slot.queue.status.value}"
    site = world.sites.get(slot.queue.site)
    if site is not None and site.status != ResourceState.ONLINE:
        return "site", f"site {site.name} is {site.status.value}"
    return None


def _first_refusal(candidate: Candidate, slot: Slot, world: World, distance: int, now: float) -> tuple[str, str] | None:
    refusal = queue_refusal(slot, world)
    if refusal is not None:
        return refusal
    if not candidate.needs_container and not slot.queue.trusted:
        words = f"the task names no image, and queue {slot.queue.name} is not trusted to run payloads without one"
        return "trusted", words
    for name, check in _FILTERS:
        detail = check(candidate, slot.offer)
        if detail:
            return name, detail
    if distance >= NEVER:
        return "storage", f"no storage of {', '.join(candidate.locations)} can be read from {slot.queue.site} now"
    if distance > candidate.max_distance:
        return "distance", f"the nearest replica is at distance {distance}, the task allows {candidate.max_distance}"
    refusal = _output_refusal(candidate, slot.queue.site, world)
    if refusal is not None:
        return refusal
    faults = candidate.site_faults.get(slot.queue.site)
    if faults is not None and faults.until > now:
        words = f"its jobs failed {faults.n} times in a row by a fault of {slot.queue.site}"
        return "site_faults", f"{words}; again in {faults.until - now:.0f} s"
    if distance > 0 and now - candidate.ready_since < candidate.far_after_s:
        wait = candidate.far_after_s - (now - candidate.ready_since)
        return "far_wait", f"a slot at distance {distance} qualifies in {wait:.0f} s"
    return None


def _output_refusal(candidate: Candidate, site: str, world: World) -> tuple[str, str] | None:
    for name in candidate.output_storages:
        if name is not None and not world.takes(name, site):
            return "output_storage", f"storage {name} takes no new files from {site} now"
        if name is None and not any(world.takes(each, site) for each in world.storages):
            return "output_storage", f"no storage takes new files from {site} now"
    return None


def _task(candidate: Candidate, _: Offer) -> str:
    if candidate.task_state not in CLAIMABLE_TASK_STATES:
        return f"task {candidate.task_id} is {candidate.task_state.value}"
    return ""


def _tags(candidate: Candidate, offer: Offer) -> str:
    missing = sorted(set(candidate.requirements.tags) - set(offer.tags))
    return f"the slot lacks {', '.join(missing)}" if missing else ""


def _container(candidate: Candidate, offer: Offer) -> str:
    if candidate.needs_container and "apptainer" not in offer.tags:
        return "the task names an image and the slot has no Apptainer"
    return ""


def _at_most(needed: int, offered: int, unit: str) -> str:
    # An offer of zero means that the slot does not know: then only the payload can tell.
    return f"the job needs {needed} {unit}, the slot has {offered}" if offered and needed > offered else ""


def _cores(candidate: Candidate, offer: Offer) -> str:
    return _at_most(candidate.requirements.cores, offer.cores, "cores")


def _memory(candidate: Candidate, offer: Offer) -> str:
    return _at_most(candidate.requirements.memory_mb, offer.memory_mb, "MB of memory")


def _disk(candidate: Candidate, offer: Offer) -> str:
    # The smallest possible job: one unit beside the scratch that the task asks for.
    return _at_most(candidate.requirements.disk_mb + candidate.unit_mb, offer.disk_mb, "MB of disk, input included")


def _wall_time(candidate: Candidate, offer: Offer) -> str:
    return _at_most(candidate.requirements.wall_s, offer.wall_s, "s of wall time")


def _gpus(candidate: Candidate, offer: Offer) -> str:
    wanted = candidate.requirements.gpus
    if wanted is None:
        return ""
    fitting = [gpu for gpu in offer.gpus if gpu_fits(gpu, wanted)]
    if len(fitting) >= wanted.count:
        return ""
    kind = " ".join(word for word in (wanted.vendor, wanted.model) if word) or "any"
    memory = f" with {wanted.memory_mb} MB" if wanted.memory_mb else ""
    return f"the job needs {wanted.count} GPUs ({kind}{memory}), the slot has {len(fitting)} such"


def gpu_fits(gpu: Gpu, wanted: GpuRequest) -> bool:
    """Whether a card is of the vendor, the model (part of its name) and the memory that a task asks for."""
    return (
        (wanted.vendor is None or wanted.vendor.lower() == gpu.vendor.lower())
        and (wanted.model is None or wanted.model.lower() in gpu.model.lower())
        and gpu.memory_mb >= wanted.memory_mb
    )


def _merge(candidate: Candidate, _: Offer) -> str:
    if candidate.ready_units < candidate.min_units:
        return f"the merge waits for {candidate.min_units} files, {candidate.ready_units} are ready"
    return ""


_FILTERS: tuple[tuple[str, Callable[[Candidate, Offer], str]], ...] = (
    ("task", _task),
    ("tags", _tags),
    ("container", _container),
    ("cores", _cores),
    ("memory", _memory),
    ("disk", _disk),
    ("wall_time", _wall_time),
    ("gpus", _gpus),
    ("merge", _merge),
)

FILTER_NAMES: tuple[str, ...] = (
    "queue",
    "site",
    "trusted",
    *(name for name, _ in _FILTERS),
    "storage",
    "distance",
    "output_storage",
    "site_faults",
    "far_wait",
)
"""All filters, in the order in which they are asked."""
