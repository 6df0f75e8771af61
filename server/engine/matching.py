"""Which buckets a slot may claim from, in which order, and why not from the others (DESIGN section 3).

Every filter has a name; for each bucket the first one that says no is the answer to "why did this slot get nothing?".
What passes is ordered by the share that is furthest below its target, then by one rank
(100 - distance + priority / 100, so that locality and priority trade against each other), then by age.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from msgspec import structs

from common.states import CLAIMABLE_TASK_STATES, TaskState
from common.wire import (
    ACCOUNTS_TAG,
    CONTAINER_TAG,
    Gpu,
    GpuNeeds,
    Measured,
    Offer,
    QueueSpec,
    Refusal,
    RemoteIo,
    Requirements,
    Shape,
    SingleInput,
    StageSpec,
)
from server.engine import scouts, statuses
from server.engine.access import Bans
from server.engine.foreign import kind_refusal, share_refusal, unsuited
from server.engine.probes import is_own_work
from server.engine.scouts import Scouting
from server.engine.world import FAR, NEVER, World


@dataclass(frozen=True)
class SiteFaults:
    """How often in a row jobs of a bucket failed at a site by the site's fault, and until when it gets no more."""

    n: int
    until: float


_PLAIN = StageSpec(name="task", input=SingleInput())


@dataclass(frozen=True, slots=True)
class Traits:
    """What matching needs of a task; all its buckets share one.

    ``priority`` is the one that counts now, ``own_priority`` its part without its user's. ``output_storages`` are those that the task's outputs name, None for an
    output that names none. ``requirements`` are those of the smallest possible job as known now; ``cpu_s`` is its CPU
    time in HS23 seconds, without margin, beside ``base_s`` of wall time, where the task does not say its wall time.
    ``scouting`` holds it back while its scouts measure.
    """

    task_id: int
    state: TaskState
    requirements: Requirements
    share: str
    priority: float
    created: float
    own_priority: float = 0.0
    owner: str = ""
    group: str | None = None
    workflow_id: int = 0
    stage: str = ""
    scope: str = ""
    spec: StageSpec = _PLAIN
    measured: Measured | None = None
    min_units: int = 1
    max_distance: int = FAR
    far_after_s: float = 0.0
    needs_container: bool = False
    output_storages: tuple[str | None, ...] = ()
    sites: frozenset[str] = frozenset()
    exclude_sites: frozenset[str] = frozenset()
    scouting: Scouting | None = None
    cpu_s: float = 0.0
    base_s: float = 0.0

    @property
    def probe(self) -> bool:
        """Whether it also runs where only probe jobs may."""
        return self.spec.probe

    @property
    def own_work(self) -> bool:
        """Whether it is the pilot's own work, which needs no trust."""
        return is_own_work(self.spec)

    def reads_directly(self, queue: QueueSpec) -> bool:
        """Whether its payload may read its input where that lies, as far as task and queue say."""
        return queue.remote_io and self.spec.remote_io != RemoteIo.NEVER

    @property
    def may_run(self) -> bool:
        """Whether its state allows claims."""
        return self.state in CLAIMABLE_TASK_STATES


@dataclass(frozen=True, slots=True)
class Candidate:
    """A bucket that may have ready units.

    ``unit_mb`` is the size of the largest input file among its units. ``memory_mb`` and ``wall_s`` are what its units
    need where that is more than their task asks for, else zero. ``ready_units`` is None where nobody counted.
    """

    bucket_id: int
    traits: Traits
    locations: tuple[str, ...]
    ready_since: float = 0.0
    ready_units: int | None = None
    unit_mb: int = 0
    memory_mb: int = 0
    wall_s: int = 0

    @property
    def memory_needed(self) -> int:
        """Memory of a job in MiB."""
        return self.memory_mb or self.traits.requirements.memory_mb

    @property
    def wall_needed(self) -> int:
        """Wall time of a job in seconds, where it is asked for."""
        return self.wall_s or self.traits.requirements.wall_s

    def wall_needed_in(self, queue: QueueSpec) -> int:
        """Wall time of the smallest job in a slot of a queue: what was asked for, else what was measured."""
        asked, traits = self.wall_needed, self.traits
        if asked or not traits.cpu_s:
            return asked
        power = traits.requirements.cores * queue.core_power * queue.cpu_efficiency
        return math.ceil(traits.cpu_s / power + traits.base_s)


@dataclass(frozen=True)
class Cut:
    """Why a slot's wall time is shorter than its pilot says: the filter's name, and the words.

    ``strictly`` refuses jobs of which nobody knows how long they run.
    """

    filter: str
    words: str
    strictly: bool = False


@dataclass(frozen=True)
class Slot:
    """An offer at its place: what the slot can do, cut to what its queue and its worker's record allow.

    ``cut`` says why its wall time is shorter than that.
    """

    queue: QueueSpec
    offer: Offer
    host: str = ""
    cut: Cut | None = None

    def cut_to(self, left_s: float, cut: Cut) -> Slot:
        """The same with so much wall time left at the most."""
        wall_s = max(1, int(left_s))
        if self.offer.wall_s and self.offer.wall_s <= wall_s and not cut.strictly:
            return self
        return replace(self, offer=structs.replace(self.offer, wall_s=_least(self.offer.wall_s, wall_s)), cut=cut)

    def before_downtime(self, world: World, now: float) -> Slot:
        """The same, with its wall time ending where the next downtime of its queue or site begins."""
        downtime = world.next_downtime(self.queue, now)
        if downtime is None or downtime.start <= now:
            return self
        why = f": {downtime.reason}" if downtime.reason else ""
        words = f"a downtime begins in {downtime.start - now:.0f} s{why}"
        return self.cut_to(downtime.start - now, Cut("downtime", words))


@dataclass(frozen=True)
class Moment:
    """The state of things apart from slot and bucket.

    ``site_faults`` are, for each bucket, the sites where it keeps failing; ``blocked_hosts`` says why a host of a queue
    gets nothing; ``bans`` are people whose tasks get nothing, and hosts.
    """

    world: World
    now: float
    site_faults: Mapping[int, Mapping[str, SiteFaults]] = field(default_factory=dict)
    blocked_hosts: Mapping[tuple[str, str], str] = field(default_factory=dict)
    bans: Bans = Bans()


@dataclass(frozen=True, slots=True)
class Match:
    """A bucket that the slot may claim from; ``direct`` where its payload reads its input from the storage."""

    candidate: Candidate
    distance: int
    rank: float
    direct: bool = False


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
        foreign=offer.foreign,
    )


def _least(*values: int) -> int:
    known = [value for value in values if value]
    return min(known) if known else 0


def match(
    candidates: Sequence[Candidate], slot: Slot, moment: Moment, share_order: Mapping[str, tuple[float, ...]]
) -> tuple[list[Match], list[Refusal]]:
    """All buckets that the slot may claim from, best first, and for each other one the filter that refused it.

    ``share_order`` is :func:`server.engine.shares.service_order`'s; a share that it does not know comes first.
    """
    matches: list[Match] = []
    refusals: list[Refusal] = []
    able = moment.world.direct(slot.queue.site) if slot.queue.remote_io else frozenset()
    for candidate in candidates:
        distance = moment.world.nearest(slot.queue.site, candidate.locations)
        direct = is_direct(candidate.traits, candidate.locations, slot.queue, able)
        refusal = first_refusal(candidate, slot, moment, distance, direct)
        if refusal is None:
            matches.append(Match(candidate, distance, rank(distance, candidate.traits.priority), direct))
        else:
            refusals.append(Refusal(candidate.traits.task_id, candidate.bucket_id, *refusal))
    matches.sort(
        key=lambda found: (
            share_order.get(found.candidate.traits.share, ()),
            -found.rank,
            found.candidate.traits.created,
            found.candidate.bucket_id,
        )
    )
    return matches, refusals


def rank(distance: int, priority: float) -> float:
    """100 - distance + priority / 100 (DESIGN section 3)."""
    return 100.0 - distance + priority / 100.0


Refused = tuple[str, str] | None
"""The filter that said no, and why; or None."""


def is_direct(traits: Traits, locations: tuple[str, ...], queue: QueueSpec, able: frozenset[str]) -> bool:
    """Whether a payload in a queue reads its input where that lies: everywhere there it must be possible (``able``)."""
    return bool(locations) and traits.reads_directly(queue) and able.issuperset(locations)


def slot_refusal(slot: Slot, moment: Moment) -> Refused:
    """Why a slot may get nothing at all, if so."""
    queue = slot.queue
    if not statuses.takes(queue.status, probe=True):
        return "queue", f"queue {queue.name} is {queue.status.value}"
    site = moment.world.sites.get(queue.site)
    if site is not None and not statuses.takes(site.status, probe=True):
        return "site", f"site {site.name} is {site.status.value}"
    downtime = moment.world.next_downtime(queue, moment.now)
    if downtime is not None and downtime.start <= moment.now:
        why = f": {downtime.reason}" if downtime.reason else ""
        return "downtime", f"queue {queue.name} is in a downtime for {downtime.end - moment.now:.0f} s more{why}"
    if moment.bans.bans_host(slot.host):
        return "host", f"host {slot.host} is banned"
    blocked = moment.blocked_hosts.get((queue.name, slot.host))
    if blocked is not None:
        return "host", f"host {slot.host} gets nothing: {blocked}"
    return None


def first_refusal(candidate: Candidate, slot: Slot, moment: Moment, distance: int, direct: bool = False) -> Refused:
    """The first filter that says no to a slot for a bucket, and why; None if it may claim."""
    return (
        slot_refusal(slot, moment)
        or task_refusal(candidate.traits, slot, moment)
        or size_refusal(candidate, slot, direct)
        or count_refusal(candidate, slot.queue.site)
        or place_refusal(candidate.traits, candidate.locations, slot.queue.site, moment.world, distance)
        or direct_refusal(candidate.traits, candidate.locations, direct)
        or moment_refusal(candidate, slot.queue.site, moment, distance)
    )


def task_refusal(traits: Traits, slot: Slot, moment: Moment) -> Refused:
    """What of a task alone speaks against a kind of slot."""
    refusal = _probe_refusal(traits, slot.queue, moment.world)
    if refusal is not None:
        return refusal
    trusted = slot.queue.trusted or ACCOUNTS_TAG in slot.offer.tags or traits.own_work
    if not traits.needs_container and not trusted:
        words = f"the task names no image, and queue {slot.queue.name} is not trusted to run payloads without one"
        return "trusted", words
    if not traits.may_run:
        return "task", f"task {traits.task_id} is {traits.state.value}"
    if traits.owner in moment.bans.users:
        return "owner", f"{traits.owner} is banned"
    site = slot.queue.site
    if (traits.sites and site not in traits.sites) or site in traits.exclude_sites:
        return "sites", f"the task excludes site {site}"
    missing = missing_tags(traits.requirements.tags, slot.offer.tags)
    if missing:
        return "tags", f"the slot lacks {', '.join(missing)}"
    if traits.needs_container and CONTAINER_TAG not in slot.offer.tags:
        return "container", "the task names an image and the slot has no Apptainer"
    if traits.spec.remote_io == RemoteIo.ALWAYS and not slot.queue.remote_io:
        return "remote_io", f"the task reads its input from the storage, which queue {slot.queue.name} does not allow"
    if slot.offer.foreign is not None:
        words = unsuited(traits.spec) or share_refusal(traits.share, slot.offer.foreign)
        return ("foreign_pilot", words) if words else None
    return None


def _probe_refusal(traits: Traits, queue: QueueSpec, world: World) -> Refused:
    if traits.probe:
        return None
    if not statuses.takes(queue.status, probe=False):
        return "queue", f"queue {queue.name} is {queue.status.value}: it gets probe jobs only"
    site = world.sites.get(queue.site)
    if site is not None and not statuses.takes(site.status, probe=False):
        return "site", f"site {site.name} is {site.status.value}: it gets probe jobs only"
    return None


def direct_refusal(traits: Traits, locations: tuple[str, ...], direct: bool) -> Refused:
    """Whether input that must be read where it lies cannot be."""
    if traits.spec.remote_io == RemoteIo.ALWAYS and locations and not direct:
        return "remote_io", f"files on {', '.join(locations)} cannot be read without a copy"
    return None


_CPU_LEVEL = re.compile(r"^(x86-64-v)([1-9])$")


def missing_tags(wanted: Sequence[str], offered: Sequence[str]) -> list[str]:
    """Tags that a task wants and a slot lacks. A CPU level such as ``x86-64-v3`` is there in every higher one."""
    there = set(offered)
    missing = []
    for tag in wanted:
        if tag in there:
            continue
        level = _CPU_LEVEL.match(tag)
        if level and any(f"{level[1]}{higher}" in there for higher in range(int(level[2]) + 1, 10)):
            continue
        missing.append(tag)
    return sorted(set(missing))


def size_refusal(candidate: Candidate, slot: Slot, direct: bool = False) -> Refused:
    """Whether the smallest possible job, one unit, is too large for the slot. Input that is read ``direct`` is not there."""
    needs, offer = candidate.traits.requirements, slot.offer
    disk = needs.disk_mb if direct else needs.disk_mb + candidate.unit_mb
    wall_s = candidate.wall_needed_in(slot.queue)
    # An offer of zero means that the slot does not know: then only the payload can tell.
    for name, needed, offered, unit in (
        ("cores", needs.cores, offer.cores, "cores"),
        ("memory", candidate.memory_needed, offer.memory_mb, "MB of memory"),
        ("disk", disk, offer.disk_mb, "MB of disk, input included"),
        ("wall_time", wall_s, offer.wall_s, "s of wall time"),
    ):
        if offered and needed > offered:
            if name == "wall_time" and slot.cut is not None:
                return slot.cut.filter, f"the job needs {needed} s, and {slot.cut.words}"
            return name, f"the job needs {needed} {unit}, the slot has {offered}"
    if slot.cut is not None and slot.cut.strictly and not wall_s:
        return slot.cut.filter, f"nobody knows how long the job runs, and {slot.cut.words}"
    return _gpu_refusal(needs.gpus, offer) or _kind_refusal(needs.cores, candidate.memory_needed, offer)


def _kind_refusal(cores: int, memory_mb: int, offer: Offer) -> Refused:
    """Whether a pilot of another system asked for another kind of job than this."""
    words = kind_refusal(cores, memory_mb, offer.foreign) if offer.foreign is not None else ""
    return ("resource_type", words) if words else None


def _gpu_refusal(wanted: GpuNeeds | None, offer: Offer) -> Refused:
    if wanted is None:
        return None
    fitting = [gpu for gpu in offer.gpus if gpu_fits(gpu, wanted)]
    if len(fitting) >= wanted.count:
        return None
    kind = " ".join(word for word in (wanted.vendor, wanted.model) if word) or "any"
    memory = f" with {wanted.memory_mb} MB" if wanted.memory_mb else ""
    return "gpus", f"the job needs {wanted.count} GPUs ({kind}{memory}), the slot has {len(fitting)} such"


def gpu_fits(gpu: Gpu, wanted: GpuNeeds) -> bool:
    """Whether a card is of the vendor, the model (part of its name) and the memory that a task asks for."""
    return (
        (wanted.vendor is None or wanted.vendor.lower() == gpu.vendor.lower())
        and (wanted.model is None or wanted.model.lower() in gpu.model.lower())
        and gpu.memory_mb >= wanted.memory_mb
    )


def count_refusal(candidate: Candidate, site: str) -> Refused:
    """Whether too few units are ready for one job, or no more scouts are wanted."""
    ready, least = candidate.ready_units, candidate.traits.min_units
    if ready is not None and ready < least:
        return "merge", f"the merge waits for {least} files, {ready} are ready"
    words = scouts.refusal(candidate.traits.scouting, site)
    return ("scouts", words) if words else None


def place_refusal(traits: Traits, locations: tuple[str, ...], site: str, world: World, distance: int) -> Refused:
    """What speaks against a site: the way to the input, the way of the output."""
    return reach_refusal(traits, locations, site, distance) or output_refusal(traits, site, world)


def reach_refusal(traits: Traits, locations: tuple[str, ...], site: str, distance: int) -> Refused:
    """Whether the input is too far."""
    if distance >= NEVER:
        return "storage", f"no storage of {', '.join(locations)} can be read from {site} now"
    if distance > traits.max_distance:
        return "distance", f"the nearest replica is at distance {distance}, the task allows {traits.max_distance}"
    return None


def output_refusal(traits: Traits, site: str, world: World) -> Refused:
    """Whether an output has nowhere to go."""
    for name in traits.output_storages:
        if name is not None and not world.takes(name, site, traits.probe):
            return "output_storage", f"storage {name} takes no new files from {site} now"
        if name is None and not any(world.takes(each, site, traits.probe) for each in world.storages):
            return "output_storage", f"no storage takes new files from {site} now"
    return None


def moment_refusal(candidate: Candidate, site: str, moment: Moment, distance: int) -> Refused:
    """What speaks against it just now and may not in a while."""
    faults = moment.site_faults.get(candidate.bucket_id, {}).get(site)
    if faults is not None and faults.until > moment.now:
        words = f"its jobs failed {faults.n} times in a row by a fault of {site}"
        return "site_faults", f"{words}; again in {faults.until - moment.now:.0f} s"
    far_after = candidate.traits.far_after_s
    if distance > 0 and moment.now - candidate.ready_since < far_after:
        wait = far_after - (moment.now - candidate.ready_since)
        return "far_wait", f"a slot at distance {distance} qualifies in {wait:.0f} s"
    return None


FILTER_NAMES: tuple[str, ...] = (
    "queue",
    "site",
    "downtime",
    "host",
    "trusted",
    "task",
    "owner",
    "sites",
    "tags",
    "container",
    "remote_io",
    "foreign_pilot",
    "cores",
    "memory",
    "disk",
    "wall_time",
    "reserved",
    "gpus",
    "resource_type",
    "merge",
    "scouts",
    "storage",
    "distance",
    "output_storage",
    "site_faults",
    "far_wait",
)
"""All filters, in the order in which they are asked."""
