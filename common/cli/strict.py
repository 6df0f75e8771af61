"""Strict reading of what people write: every mistake with its path, the remedy, and the nearest name that is known."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, TypeVar
from urllib.parse import quote

import click
import msgspec
from msgspec import inspect

from common.problem import FieldError

T = TypeVar("T")


class InputError(click.ClickException):
    """What a person wrote cannot be used: ``errors`` says where and why, ``where`` names the file."""

    exit_code = 2

    def __init__(self, where: str, errors: list[FieldError]) -> None:
        self.where = where
        self.errors = errors
        super().__init__("\n".join(": ".join(filter(None, (where, error.path, error.message))) for error in errors))


def suggestion(name: str, known: Iterable[str]) -> str:
    """The nearest of ``known`` as a question, or all of them when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(names)}" if names else "nothing is known here"


def unknown_fields(value: Any, known: Iterable[str], path: str = "") -> list[FieldError]:
    """An error for each key of the table ``value`` that is not in ``known``."""
    names = set(known)
    return [
        FieldError(join(path, str(key)), f"unknown field; {suggestion(str(key), names)}")
        for key in value
        if key not in names
    ]


def join(path: str, part: str) -> str:
    """``path`` extended by a field."""
    return f"{path}.{part}" if path and part else path or part


def convert(value: Any, wanted: type[T], where: str) -> T:
    """``value`` (what a JSON or TOML parser gave) as ``wanted``.

    Raises:
        InputError: it names all unknown fields, or else the first value of a wrong type.
    """
    errors = _all_unknown(value, inspect.type_info(wanted), "")
    if errors:
        raise InputError(where, errors)
    try:
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError as error:
        raise InputError(where, [field_error(error, value)]) from error


def field_error(error: msgspec.ValidationError, value: Any) -> FieldError:
    """The path and the words of an error in ``value``."""
    words, _, path = str(error).partition(" - at `$")
    path = re.sub(r"\[\.\.\.\]", "", path.rstrip("`").lstrip("."))
    missing = re.search(r"missing required field `([^`]+)`", words)
    if missing:
        return FieldError(join(path, missing[1]), "this field is required: add it")
    if "regex" in words:
        url_wanted = "://" in words
        words = "it has characters that are not allowed here"
        text = _at(value, path)
        if url_wanted and isinstance(text, str) and text.startswith("/"):
            words = f"{text!r} is no URL: write file://{quote(text)}"
    return FieldError(path, words[:1].lower() + words[1:] if words.startswith("Expected") else words)


def _at(value: Any, path: str) -> Any:
    """What lies at a path, None when that cannot be told."""
    for part in re.findall(r"[^.\[\]]+", path):
        if isinstance(value, list):
            value = value[int(part)] if part.isdigit() and int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _all_unknown(value: Any, kind: inspect.Type, path: str) -> list[FieldError]:
    """The unknown fields of ``value`` and of what it holds."""
    if isinstance(kind, inspect.Metadata):
        return _all_unknown(value, kind.type, path)
    if isinstance(kind, inspect.UnionType):
        return [error for one in _chosen(value, kind) for error in _all_unknown(value, one, path)]
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        fields = {field.encode_name: field.type for field in kind.fields}
        tag = {kind.tag_field} if kind.tag_field else set()
        errors = unknown_fields(value, fields.keys() | tag, path)
        for name, item in value.items():
            if name in fields:
                errors += _all_unknown(item, fields[name], join(path, str(name)))
        return errors
    if isinstance(kind, inspect.ListType) and isinstance(value, list):
        return [e for i, item in enumerate(value) for e in _all_unknown(item, kind.item_type, f"{path}[{i}]")]
    return []


def _chosen(value: Any, union: inspect.UnionType) -> list[inspect.Type]:
    """The member of a union that ``value`` means: its structs, or the one whose tag it has."""
    structs: list[inspect.Type] = []
    for one in union.types:
        if isinstance(one, inspect.StructType) and (one.tag_field is None or _tag(value, one.tag_field) == one.tag):
            structs.append(one)
    return structs


def _tag(value: Any, field: str) -> Any:
    return value.get(field) if isinstance(value, dict) else None
