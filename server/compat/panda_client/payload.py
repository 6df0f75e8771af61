"""What the jobs of a task of PanDA run: its payload script's own meaning, carried out by a small script of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from common.wire import OutputPattern, SecondaryInput, StageSpec, Transformation
from common.wire.workflows import SingleInput
from server.compat.panda_client.job_line import (
    JobLine,
    Wrong,
    ahead,
    command_of,
    filled,
    numbered,
    options_of,
    output_map,
    output_name,
    output_pattern,
    words_of,
)
from server.compat.panda_client.parameters import empty

SCRIPT = (Path(__file__).parent / "run.sh").read_text("utf-8")
BUILD = "build"
LIBRARY = "pilotage-build.tgz"
LIBRARY_STREAM = "BUILD"
_SCRIPTS = ("runGen", "runcontainer")
"""The payload scripts of PanDA whose meaning is known here."""
_FOREIGN = ("jedi-athena", "jedi-trf", "jedi-hpo")
_EXEC = "__run_main_exec.sh"
_BUILD_KEYS = frozenset(("archiveName", "jobParameters", "prodSourceLabel"))
_STREAM = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}\Z")
FindSandbox = Callable[[str], str]
"""The SHA-256 of an uploaded file, by its name. Raises Wrong."""


@dataclass
class Payload:
    """What a task runs: fields of its stage, and the stage before it that builds, if there is one."""

    fields: dict[str, Any] = field(default_factory=dict)
    build: StageSpec | None = None


def payload_of(given: Mapping[str, Any], line: JobLine, find: FindSandbox) -> Payload:
    """What the jobs of a task run. Raises Wrong."""
    processing = str(given.get("processingType") or "")
    if any(word in processing for word in _FOREIGN):
        raise Wrong(
            [("processingType", f"{processing[:60]}: only tasks of prun run here, and transformations of your own")]
        )
    path = given.get("transPath") or ""
    if not isinstance(path, str):
        raise Wrong([("transPath", "give the address of a program")])
    image = _image(given)
    if path and not any(script in path for script in _SCRIPTS):
        made = Payload(_transformation(path, line))
    else:
        made = _script(given, line, find)
    if image or made.fields.get("image"):
        made.fields["image"] = image or made.fields["image"]
    if made.build is not None and made.fields.get("image"):
        made.build.image = made.fields["image"]
    return made


def _image(given: Mapping[str, Any]) -> str | None:
    steps = given.get("multiStepExec")
    name = given.get("container_name") or ""
    if not isinstance(name, str):
        raise Wrong([("container_name", "give the address of an image")])
    if steps:
        options = steps.get("containerOptions") if isinstance(steps, dict) else None
        if not isinstance(options, dict) or _EXEC not in str(options.get("containerExec")):
            raise Wrong([("multiStepExec", "give it as prun does for --containerImage, or leave it out")])
        if options.get("execArgs"):
            raise Wrong([("multiStepExec", "leave out --alrbArgs: how images are run is the queue's")])
        name = name or str(options.get("containerImage") or "")
    return _address(name) if name else None


def _address(name: str) -> str:
    return name if name.startswith("/") or "://" in name else f"docker://{name}"


def _transformation(url: str, line: JobLine) -> dict[str, Any]:
    """A program of the user's own, with the whole line as its arguments."""
    text = numbered(filled(line.text, line)).replace("${IN}", "%IN")
    for item in line.inputs:
        text = text.replace(f"${{{item.stream}}}", f"%{item.stream}")
    text = re.sub(r"\$\{SN(?:/P)?\}", "%RNDM:000000000000000001", text)
    text = re.sub(r"\$\{?JEDITASKID\}?", "{task_id}", text)
    left = re.search(r"\$\{[A-Z_]{1,40}[^}]{0,40}\}", text)
    if left is not None:
        raise Wrong([("jobParameters", f"{left[0][:60]} is not known here: use ${{IN}}, ${{SN}}, $JEDITASKID")])
    outputs = [
        OutputPattern(
            output_pattern(each.template),
            optional=each.optional,
            dataset=_dataset(each.dataset),
            name=_named_by_the_program(each.template),
        )
        for each in line.outputs
    ]
    program = Transformation(url=url, parameters=words_of(text, "jobParameters"))
    return {"transformation": program, "outputs": outputs}


def _named_by_the_program(template: str) -> str | None:
    """The name that a user's own program is told to give an output; None if it is not known ahead."""
    if numbered(template).count("%OUT") != 1 or "$" in numbered(template):
        return None
    return ahead(template)


def _script(given: Mapping[str, Any], line: JobLine, find: FindSandbox) -> Payload:
    options = options_of(line.text)
    if options.get("-j"):
        raise Wrong([("jobParameters", "-j: give the whole command with --exec, as prun does")])
    if not options.get("-p"):
        raise Wrong([("jobParameters", "-p: there is no command: give one with --exec")])
    environment = {"PANDA_EXEC": command_of(options["-p"], line), "PANDA_RUN_DIR": _run_dir(options)}
    outputs = _outputs(line, options, environment)
    streams = [item.stream for item in line.inputs if item.stream != "IN"]
    if streams:
        environment["PANDA_STREAMS"] = " ".join(streams)
    if options.get("--writeInputToTxt"):
        environment["PANDA_TXT"] = _lists(options["--writeInputToTxt"], {"IN", *streams})
    fields: dict[str, Any] = {"jobscript": SCRIPT, "environment": environment, "outputs": outputs}
    if options.get("--containerImage"):
        fields["image"] = _address(options["--containerImage"])
    made = Payload(fields)
    if options.get("-a"):
        fields["sandbox"] = find(options["-a"])
    elif "-l" in options:
        _build(given, find, made)
    return made


def _build(given: Mapping[str, Any], find: FindSandbox, made: Payload) -> None:
    """The sandbox of a task that is built first; where nothing is built, the jobs unpack it themselves."""
    spec = given.get("buildSpec")
    if not isinstance(spec, dict) or not isinstance(spec.get("archiveName"), str):
        raise Wrong([("buildSpec", "give it with archiveName, as prun does without --noBuild")])
    unknown = sorted(str(name)[:40] for name in spec if name not in _BUILD_KEYS and not empty(spec[name]))
    if unknown:
        raise Wrong([("buildSpec", f"{unknown[0]}: leave it out: builds are as those of prun")])
    sandbox = find(spec["archiveName"])
    options = options_of(str(spec.get("jobParameters") or ""), "buildSpec")
    if not options.get("--bexec"):
        made.fields["sandbox"] = sandbox
        return
    environment = {"PANDA_BUILD": command_of(options["--bexec"], JobLine()), "PANDA_RUN_DIR": _run_dir(options)}
    made.build = StageSpec(
        name=BUILD,
        input=SingleInput(),
        jobscript=SCRIPT,
        sandbox=sandbox,
        environment=environment,
        outputs=[OutputPattern(LIBRARY)],
        scouts=False,
    )
    made.fields["secondary_inputs"] = [SecondaryInput(name=LIBRARY_STREAM, stage=BUILD, pattern=LIBRARY)]


def _run_dir(options: Mapping[str, str]) -> str:
    path = PurePosixPath(options.get("-r") or ".")
    if path.is_absolute() or ".." in path.parts:
        raise Wrong([("jobParameters", "-r: run in a folder below the sandbox's top")])
    return str(path)


def _outputs(line: JobLine, options: Mapping[str, str], environment: dict[str, str]) -> list[OutputPattern]:
    names = output_map(options["-o"]) if options.get("-o") else {}
    told = {each.template: each for each in line.outputs}
    lines, patterns = [], []
    for name, template in names.items():
        item = told.pop(template, None)
        if item is None:
            raise Wrong([("jobParameters", f"-o: {template[:100]!r} is no output of the task")])
        lines.append("/".join((name, *output_name(template))))
        patterns.append(
            OutputPattern(
                output_pattern(template),
                optional=item.optional,
                dataset=_dataset(item.dataset),
                storage=item.destination or None,
                name=ahead(template),
            )
        )
    if told:
        raise Wrong([("jobParameters", f"-o does not say what becomes {next(iter(told))[:100]!r}")])
    if lines:
        environment["PANDA_OUTPUTS"] = "\n".join(lines)
        environment["PANDA_SERIAL"] = "%OUT"
    return patterns


def _dataset(name: str) -> str | None:
    return name.rpartition(":")[2] or None


def _lists(text: str, streams: set[str]) -> str:
    lines = []
    for pair in text.split(","):
        stream, _, file = pair.partition(":")
        if stream not in streams or not file or "/" in file or not _STREAM.match(stream):
            raise Wrong(
                [("jobParameters", f"--writeInputToTxt: {pair[:60]!r} is not STREAM:FILE of an input of the task")]
            )
        lines.append(f"{stream}\t{file}")
    return "\n".join(lines)
