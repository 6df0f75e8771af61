"""From PanDA's task parameters to a workflow of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from common.wire import CounterInput, FilesInput, FileSpec, SecondaryInput, StageSpec, WorkflowRequest
from server.compat.panda_client.inputs import files_of, first_events, primary_of, with_events
from server.compat.panda_client.job_line import JobLine, Wrong, read_line
from server.compat.panda_client.needs import MIB_OF_GB, needs_of, places_of, tries_of
from server.compat.panda_client.parameters import refusals
from server.compat.panda_client.payload import LIBRARY_STREAM, Payload, payload_of
from server.compat.panda_client.values import Values
from server.dispatch import secrets
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid
from server.engine.access import Caller
from server.store import panda_client

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

RUN = "run"
"""The stage that is the task; a build comes before it."""
CLIENTS_OWN_BOUND = 200
"""What the client sends as nMaxFilesPerJob when nobody asked for a bound."""
MOST_SECONDARY = 10_000
MOST_UNITS = 10_000_000
"""Of a counter."""


@dataclass(frozen=True)
class Translated:
    """A task: the workflow that it becomes, and its name in PanDA's words."""

    name: str
    request: WorkflowRequest


def translate(dispatcher: Dispatcher, caller: Caller, given: Mapping[str, Any]) -> Translated:
    """The workflow that task parameters describe.

    Raises:
        Invalid: it names every parameter that cannot be carried out, and what to do.
    """
    made = _Translation(dispatcher, caller, given)
    request = made.request()
    if made.problems or request is None:
        raise Invalid(
            "; ".join(f"{name}: {words}" for name, words in made.problems)
            or "the task parameters cannot be carried out"
        )
    return Translated(made.name, request)


class _Translation:
    """One task's parameters; every part adds to ``problems`` what is wrong with it."""

    def __init__(self, dispatcher: Dispatcher, caller: Caller, given: Mapping[str, Any]) -> None:
        self._dispatcher = dispatcher
        self._caller = caller
        self._given = given
        self._values = Values(given)
        self.problems = refusals(given)
        self.name = ""

    def request(self) -> WorkflowRequest | None:
        self.name = self._try(lambda: self._values.text("taskName")) or ""
        name = re.sub(r"[^A-Za-z0-9._+-]", "-", self.name.strip("/")).lstrip("._+-")[:255]
        if not name:
            self.problems.append(("taskName", "give the task a name: --outDS"))
        elif len(self.name) > 255:
            self.problems.append(("taskName", "give at most 255 characters"))
        line = self._try(lambda: read_line(self._given.get("jobParameters")))
        fields: dict[str, Any] = {}
        for part in (needs_of, tries_of, self._places):
            fields.update(self._try(lambda part=part: part(self._values)) or {})  # type: ignore[misc]
        payload = self._try(lambda: payload_of(self._given, line, self._sandbox)) if line is not None else None
        if payload is None or line is None or self.problems:
            return None
        units = self._try(lambda: self._input(line))
        streams = self._try(lambda: self._streams(line))
        if units is None or streams is None:
            return None
        given_input, sizes = units
        fields.update(sizes)
        self._add_secrets(fields, payload)
        return self._try(lambda: self._checked(name, fields, payload, given_input, streams))

    def _try(self, part: Callable[[], T]) -> T | None:
        try:
            return part()
        except Wrong as error:
            self.problems += error.problems
            return None

    def _places(self, values: Values) -> dict[str, list[str]]:
        return places_of(values, self._dispatcher.looks.fresh().world)

    def _sandbox(self, name: str) -> str:
        with self._dispatcher.database.read() as connection:
            found = panda_client.file(connection, self._caller.name, name)
        if found is None:
            words = f"{name[:100]}: {self._caller.name} has no such sandbox here (any more): submit again"
            raise Wrong([("jobParameters", words)])
        return found.sha256

    def _add_secrets(self, fields: dict[str, Any], payload: Payload) -> None:
        if not self._values.flag("useSecrets"):
            return
        fields["secrets"] = [each.name for each in secrets.mine(self._dispatcher, self._caller.name).items]
        if "environment" in payload.fields:
            payload.fields["environment"]["PANDA_SECRETS"] = " ".join(fields["secrets"])

    # ------------------------------------------------------------ input

    def _input(self, line: JobLine) -> tuple[CounterInput | FilesInput, dict[str, int]]:
        item = primary_of(line.inputs)
        if item is None:
            if not self._values.flag("noInput"):
                raise Wrong([("jobParameters", "there is no dataset for ${IN}: give one, or noInput")])
            return self._counter()
        if self._values.flag("noInput"):
            raise Wrong([("noInput", "the job parameters name an input: leave one of them out")])
        return self._files(files_of(self._dispatcher, self._caller, item), item.per_job)

    def _counter(self) -> tuple[CounterInput, dict[str, int]]:
        events, per_job = self._values.number("nEvents"), self._values.number("nEventsPerJob")
        if events is None:
            count = self._values.number("nFiles") or 1
            return self._counted(CounterInput(count)), {"files_per_job": self._values.number("nFilesPerJob") or 1}
        per_job = per_job or events
        if events % per_job:
            raise Wrong([("nEvents", f"give a multiple of nEventsPerJob ({per_job})")])
        return self._counted(CounterInput(events // per_job, events=per_job)), {"files_per_job": 1}

    @staticmethod
    def _counted(units: CounterInput) -> CounterInput:
        if units.count > MOST_UNITS:
            raise Wrong([("nEvents", f"these are {units.count} jobs: a task has at most {MOST_UNITS}")])
        return units

    def _files(self, files: list[FileSpec], per_item: int | None) -> tuple[FilesInput, dict[str, int]]:
        values = self._values
        per_file = values.number("nEventsPerFile", "nEventsPerInputFile")
        if per_file is not None:
            files = with_events(files, per_file)
        if values.flag("skipEmptyInput"):
            files = [file for file in files if file.events != 0]
        files = files[: values.number("nFiles")]
        events = values.number("nEvents")
        if events is not None:
            files = first_events(files, events)
        per_job, sizes = values.number("nEventsPerJob"), self._sizes(per_item)
        if per_job is None:
            return FilesInput(files), sizes
        if per_file is not None and per_job % per_file == 0:
            return FilesInput(files), {"events_per_job": per_job}
        return FilesInput(files, events_per_unit=per_job), {"files_per_job": 1}

    def _sizes(self, per_item: int | None) -> dict[str, int]:
        values = self._values
        count, gb, most = values.number("nFilesPerJob"), values.decimal("nGBPerJob"), values.number("nMaxFilesPerJob")
        count = count if count is not None else per_item
        if count is not None:
            return {"files_per_job": min(count, most or count)}
        if gb is not None:
            return {"mb_per_job": max(1, round(gb * MIB_OF_GB))}
        if most is not None and most < CLIENTS_OWN_BOUND:
            return {"files_per_job": most}
        return {}

    def _streams(self, line: JobLine) -> list[SecondaryInput]:
        found: dict[str, SecondaryInput] = {}
        for item in line.inputs:
            if item.stream == "IN" and item is primary_of(line.inputs):
                continue
            if item.stream.upper() in found or item.stream in ("IN", LIBRARY_STREAM):
                raise Wrong(
                    [("jobParameters", f"${{{item.stream}}} stands for two inputs: give each a name of its own")]
                )
            files = files_of(self._dispatcher, self._caller, item)
            if len(files) > MOST_SECONDARY:
                words = f"{','.join(item.datasets)[:100]} has {len(files)} files; a secondary input has at most {MOST_SECONDARY}"
                raise Wrong([("jobParameters", words)])
            stream = self._valid(SecondaryInput(name=item.stream, per_job=item.per_job or 1))
            stream.files = files
            found[item.stream.upper()] = stream
        return list(found.values())

    # ------------------------------------------------------------ the whole

    def _checked(
        self,
        name: str,
        fields: Mapping[str, Any],
        payload: Payload,
        units: CounterInput | FilesInput,
        streams: Sequence[SecondaryInput],
    ) -> WorkflowRequest:
        """The workflow. Its texts and numbers were a stranger's, and are checked here; its files are checked already."""
        places = {key: fields[key] for key in ("sites", "exclude_sites", "priority", "max_attempts") if key in fields}
        secondary = payload.fields.pop("secondary_inputs", [])
        stages = [StageSpec(name=RUN, input=CounterInput(1), **{**fields, **payload.fields})]
        if payload.build is not None:
            for key, value in places.items():
                setattr(payload.build, key, value)
            stages.insert(0, payload.build)
        labels = {label: text for label in ("vo", "prodSourceLabel") if (text := self._values.text(label))}
        group = self._values.text("workingGroup") or None
        request = WorkflowRequest(name=name, stages=stages, group=group, labels=labels)
        request = self._valid(request)
        request.stages[-1].input = units
        request.stages[-1].secondary_inputs = [*secondary, *streams]
        return request

    @staticmethod
    def _valid(made: S) -> S:
        """The same with every text and number checked, as for what people send themselves. Raises Wrong."""
        try:
            return msgspec.convert(msgspec.to_builtins(made), type(made))
        except msgspec.ValidationError as error:
            raise Wrong([("task parameters", str(error))]) from error
