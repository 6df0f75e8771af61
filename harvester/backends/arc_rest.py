"""The REST interface of an ARC CE (A-REX), versions 1.0 and 1.1: requests, and answers as plain data.

Facts about it that the code rests on: a list with one member may come as that member alone (1.0); an empty list may come
as nothing at all (1.0); answers on many jobs are in the order of the question, each with a status of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import requests
import urllib3.exceptions

from common.clock import Clock
from common.tokens import SecretFileError, check_bearer, read_secret_file
from harvester.backends.arc_states import ArcState
from harvester.backends.base import BackendError

VERSIONS = ("1.1", "1.0")
"""Versions of the interface that are spoken here, the better one first."""
CONNECT_S = 15.0
IDS_PER_CALL = 2000
"""The CE reads at most a megabyte of job ids in one call."""
MAX_ANSWER_BYTES = 256 * 1024 * 1024
MAX_FILE_BYTES = 64 * 1024 * 1024
"""Of a file that is brought home, at most its last so many bytes come."""
_PIECE = 256 * 1024


class ArcUnreachable(BackendError):
    """No answer: the connection failed, broke or took too long. The request may have been served."""


class ArcFault(BackendError):
    """The CE answered a whole request with an error ``status``."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


class TooMuch(BackendError):
    """A file is larger than whoever asked for it wants."""


class Action(Enum):
    """What can be asked for many jobs at once. The value is the word of the interface."""

    STATUS = "status"
    INFO = "info"
    KILL = "kill"
    CLEAN = "clean"
    RESTART = "restart"


@dataclass(frozen=True)
class Item:
    """A CE's answer on one job: an HTTP status, words, and what belongs to the call."""

    status: int
    reason: str = ""
    job: str = ""
    state: str = ""
    info: Mapping[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether the CE did, or will do, what was asked."""
        return 200 <= self.status < 300

    @property
    def words(self) -> str:
        """The answer for people."""
        return f"{self.status} {self.reason}".strip()


@dataclass(frozen=True)
class Credential:
    """What the CE knows us by: files with a certificate (a proxy's holds all) and its key, or one with a bearer token."""

    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None

    def stamp(self) -> tuple[int, ...]:
        """Differs once a certificate was renewed. Raises ArcUnreachable when the file can't be looked at."""
        if self.certificate is None:
            return ()
        try:
            status = self.certificate.stat()
        except OSError as error:
            raise ArcUnreachable(f"{self.certificate}: {error.strerror}: get a new proxy or certificate") from error
        return (status.st_mtime_ns, status.st_size, status.st_ino)

    def headers(self) -> dict[str, str]:
        """What a request carries. Raises ArcUnreachable when the token can't be read."""
        if self.token is None:
            return {}
        try:
            return {"Authorization": f"Bearer {check_bearer(read_secret_file(self.token))}"}
        except SecretFileError as error:
            raise ArcUnreachable(error.detail) from error


class ArcRest:
    """Talks to one CE, whose address is ``https://HOST:PORT/arex``. Threads may share it.

    ``verify``: a file or a folder of certificate authorities; None for the built-in ones. ``timeout_s`` is for one request.
    """

    def __init__(self, url: str, credential: Credential, verify: str | None, timeout_s: float, clock: Clock) -> None:
        self.url = url.rstrip("/")
        self._credential = credential
        self._verify = verify
        self._timeout_s = timeout_s
        self._clock = clock
        self._local = threading.local()
        self._version: str | None = None

    def version(self) -> str:
        """The version of the interface to speak: the best one that the CE has too; asked once."""
        if self._version is None:
            answer = _decoded(self._call("GET", f"{self.url}/rest").content)
            offered = _listed(answer, "version")
            common = [each for each in VERSIONS if each in offered]
            if not common:
                raise BackendError(f"{self.url}: it speaks versions {offered} of REST; known here are {VERSIONS}")
            self._version = common[0]
        return self._version

    def list_jobs(self, states: Sequence[ArcState] = ()) -> dict[str, str]:
        """Our jobs with their states as the CE itself sees them now (``RUNNING`` for all that its batch system has).

        Without ``states`` all jobs come, and no state of any.
        """
        query = {"state": ",".join(state.value for state in states)} if states else {}
        answer = _decoded(self._call("GET", self._path("jobs"), query).content)
        return {str(each["id"]): str(each.get("state", "")) for each in _listed(answer, "job")}

    def create(self, descriptions: bytes, kind: str, queue: str = "", delegation: str = "") -> list[Item]:
        """Create the jobs of a bulk description, of content type ``kind``. Never repeated: it might have been served.

        Version 1.0 of the interface takes queue and delegation in the description only.
        """
        query = {"action": "new"}
        if queue and self.version() != "1.0":
            query["queue"] = queue
        if delegation and self.version() != "1.0":
            query["delegation_id"] = delegation
        return self._items(self._call("POST", self._path("jobs"), query, descriptions, kind))

    def ask(self, action: Action, jobs: Sequence[str]) -> dict[str, Item]:
        """Ask one thing for many jobs; the CE's answer for each. One that it left out isn't in the answer."""
        found: dict[str, Item] = {}
        for start in range(0, len(jobs), IDS_PER_CALL):
            part = [{"id": job} for job in jobs[start : start + IDS_PER_CALL]]
            # A list of one is no list for some.
            body = msgspec.json.encode({"job": part if len(part) > 1 else part[0]})
            query = {"action": action.value}
            answer = self._call("POST", self._path("jobs"), query, body, "application/json")
            found.update({item.job: item for item in self._items(answer) if item.job})
        return found

    def upload(self, job: str, name: str, source: Path) -> None:
        """Put a file into a job's session folder; repeating it is harmless. Raises OSError."""
        with source.open("rb") as file:
            path = self._path("jobs", job, "session", *name.split("/"))
            self._call("PUT", path, content=file if _size(source) else b"")

    def read(self, job: str, *path: str) -> bytes | None:
        """A small file of a job, such as ``diagnose, failed``; None when there is none."""
        try:
            return self._call("GET", self._path("jobs", job, *path)).content
        except ArcFault as fault:
            if fault.status == 404:
                return None
            raise

    def download(self, job: str, path: Sequence[str], target: Path) -> bool:
        """Bring a file of a job home; of a long one its end. Answers whether it was there. Raises OSError."""
        url = self._path("jobs", job, *path)
        try:
            with self._open("GET", url) as response:
                size = _number(response.headers.get("Content-Length"))
                if size <= MAX_FILE_BYTES:
                    self._save(response, target)
                    return True
            with self._open("GET", url, headers={"Range": f"bytes={size - MAX_FILE_BYTES}-{size - 1}"}) as response:
                self._save(response, target)
                return True
        except ArcFault as fault:
            if fault.status == 404:
                return False
            raise

    def listing(self, job: str, folder: Sequence[str]) -> tuple[list[str], list[str]] | None:
        """The names of the files and of the folders in a folder of a job's session; None when there is none."""
        try:
            answer = self._call("GET", self._path("jobs", job, "session", *folder) + "/").content
        except ArcFault as fault:
            if fault.status == 404:
                return None
            raise
        found = _decoded(answer)
        return [str(each) for each in _listed(found, "file")], [str(each) for each in _listed(found, "dir")]

    def save(self, job: str, path: Sequence[str], target: Path, most: int) -> bool:
        """Bring a whole file of a job's session home; answers whether it was there.

        Raises TooMuch for one of more than ``most`` bytes, and OSError.
        """
        try:
            with self._open("GET", self._path("jobs", job, "session", *path)) as response, target.open("wb") as file:
                if _number(response.headers.get("Content-Length")) > most:
                    raise TooMuch(f"{'/'.join(path)}: it has more than {most} bytes")
                for piece in self._pieces(response, most):
                    file.write(piece)
        except ArcFault as fault:
            if fault.status == 404:
                return False
            raise
        return True

    def info(self) -> dict[str, Any]:
        """What the CE publishes of itself (GLUE 2)."""
        return _decoded(self._call("GET", self._path("info")).content)

    def request_delegation(self, delegation: str | None = None) -> tuple[str, str]:
        """Begin a delegation, or the renewal of one: its id, and the request to sign (PEM)."""
        path = self._path("delegations", *([delegation] if delegation else []))
        answer = self._call("POST", path, {"action": "renew" if delegation else "new"})
        # The address ends with the id, after a slash; older CEs keep the query before it.
        name = delegation or answer.headers.get("Location", "").rsplit("/", 1)[-1]
        if not name:
            raise BackendError(f"{self.url}: it began a delegation and doesn't say which")
        return name, answer.content.decode("ascii", "replace")

    def put_delegation(self, delegation: str, chain: str) -> None:
        """End a delegation by the signed chain (PEM, the new certificate first)."""
        self._call("PUT", self._path("delegations", delegation), {}, chain.encode(), "application/x-pem-file")

    def _path(self, *parts: str) -> str:
        return "/".join([self.url, "rest", self.version(), *(quote(part, safe="") for part in parts)])

    def _items(self, answer: _Answer) -> list[Item]:
        items = []
        for each in _listed(_decoded(answer.content), "job"):
            info = each.get("info_document")
            activity = info.get("ComputingActivity") if isinstance(info, dict) else None
            text = {name: str(each.get(name, "")) for name in ("reason", "id", "state")}
            items.append(Item(_number(each.get("status-code")), text["reason"], text["id"], text["state"], activity))
        return items

    def _call(
        self, method: str, url: str, query: Mapping[str, str] | None = None, content: Any = None, kind: str = ""
    ) -> _Answer:
        """A request and its whole answer. Raises ArcFault or ArcUnreachable."""
        headers = {"Content-Type": kind} if kind else {}
        with self._open(method, url, query, content, headers) as response:
            return _Answer(b"".join(self._pieces(response, MAX_ANSWER_BYTES)), response.headers)

    @contextmanager
    def _open(
        self,
        method: str,
        url: str,
        query: Mapping[str, str] | None = None,
        content: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[requests.Response]:
        where = f"{method} {url}"
        try:
            with self._session().request(
                method,
                url,
                params=query,
                data=content,
                headers={"Accept": "application/json", **(headers or {}), **self._credential.headers()},
                timeout=(min(CONNECT_S, self._timeout_s), self._timeout_s),
                verify=self._verify or True,
                # A redirect is never followed: it would take the token along.
                allow_redirects=False,
                stream=True,
            ) as response:
                if not 200 <= response.status_code < 300:
                    said = b"".join(self._pieces(response, _PIECE)).decode("utf-8", "replace").strip()
                    words = " ".join([str(response.status_code), response.reason or "", said]).strip()
                    raise ArcFault(response.status_code, f"{where}: {words[:500]}")
                yield response
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise ArcUnreachable(f"{where}: {_cause(error)}") from error

    def _pieces(self, response: requests.Response, limit: int) -> Iterator[bytes]:
        """The body as it arrives, so that neither a flood nor a trickle can hold the caller."""
        ends, got = self._clock.monotonic() + self._timeout_s, 0
        while piece := response.raw.read1(_PIECE, decode_content=True):
            got += len(piece)
            if got > limit:
                raise ArcUnreachable(f"{response.url}: the answer is longer than {limit} bytes")
            if self._clock.monotonic() > ends:
                raise ArcUnreachable(f"{response.url}: the answer took longer than {self._timeout_s:g} s")
            yield piece

    def _save(self, response: requests.Response, target: Path) -> None:
        temporary = target.with_name(f"{target.name}.new")
        with temporary.open("wb") as file:
            for piece in self._pieces(response, MAX_FILE_BYTES):
                file.write(piece)
        temporary.replace(target)

    def _session(self) -> requests.Session:
        """This thread's session; a new one once the certificate was renewed, since connections keep the old one."""
        stamp = self._credential.stamp()
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None or self._local.stamp != stamp:
            if session is not None:
                session.close()
            session = requests.Session()
            # Nothing of ~/.netrc or REQUESTS_CA_BUNDLE.
            session.trust_env = False
            if self._credential.certificate is not None:
                key = self._credential.key or self._credential.certificate
                session.cert = (str(self._credential.certificate), str(key))
            self._local.session, self._local.stamp = session, stamp
        return session


@dataclass(frozen=True)
class _Answer:
    content: bytes
    headers: Mapping[str, str]


def _decoded(content: bytes) -> dict[str, Any]:
    if not content.strip():
        return {}
    try:
        answer = msgspec.json.decode(content)
    except msgspec.DecodeError as error:
        raise ArcUnreachable(f"the CE's answer is no JSON ({error}): {content[:200]!r}") from error
    return answer if isinstance(answer, dict) else {"job": answer, "version": answer}


def _listed(answer: Mapping[str, Any], name: str) -> list[Any]:
    """A list in an answer, also where it has one member only, or none."""
    found = answer.get(name, [])
    return found if isinstance(found, list) else [found] if found else []


def _number(text: object) -> int:
    return int(text) if isinstance(text, (str, int)) and str(text).isdecimal() else 0


def _size(path: Path) -> int:
    return path.stat().st_size


def _cause(error: BaseException) -> str:
    """What went wrong, in the words of the first cause that has any."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    words = [each.strerror or str(each) if isinstance(each, OSError) else str(each) for each in causes]
    return next((text for text in reversed(words) if text), type(error).__name__)
