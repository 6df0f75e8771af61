"""From a stage of a workflow file to the job that a pilot would be given."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional
from urllib.parse import quote

from common.cli.strict import InputError, suggestion
from common.placeholders import fill_in
from common.problem import FieldError
from common.wire import (
    AssignedFile,
    AssignedSandbox,
    AssignedUnit,
    Assignment,
    CounterInput,
    FilesInput,
    FileSpec,
    Replica,
    SecondaryInput,
    SingleInput,
    StageSpec,
    WorkflowRequest,
)

LOCAL = "local"
"""The name of site, storage, and, where a workflow names none, of the scope."""


@dataclass(frozen=True)
class Choices:
    """What a person chose to run: unit number ``unit`` of the stage (from 0 on) and those after it, or local ``files`` in
    place of the stage's input. ``storages`` are URL prefixes by name, ``secondary`` local files by the name of the
    stream, ``secrets`` values by name, ``sandbox`` the content of an archive."""

    unit: int = 0
    files: Sequence[Path] = ()
    storages: Mapping[str, str] = field(default_factory=dict)
    secondary: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    sandbox: Optional[bytes] = None


def pick_stage(request: WorkflowRequest, name: Optional[str], where: str) -> StageSpec:
    """The stage of that name, or the only one. Raises InputError."""
    names = [stage.name for stage in request.stages]
    if name is None and len(names) == 1:
        return request.stages[0]
    found = [stage for stage in request.stages if stage.name == name]
    if found:
        return found[0]
    words = f"say which stage: --stage {' or '.join(names)}" if name is None else f"--stage {name}: no such stage;"
    raise InputError(where, [FieldError("stage", words if name is None else f"{words} {suggestion(name, names)}")])


def make_assignment(
    request: WorkflowRequest, stage: StageSpec, choices: Choices, job_id: int, where: str
) -> Assignment:
    """The job. Raises InputError that says which option is missing."""
    maker = _Maker(stage, choices, where)
    assignment = Assignment(
        job_id=job_id,
        task_id=1,
        workflow_id=1,
        stage=stage.name,
        scope=request.scope or LOCAL,
        units=maker.units(),
        requirements=stage.requirements,
        outputs=[*stage.outputs],
        common_input=[maker.file(file, "common_input") for file in stage.common_input],
        secondary={stream.name: maker.stream(stream) for stream in stage.secondary_inputs},
        jobscript=stage.jobscript,
        command=stage.command,
        transformation=stage.transformation,
        processes=[*stage.processes],
        plugin=stage.plugin,
        allow_no_output=stage.allow_no_output,
        log_files=stage.log_files,
        image=stage.image,
        environment=stage.environment,
        sandbox=maker.sandbox(),
        secrets=maker.secrets(),
    )
    fill_in(assignment)
    return assignment


class _Maker:
    """Makes the parts of one job, and says what is missing."""

    def __init__(self, stage: StageSpec, choices: Choices, where: str) -> None:
        self._stage = stage
        self._choices = choices
        self._where = where
        self._count = stage.files_per_job or 1

    def units(self) -> list[AssignedUnit]:
        """The units that the choices name, as many as a job of this stage takes."""
        first, given = self._choices.unit, self._stage.input
        if self._choices.files:
            return self._of_files([local_file(path) for path in self._choices.files])
        if isinstance(given, SingleInput):
            self._check_number(1)
            return [AssignedUnit(1, 0)]
        if isinstance(given, CounterInput):
            self._check_number(given.count)
            last = min(given.count, first + self._count)
            return [
                AssignedUnit(number + 1, number, counter=given.first + number, events=given.events)
                for number in range(first, last)
            ]
        if isinstance(given, FilesInput) and given.files:
            return self._of_list(given.files)
        words = "its files are not known here: name local ones with --file PATH, once for each file of the job"
        raise self._wrong("input", words)

    def _of_list(self, files: Sequence[FileSpec]) -> list[AssignedUnit]:
        """Of a list of files those that the number names; with ranges of events the number counts ranges."""
        per_unit = self._events_per_unit
        if per_unit is None:
            self._check_number(len(files))
            chosen = files[self._choices.unit : self._choices.unit + self._count]
            return self._of_files([self.file(file, "input") for file in chosen], self._choices.unit)
        unknown = [file.did for file in files if file.events is None]
        if unknown:
            raise self._wrong("input.files", f"{unknown[0]} has no event count, so that it cannot be cut into ranges")
        ranges = [
            (file, first, min(per_unit, (file.events or 0) - first))
            for file in files
            for first in range(0, file.events or 0, per_unit)
        ]
        self._check_number(len(ranges))
        start = self._choices.unit
        return [
            AssignedUnit(start + index + 1, start + index, self.file(file, "input"), events=events, first_event=first)
            for index, (file, first, events) in enumerate(ranges[start : start + self._count])
        ]

    def _of_files(self, files: Sequence[AssignedFile], start: int = 0) -> list[AssignedUnit]:
        per_unit = self._events_per_unit
        return [
            AssignedUnit(
                start + index + 1,
                start + index,
                file,
                events=file.events if per_unit is None else per_unit,
                first_event=None if per_unit is None else 0,
            )
            for index, file in enumerate(files)
        ]

    @property
    def _events_per_unit(self) -> Optional[int]:
        return getattr(self._stage.input, "events_per_unit", None)

    def file(self, file: FileSpec, field_name: str) -> AssignedFile:
        """A file of the workflow, where this machine can read it."""
        known = self._choices.storages
        replicas = [
            Replica(each.storage, f"{known[each.storage].rstrip('/')}/{each.path.lstrip('/')}", 0)
            for each in file.replicas
            if each.storage in known
        ]
        if not replicas:
            named = " or ".join(dict.fromkeys(each.storage for each in file.replicas))
            remedy = f"say where the storage is: --storage {file.replicas[0].storage}=URL"
            more = ", or name local files with --file PATH" if field_name == "input" else ""
            raise self._wrong(field_name, f"{file.did} lies on {named}: {remedy}{more}")
        return AssignedFile(file.did, file.size, file.checksum, file.events, replicas, file.attributes)

    def stream(self, stream: SecondaryInput) -> list[AssignedFile]:
        """The first files of a secondary input, as many as a job takes."""
        local = self._choices.secondary.get(stream.name)
        if local is not None:
            return [local_file(path) for path in local]
        if not stream.files:
            words = f"{stream.name}: name local files with --secondary {stream.name}=PATH"
            raise self._wrong("secondary_inputs", words)
        return [self.file(file, "secondary_inputs") for file in stream.files[: stream.per_job]]

    def sandbox(self) -> Optional[AssignedSandbox]:
        """The sandbox that was packed here."""
        content = self._choices.sandbox
        if content is not None:
            return AssignedSandbox(hashlib.sha256(content).hexdigest(), len(content))
        if self._stage.sandbox is not None:
            raise self._wrong("sandbox", "it lies with a server: name its folder with --sandbox DIR")
        return None

    def secrets(self) -> dict[str, str]:
        """The secrets that the stage asks for."""
        missing = [name for name in self._stage.secrets if name not in self._choices.secrets]
        if missing:
            raise self._wrong(
                "secrets", f"{missing[0]} lies with a server: name a file with --secret {missing[0]}=FILE"
            )
        return {name: self._choices.secrets[name] for name in self._stage.secrets}

    def _check_number(self, count: int) -> None:
        if not 0 <= self._choices.unit < count:
            raise self._wrong("input", f"--unit {self._choices.unit}: this stage has units 0 to {count - 1}")

    def _wrong(self, field_name: str, words: str) -> InputError:
        return InputError(self._where, [FieldError(f"stage {self._stage.name}: {field_name}", words)])


def local_file(path: Path) -> AssignedFile:
    """A file of this machine as input."""
    whole = path.absolute()
    return AssignedFile(f"{LOCAL}:{path.name}", path.stat().st_size, replicas=[Replica(LOCAL, file_url(whole), 0)])


def file_url(path: Path) -> str:
    """The address of a local path."""
    return f"file://{quote(str(path))}"
