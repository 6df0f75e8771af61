"""Opening a download from an HTTP server, and reading what comes."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from typing import Optional

import requests
import urllib3.exceptions

from common.errors import ErrorCode, PilotageError
from pilot.copytool.http_dav import is_folder
from pilot.copytool.http_errors import network_error
from pilot.copytool.http_line import Line
from pilot.copytool.http_place import Place
from pilot.copytool.http_resume import Cut, Mark, Stream

#: Bytes of a download read at a time.
CHUNK_BYTES = 1024 * 1024
#: Bytes at a file's beginning that show whether it may be a page that lists a folder.
_SNIFFED = 64


@contextlib.contextmanager
def open_at(line: Line, place: Place, mark: Mark) -> Iterator[Stream]:
    """Open a download."""
    ranged = {}
    if mark.offset:
        # With its end, where that is known: XRootD 5.5 gives nothing for a range without one.
        ranged["Range"] = f"bytes={mark.offset}-{'' if mark.total is None else mark.total - 1}"
        if mark.validator:
            ranged["If-Range"] = mark.validator
    with contextlib.ExitStack() as stack:
        response = stack.enter_context(line.ask("GET", place, ranged, accept=(416,)))
        if response.status_code == 416:  # it shrank
            stack.close()
            response = stack.enter_context(line.ask("GET", place))
        start, total = _extent(response)
        chunks = _chunks(line, place, response, total, start)
        first = next(chunks, memoryview(b""))
        if not start and bytes(first[:_SNIFFED]).lstrip().lower().startswith((b"<!doctype html", b"<html")):
            _refuse_folder(line, place)
        yield Stream(start, total, _validator(response), itertools.chain([first], chunks))


def _refuse_folder(line: Line, place: Place) -> None:
    """Raise ``NO_SUCH_FILE`` for a folder, which some servers give as a page that lists it."""
    if not place.signed and is_folder(line, place):
        raise PilotageError(ErrorCode.NO_SUCH_FILE, f"{place.shown} is a folder")


def _extent(response: requests.Response) -> tuple[int, Optional[int]]:
    """Give where an answer's bytes begin, and the whole file's size where known."""
    length = response.headers.get("Content-Length", "")
    if response.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if not found:
            return -1, None  # nobody knows what these bytes are: no offset is like this one
        return int(found[1]), int(found[2]) if found[2] != "*" else None
    return 0, int(length) if length.isdecimal() else None


def _validator(response: requests.Response) -> Optional[str]:
    """Give what names this version of the file for ``If-Range``: a strong ETag, else a date (RFC 9110, 13.1.5)."""
    tag: Optional[str] = response.headers.get("ETag")
    if tag and tag.startswith('"'):
        return tag
    return response.headers.get("Last-Modified")


def _chunks(
    line: Line, place: Place, response: requests.Response, total: Optional[int], start: int
) -> Iterator[memoryview]:
    """Give the bytes of an answer as they were stored; :class:`Cut` when they end too early."""
    offset = start
    try:
        while chunk := response.raw.read(CHUNK_BYTES, decode_content=False):
            offset += len(chunk)
            yield memoryview(chunk)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        line.check()
        raise Cut(network_error(error, line.direction, place.shown, place.query)) from error
    if total is not None and offset < total:
        line.check()
        code, detail = ErrorCode.SERVICE_UNAVAILABLE, f"cut after {offset} of {total} bytes"
        raise Cut(PilotageError(code, f"{place.shown}: {detail}"))
