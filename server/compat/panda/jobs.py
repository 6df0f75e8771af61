"""A job of ours in PanDA's words."""

from __future__ import annotations

import hmac
import shlex
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.arguments import Known, expand_arguments
from common.wire import AssignedFile, Assignment
from server.compat.panda.fields import NONE
from server.compat.panda.program import NAME
from server.compat.panda.resources import kind_of
from server.dispatch.context import Dispatcher
from server.dispatch.foreign import Expected, Given

PROGRAMS = "/cache/panda"
"""Where the programs of jobs are fetched."""
MANAGED = "managed"
_GUIDS = uuid.UUID("6e1f7c0c-3a54-4be2-9a0e-0d2f0c9f1f6b")
"""The name space of the GUIDs that a file gets by its DID."""


@dataclass(frozen=True)
class Told:
    """What else of a request goes into its answer: the server's own address, and the label that was asked for."""

    address: str
    label: str


def job_of(dispatcher: Dispatcher, given: Given, told: Told) -> dict[str, Any]:
    """A job as Harvester gets it: numbers are numbers, lists are texts. Raises PilotageError: its command makes no sense."""
    made, needs = given.assignment, given.assignment.requirements
    job: dict[str, Any] = {
        "PandaID": made.job_id,
        "taskID": made.task_id,
        "jobsetID": made.workflow_id,
        "jobDefinitionID": made.task_id,
        "jobName": f"{made.stage}.{made.job_id}",
        "attemptNr": 0,
        "prodSourceLabel": told.label or MANAGED,
        "processingType": "pilotage",
        "prodUserID": given.task.owner,
        "currentPriority": given.priority,
        "transferType": NONE,
        "transformation": f"{told.address}{PROGRAMS}/{made.job_id}/{seal(dispatcher, made.job_id)}/{NAME}",
        "jobPars": shlex.join(arguments(made)),
        "homepackage": NONE,
        "swRelease": NONE,
        "cmtConfig": NONE,
        "coreCount": needs.cores,
        "maxCpuCount": needs.wall_s * needs.cores,
        "maxWalltime": needs.wall_s,
        "maxDiskCount": needs.disk_mb,
        "minRamCount": needs.memory_mb,
        "nSent": 0,
        "sourceSite": given.queue.site,
        "nucleus": NONE,
        "cloud": NONE,
        "resource_type": kind_of(needs.cores, needs.memory_mb),
    }
    return job | _inputs(made) | _outputs(given) | _more(given)


def texts(job: dict[str, Any]) -> dict[str, Any]:
    """The same as a pilot gets it: all texts."""
    return {name: str(value) for name, value in job.items()}


def seal(dispatcher: Dispatcher, job_id: int) -> str:
    """What proves that whoever asks for a job's program was told of the job."""
    key = dispatcher.issuer.derived_key("programs of PanDA's jobs")
    return hmac.digest(key, str(job_id).encode(), "sha256").hex()[:40]


def arguments(made: Assignment) -> list[str]:
    """What the program is called with: the payload's own command, its placeholders filled in. Raises PilotageError."""
    files = _unique(unit.file for unit in made.units if unit.file is not None)
    counters = [str(unit.counter) for unit in made.units if unit.counter is not None]
    if made.transformation is not None:
        words = made.transformation.parameters
    else:
        words = made.command or []
    ranges = [unit for unit in made.units if unit.first_event is not None]
    lists = {
        "input": [_name(file) for file in files],
        "counter": counters,
        "unit": [file.did for file in files] or counters,
        "first_event": [str(unit.first_event) for unit in ranges],
        "events": [str(unit.events) for unit in made.units if unit.events is not None],
    }
    plain = {
        "job_id": str(made.job_id),
        "task_id": str(made.task_id),
        "cores": str(made.requirements.cores),
        "memory_mb": str(made.requirements.memory_mb),
    }
    streams = {name: [_name(file) for file in there] for name, there in made.secondary.items()}
    return expand_arguments(words, Known(lists, plain, streams))


def _unique(files: Any) -> list[AssignedFile]:
    return list({file.did: file for file in files}.values())


def _name(file: AssignedFile) -> str:
    return file.did.partition(":")[2]


def _inputs(made: Assignment) -> dict[str, str]:
    files = [unit.file for unit in made.units if unit.file is not None]
    files += [*made.common_input, *(file for there in made.secondary.values() for file in there)]
    files = _unique(files)
    nothing = [NONE] * len(files)
    return {
        "inFiles": _list(_name(file) for file in files),
        "realDatasetsIn": _list(nothing),
        "GUID": _list(str(uuid.uuid5(_GUIDS, file.did)) for file in files),
        "fsize": _list(str(file.size or 0) for file in files),
        "checksum": _list(_checksum(file.checksum) for file in files),
        "scopeIn": _list(file.did.partition(":")[0] for file in files),
        "ddmEndPointIn": _list(file.replicas[0].storage if file.replicas else NONE for file in files),
        "prodDBlockToken": _list(nothing),
        "dispatchDblock": _list(nothing),
        "dispatchDBlockToken": _list(nothing),
    }


def _checksum(text: str | None) -> str:
    kind, _, value = (text or "").partition(":")
    return f"{ {'adler32': 'ad', 'md5': 'md'}[kind] }:{value}" if kind in ("adler32", "md5") else NONE


def _outputs(given: Given) -> dict[str, str]:
    scope, log = given.assignment.scope, given.log
    files: Sequence[Expected] = [*given.outputs, log]
    nothing = [NONE] * len(files)
    places = _list(each.storage for each in files)
    datasets = _list(each.dataset or NONE for each in files)
    return {
        "outFiles": _list(each.lfn for each in files),
        "realDatasets": datasets,
        "scopeOut": _list(scope for _ in given.outputs),
        "ddmEndPointOut": places,
        "destinationDblock": datasets,
        "destinationDBlockToken": _list(nothing),
        "fileDestinationSE": places,
        "logFile": log.lfn,
        "scopeLog": scope,
        "logGUID": str(uuid.uuid5(_GUIDS, f"{scope}:{log.lfn}")),
    }


def _more(given: Given) -> dict[str, str]:
    """What is said only when it applies."""
    made, found = given.assignment, {}
    if made.image is not None:
        found["container_name"] = made.image
    optional = [each.lfn for each in given.outputs if each.optional or made.allow_no_output]
    if optional:
        found["allowNoOutput"] = _list(optional)
    if made.requirements.looping_s == 0:
        found["loopingCheck"] = "False"
    return found


def _list(items: Any) -> str:
    return ",".join(items) or NONE
