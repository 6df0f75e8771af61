"""The job parameters of a task: the line that PanDA would call the payload with, and what it reads and writes."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import unquote

from server.compat.panda_client.parameters import empty

MOST_CHARACTERS = 100_000
"""Of the whole line. One variable of a process's environment holds less than 128 KiB."""
MOST_DATASETS = 100
"""Of one input."""
_KEYS: Mapping[str | None, frozenset[str]] = {
    None: frozenset(),
    "input": frozenset(
        ("dataset", "expand", "consolidate", "include", "exclude", "offset", "files", "nFilesPerJob", "reusable")
    ),
    "output": frozenset(("dataset", "container", "destination", "token", "allowNoOutput")),
    "log": frozenset(("dataset", "container", "destination", "token")),
    "pseudo_input": frozenset(("dataset", "offset")),
    "number": frozenset(("dataset", "offset")),
}
"""What an item may say beside the common, by its kind."""
_COMMON_KEYS = frozenset(("type", "value", "param_type", "hidden", "padding"))
_NUMBERS = {"SEQNUMBER": "RNDM", "FIRSTEVENT": "FIRSTEVENT"}
"""Templates that count, and the placeholders of ours that do the same."""
_PLAIN = {"MAXEVENTS": "MAXEVENTS", "SKIPEVENTS": "SKIPEVENTS"}
_WIDE = 18
"""Digits of a placeholder's number: all of them, so that it takes none of the text behind it."""


_SERIAL = re.compile(r"\$JEDITASKID\._\$\{SN(?:/P)?\}")
_TASK = re.compile(r"\$\{?JEDITASKID\}?")
_NUMBER = re.compile(r"\$\{SN(?:/P)?\}")
_OUT = "%OUT"
"""Our placeholder for both: the task's number, and a serial number of six digits."""
_SERIAL_END = re.compile(rf"{_SERIAL.pattern}(?![A-Za-z0-9_:=])")
"""The same where the text behind it cannot be taken for a part of the placeholder."""
MOST_NAME = 200
"""Characters of an output's name, before the numbers of task and job come to it."""
_UNFIT = "\t\n\r\0/"


_IN_TURN = "files of secondary datasets are given out in turn, so many a job: leave it out"
_REMEDIES = {"ratio": _IN_TURN, "random": _IN_TURN, "offset": "outputs are numbered from 1 on: leave it out"}


class Wrong(Exception):
    """Job parameters that cannot be carried out: each problem with its remedy."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__(problems[0][1])
        self.problems = list(problems)


@dataclass(frozen=True)
class InputItem:
    """A dataset that the jobs read."""

    stream: str
    datasets: tuple[str, ...]
    include: str = ""
    exclude: str = ""
    offset: int = 0
    files: tuple[str, ...] = ()
    per_job: int | None = None


@dataclass(frozen=True)
class OutputItem:
    """A file that each job writes: the template of its name, and its dataset."""

    template: str
    dataset: str
    destination: str = ""
    optional: bool = False


@dataclass
class JobLine:
    """The line, and what it names. ``offsets``: where counting templates begin."""

    text: str = ""
    inputs: list[InputItem] = field(default_factory=list)
    outputs: list[OutputItem] = field(default_factory=list)
    offsets: dict[str, int] = field(default_factory=dict)


class Kind(Enum):
    """What an option of the payload script does here."""

    USED = "used"
    HARMLESS = "harmless"
    REFUSED = "refused"


@dataclass(frozen=True)
class Option:
    """An option of ``runGen``: whether it has a value, what becomes of it, and what to do if it is refused."""

    value: bool
    kind: Kind
    words: str = ""


_ATHENA = "Athena, ROOT and RootCore are not set up: run in a container image that has them, with --containerImage"

OPTIONS: Mapping[str, Option] = {
    "-j": Option(True, Kind.USED),
    "-r": Option(True, Kind.USED),
    "-a": Option(True, Kind.USED),
    "-l": Option(True, Kind.USED),
    "-o": Option(True, Kind.USED),
    "-i": Option(True, Kind.USED),
    "-p": Option(True, Kind.USED),
    "--inMap": Option(True, Kind.USED),
    "--bexec": Option(True, Kind.USED),
    "--writeInputToTxt": Option(True, Kind.USED),
    "--containerImage": Option(True, Kind.USED),
    "--allowNoOutput": Option(True, Kind.HARMLESS, "said by the outputs themselves"),
    "--sourceURL": Option(True, Kind.HARMLESS, "pilots fetch sandboxes from their own server"),
    "--cmtConfig": Option(True, Kind.HARMLESS, "means something to Athena only"),
    "--debug": Option(False, Kind.HARMLESS, "more to read"),
    "--noCompile": Option(False, Kind.HARMLESS, "nothing is compiled unless --bexec says so"),
    "--cvmfs": Option(False, Kind.HARMLESS, "what is bound into images is the queue's"),
    "--noX509": Option(False, Kind.HARMLESS, "a payload never gets a user's proxy"),
    "--useAthenaPackages": Option(False, Kind.REFUSED, _ATHENA),
    "--useRootCore": Option(False, Kind.REFUSED, _ATHENA),
    "--useCMake": Option(False, Kind.REFUSED, _ATHENA),
    "--rootVer": Option(True, Kind.REFUSED, _ATHENA),
    "--dbrFile": Option(True, Kind.REFUSED, "leave out --dbRelease"),
    "--noExpandDBR": Option(False, Kind.REFUSED, "leave out --dbRelease"),
    "--givenPFN": Option(False, Kind.REFUSED, "leave out --pfnList"),
    "--execWithRealFileNames": Option(False, Kind.REFUSED, "leave it out: outputs get their names after the payload"),
    "--overwriteQueuedata": Option(True, Kind.REFUSED, "leave out --queueData"),
    "--fileToSave": Option(True, Kind.REFUSED, "leave out --persistentFile"),
    "--fileToLoad": Option(True, Kind.REFUSED, "leave out --persistentFile"),
    "--noTarballDownload": Option(False, Kind.REFUSED, "leave out --tarBallViaDDM"),
    "--datadir": Option(True, Kind.REFUSED, "leave out --ctrDatadir: files are where the payload starts"),
    "--workdir": Option(True, Kind.REFUSED, "leave out --ctrWorkdir: files are where the payload starts"),
    "--useCentralRegistry": Option(True, Kind.REFUSED, "name the registry in the image's address"),
}
"""Every option that ``prun`` gives the scripts that build and run."""


def read_line(parameters: object, where: str = "jobParameters") -> JobLine:
    """What job parameters say. Raises Wrong."""
    if not isinstance(parameters, list):
        raise Wrong([(where, "give a list of objects")])
    line = JobLine()
    pieces: list[str] = []
    for index, item in enumerate(parameters):
        path = f"{where}[{index}]"
        if not isinstance(item, dict) or not isinstance(item.get("value"), str):
            raise Wrong([(path, "give an object with type and value")])
        _take(line, item, path)
        if item.get("hidden"):
            continue
        pieces.append(item["value"] + ("" if item.get("padding") is False else " "))
    line.text = "".join(pieces).strip()
    if len(line.text) > MOST_CHARACTERS or "\0" in line.text:
        raise Wrong([(where, f"give at most {MOST_CHARACTERS} characters, none of them NUL")])
    return line


def _take(line: JobLine, item: Mapping[str, Any], path: str) -> None:
    kind = item.get("param_type")
    known = _KEYS.get(kind) if kind is None or isinstance(kind, str) else None
    if known is None:
        raise Wrong([(f"{path}.param_type", f"{str(kind)[:40]!r} is not known here")])
    for name, value in item.items():
        if name not in known | _COMMON_KEYS and not empty(value):
            raise Wrong([(f"{path}.{name[:40]}", _REMEDIES.get(name, "this is not known here: leave it out"))])
    if item.get("type") == "constant" and kind is None:
        return
    if kind == "input":
        _take_input(line, item, path)
    elif kind == "output":
        line.outputs.append(_output(item, path))
    elif kind in ("pseudo_input", "number"):
        _take_number(line, item, path)


def _take_input(line: JobLine, item: Mapping[str, Any], path: str) -> None:
    names = _text(item, "dataset", path)
    stream = re.search(r"\$\{([A-Za-z][A-Za-z0-9_]*)(?:/[A-Z]+)?\}", item["value"])
    if stream is None or not names:
        raise Wrong([(path, "an input needs a dataset, and its ${NAME} in value")])
    files = item.get("files") or []
    if not isinstance(files, list) or not all(isinstance(each, str) for each in files):
        raise Wrong([(f"{path}.files", "give a list of names")])
    datasets = dict.fromkeys(name.strip().rstrip("/") for name in names.split(",") if name.strip())
    if len(datasets) > MOST_DATASETS:
        raise Wrong([(f"{path}.dataset", f"give at most {MOST_DATASETS} datasets")])
    line.inputs.append(
        InputItem(
            stream=stream[1],
            datasets=tuple(datasets),
            include=_text(item, "include", path),
            exclude=_text(item, "exclude", path),
            offset=_number(item, "offset", path),
            files=tuple(files),
            per_job=_number(item, "nFilesPerJob", path) or None,
        )
    )


def _output(item: Mapping[str, Any], path: str) -> OutputItem:
    if item["value"].startswith("regex|"):
        raise Wrong([(path, "outputs are found by their names or by * and ?: give no regular expression")])
    return OutputItem(
        template=item["value"].rpartition("=")[2],
        dataset=_text(item, "dataset", path).rstrip("/"),
        destination=_text(item, "destination", path),
        optional=bool(item.get("allowNoOutput")),
    )


def _take_number(line: JobLine, item: Mapping[str, Any], path: str) -> None:
    found = re.search(r"\$\{([A-Z_]+)", item["value"])
    name = found[1] if found else ""
    if name in _PLAIN:
        line.offsets[name] = 0
    elif name in _NUMBERS:
        first = _number(item, "offset", path)
        if line.offsets.setdefault(name, first) != first:
            raise Wrong([(path, f"${{{name}}} begins at two numbers: give one")])
    else:
        raise Wrong([(path, f"${{{name}}} is not known here: leave it out")])


def _text(item: Mapping[str, Any], name: str, path: str) -> str:
    value = item.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value:
        raise Wrong([(f"{path}.{name}", "give a text")])
    return value


def _number(item: Mapping[str, Any], name: str, path: str) -> int:
    value = item.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise Wrong([(f"{path}.{name}", "give a whole number from 0 on")])
    return value


def words_of(text: str, where: str) -> list[str]:
    """A line cut into words as a shell does. Raises Wrong."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise Wrong([(where, f"it is no command line: {error}")]) from error


def options_of(text: str, where: str = "jobParameters") -> dict[str, str]:
    """The options that the payload script is given, those that mean something here; a flag has an empty value.

    Raises Wrong: it names those that cannot be carried out.
    """
    words = words_of(text, where)
    found: dict[str, str] = {}
    problems: list[tuple[str, str]] = []
    position = 0
    while position < len(words):
        name, joined, value = words[position].partition("=") if words[position].startswith("--") else (
            words[position],
            "",
            "",
        )  # fmt: skip
        position += 1
        option = OPTIONS.get(name)
        if option is None:
            problems.append((where, f"{name[:60]} is not known here: leave it out"))
            continue
        if option.value and not joined:
            value = words[position] if position < len(words) else ""
            position += 1
        if option.kind is Kind.REFUSED:
            problems.append((where, f"{name}: {option.words}"))
        elif option.kind is Kind.USED:
            found[name] = value
    if problems:
        raise Wrong(problems)
    return found


def command_of(encoded: str, line: JobLine) -> str:
    """What ``-p`` says, with our placeholders in it."""
    return filled(unquote(encoded), line)


def filled(text: str, line: JobLine) -> str:
    """``text`` with the templates that count turned into placeholders of ours."""
    for name, first in line.offsets.items():
        placeholder = f"%{_NUMBERS[name]}:{first:0{_WIDE}d}" if name in _NUMBERS else f"%{_PLAIN[name]}"
        text = re.sub(rf"\$\{{{name}[^}}]{{0,20}}\}}", placeholder, text)
    return text


def output_map(text: str) -> dict[str, str]:
    """What ``-o`` says: the payload's own names of its outputs, and the templates of the names that they get.

    Raises Wrong.
    """
    wrong = Wrong([("jobParameters", "-o: give a dictionary of names as prun writes it")])
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as error:
        raise wrong from error
    if not isinstance(found, dict) or not all(isinstance(each, str) for pair in found.items() for each in pair):
        raise wrong
    if any(
        letter in each
        for name, template in found.items()
        for each in (name, _NUMBER.sub("", template))
        for letter in _UNFIT
    ):
        raise Wrong([("jobParameters", "-o: names hold neither slashes nor control characters")])
    return found


def output_name(template: str) -> tuple[str, str]:
    """What comes before and behind the task's number and a serial number of six digits in the name of an output.

    Raises Wrong: they are not in it, or something else is to be filled in.
    """
    before, serial, after = template, "", ""
    found = _SERIAL.search(template)
    if found is not None:
        before, serial, after = template[: found.start()], found[0], template[found.end() :]
    if not serial or "$" in before + after:
        words = f"the output {template[:100]!r}: use $JEDITASKID._${{SN/P}} once, as prun does"
        raise Wrong([("jobParameters", words)])
    return before, after


def ahead(template: str) -> str | None:
    """The name of a job's output as far as it is known ahead: what a template makes, with ``%OUT`` for its numbers.

    None: its own text holds a per cent sign, or it is too long for a name.
    """
    before, after = output_name(template)
    name = f"{before}{_OUT}{after}"
    return name if len(name) <= MOST_NAME and "%" not in before + after else None


def numbered(text: str) -> str:
    """``text`` with ``%OUT`` for the numbers of task and job in the names of outputs."""
    return _SERIAL_END.sub(_OUT, text)


def output_pattern(template: str) -> str:
    """A pattern that takes the names that a template makes."""
    return re.sub(r"[\[\]?*]", "?", _NUMBER.sub("\0", _TASK.sub("\0", template))).replace("\0", "*")
