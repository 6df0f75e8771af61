"""What is wrong with the placeholders of a stage (:mod:`common.placeholders`) is said when it is submitted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from common.placeholders import BASED, PLACEHOLDER
from common.wire import CounterInput, OutputPattern, StageSpec

UNSUPPORTED = frozenset({"DB", "SEGMENT_NAME", "CAVIN", "MININ", "LOMBIN", "HIMBIN", "BHIN", "BGIN"})
SERIAL = "%OUT"
_OUTPUT = re.compile(r"%OUT((?:\.[A-Za-z0-9_-]+)+)")
_SAMPLE = "1._000001"
"""What ``%OUT`` stands for in some job."""


def has_placeholders(spec: StageSpec) -> bool:
    """Whether anything of a stage has to be looked through at all."""
    return any("%" in text for _where, text in _places(spec))


def named_outputs(spec: StageSpec) -> list[str]:
    """What stands behind ``%OUT`` anywhere in a stage, such as ``.root``, each once: the outputs that it names itself."""
    found = (match.group(1) for _where, text in _places(spec) for match in _OUTPUT.finditer(text))
    return list(dict.fromkeys(found))


def output_name_problem(output: OutputPattern) -> str:
    """What is wrong with the name that jobs give an output, and what to do; empty if nothing is."""
    name = output.name
    if name is None:
        return ""
    if "%" in name.replace(SERIAL, "", 1):
        return f"{name!r} has another % than that of {SERIAL}, once: leave it out"
    if not fnmatchcase(name.replace(SERIAL, _SAMPLE), output.pattern):
        return f"the pattern {output.pattern!r} does not take {name!r}: make them fit"
    return ""


def placeholder_problems(spec: StageSpec) -> Iterator[tuple[str, str]]:
    """What is wrong with a stage's placeholders: the field, and what to do."""
    streams = {each.name for each in spec.secondary_inputs}
    for where, text in _places(spec):
        for match in PLACEHOLDER.finditer(text):
            name = match.group(1)
            if name in streams:
                continue
            if name in UNSUPPORTED:
                yield where, f"%{name} is not supported: name a secondary input {name}, or leave it out"
            elif name in BASED and match.group(2) is None:
                yield where, f"%{name} needs a number to begin with, such as %{name}:100"
            elif name == "IN" and isinstance(spec.input, CounterInput):
                yield where, "%IN stands for input files, of which this stage has none: use %RNDM:0 or {counter}"
        for match in _OUTPUT.finditer(text):
            sample = f"{_SAMPLE}{match.group(1)}"
            named = any(output.name is not None and match.group(0) in output.name for output in spec.outputs)
            if not named and not any(fnmatchcase(sample, output.pattern) for output in spec.outputs):
                yield where, f"no output pattern takes {match.group(0)}: add '*{match.group(1)}' to outputs"


def _places(spec: StageSpec) -> Iterator[tuple[str, str]]:
    for index, word in enumerate(spec.command or ()):
        yield f"command[{index}]", word
    if spec.transformation is not None:
        for index, word in enumerate(spec.transformation.parameters):
            yield f"transformation.parameters[{index}]", word
    for number, process in enumerate(spec.processes):
        for index, word in enumerate(process.command):
            yield f"processes[{number}].command[{index}]", word
    for name, text in spec.environment.items():
        yield f"environment.{name}", text
