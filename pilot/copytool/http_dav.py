"""WebDAV (RFC 4918), as much of it as a copytool needs: what is in a folder, and making one."""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ElementTree
from typing import NamedTuple, Optional
from urllib.parse import unquote, urlsplit

import requests
import urllib3.exceptions

from pilot.copytool.http_errors import network_error
from pilot.copytool.http_line import Line
from pilot.copytool.http_place import Place

log = logging.getLogger(__name__)

#: Bytes of a listing that are read; a folder whose listing is larger has none for us.
MOST_LISTING_BYTES = 32 * 1024 * 1024

_ASK_TYPE = b'<?xml version="1.0"?><propfind xmlns="DAV:"><prop><resourcetype/></prop></propfind>'
_XML = {"Content-Type": "application/xml; charset=utf-8"}
#: Answers of servers that speak no WebDAV, or do not let us list.
_REFUSALS = (400, 401, 403, 404, 405, 409, 410, 415, 500, 501)


class Entry(NamedTuple):
    """One item of a listing: its name, decoded, and whether it is a folder."""

    name: str
    is_folder: bool


def entries(line: Line, place: Place, depth: int) -> Optional[list[Entry]]:
    """Give what PROPFIND says of a place, and at ``depth`` 1 of what is in it; ``None`` where that cannot be had."""
    with line.ask("PROPFIND", place, {"Depth": str(depth), **_XML}, _ASK_TYPE, accept=_REFUSALS) as response:
        if response.status_code != 207:
            log.debug("%s cannot be listed: %d", place.shown, response.status_code)
            return None
        listing = _read(line, place, response)
    if len(listing) > MOST_LISTING_BYTES:
        log.warning("%s: its listing is too long to look for leftovers", place.shown)
        return None
    try:
        root = ElementTree.fromstring(listing)  # expat fetches nothing, and bounds what entities may grow to
    except ElementTree.ParseError as error:
        log.warning("%s: its listing cannot be read: %s", place.shown, error)
        return None
    return [_entry(item) for item in root.iter("{DAV:}response")]


def is_folder(line: Line, place: Place) -> bool:
    """Say whether a place is a folder, as far as the server tells."""
    return any(entry.is_folder for entry in (entries(line, place, 0) or []))


def make_folders(line: Line, folder: Place) -> None:
    """Make a folder with its parents (MKCOL); no error when somebody else makes the same."""
    with line.ask("MKCOL", folder, accept=(301, 405, 409, 404, 403)) as response:
        status = response.status_code
    parent = folder._replace(path=folder.path.rstrip("/")).folder()
    if status in (409, 404) and parent.path.strip("/"):
        make_folders(line, parent)
        with line.ask("MKCOL", folder, accept=(301, 405)):
            log.debug("%s is there now", folder.shown)


def _read(line: Line, place: Place, response: requests.Response) -> bytes:
    try:
        return bytes(response.raw.read(MOST_LISTING_BYTES + 1, decode_content=True))
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise network_error(error, line.direction, place.shown, place.query) from error


def _entry(item: ElementTree.Element) -> Entry:
    path = urlsplit((item.findtext("{DAV:}href") or "").strip()).path
    found = any(kind.find("{DAV:}collection") is not None for kind in item.iter("{DAV:}resourcetype"))
    return Entry(unquote(path.rstrip("/").rpartition("/")[2]), found)
