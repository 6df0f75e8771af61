"""What ``prun`` uploads: sandboxes, by names of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import falcon
from falcon.media.multipart import BodyPart, MultipartFormHandler

from server.api.routing import Call, Raw
from server.compat.bodies import PIECE_BYTES, Body
from server.compat.panda_client.answers import Declined, done
from server.compat.panda_client.asked import asked
from server.dispatch import sandboxes
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid
from server.store import panda_client
from server.store.panda_client import PandaFile

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,254}\Z")
_TRAILER = 8
"""Bytes at the end of a gzip file: the CRC-32 of its content, and its length."""


class _Stream:
    """A body as falcon reads it."""

    def __init__(self, body: Body) -> None:
        self._pieces = body.pieces()
        self._piece = b""
        self._at = 0

    def read(self, size: int | None = -1) -> bytes:
        """Up to ``size`` bytes; all of it for -1. Fewer only at the end."""
        wanted = -1 if size is None else size
        found: list[bytes] = []
        while wanted:
            if self._at == len(self._piece):
                self._piece, self._at = next(self._pieces, b""), 0
                if not self._piece:
                    break
            part = self._piece[self._at :] if wanted < 0 else self._piece[self._at : self._at + wanted]
            self._at += len(part)
            wanted -= len(part) if wanted > 0 else 0
            found.append(part)
        return b"".join(found)


class _File:
    """The file of a form: its pieces as they go by, and its last bytes."""

    def __init__(self, parts: Iterator[BodyPart], part: BodyPart) -> None:
        self.name = (part.filename or "").rpartition("/")[2]
        self._parts = parts
        self._stream: Any = part.stream
        self.last = b""

    def pieces(self) -> Iterator[bytes]:
        """The content. Raises Invalid at its end, where the form breaks off there."""
        while piece := self._stream.read(PIECE_BYTES):
            self.last = (self.last + piece)[-_TRAILER:]
            yield piece
        with _readable():
            next(self._parts, None)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (falcon.HTTPError, UnicodeDecodeError) as error:
        raise Invalid("the form cannot be read", [("file", "send one whole form with a field called file")]) from error


def upload(dispatcher: Dispatcher, call: Call) -> Raw:
    """Keep a sandbox under the name of the uploaded file."""
    sent = _file(call)
    if not _NAME.match(sent.name):
        raise Invalid(f"{sent.name[:100]!r} is no name for a file", [("file", "use letters, digits and . _ + -")])
    kept = sandboxes.upload(dispatcher, call.caller.name, sent.pieces())
    file = PandaFile(sent.name, kept.sha256, kept.size, int.from_bytes(sent.last[:4], "little"))
    with dispatcher.database.write() as connection:
        panda_client.keep_file(connection, call.caller.name, file, dispatcher.now())
    return done(sent.name, f"{sent.name} is kept, {kept.size} bytes")


def _file(call: Call) -> _File:
    """The file of a form. Raises Invalid."""
    body = call.body
    assert isinstance(body, Body)
    content_type = call.header("Content-Type") or ""
    if not content_type.lower().startswith("multipart/form-data"):
        raise Invalid("this is no form with a file", [("file", "send it as multipart/form-data")])
    length = call.header("Content-Length") or ""
    said = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else 2**62
    with _readable():
        parts = iter(MultipartFormHandler().deserialize(_Stream(body), content_type, said))
        for part in parts:
            if part.name == "file":
                return _File(parts, part)
    raise Invalid("there is no field called file", [("file", "send the file in it")])


def validate(dispatcher: Dispatcher, call: Call) -> Raw:
    """Whether the caller has uploaded such a file before: its name, and the host that has it."""
    fields = asked(call)
    size, crc = fields.number("file_size"), fields.number("checksum")
    with dispatcher.database.read() as connection:
        found = panda_client.same_file(connection, call.caller.name, size, crc)
    if found is None:
        raise Declined("NOTFOUND")
    host = urlsplit(f"//{call.header('Host') or ''}").hostname or "localhost"
    return done(None, f"FOUND:{host}:{found.name}")


def recovery(_: Dispatcher, call: Call) -> Raw:
    """Not here."""
    task_id = asked(call).number("task_id")
    raise Declined(f"lost files are not asked back: tell task {task_id} to restart, which makes its outputs again")
