"""File lists: which files a task reads, and where they lie.

As JSON: a list of ``{"did", "size", "events", "checksum", "replicas": [{"storage", "path"}], "attributes"}``, or an
object with such a list as ``files``. As text, one file a line::

    scope:name  STORAGE:PATH [STORAGE:PATH …]  [size=2GB] [events=1000] [checksum=adler32:0a1b2c3d]

where ``#`` begins a comment and names hold no spaces.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.cli.strict import InputError, convert, suggestion
from common.cli.textfile import read_json, read_text
from common.problem import FieldError
from common.quantities import QuantityError, parse_size
from common.wire import FileSpec

OPTIONS = ("size", "events", "checksum")
LINE = "write: scope:name STORAGE:PATH [size=…] [events=…] [checksum=…]"


def read_file_list(path: Path, wanted_by: str = "") -> list[dict[str, Any]]:
    """The files in a list, in the form of :class:`common.wire.FileSpec`; ``wanted_by`` is the field that named it.

    Raises:
        InputError: it cannot be read, is empty, or a file in it is wrong or there twice.
    """
    if path.suffix == ".json":
        files, places = _from_json(path, wanted_by)
    elif path.suffix == ".txt":
        files, places = _from_text(path, wanted_by)
    else:
        raise InputError(str(path), [FieldError(wanted_by, "the list's name must end in .json or .txt")])
    if not files:
        raise InputError(str(path), [FieldError(wanted_by, "the list is empty: name at least one file")])
    _no_duplicates(path, files, places)
    return files


def _from_json(path: Path, wanted_by: str) -> tuple[list[dict[str, Any]], list[str]]:
    value = read_json(path, wanted_by)
    if isinstance(value, dict) and isinstance(value.get("files"), list):
        value = value["files"]
    if not isinstance(value, list):
        raise InputError(str(path), [FieldError("", "expected a list of files, or an object with it as 'files'")])
    errors = []
    for index, file in enumerate(value):
        if isinstance(file, dict) and isinstance(file.get("size"), str):
            try:
                file["size"] = parse_size(file["size"])
            except QuantityError as error:
                errors.append(FieldError(f"[{index}].size", f"{file['size']!r} cannot be read: {error.remedy}"))
    if errors:
        raise InputError(str(path), errors)
    convert(value, list[FileSpec], str(path))
    return value, [f"[{index}]" for index in range(len(value))]


def _from_text(path: Path, wanted_by: str) -> tuple[list[dict[str, Any]], list[str]]:
    files, places = [], []
    for number, line in enumerate(read_text(path, wanted_by).splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if words:
            files.append(_from_words(words, f"{path}:{number}"))
            places.append(f"line {number}")
    return files, places


def _from_words(words: list[str], where: str) -> dict[str, Any]:
    file: dict[str, Any] = {"did": words[0], "replicas": []}
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if equals and ":" not in name:
            file[name] = _option(name, value, where)
            continue
        storage, colon, place = word.partition(":")
        if not colon or not place:
            raise InputError(where, [FieldError("", f"{word!r} is no replica; {LINE}")])
        file["replicas"].append({"storage": storage, "path": place})
    if not file["replicas"]:
        raise InputError(where, [FieldError("", f"{words[0]} has no replica; {LINE}")])
    convert(file, FileSpec, where)
    return file


def _option(name: str, value: str, where: str) -> object:
    if name not in OPTIONS:
        raise InputError(where, [FieldError(name, f"unknown option; {suggestion(name, OPTIONS)}")])
    try:
        if name == "size":
            return parse_size(value)
        return int(value) if name == "events" else value
    except QuantityError as error:
        raise InputError(where, [FieldError(name, f"{value!r} cannot be read: {error.remedy}")]) from error
    except ValueError as error:
        raise InputError(where, [FieldError(name, f"{value!r} is no whole number")]) from error


def _no_duplicates(path: Path, files: list[dict[str, Any]], places: list[str]) -> None:
    first: dict[str, str] = {}
    errors = []
    for file, place in zip(files, places):
        did = file["did"]
        if did in first:
            errors.append(FieldError(place, f"{did} is in the list already, at {first[did]}: name each file once"))
        first.setdefault(did, place)
    if errors:
        raise InputError(str(path), errors)
