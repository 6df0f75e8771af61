"""Transformations: programs that the pilot fetches, once in its life, and runs as payloads."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Optional
from urllib.parse import unquote, urljoin, urlsplit

import requests
from requests.utils import get_environ_proxies

from common.checksums import file_checksum, parse_checksum
from common.errors import ErrorCode, PilotageError
from common.wire import FetchedProgram
from pilot.copytool.base import safe_url

MAX_SIZE = 256 * 1024 * 1024
CALL_S = 30.0
"""For a connection, and between two pieces of an answer."""
TOTAL_S = 300.0
MAX_REDIRECTS = 5
PIECE = 256 * 1024
_GONE = (401, 403, 404, 410)


class Transformations:
    """The programs that one pilot has fetched, below ``folder``. ``mark`` tells this pilot from others that ran here: a
    program without a checksum is fetched anew by each pilot, as it may have changed."""

    def __init__(self, folder: Path, mark: str) -> None:
        self._folder = folder
        self._mark = mark

    def fetch(self, program: FetchedProgram) -> Path:
        """Where the program is now, under its own name. Raises PilotageError: TRANSFORMATION_NOT_FETCHED (another try may
        help) or TRANSFORMATION_NOT_FOUND (it won't)."""
        name = Path(unquote(urlsplit(program.url).path)).name
        if not name or not name.isprintable():
            raise _not_found(program.url, "the address ends with no name of a file")
        key = hashlib.sha256(f"{program.url}\n{program.checksum or self._mark}".encode()).hexdigest()[:32]
        place = self._folder / key / name
        if not place.exists():
            try:
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._fetch(program, place)
            except OSError as error:
                detail = f"{safe_url(program.url)}: {error.strerror or error}"
                raise PilotageError(ErrorCode.TRANSFORMATION_NOT_FETCHED, detail) from error
        return place

    def _fetch(self, program: FetchedProgram, place: Path) -> None:
        """Into a file beside its place, which it takes when it is complete and right: jobs fetch side by side."""
        descriptor, name = tempfile.mkstemp(".partial", dir=place.parent)
        partial = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as into:
                for piece in _pieces(program):
                    if into.tell() + len(piece) > MAX_SIZE:
                        raise _not_found(program.url, f"it has more than {MAX_SIZE} bytes")
                    into.write(piece)
            _verify(program, partial)
            partial.replace(place)
        finally:
            partial.unlink(missing_ok=True)


def _pieces(program: FetchedProgram) -> Iterator[bytes]:
    parts = urlsplit(program.url)
    if parts.scheme in ("http", "https"):
        if parts.scheme == "http" and program.checksum is None:
            raise _not_found(program.url, "plain http can be changed on its way: use https, or give the checksum")
        yield from _from_web(program.url)
        return
    try:
        path = Path(unquote(parts.path)).resolve(strict=True)
        _check_public(program.url, path)
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as source:
            while piece := source.read(PIECE):
                yield piece
    except (FileNotFoundError, NotADirectoryError, PermissionError, RuntimeError) as error:
        raise _not_found(program.url, getattr(error, "strerror", None) or str(error)) from error


def _check_public(url: str, path: Path) -> None:
    """The pilot reads what the payload may not, such as credentials: so only files count that everybody can read."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise _not_found(url, "it is no file")
    closed = [folder for folder in path.parents if not folder.stat().st_mode & stat.S_IXOTH]
    if closed or not status.st_mode & stat.S_IROTH:
        raise _not_found(url, f"not everybody can read it: open {closed[0] if closed else path} for all (chmod o+rx)")


def _from_web(url: str) -> Iterator[bytes]:
    """The content at ``url``; a redirection never leads from https to anything else."""
    deadline = time.monotonic() + TOTAL_S
    with requests.Session() as session:
        session.trust_env = False  # of a user's surroundings only the proxies count, not the passwords in .netrc
        for _ in range(MAX_REDIRECTS):
            try:
                with session.get(
                    url, stream=True, timeout=CALL_S, allow_redirects=False, proxies=get_environ_proxies(url)
                ) as reply:
                    if not reply.is_redirect:
                        _check_status(url, reply.status_code)
                        for piece in reply.iter_content(PIECE):
                            if time.monotonic() > deadline:
                                raise _not_fetched(url, f"it takes more than {TOTAL_S:.0f} s")
                            yield piece
                        return
                    target = urljoin(url, reply.headers["location"])
            except requests.RequestException as error:
                raise _not_fetched(url, _QUERY.sub("?…", f"{error}")) from error
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise _not_found(url, f"it leads from https to {target}")
            url = target
    raise _not_found(url, f"it leads to another address more than {MAX_REDIRECTS} times")


def _check_status(url: str, status: int) -> None:
    if status in _GONE:
        raise _not_found(url, f"the server answers {status}")
    if status != requests.codes.ok:
        raise _not_fetched(url, f"the server answers {status}")


def _verify(program: FetchedProgram, path: Path) -> None:
    if program.checksum is None:
        return
    wanted = parse_checksum(program.checksum)
    found = file_checksum(path, wanted.algorithm)
    if found != wanted:
        raise _not_fetched(program.url, f"its checksum is {found}, the task says {wanted}")


#: What a URL may let in with: others than the job's owner see its errors.
_QUERY = re.compile(r"\?[^\s'\")]+")


def _not_found(url: str, why: Optional[str]) -> PilotageError:
    return PilotageError(ErrorCode.TRANSFORMATION_NOT_FOUND, f"{safe_url(url)}: {why}")


def _not_fetched(url: str, why: str) -> PilotageError:
    return PilotageError(ErrorCode.TRANSFORMATION_NOT_FETCHED, f"{safe_url(url)}: {why}")
