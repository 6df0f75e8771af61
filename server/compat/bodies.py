"""What a foreign client sends: raw, compressed with or without saying so, as JSON or as a form, bounded in any case."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import IO, Any
from urllib.parse import parse_qsl

import msgspec

from server.dispatch.errors import Invalid, TooLarge

PIECE_BYTES = 256 * 1024
"""How much of a body is in memory at a time."""
MOST_FIELDS = 1000
"""Fields of a form."""
_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 31


def pieces_of(stream: IO[bytes], said: int | None) -> Iterator[bytes]:
    """A body as it was sent, piece by piece; ``said`` is its length as its sender told it, if so.

    Raises:
        Invalid: it ends before that: the connection broke off, and what came of it is no request.
    """
    taken = 0
    # Each read lets other threads run, and is left out where nothing can come any more.
    while (said is None or taken < said) and (piece := stream.read(PIECE_BYTES)):
        taken += len(piece)
        yield piece
    if said is not None and taken < said:
        raise _broken_off(taken, said)


def short_body(stream: Any, said: int) -> bytes:
    """A body that is no larger than a piece: nearly all come in one read. Raises Invalid: it ends before that."""
    body: bytes = stream.read(said)
    while len(body) < said and (piece := stream.read(said - len(body))):
        body += piece
    if len(body) < said:
        raise _broken_off(len(body), said)
    return body


def _broken_off(taken: int, said: int) -> Invalid:
    # The web server does not tell a connection that broke.
    return Invalid(f"the body breaks off: {taken} of {said} bytes came", [("$", "send all of it")])


class Body:
    """The body of one request, read once. No more than ``limit`` bytes are taken, and none more come of them."""

    def __init__(self, stream: IO[bytes], limit: int, said: int | None = None) -> None:
        if (said or 0) > limit:
            raise TooLarge(f"at most {limit} bytes are taken")
        self._stream = stream
        self._limit = limit
        self._said = said

    def pieces(self) -> Iterator[bytes]:
        """The body as it was sent, piece by piece. Raises TooLarge, or Invalid: it breaks off."""
        taken = 0
        for piece in pieces_of(self._stream, self._said):
            taken += len(piece)
            if taken > self._limit:
                raise TooLarge(f"at most {self._limit} bytes are taken")
            yield piece

    def raw(self) -> bytes:
        """The body as it was sent. Raises TooLarge, or Invalid: it breaks off."""
        return b"".join(self.pieces())

    def plain(self) -> bytes:
        """The body, decompressed if it is gzip, whatever its headers say.

        Raises:
            TooLarge: it is larger than allowed, before or after.
            Invalid: it breaks off, or is damaged.
        """
        raw = self.raw()
        return inflated(raw, self._limit) if raw.startswith(_GZIP) else raw

    def json(self) -> Any:
        """What the JSON in the body says; an empty body says nothing: None. Raises TooLarge or Invalid."""
        return json_of(self.plain())

    def json_or_form(self) -> dict[str, Any]:
        """The fields of a JSON object, or of a urlencoded form. Raises TooLarge or Invalid."""
        plain = self.plain()
        if plain.lstrip()[:1] not in (b"{", b""):
            return form_of(plain)
        found = json_of(plain)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise Invalid("the body is no JSON object", [("$", "send a JSON object, or a form")])
        return found


def inflated(raw: bytes, limit: int) -> bytes:
    """``raw`` decompressed, at most ``limit`` bytes.

    Raises:
        TooLarge: there is more.
        Invalid: it breaks off, or is damaged.
    """
    machine = zlib.decompressobj(_GZIP_WINDOW)
    try:
        plain = machine.decompress(raw, limit + 1)
    except zlib.error as error:
        raise Invalid(f"the body is damaged gzip: {error}", [("$", "compress it again")]) from error
    if len(plain) > limit:
        raise TooLarge(f"at most {limit} bytes are taken, decompressed as well")
    if not machine.eof:
        raise Invalid("the body breaks off: its gzip has no end", [("$", "send all of it")])
    if machine.unused_data:
        raise Invalid("something follows the body's gzip", [("$", "compress it in one piece")])
    return plain


def json_of(plain: bytes) -> Any:
    """What a JSON text says; nothing: None. Raises Invalid."""
    if not plain.strip():
        return None
    try:
        return msgspec.json.decode(plain)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the body is no JSON: {error}", [("$", "send JSON in UTF-8")]) from error


def form_of(plain: bytes) -> dict[str, Any]:
    """The fields of a urlencoded form; of a field that comes twice the last. Raises Invalid."""
    try:
        if b"=" not in plain:
            raise ValueError("there is no field")
        return dict(
            parse_qsl(plain.decode("ascii"), keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
        )
    except ValueError as error:
        raise Invalid("the body is neither JSON nor a form", [("$", "send a JSON object, or a form")]) from error
