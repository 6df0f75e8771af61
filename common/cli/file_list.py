"""File lists: which files a task reads, and where they lie.

As JSON: a list of ``{"did", "size", "events", "checksum", "replicas": [{"storage", "path"}], "attributes"}``, or an
object with such a list as ``files``. As text, one file a line::

    scope:name  STORAGE:PATH [STORAGE:PATH …]  [size=2GB] [events=1000] [checksum=adler32:0a1b2c3d]

where ``#`` begins a comment and names hold no spaces.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from common.cli.strict import InputError, convert, suggestion
from common.cli.textfile import parse_json, read_text
from common.problem import FieldError
from common.quantities import QuantityError, parse_size
from common.wire import FileSpec

OPTIONS = ("size", "events", "checksum")
LINE = "write: scope:name STORAGE:PATH [size=…] [events=…] [checksum=…]"


def read_file_list(path: Path, wanted_by: str = "") -> list[FileSpec]:
    """The files in a list; ``wanted_by`` is the field that named it.

    Raises:
        InputError: it cannot be read, is empty, or a file in it is wrong or there twice.
    """
    files = parse_file_list(read_text(path, wanted_by), path.name, str(path), wanted_by)
    if not files:
        raise InputError(str(path), [FieldError(wanted_by, "the list is empty: name at least one file")])
    return files


def parse_file_list(text: str, name: str, where: str, wanted_by: str = "") -> list[FileSpec]:
    """The files in the text of a list; the end of its ``name`` says its form, ``where`` stands before each mistake.

    Raises:
        InputError: a file in it is wrong or there twice.
    """
    if name.endswith(".json"):
        files = _from_json(text, where, wanted_by)
        places: Sequence[str] = _Indices()
    elif name.endswith(".txt"):
        files, places = _from_text(text, where)
    else:
        raise InputError(where, [FieldError(wanted_by, "the list's name must end in .json or .txt")])
    _no_duplicates(where, files, places)
    return files


class _Indices(Sequence[str]):
    """The place of each file in a JSON list: nobody wants a million of these texts in memory."""

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: Any) -> Any:
        return f"[{index}]"


def _from_json(text: str, where: str, wanted_by: str) -> list[FileSpec]:
    try:
        return _PLAIN.decode(text)  # at once, without a dictionary for each file: lists may be huge
    except (msgspec.DecodeError, UnicodeEncodeError):
        value = parse_json(text, where, wanted_by)
    if isinstance(value, dict) and isinstance(value.get("files"), list):
        value = value["files"]
    if not isinstance(value, list):
        raise InputError(where, [FieldError("", "expected a list of files, or an object with it as 'files'")])
    errors = []
    for index, file in enumerate(value):
        if isinstance(file, dict) and isinstance(file.get("size"), str):
            try:
                file["size"] = parse_size(file["size"])
            except QuantityError as error:
                errors.append(FieldError(f"[{index}].size", f"{file['size']!r} cannot be read: {error.remedy}"))
    if errors:
        raise InputError(where, errors)
    return convert(value, list[FileSpec], where)


_PLAIN = msgspec.json.Decoder(list[FileSpec])


def _from_text(text: str, where: str) -> tuple[list[FileSpec], list[str]]:
    files, places = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if words:
            files.append(_from_words(words, f"{where}:{number}"))
            places.append(f"line {number}")
    return files, places


def _from_words(words: list[str], where: str) -> FileSpec:
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
    return convert(file, FileSpec, where)


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


def _no_duplicates(where: str, files: Sequence[FileSpec], places: Sequence[str]) -> None:
    first: dict[str, int] = {}
    errors = []
    for index, file in enumerate(files):
        before = first.setdefault(file.did, index)
        if before != index:
            words = f"{file.did} is in the list already, at {places[before]}: name each file once"
            errors.append(FieldError(places[index], words))
    if errors:
        raise InputError(where, errors)
