"""The rules of probe jobs: which places are probed and when, what a probe is to try, and what its report changes.

A place is a site, or the slots with GPUs of a site. Every place with a queue that takes probes is probed once in each
interval, by one job of the system's own; what that finds is the table of site and storage.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.states import TaskState
from common.wire import (
    GpuRequest,
    KnownReplica,
    ProbeFinding,
    ProbeLevel,
    ProbeOperation,
    ProbeOrder,
    ProbeOutcome,
    ProbeState,
    ProbeTarget,
    ReplicaSpec,
    Requirements,
    SingleInput,
    StageSpec,
    StorageProbe,
    WorkflowRequest,
)
from server.engine.credentials import File
from server.engine.statuses import takes
from server.engine.world import NEVER, World

OWNER = "pilotage probes"
"""Whose workflows probes are."""
SHARE = "probes"
"""No share of the tree: what is in none comes first, and costs no other share anything."""
FOLDER = "pilotage-probes"
"""Below the prefix of each storage; in it a folder for each place."""
FIRST_AFTER_S = 600.0
"""How long a place that has just become known is left alone."""
MEMORY_MB = 500
DISK_MB = 100
SPARE_S = 60
"""Of wall time, beside what the storages may take."""
ATTEMPTS = 3
MOST_LEFTOVERS = 20


@dataclass(frozen=True, order=True)
class Place:
    """A site, or its slots with GPUs."""

    site: str
    gpu: bool = False

    @property
    def label(self) -> str:
        """In names of workflows and folders."""
        return f"{self.site}.gpu" if self.gpu else self.site


@dataclass(frozen=True)
class Run:
    """What is known of a place's latest probe; ``task_state`` None: its task is gone."""

    place: Place
    state: ProbeState
    due: float
    missed: int = 0
    task_id: int | None = None
    task_state: TaskState | None = None


def is_own_work(spec: StageSpec) -> bool:
    """Whether the pilot itself does what the task is for: nobody but the system can submit a task without a payload."""
    return spec.probe and spec.jobscript is None and spec.command is None and spec.transformation is None


def places_of(world: World, now: float) -> set[Place]:
    """The places that are to be probed: those with a queue that takes probes now."""
    found: set[Place] = set()
    for queue in world.queues.values():
        site = world.sites.get(queue.site)
        downtime = world.next_downtime(queue, now)
        if not takes(queue.status, probe=True) or site is None or not takes(site.status, probe=True):
            continue
        if downtime is not None and downtime.start <= now:
            continue
        found |= {Place(queue.site), Place(queue.site, True)} if queue.gpus else {Place(queue.site)}
    return found


def first_due(place: Place, interval_s: float, now: float) -> float:
    """When a place is probed for the first time: by its name, so that not all places try a storage at the same moment."""
    after = min(FIRST_AFTER_S, interval_s)
    spread = zlib.crc32(place.label.encode()) / 2**32
    return now + after + spread * (interval_s - after)


def stopped(run: Run, now: float, final: Iterable[TaskState]) -> str:
    """Why an open probe counts as not run, in words; empty while it may still report."""
    if run.state is not ProbeState.ASKED:
        return ""
    if run.task_state is None:
        return "its task was deleted"
    if run.task_state in final:
        return f"its task is {run.task_state.value} and no report came"
    return "no slot took it and reported within the interval" if now >= run.due else ""


def workflow_of(place: Place, total_s: float) -> WorkflowRequest:
    """The probe of a place, as a workflow of one unit."""
    needs = Requirements(
        memory_mb=MEMORY_MB, disk_mb=DISK_MB, wall_s=int(total_s) + SPARE_S, gpus=GpuRequest() if place.gpu else None
    )
    stage = StageSpec(
        name="probe",
        input=SingleInput(),
        requirements=needs,
        scouts=False,
        allow_no_output=True,
        max_attempts=ATTEMPTS,
        share=SHARE,
        sites=[place.site],
        probe=True,
    )
    return WorkflowRequest(name=f"probe-{place.label}"[:255], stages=[stage])


def probe_path(place: Place, storage: str, job_id: int) -> str:
    """Where a probe's own file lies, below a storage's prefix, which may be that of another storage too."""
    return f"{FOLDER}/{place.label}/{storage}-{job_id}"


def targets(world: World, place: Place, job_id: int, leftovers: Sequence[int]) -> list[ProbeTarget]:
    """What a probe tries: each storage that the site may use now, those apart from which nothing comes back at once."""
    found = []
    for name, spec in sorted(world.storages.items()):
        if spec.tape or not world.readable(name) or world.distance(place.site, name) >= NEVER:
            continue
        path, known = probe_path(place, name, job_id), spec.probe_file
        write = world.urls(name, path, place.site, write=True) if world.writable(name, probe=True) else []
        read = world.urls(name, path, place.site, write=False)
        left = [
            url for each in leftovers for url in world.urls(name, probe_path(place, name, each), place.site, write=True)
        ]
        test = None
        if known is not None and read:
            urls = world.urls(name, known.path, place.site, write=False)
            test = KnownReplica(urls, known.size, known.checksum)
        if write or test is not None:
            found.append(
                ProbeTarget(
                    storage=name,
                    write=write,
                    read=read if write else [],
                    write_activity=world.activity(name, place.site, write=True),
                    read_activity=world.activity(name, place.site, write=False),
                    test=test,
                    leftovers=left if write else [],
                )
            )
    # Where there is no time for all, others come first the next time.
    turn = job_id % len(found) if found else 0
    return found[turn:] + found[:turn]


def order_of(
    world: World, place: Place, job_id: int, leftovers: Sequence[int], limits: tuple[float, float], cvmfs: Sequence[str]
) -> ProbeOrder:
    """What the pilot of a probe is told; ``limits``: seconds for each storage, and for all."""
    return ProbeOrder(
        storages=targets(world, place, job_id, leftovers[:MOST_LEFTOVERS]),
        cvmfs=[*cvmfs],
        gpus=int(place.gpu),
        storage_s=limits[0],
        total_s=limits[1],
    )


def used_files(world: World, place: Place, job_id: int) -> tuple[list[ReplicaSpec], list[File]]:
    """What the pilot of a probe may read and write, for credentials: it may use the whole folder of its place."""
    reads = [
        ReplicaSpec(name, spec.probe_file.path) for name, spec in world.storages.items() if spec.probe_file is not None
    ]
    return reads, [
        File(name, probe_path(place, name, job_id)) for name, spec in world.storages.items() if not spec.tape
    ]


Key = tuple[str, ProbeOperation]


@dataclass(frozen=True)
class Known:
    """What is known of one operation at one storage."""

    ok: bool
    since: float


@dataclass(frozen=True)
class Verdict:
    """What a probe says of it. ``changed`` is to be told; ``since`` when it became so."""

    storage: str
    operation: ProbeOperation
    outcome: ProbeOutcome
    since: float
    changed: bool = False
    failed_s: float = 0.0


def verdicts(known: Mapping[Key, Known], found: Iterable[StorageProbe], world: World, now: float) -> list[Verdict]:
    """What a report says of each storage that is there (still), each once, beside what was known."""
    judged: dict[Key, Verdict] = {}
    for each in found:
        if each.storage not in world.storages:
            continue
        for operation, outcome in ((ProbeOperation.WRITE, each.write), (ProbeOperation.READ, each.read)):
            if outcome is not None:
                before = known.get((each.storage, operation))
                judged[each.storage, operation] = _verdict(each.storage, operation, outcome, before, now)
    return list(judged.values())


def _verdict(
    storage: str, operation: ProbeOperation, outcome: ProbeOutcome, before: Known | None, now: float
) -> Verdict:
    if before is not None and before.ok == outcome.ok:
        return Verdict(storage, operation, outcome, before.since)
    mended = outcome.ok and before is not None
    failed_s = max(0.0, now - before.since) if before is not None and mended else 0.0
    return Verdict(storage, operation, outcome, now, mended or not outcome.ok, failed_s)


def environment_ok(findings: Sequence[ProbeFinding]) -> bool:
    """Whether nothing essential is missing, as far as anything was looked at."""
    return bool(findings) and all(each.level is not ProbeLevel.ERROR for each in findings)


def environment_words(findings: Iterable[ProbeFinding]) -> str:
    """What is missing, in a line."""
    return "; ".join(f"{each.name}: {each.detail}" for each in findings if each.level is ProbeLevel.ERROR)[:500]
