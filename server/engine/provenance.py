"""What is kept of a task and of a job, so that years later an output still says where it comes from.

The task's document is kept once for each definition, the job's is small: references by DID, numbers and names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from common.wire import FilesInput, StageSpec


@dataclass(frozen=True)
class TaskOrigin:
    """What is told of a task beside its definition."""

    id: int
    workflow_id: int
    workflow: str
    owner: str
    group: str | None
    scope: str
    labels: Mapping[str, str]
    created: float


@dataclass(frozen=True)
class UnitOrigin:
    """A unit as its job had it: a file, a range of one, a counter, or neither."""

    id: int
    seq: int
    state: str
    did: str | None = None
    checksum: str | None = None
    counter: int | None = None
    first_event: int | None = None
    events: int | None = None


@dataclass(frozen=True)
class OutputOrigin:
    """An output as its job wrote it."""

    did: str
    name: str
    role: str
    state: str
    storage: str
    path: str
    size: int
    checksum: str
    events: int | None
    attributes: Mapping[str, Any]


def task_document(origin: TaskOrigin, spec: StageSpec) -> dict[str, Any]:
    """All that defined a task, but the list of its input files: those that a job read are told with the job."""
    given: dict[str, Any] = {"kind": str(spec.input.__struct_config__.tag)}
    if isinstance(spec.input, FilesInput):
        given["files"] = len(spec.input.files)
        spec = msgspec.structs.replace(spec, input=msgspec.structs.replace(spec.input, files=[]))
    definition = _in_full(spec)
    definition["input"] |= given
    document: dict[str, Any] = {
        "task": origin.id,
        "stage": spec.name,
        "workflow": {"id": origin.workflow_id, "name": origin.workflow, "labels": dict(origin.labels)},
        "owner": origin.owner,
        "group": origin.group,
        "scope": origin.scope,
        "created": origin.created,
        "requirements": definition["requirements"],
        "image": spec.image,
        "common_input": [{"did": file.did, "checksum": file.checksum} for file in spec.common_input],
        "definition": definition,
    }
    if spec.jobscript is not None:
        document["jobscript_sha256"] = hashlib.sha256(spec.jobscript.encode()).hexdigest()
    return document


def _in_full(value: object) -> Any:
    """With every field, those at their defaults included: another version may have other defaults."""
    if isinstance(value, msgspec.Struct):
        return {name: _in_full(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, Mapping):
        return {str(key): _in_full(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_in_full(each) for each in value]
    return value.value if isinstance(value, Enum) else value


def digest_of(document: Mapping[str, Any]) -> str:
    """What tells one definition of a task from another."""
    return hashlib.sha256(msgspec.json.encode(document, order="deterministic")).hexdigest()


def job_document(
    job: Mapping[str, Any], units: Sequence[UnitOrigin], outputs: Sequence[OutputOrigin]
) -> dict[str, Any]:
    """A job, what it read and what it wrote. What is not known is left out."""
    return {
        **{name: value for name, value in job.items() if value not in (None, "")},
        "units": [_told(each) for each in units],
        "outputs": [_told(each) for each in outputs],
    }


def _told(each: UnitOrigin | OutputOrigin) -> dict[str, Any]:
    return {name: value for name, value in vars(each).items() if value is not None and value != {}}
