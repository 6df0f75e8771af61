"""Names and places of outputs that a job is about to upload."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from common.errors import ErrorCode
from common.wire import Activity, OutputDestination, OutputNaming, OutputRecord, OutputRole, RecordReply, Registration
from server.dispatch.errors import Unprocessable
from server.dispatch.facts import pattern_of, registration_of
from server.engine.naming import name_problem, output_did, output_place
from server.engine.workflows import attributes_problem
from server.engine.world import World, join_url
from server.store.outputs import NewOutput, Place
from server.store.workflows import TaskRow


def check_files(files: Sequence[OutputRecord], task_id: int, job_id: int) -> None:
    """Look at names and attributes.

    Raises:
        Unprocessable: one cannot be used.
    """
    problems = []
    seen: set[str] = set()
    for index, file in enumerate(files):
        problem = name_problem(task_id, job_id, file.name)
        if not problem and file.name in seen:
            problem = f"{file.name!r} is in the list twice"
        if problem:
            problems.append((f"$.outputs[{index}].name", problem))
        seen.add(file.name)
        odd = attributes_problem(file.attributes) if file.attributes else ""
        if odd:
            problems.append((f"$.outputs[{index}].attributes", odd))
    if problems:
        raise Unprocessable("outputs cannot be recorded so", problems)


def storage_for(world: World, site: str, task: TaskRow, file: OutputRecord, index: int) -> str:
    """Where the ``index``-th output of a request goes.

    Raises:
        Unprocessable: no storage may take it now.
    """
    _, pattern = pattern_of(task, file)
    where, wanted = f"$.outputs[{index}]", pattern.storage if pattern else None
    if file.role == OutputRole.LOG:
        for_logs = next((each for each in world.takers(site, logs=True) if each not in file.avoid), None)
        if for_logs is not None:
            return for_logs
    return choose_storage(world, site, wanted, where, file.avoid)


def choose_storage(world: World, site: str, wanted: str | None, path: str, avoid: Collection[str] = ()) -> str:
    """Where an output goes: the storage that its task names, else the nearest that takes new files, but for those to avoid.

    Raises:
        Unprocessable: none does; it carries error 1133.
    """
    if wanted is None:
        found = next((each for each in world.takers(site) if each not in avoid), None)
    else:
        found = wanted if wanted not in avoid and world.takes(wanted, site) else None
    if found is None:
        which = f"storage {wanted} takes" if wanted is not None else "no storage takes"
        raise Unprocessable(
            f"{which} {'no ' if wanted is not None else ''}new files from {site} now",
            [(path, "bring a storage with a write endpoint online, or name another in the task")],
            error_code=int(ErrorCode.NO_STORAGE),
        )
    return found


def new_output(world: World, task: TaskRow, job_id: int, file: OutputRecord, storage: str) -> NewOutput:
    """An output with its name and its place."""
    spec = world.storages.get(storage)
    of_storage = Registration.NONE if spec is None else spec.registration
    naming = OutputNaming.JOB if spec is None else spec.naming
    return NewOutput(
        file,
        output_did(task.scope, task.id, job_id, file.name),
        storage,
        output_place(naming, task.scope, task.id, job_id, file.name),
        pattern_of(task, file)[0],
        registration_of(task, file, of_storage),
    )


def recorded(world: World, site: str, files: Sequence[OutputRecord], places: Mapping[str, Place]) -> RecordReply:
    """The answer: a destination for each output, in the order of the request."""
    return RecordReply([_destination(world, site, file, places[file.name]) for file in files])


def _destination(world: World, site: str, file: OutputRecord, place: Place) -> OutputDestination:
    if place.storage not in world.storages:
        return OutputDestination(file.name, place.did, place.storage, [], place.registration)
    log = file.role == OutputRole.LOG
    ways = world.log_ways(place.storage, site) if log else world.ways(place.storage, site, write=True)
    urls = [join_url(each.url, place.path) for each in ways]
    activity = Activity.LOGS if log else world.activity(place.storage, site, write=True)
    return OutputDestination(file.name, place.did, place.storage, urls, place.registration, activity)
