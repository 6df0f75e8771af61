"""What a pilot is told of its job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import structs

from common.wire import (
    AssignedFile,
    AssignedUnit,
    Assignment,
    CounterInput,
    DatasetInput,
    FileSpec,
    Measured,
    QueueSpec,
    RemoteIo,
    Replica,
    ReplicaSpec,
    StageSpec,
)
from server.dispatch.context import Dispatcher, Look
from server.dispatch.payload import complete
from server.dispatch.probes import with_order
from server.engine.inputs import in_turn, is_tape
from server.engine.matching import Traits
from server.engine.sizing import number_of, told
from server.engine.world import World, gives_direct, join_url
from server.store import inputs
from server.store.claims import ClaimedJob, TakenUnit
from server.store.database import Connection
from server.store.workflows import TaskRow


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What a pilot has to know of a task."""

    task_id: int
    workflow_id: int
    stage: str
    scope: str
    owner: str
    spec: StageSpec
    measured: Measured | None


def facts_of(task: TaskRow | Traits) -> TaskFacts:
    """From a task's row, or from what matching knows of it."""
    task_id = task.task_id if isinstance(task, Traits) else task.id
    return TaskFacts(task_id, task.workflow_id, task.stage, task.scope, task.owner, task.spec, task.measured)


def assignment(
    dispatcher: Dispatcher,
    look: Look,
    site: str,
    claimed: ClaimedJob,
    task: TaskFacts,
    memory_mb: int = 0,
    wall_s: int = 0,
    queue: QueueSpec | None = None,
) -> Assignment:
    """All that a pilot at ``site`` needs to run a job; ``memory_mb`` and ``wall_s`` are what its bucket asks for."""
    world = look.world
    spec = task.spec
    needs = told(spec, task.measured, look.knobs, sum(each.events or 1 for each in claimed.units))
    made = Assignment(
        job_id=claimed.job_id,
        task_id=task.task_id,
        workflow_id=task.workflow_id,
        stage=task.stage,
        scope=task.scope,
        units=[assigned_unit(each, world, site) for each in claimed.units],
        requirements=structs.replace(needs, memory_mb=max(needs.memory_mb, memory_mb), wall_s=wall_s or needs.wall_s),
        outputs=[*spec.outputs],
        common_input=[_common_file(file, world, site) for file in spec.common_input],
        secondary=_secondary(dispatcher, task, world, site, claimed.job_id) if spec.secondary_inputs else {},
        jobscript=spec.jobscript,
        command=spec.command,
        transformation=spec.transformation,
        processes=[*spec.processes],
        plugin=spec.plugin,
        allow_no_output=spec.allow_no_output,
        log_files=spec.log_files,
        image=spec.image,
        environment=spec.environment,
        query=_query(spec),
    )
    made.remote_io = read_directly(made.units, world, site, queue, spec)
    return with_order(dispatcher, look, spec, complete(dispatcher, spec, task.owner, made))


def _query(spec: StageSpec) -> str:
    """What found the units; for counters as justIN writes it, whose jobscripts read it."""
    if isinstance(spec.input, DatasetInput):
        return spec.input.query
    return f"monte-carlo {spec.input.count}" if isinstance(spec.input, CounterInput) else ""


def assigned_unit(taken: TakenUnit, world: World, site: str) -> AssignedUnit:
    """A unit as its pilot sees it, replicas nearest first."""
    file = None
    if taken.did is not None:
        file = AssignedFile(
            did=taken.did,
            size=taken.size,
            checksum=taken.checksum,
            events=taken.events if taken.first_event is None else None,
            replicas=nearest_replicas(taken.replicas, world, site),
            attributes=taken.attributes,
        )
    return AssignedUnit(
        unit_id=taken.id,
        seq=number_of(taken.seq),
        file=file,
        counter=taken.counter,
        events=taken.events,
        first_event=taken.first_event,
    )


def read_directly(
    units: Sequence[AssignedUnit], world: World, site: str, queue: QueueSpec | None, spec: StageSpec
) -> bool:
    """Leave only URLs that a payload can read from; False, and all as it was, if it may not or a file has none."""
    if queue is None or not queue.remote_io or spec.remote_io == RemoteIo.NEVER:
        return False
    files = [each.file for each in units if each.file is not None]
    names = {each.storage for file in files for each in file.replicas}
    able = {name: _direct_prefixes(world, name, site) for name in names}
    direct = [[each for each in file.replicas if each.url.startswith(able[each.storage])] for file in files]
    if not files or not all(direct):
        return False
    for file, replicas in zip(files, direct, strict=True):
        file.replicas = replicas
    return True


def _direct_prefixes(world: World, storage: str, site: str) -> tuple[str, ...]:
    """What the URLs begin with by which a payload can read from a storage."""
    return tuple(join_url(each.url, "") for each in world.ways(storage, site, write=False) if gives_direct(each))


def _secondary(
    dispatcher: Dispatcher, task: TaskFacts, world: World, site: str, job_id: int
) -> dict[str, list[AssignedFile]]:
    with dispatcher.database.read() as connection:
        found = secondary_files(connection, task.task_id, task.spec, job_id)
    return {name: [_common_file(file, world, site) for file in files] for name, files in found.items()}


def secondary_files(connection: Connection, task_id: int, spec: StageSpec, job_id: int) -> dict[str, list[FileSpec]]:
    """The files of each secondary input that are a job's turn."""
    counts = inputs.secondary_counts(connection, task_id)
    wanted = {each.name: in_turn(job_id, each.per_job, counts.get(each.name, 0)) for each in spec.secondary_inputs}
    return inputs.secondary_files(connection, task_id, wanted)


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
    """Every URL under which a pilot at ``site`` may read the file now, nearest storage first.

    A copy on tape is named only where there is none on disk: it was recalled for this unit then.
    """
    found = []
    on_disk = [spec for spec in replicas if not is_tape(spec.storage, world)]
    for spec in on_disk or replicas:
        distance, prefixes = world.reading(spec.storage, site)
        if prefixes:
            activity = world.activity(spec.storage, site, write=False)
            found += [Replica(spec.storage, join_url(prefix, spec.path), distance, activity) for prefix in prefixes]
    return sorted(found, key=lambda replica: replica.distance)
