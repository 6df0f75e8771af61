"""Where a job's input files go in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Union

from common.errors import ErrorCode, PilotageError

#: The longest file name that file systems take, in bytes.
LONGEST_NAME = 255


def check_name(name: str, what: str) -> None:
    """Refuse a name that could lead out of its folder or that no file can have.

    Raises ``FILE_HANDLING_FAILED`` or ``NAME_TOO_LONG``, naming ``what``.
    """
    if name in ("", ".", "..") or any(sign in "/\\" or ord(sign) < 32 or ord(sign) == 127 for sign in name):
        raise PilotageError(
            ErrorCode.FILE_HANDLING_FAILED,
            f"{what} {name!r} is no plain file name: rename it without slashes, '..' and control characters",
        )
    if len(name.encode("utf-8", "surrogateescape")) > LONGEST_NAME:
        raise PilotageError(ErrorCode.NAME_TOO_LONG, f"{what} {name!r} has more than {LONGEST_NAME} bytes")


def split_did(did: str) -> tuple[str, str]:
    """Give scope and name of a DID; the scope is empty when there is none.

    Raises ``FILE_HANDLING_FAILED`` or ``NAME_TOO_LONG`` when either is unsafe as the name of a file.
    """
    scope, colon, name = did.partition(":")
    if not colon:
        scope, name = "", did
    check_name(name, f"file name of {did!r}:")
    if scope:
        check_name(scope, f"scope of {did!r}:")
    return scope, name


def local_names(dids: Sequence[str]) -> list[Union[PurePosixPath, PilotageError]]:
    """Give the place of each file, relative to the job's folder, or why it can have none.

    A file lies directly in the folder under its name. When another scope's file of that name came first, it lies in
    a sub-folder named by its scope (with ``_`` appended while a file has that name). A DID given twice has one place.

    >>> [str(name) for name in local_names(["mc:a.root", "data:a.root", "mc:a.root"])]
    ['a.root', 'data/a.root', 'a.root']
    """
    places: dict[str, Union[PurePosixPath, PilotageError]] = {}
    parts: dict[str, tuple[str, str]] = {}
    for did in dids:
        try:
            parts[did] = split_did(did)
        except PilotageError as error:
            places[did] = error
    names = {name for _, name in parts.values()}
    taken: set[PurePosixPath] = set()
    for did, (scope, name) in parts.items():
        place = PurePosixPath(name)
        if place in taken:
            folder = scope or "_"
            while folder in names or PurePosixPath(folder, name) in taken:
                folder += "_"
            place = PurePosixPath(folder, name)
        taken.add(place)
        places[did] = place
    return [places[did] for did in dids]
