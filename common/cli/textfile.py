"""Reading the TOML, JSON and text files that people hand to the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from common.cli.strict import InputError
from common.problem import FieldError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_text(path: Path, wanted_by: str = "") -> str:
    """The text of ``path`` (UTF-8); ``wanted_by`` is the field that named it.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(
            str(path), [FieldError(wanted_by, f"cannot be read: {error.strerror}; check the path")]
        ) from error
    except UnicodeDecodeError as error:
        words = f"byte {error.start} is not UTF-8 text; is this the right file?"
        raise InputError(str(path), [FieldError(wanted_by, words)]) from error


def read_table(path: Path) -> dict[str, Any]:
    """The table in a ``.toml`` or ``.json`` file.

    Raises:
        InputError: it cannot be read, has another ending, or holds something else than a table.
    """
    if path.suffix == ".toml":
        try:
            return tomllib.loads(read_text(path))
        except tomllib.TOMLDecodeError as error:
            raise InputError(str(path), [FieldError("", f"this is not TOML: {error}")]) from error
    if path.suffix == ".json":
        value = read_json(path)
        if not isinstance(value, dict):
            raise InputError(str(path), [FieldError("", "expected a JSON object: { … }")])
        return value
    raise InputError(str(path), [FieldError("", "the file's name must end in .toml or .json")])


def read_json(path: Path, wanted_by: str = "") -> Any:
    """The JSON value in ``path``. Raises InputError."""
    return parse_json(read_text(path, wanted_by), str(path), wanted_by)


def parse_json(text: str, where: str, wanted_by: str = "") -> Any:
    """The JSON value in a text that came from ``where``. Raises InputError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}:{error.lineno}", [FieldError(wanted_by, f"this is not JSON: {error.msg}")]
        ) from error
