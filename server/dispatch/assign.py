"""What a pilot is told of its job."""

from __future__ import annotations

from collections.abc import Sequence

from common.wire import AssignedFile, AssignedUnit, Assignment, FileSpec, Replica, ReplicaSpec
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound
from server.engine.sizing import number_of
from server.engine.world import NEVER, World
from server.store import workflows
from server.store.claims import ClaimedJob, TakenUnit


def assignment(dispatcher: Dispatcher, world: World, site: str, claimed: ClaimedJob) -> Assignment:
    """All that a pilot at ``site`` needs to run a job."""
    with dispatcher.database.read() as connection:
        task = workflows.get_task(connection, claimed.task_id)
    if task is None:
        raise NotFound(f"task {claimed.task_id} is gone")
    spec = task.spec
    return Assignment(
        job_id=claimed.job_id,
        task_id=task.id,
        workflow_id=task.workflow_id,
        stage=task.stage,
        scope=task.scope,
        units=[assigned_unit(each, world, site) for each in claimed.units],
        requirements=spec.requirements,
        outputs=[*spec.outputs],
        common_input=[_common_file(file, world, site) for file in spec.common_input],
        jobscript=spec.jobscript,
        command=spec.command,
        image=spec.image,
        environment=spec.environment,
    )


def assigned_unit(taken: TakenUnit, world: World, site: str) -> AssignedUnit:
    """A unit as its pilot sees it, replicas nearest first."""
    file = None
    if taken.did is not None:
        file = AssignedFile(
            did=taken.did,
            size=taken.size,
            checksum=taken.checksum,
            events=taken.events,
            replicas=nearest_replicas(taken.replicas, world, site),
            attributes=taken.attributes,
        )
    return AssignedUnit(
        unit_id=taken.id, seq=number_of(taken.seq), file=file, counter=taken.counter, events=taken.events
    )


def _common_file(file: FileSpec, world: World, site: str) -> AssignedFile:
    return AssignedFile(
        did=file.did,
        size=file.size,
        checksum=file.checksum,
        events=file.events,
        replicas=nearest_replicas(file.replicas, world, site),
        attributes=file.attributes,
    )


def nearest_replicas(replicas: Sequence[ReplicaSpec], world: World, site: str) -> list[Replica]:
    """Every URL under which a pilot at ``site`` may read the file now, nearest storage first."""
    found = []
    for spec in replicas:
        distance = world.distance(site, spec.storage)
        if distance < NEVER and world.readable(spec.storage):
            urls = world.urls(spec.storage, spec.path, site, write=False)
            found += [Replica(spec.storage, url, distance) for url in urls]
    return sorted(found, key=lambda replica: replica.distance)
