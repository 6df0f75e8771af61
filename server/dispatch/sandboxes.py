"""People upload sandboxes; pilots fetch those that their jobs unpack."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from typing import IO

from common.wire import SandboxList, SandboxView
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound, TooLarge, Unprocessable
from server.store import sandboxes
from server.store.sandboxes import SandboxRow

MIB = 1024 * 1024
IN_MEMORY = MIB
"""Larger uploads are kept in a file of the system's until they are whole."""
GZIP = b"\x1f\x8b"


class OverQuota(Unprocessable):
    """A person has uploaded as much as allowed."""

    type = "pilotage:over-quota"
    title = "There is no room left for this"


def upload(dispatcher: Dispatcher, owner: str, body: Iterator[bytes]) -> SandboxView:
    """Keep a sandbox (a gzipped tar archive); the same content is kept once and may be uploaded again.

    Raises:
        TooLarge: it is larger than one may be.
        OverQuota: it would be more than a person may have.
        Unprocessable: it is no gzip file.
    """
    knobs = dispatcher.looks.get().knobs
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as content:
        row = _read(body, content, knobs.sandbox_mb * MIB)
        with dispatcher.database.write() as connection:
            now = dispatcher.now()
            content.seek(0)
            sandboxes.keep(connection, owner, row, content, now)
            used = sandboxes.used_by(connection, owner)
            if used > knobs.sandbox_quota_mb * MIB:
                # Nothing of it stays: the transaction goes back.
                raise OverQuota(
                    f"{owner} would have {used} bytes of sandboxes; {knobs.sandbox_quota_mb * MIB} are allowed",
                    [("$", f"those that no task names go {knobs.sandbox_keep_s / 86400:g} days after their last use")],
                )
    return SandboxView(row.sha256, row.size, now, now)


def _read(body: Iterator[bytes], content: IO[bytes], most: int) -> SandboxRow:
    """Take the body down piece by piece; its hash and size. No transaction waits for a slow sender."""
    digest = hashlib.sha256()
    size = 0
    for piece in body:
        size += len(piece)
        if size > most:
            raise TooLarge(f"at most {most} bytes are taken: leave out what is not needed, or upload it to a storage")
        digest.update(piece)
        content.write(piece)
    content.seek(0)
    if content.read(len(GZIP)) != GZIP:
        raise Unprocessable("a sandbox is a gzipped tar archive", [("$", "pack it with tar -czf, or pilotage sandbox")])
    return SandboxRow(digest.hexdigest(), size)


def mine(dispatcher: Dispatcher, owner: str) -> SandboxList:
    """A person's sandboxes."""
    quota = dispatcher.looks.get().knobs.sandbox_quota_mb * MIB
    with dispatcher.database.read() as connection:
        return SandboxList(sandboxes.of_owner(connection, owner), sandboxes.used_by(connection, owner), quota)


def fetch(dispatcher: Dispatcher, pilot_id: int, sha256: str) -> Iterator[bytes]:
    """The content of a sandbox, for a pilot that runs a job of a task that names it.

    Raises:
        NotFound: there is none, or none of this pilot's jobs wants it.
    """
    with dispatcher.database.read() as connection:
        if not sandboxes.wanted_by_pilot(connection, sha256, pilot_id):
            raise NotFound("no job of this pilot unpacks such a sandbox")
    return sandboxes.pieces(dispatcher.database.read, sha256)


def drop_unused(dispatcher: Dispatcher) -> int:
    """Take away sandboxes that no task names any more and that nobody wanted for a while; how many."""
    before = dispatcher.now() - dispatcher.looks.get().knobs.sandbox_keep_s
    with dispatcher.database.write() as connection:
        return sandboxes.drop_unused(connection, before)
