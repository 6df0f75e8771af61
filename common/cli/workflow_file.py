"""Workflow files: what people write in TOML or JSON becomes a :class:`common.wire.WorkflowRequest`.

A file may hold the message as it goes over the wire, or its friendlier form: ``[[stage]]`` tables, ``input.counter``,
``input.files_from``, ``input.dataset``, ``jobscript_file``, outputs as plain patterns, and sizes and times with units.
Paths in a file are relative to its folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

import msgspec

from common.cli.file_list import read_file_list
from common.cli.jobscript import fetch_jobscript
from common.cli.strict import InputError, convert, join, suggestion, unknown_fields
from common.cli.textfile import read_table, read_text
from common.problem import FieldError
from common.quantities import QuantityError, parse_duration, parse_size
from common.wire import (
    CounterInput,
    DatasetInput,
    FilesInput,
    FileSpec,
    GpuRequest,
    MergeRule,
    OutputPattern,
    ProcessSpec,
    Requirements,
    SecondaryInput,
    StageInput,
    StageSpec,
    WorkflowRequest,
)

T = TypeVar("T")
Table = dict[str, Any]
MIB = 1024 * 1024
SOURCES = ("counter", "stage", "stages", "files", "files_from", "dataset", "single")
PAYLOADS = ("jobscript", "jobscript_file", "command", "transformation")
BESIDE_SOURCES = ("pattern", "first", "events", "limit", "events_per_unit", "open", "catalog")
INPUT_REMEDY = (
    "say where the units come from: counter = 200, stage = 'name', files_from = 'list.json', "
    "dataset = 'query' with catalog = 'name', or single = true"
)


def load_workflow(path: Path, jobscript_git: str = "") -> WorkflowRequest:
    """Read a workflow file. ``jobscript_git`` (``URL#path@ref``) is the payload of stages that name none.

    Raises:
        InputError: it names the file, the field and the remedy, for every mistake that was found.
    """
    return _Reader(path, jobscript_git).request()


class _Reader:
    """Turns one file into the message, and collects what is wrong with it."""

    def __init__(self, path: Path, jobscript_git: str) -> None:
        self._path = path
        self._jobscript_git = jobscript_git
        self._errors: list[FieldError] = []

    def request(self) -> WorkflowRequest:
        table = dict(read_table(self._path))
        key = "stages" if "stages" in table else "stage"
        self._known(table, WorkflowRequest, {"stage"}, "")
        if key == "stages" and "stage" in table:
            self._wrong("stage", "this file has stages and stage: use one of them")
        stages = table.pop(key, [])
        table.pop("stage", None)
        if isinstance(stages, list):
            table["stages"] = [self._stage(stage, f"{key}[{index}]") for index, stage in enumerate(stages)]
        else:
            self._wrong(key, f"expected a list: begin each stage with [[{key}]]")
        if not self._errors:
            return self._converted(table, key)
        raise InputError(str(self._path), self._errors)

    def _converted(self, table: Table, key: str) -> WorkflowRequest:
        try:
            return convert(table, WorkflowRequest, str(self._path))
        except InputError as error:
            renamed = [msgspec.structs.replace(e, path=e.path.replace("stages", key, 1)) for e in error.errors]
            raise InputError(error.where, renamed) from error

    def _wrong(self, path: str, message: str) -> None:
        self._errors.append(FieldError(path, message))

    def _known(self, table: Mapping[str, Any], spec: type[msgspec.Struct], more: set[str], path: str) -> None:
        """Note the fields of ``table`` that neither ``spec`` nor the friendlier form has."""
        self._errors += unknown_fields(table, {field.name for field in msgspec.structs.fields(spec)} | more, path)

    def _stage(self, given: Any, path: str) -> Any:
        if not isinstance(given, dict):
            self._wrong(path, "expected a table: begin each stage with [[stage]]")
            return given
        stage = dict(given)
        self._known(stage, StageSpec, {"jobscript_file", "common_input_from", "far_after"}, path)
        self._payload(stage, path)
        if "input" in stage:
            stage["input"] = self._input(stage["input"], join(path, "input"))
        self._common_input(stage, path)
        self._secondary_inputs(stage, path)
        self._merge(stage, path)
        self._quantity(stage, "far_after", "far_after_s", _seconds, path)
        if isinstance(stage.get("requirements"), dict):
            stage["requirements"] = self._requirements(stage["requirements"], join(path, "requirements"))
        self._outputs(stage, path)
        self._processes(stage, path)
        return stage

    def _outputs(self, stage: Table, path: str) -> None:
        if not isinstance(stage.get("outputs"), list):
            return
        outputs = [{"pattern": o} if isinstance(o, str) else o for o in stage["outputs"]]
        stage["outputs"] = [dict(o) if isinstance(o, dict) else o for o in outputs]
        for index, output in enumerate(stage["outputs"]):
            if isinstance(output, dict):
                where = f"{join(path, 'outputs')}[{index}]"
                self._known(output, OutputPattern, {"max_size"}, where)
                self._quantity(output, "max_size", "max_mb", _mebibytes, where)

    def _processes(self, stage: Table, path: str) -> None:
        """A program's address alone will do, and time limits may have units."""
        if isinstance(stage.get("transformation"), str):
            stage["transformation"] = {"url": stage["transformation"]}
        if not isinstance(stage.get("processes"), list):
            return
        stage["processes"] = [dict(each) if isinstance(each, dict) else each for each in stage["processes"]]
        for index, process in enumerate(stage["processes"]):
            if isinstance(process, dict):
                where = f"{join(path, 'processes')}[{index}]"
                self._known(process, ProcessSpec, {"timeout"}, where)
                self._quantity(process, "timeout", "timeout_s", _seconds, where)

    def _payload(self, stage: Table, path: str) -> None:
        """Fetch the jobscript and look at its first line; exactly one kind of payload must be there."""
        given: list[str] = [name for name in PAYLOADS if name in stage]
        if not given and self._jobscript_git:
            stage.setdefault("jobscript_git", self._jobscript_git)
        if isinstance(stage.get("jobscript_git"), str):
            given.append("jobscript_git")
        if len(given) != 1:
            found = f"{' and '.join(given)} are there" if given else "the payload is missing"
            self._wrong(
                path, f"{found}: give one of jobscript_file, jobscript_git, jobscript, command or transformation"
            )
        elif given == ["jobscript_git"]:
            self._from_git(stage, join(path, "jobscript_git"))
        name = stage.pop("jobscript_file", None)
        where = join(path, "jobscript")
        if name is not None:
            where = join(path, "jobscript_file")
            script = self._beside(name, where, read_text)
            if script is None:
                return
            stage["jobscript"] = script
        script = stage.get("jobscript")
        if isinstance(script, str):
            first = script.split("\n", 1)[0]
            which = f" of {name}" if name else ""
            if not first.startswith("#!"):
                self._wrong(where, f"the first line{which} must be a shebang such as #!/bin/sh")
            elif first.endswith("\r"):
                self._wrong(where, f"the first line{which} ends with a carriage return: save it with Unix line ends")

    def _from_git(self, stage: Table, path: str) -> None:
        try:
            fetched = fetch_jobscript(stage["jobscript_git"], path)
        except InputError as error:
            self._errors += error.errors
            return
        stage["jobscript"] = fetched.text
        stage["jobscript_git"] = msgspec.to_builtins(fetched.source)

    def _input(self, given: Any, path: str) -> Any:
        if given == "single":
            return {"kind": "single"}
        if not isinstance(given, dict):
            self._wrong(path, INPUT_REMEDY)
            return given
        if "kind" in given:
            return given
        sources = [name for name in SOURCES if name in given]
        if len(sources) != 1:
            unknown = [name for name in given if name not in (*SOURCES, *BESIDE_SOURCES)]
            hint = f"; {unknown[0]!r} is unknown, {suggestion(unknown[0], SOURCES)}" if unknown else ""
            self._wrong(path, (INPUT_REMEDY if not sources else f"{' and '.join(sources)} exclude each other") + hint)
            return given
        readers = {
            "counter": self._input_counter,
            "stage": self._input_stage,
            "stages": self._input_stages,
            "files": self._input_files,
            "files_from": self._input_files_from,
            "dataset": self._input_dataset,
            "single": self._input_single,
        }
        return readers[sources[0]](dict(given), path)

    def _input_counter(self, given: Table, path: str) -> Table:
        self._known(given, CounterInput, {"counter"}, path)
        return {"kind": "counter", "count": given.pop("counter"), **given}

    def _input_stage(self, given: Table, path: str) -> Table:
        self._known(given, StageInput, set(), path)
        return {"kind": "stage", **given}

    def _input_stages(self, given: Table, path: str) -> Table:
        self._known(given, StageInput, set(), path)
        if isinstance(given["stages"], list):
            given["stages"] = [{"stage": each} if isinstance(each, str) else each for each in given["stages"]]
        return {"kind": "stage", **given}

    def _input_dataset(self, given: Table, path: str) -> Table:
        self._known(given, DatasetInput, {"dataset"}, path)
        if "catalog" not in given:
            self._wrong(path, "name the catalogue that is asked: catalog = 'name'")
        return {"kind": "dataset", "query": given.pop("dataset"), **given}

    def _input_single(self, given: Table, path: str) -> Table:
        if given != {"single": True}:
            self._wrong(path, "write single = true, and nothing beside it")
        return {"kind": "single"}

    def _input_files(self, given: Table, path: str) -> Table:
        self._known(given, FilesInput, set(), path)
        return {"kind": "files", **given, "files": self._files(given["files"], join(path, "files"))}

    def _input_files_from(self, given: Table, path: str) -> Table:
        self._known(given, FilesInput, {"files_from"}, path)
        if "files" in given:
            self._wrong(path, "files and files_from exclude each other")
        files = self._listed(given.pop("files_from"), join(path, "files_from"))
        return {"kind": "files", **given, "files": files}

    def _common_input(self, stage: Table, path: str) -> None:
        name = stage.pop("common_input_from", None)
        if name is not None:
            if "common_input" in stage:
                self._wrong(path, "common_input and common_input_from exclude each other")
            stage["common_input"] = self._listed(name, join(path, "common_input_from"))
        elif "common_input" in stage:
            stage["common_input"] = self._files(stage["common_input"], join(path, "common_input"))

    def _secondary_inputs(self, stage: Table, path: str) -> None:
        """Files that go with each job beside its units; their lists may be in files of their own."""
        given = stage.get("secondary_inputs")
        if not isinstance(given, list):
            return
        streams = [dict(each) if isinstance(each, dict) else each for each in given]
        stage["secondary_inputs"] = streams
        for index, stream in enumerate(streams):
            where = f"{join(path, 'secondary_inputs')}[{index}]"
            if not isinstance(stream, dict):
                continue
            self._known(stream, SecondaryInput, {"files_from"}, where)
            name = stream.pop("files_from", None)
            if name is not None and "files" in stream:
                self._wrong(where, "files and files_from exclude each other")
            if name is not None:
                stream["files"] = self._listed(name, join(where, "files_from"))
            elif "files" in stream:
                stream["files"] = self._files(stream["files"], join(where, "files"))

    def _merge(self, stage: Table, path: str) -> None:
        if isinstance(stage.get("merge"), dict):
            stage["merge"] = dict(stage["merge"])
            self._known(stage["merge"], MergeRule, {"target"}, join(path, "merge"))
            self._quantity(stage["merge"], "target", "target_mb", _mebibytes, join(path, "merge"))

    def _listed(self, name: Any, path: str) -> list[FileSpec]:
        """The files of one list, or of several in their order."""
        names = name if isinstance(name, list) else [name]
        lists = [self._beside(each, path, read_file_list) for each in names]
        return [file for files in lists if files for file in files]

    def _files(self, given: Any, path: str) -> Any:
        """Files that stand in the workflow file itself; their sizes may have units."""
        if not isinstance(given, list):
            return given
        files = [dict(file) if isinstance(file, dict) else file for file in given]
        for index, file in enumerate(files):
            if isinstance(file, dict) and isinstance(file.get("size"), str):
                self._quantity(file, "size", "size", parse_size, f"{path}[{index}]")
        return files

    def _beside(self, name: Any, path: str, read: Callable[[Path, str], T]) -> Optional[T]:
        """Read a file that a field names; a mistake in it is noted under the file's own name."""
        if not isinstance(name, str):
            self._wrong(path, "expected the name of a file")
            return None
        try:
            return read(self._path.parent / name, path)
        except InputError as error:
            self._errors += [
                FieldError(": ".join(filter(None, (error.where, e.path))), e.message) for e in error.errors
            ]
            return None

    def _requirements(self, given: Table, path: str) -> Table:
        needs = dict(given)
        self._known(needs, Requirements, {"memory", "disk", "wall"}, path)
        self._quantity(needs, "memory", "memory_mb", _mebibytes, path)
        self._quantity(needs, "disk", "disk_mb", _mebibytes, path)
        self._quantity(needs, "wall", "wall_s", _seconds, path)
        gpus = needs.get("gpus")
        if isinstance(gpus, int):
            needs["gpus"] = {"count": gpus} if gpus else None
        elif isinstance(gpus, dict):
            needs["gpus"] = gpus = dict(gpus)
            self._known(gpus, GpuRequest, {"memory"}, join(path, "gpus"))
            self._quantity(gpus, "memory", "memory_mb", _mebibytes, join(path, "gpus"))
        return needs

    def _quantity(self, table: Table, name: str, target: str, parse: Callable[[Any, str], int], path: str) -> None:
        """Replace ``name`` with its unit by ``target`` in the wire's unit."""
        if name not in table:
            return
        value = table.pop(name)
        if target in table:
            self._wrong(join(path, name), f"{name} and {target} say the same thing: use one of them")
        try:
            table[target] = parse(value, name)
        except QuantityError as error:
            self._wrong(join(path, name), f"{value!r} cannot be read: {error.remedy}")


def _mebibytes(value: Any, field: str) -> int:
    """A size with a unit, rounded up to mebibytes; a bare number would be anybody's guess."""
    if not isinstance(value, str) or value.strip().replace(".", "", 1).isdigit():
        raise QuantityError(field, value, "write a number with a unit, such as '512 MiB' or '2 GB'")
    return -(-parse_size(value, field) // MIB)


def _seconds(value: Any, field: str) -> int:
    """A duration rounded up to seconds."""
    return int(-(-parse_duration(value, field) // 1))
