"""The HTTP client of every program: JSON in and out, retries with backoff and jitter, TLS always verified.

There is one retry layer: urllib3's ``Retry`` decides whether and how long, :meth:`HttpClient.call` waits. That way a
reply cut off in the middle of its body is retried like one that never came, and a deadline or :meth:`HttpClient.close`
ends a wait at once.
"""

from __future__ import annotations

import logging
import random
import ssl
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any, Callable, Optional, TypeVar, Union
from urllib.parse import quote

import msgspec
import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3.util.retry import Retry

from common.clock import Clock, SystemClock
from common.endpoint import certificate_authorities, checked_url, is_private, without_user
from common.errors import ErrorCode, PilotageError
from common.plugins import version
from common.problem import FieldError, Problem, decode_problem
from common.relay import SCHEME
from common.relay_adapter import MailboxAdapter
from common.tokens import check_bearer

__all__ = [
    "BadReply",
    "BodyTooLarge",
    "FieldError",
    "HttpClient",
    "HttpError",
    "Problem",
    "ProblemError",
    "Unreachable",
]

log = logging.getLogger(__name__)

T = TypeVar("T")
Timeout = Union[float, tuple[float, float]]
Params = Mapping[str, Union[str, int, float, bool, Sequence[str], None]]

RETRIED_STATUSES = frozenset({429, 502, 503, 504})
BACKOFF_S = 0.5
BACKOFF_MAX_S = 30.0
RETRY_AFTER_MAX_S = 120.0
"""A server that asks for a longer wait than this gets its answer handed to the caller instead."""
MAX_BODY_BYTES = 64 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024


class HttpError(PilotageError):
    """A call that did not bring what was asked for; always with the number of COMMUNICATION_FAILED."""

    def __init__(self, detail: str) -> None:
        super().__init__(ErrorCode.COMMUNICATION_FAILED, detail)


class ProblemError(HttpError):
    """The server answered, with an error ``status``; ``problem`` says why, ``retry_after_s`` when to ask again."""

    def __init__(self, status: int, problem: Problem, retry_after_s: Optional[float] = None) -> None:
        self.status = status
        self.problem = problem
        self.retry_after_s = retry_after_s
        super().__init__(f"{status} {problem}")


class Unreachable(HttpError):
    """No answer: the connection failed, broke or timed out, however often it was tried. It may have been served."""


class BadReply(HttpError):
    """The server answered something that is not what the protocol promises."""


class BodyTooLarge(HttpError):
    """A request or a reply is larger than the client's limit."""


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    params: dict[str, Any]
    content: Union[bytes, Path, None]
    content_type: str = "application/json"
    accept: str = "application/json"
    target: Optional[Path] = None


@dataclass(frozen=True)
class _Reply:
    status: int
    reason: str
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True)
class _NoReply:
    error: Unreachable
    hopeless: bool


class _Backoff(Retry):
    """urllib3's ``Retry`` with a wait before the first retry too, spread over its upper half.

    urllib3 itself repeats at once the first time, which is when a thousand pilots have just lost the same server.
    """

    def get_backoff_time(self) -> float:
        """Seconds to wait before the next attempt."""
        ceiling = min(self.backoff_max, self.backoff_factor * 2.0 ** (len(self.history) - 1))
        return float(ceiling * random.uniform(0.5, 1.0))


class HttpClient:
    """Calls one server. Threads may share it (each gets its own session).

    ``base_url`` is the server's address, a path in it included, or a relay's mailbox (:mod:`common.relay`). ``token`` is asked for the bearer token at every attempt.
    ``ca_file`` (a file, or a folder of hashed certificates) replaces all other certificate authorities; without it
    REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE and SSL_CERT_FILE are honoured, in this order. Proxies come from the environment;
    ``.netrc`` is never read. ``timeout`` is that of one attempt, in seconds: to connect, and until the whole answer is
    there. ``retries`` is how often a call is repeated. ``pause(seconds)`` waits and answers whether to give up; the default ends when the client is closed.

    Raises PilotageError (BAD_CONFIGURATION) for an address or a file that cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: Optional[Callable[[], Optional[str]]] = None,
        ca_file: Union[str, Path, None] = None,
        timeout: tuple[float, float] = (5.0, 60.0),
        retries: int = 5,
        max_body_bytes: int = MAX_BODY_BYTES,
        clock: Optional[Clock] = None,
        pause: Optional[Callable[[float], bool]] = None,
    ) -> None:
        self.base_url = checked_url(base_url)
        self._token = token
        self._timeout = timeout
        self._retries = retries
        self._max_body_bytes = max_body_bytes
        self._clock = clock or SystemClock()
        self._closed = threading.Event()
        self.clock_ahead_s: Optional[float] = None
        """How far this machine's clock is ahead of the server's, to a second or so, as the last answer's Date header
        says; None before the first, and where answers have none."""
        self._pause = pause or self._closed.wait
        if token is not None and not is_private(self.base_url):
            log.warning("%s: tokens travel unencrypted to this address; use https", self.base_url)
        self._verify = certificate_authorities(ca_file) if self.base_url.startswith("https:") else None
        self._mailbox = MailboxAdapter(self.base_url) if self.base_url.startswith(SCHEME) else None
        self._local = threading.local()
        self._sessions: weakref.WeakSet[requests.Session] = weakref.WeakSet()
        self._sessions_lock = threading.Lock()

    def close(self) -> None:
        """Give up every wait between attempts and close all connections; later calls raise Unreachable."""
        self._closed.set()
        with self._sessions_lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.close()

    def call(
        self,
        method: str,
        path: str,
        body: Optional[object],
        reply_type: type[T],
        *,
        params: Optional[Params] = None,
        timeout: Optional[Timeout] = None,
        total_s: Optional[float] = None,
        retry: bool = True,
    ) -> T:
        """Send ``body`` as JSON (None: no body) and read the reply as ``reply_type`` (``type(None)``: it is ignored).

        ``path`` starts with a slash and is already quoted. ``timeout`` replaces that of one attempt (a number: its read
        timeout), ``total_s`` bounds the call with all its attempts and waits, ``retry=False`` makes it a single attempt.

        Raises ProblemError, Unreachable, BadReply or BodyTooLarge.
        """
        reply = self._exchange(
            _Request(method.upper(), path, _query(params), self._encoded(method, path, body)),
            self._timeout_of(timeout),
            self._clock.monotonic() + total_s if total_s is not None else None,
            _policy(self._retries if retry else 0),
        )
        where = f"{method.upper()} {self.base_url}{path}"
        if not 200 <= reply.status < 300:
            raise _problem_error(where, reply)
        if reply_type is type(None):
            return None
        try:
            return msgspec.json.decode(reply.content, type=reply_type)
        except msgspec.DecodeError as error:
            kind = reply.headers.get("Content-Type", "no content type")
            raise BadReply(f"{where}: the answer ({kind}) is not what this version expects: {error}") from error

    def transfer(
        self,
        method: str,
        path: str,
        content: Optional[bytes] = None,
        *,
        content_type: str = "application/octet-stream",
        timeout: Optional[Timeout] = None,
        total_s: Optional[float] = None,
        retry: bool = True,
    ) -> bytes:
        """Send bytes as they are (None: no body) and answer those that come back; the rest as with :meth:`call`."""
        if content is not None and len(content) > self._max_body_bytes:
            raise BodyTooLarge(f"{path}: {len(content)} bytes are more than the limit of {self._max_body_bytes}")
        reply = self._exchange(
            _Request(method.upper(), path, {}, content, content_type, "*/*"),
            self._timeout_of(timeout),
            self._clock.monotonic() + total_s if total_s is not None else None,
            _policy(self._retries if retry else 0),
        )
        if not 200 <= reply.status < 300:
            raise _problem_error(f"{method.upper()} {self.base_url}{path}", reply)
        return reply.content

    def send_file(
        self,
        method: str,
        path: str,
        source: Path,
        *,
        params: Optional[Params] = None,
        timeout: Optional[Timeout] = None,
    ) -> None:
        """Send a file of any size, piece by piece; what comes back is ignored. The rest as with :meth:`transfer`."""
        request = _Request(method.upper(), path, _query(params), source, "application/octet-stream", "*/*")
        reply = self._exchange(request, self._timeout_of(timeout), None, _policy(self._retries))
        if not 200 <= reply.status < 300:
            raise _problem_error(f"{method.upper()} {self.base_url}{path}", reply)

    def fetch_file(
        self, path: str, target: Path, *, params: Optional[Params] = None, timeout: Optional[Timeout] = None
    ) -> None:
        """Bring a file of any size home, piece by piece, into ``target``, which is made anew. As with :meth:`transfer`."""
        request = _Request("GET", path, _query(params), None, accept="*/*", target=target)
        reply = self._exchange(request, self._timeout_of(timeout), None, _policy(self._retries))
        if not 200 <= reply.status < 300:
            raise _problem_error(f"GET {self.base_url}{path}", reply)

    def _encoded(self, method: str, path: str, body: Optional[object]) -> Optional[bytes]:
        if body is None:
            return None
        content = msgspec.json.encode(body)
        if len(content) > self._max_body_bytes:
            raise BodyTooLarge(
                f"{method.upper()} {self.base_url}{path}: the request has {len(content)} bytes, "
                f"more than the limit of {self._max_body_bytes}: send it in parts"
            )
        return content

    def _timeout_of(self, timeout: Optional[Timeout]) -> tuple[float, float]:
        if timeout is None:
            return self._timeout
        return timeout if isinstance(timeout, tuple) else (min(self._timeout[0], timeout), timeout)

    def _exchange(
        self, request: _Request, timeout: tuple[float, float], deadline: Optional[float], policy: Retry
    ) -> _Reply:
        """One call with all its attempts: the first reply that need not be repeated, or the last one."""
        while True:
            outcome = self._attempt(request, timeout, deadline)
            if isinstance(outcome, _Reply) and outcome.status not in RETRIED_STATUSES:
                return outcome
            try:
                policy = policy.increment(request.method, request.path)
            except urllib3.exceptions.MaxRetryError:
                return _last(outcome)
            wait_s = _wait_s(outcome, policy)
            if wait_s is None or (deadline is not None and self._clock.monotonic() + wait_s >= deadline):
                return _last(outcome)
            level = logging.DEBUG if len(policy.history) == 1 else logging.INFO  # one is nothing: a server that starts
            log.log(level, "%s %s: again in %.1f s: %s", request.method, request.path, wait_s, _describe(outcome))
            if self._pause(wait_s):
                return _last(outcome)

    def _attempt(
        self, request: _Request, timeout: tuple[float, float], deadline: Optional[float]
    ) -> Union[_Reply, _NoReply]:
        url = self.base_url + request.path
        started = self._clock.monotonic()
        handled = sys.exc_info()[1]
        if self._closed.is_set():
            return _no_reply(request.method, url, "this client is closed", hopeless=True)
        if deadline is not None:
            left_s = deadline - started
            if left_s <= 0:
                return _no_reply(request.method, url, "the time allowed for this call is over", hopeless=True)
            timeout = (min(timeout[0], left_s), min(timeout[1], left_s))
        try:
            with (
                _content(request.content) as data,
                self._session().request(
                    request.method,
                    url,
                    params=request.params,
                    data=data,
                    headers=self._headers(request),
                    timeout=timeout,
                    # A redirect is never followed: the token would travel, and a POST would turn into a GET.
                    allow_redirects=False,
                    stream=True,
                    # By hand because the session does not trust the environment, which would bring its CA bundle along.
                    proxies=get_environ_proxies(url),
                    verify=self._verify or True,
                ) as response,
            ):
                # How long a file takes to be sent is not the answer's fault.
                answering = self._clock.monotonic() if isinstance(request.content, Path) else started
                where, ends = f"{request.method} {url}", answering + timeout[1]
                if request.target is not None and response.status_code == 200:
                    content = _save(response, request.target)
                else:
                    content = self._read(response, where, ends, deadline)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            reason, hopeless = _diagnose(error, handled)
            return _no_reply(request.method, url, reason, hopeless=hopeless)
        elapsed = self._clock.monotonic() - started
        self.clock_ahead_s = _ahead_s(response.headers.get("Date"), self._clock.now() - elapsed / 2)
        log.debug("%s %s: %d in %.3f s", request.method, request.path, response.status_code, elapsed)
        return _Reply(response.status_code, response.reason or "", response.headers, content)

    def _read(self, response: requests.Response, where: str, attempt_ends: float, deadline: Optional[float]) -> bytes:
        """The body, piece by piece as it arrives, so that neither a flood nor a trickle can hold the caller."""
        ends = attempt_ends if deadline is None else min(attempt_ends, deadline)
        content = bytearray()
        while piece := response.raw.read1(_CHUNK_BYTES, decode_content=True):
            content += piece
            if len(content) > self._max_body_bytes:
                raise BodyTooLarge(f"{where}: the answer has more than the limit of {self._max_body_bytes} bytes")
            if self._clock.monotonic() >= ends:
                raise requests.ReadTimeout("the answer came too slowly")
        return bytes(content)

    def _headers(self, request: _Request) -> dict[str, str]:
        headers = {"Accept": request.accept, "User-Agent": f"pilotage/{version()}"}
        if request.content is not None:
            headers["Content-Type"] = request.content_type
        token = self._token() if self._token else None
        if token:
            headers["Authorization"] = f"Bearer {check_bearer(token)}"
        return headers

    def _session(self) -> requests.Session:
        session: Optional[requests.Session] = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            session.trust_env = False
            adapter = HTTPAdapter(max_retries=Retry(0, read=False))
            session.mount("https://", adapter)
            session.mount("http://", adapter)
            if self._mailbox is not None:
                session.mount(SCHEME, self._mailbox)
            self._local.session = session
            with self._sessions_lock:
                self._sessions.add(session)
        return session


@contextmanager
def _content(content: Union[bytes, Path, None]) -> Iterator[Union[bytes, IO[bytes], None]]:
    """What to send: a file is open inside, at its beginning."""
    if not isinstance(content, Path):
        yield content
        return
    with content.open("rb") as file:
        # A length is sent; for nothing at all requests would send pieces.
        yield file if content.stat().st_size else b""


def _save(response: requests.Response, target: Path) -> bytes:
    """The body, into a file; nothing is left to be read."""
    with target.open("wb") as file:
        while piece := response.raw.read1(_CHUNK_BYTES, decode_content=True):
            file.write(piece)
    return b""


def _ahead_s(date: Optional[str], now: float) -> Optional[float]:
    """By how much ``now``, when an answer was made, is later than its Date header, which is cut to whole seconds."""
    try:
        made = parsedate_to_datetime(date or "")
    except (TypeError, ValueError):
        return None
    return now - (made.timestamp() + 0.5)


def _policy(retries: int) -> Retry:
    return _Backoff(total=retries, backoff_factor=BACKOFF_S, backoff_max=BACKOFF_MAX_S)


def _query(params: Optional[Params]) -> dict[str, Any]:
    """Leave out what is None and write booleans as JSON does."""
    given = {name: value for name, value in (params or {}).items() if value is not None}
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in given.items()}


def quoted(part: str) -> str:
    """``part`` made fit to be one segment of a path (slashes in it are quoted too)."""
    return quote(part, safe="")


def _no_reply(method: str, url: str, reason: str, *, hopeless: bool) -> _NoReply:
    return _NoReply(Unreachable(f"{method} {url}: {reason}"), hopeless)


def _last(outcome: Union[_Reply, _NoReply]) -> _Reply:
    if isinstance(outcome, _NoReply):
        raise outcome.error
    return outcome


def _describe(outcome: Union[_Reply, _NoReply]) -> str:
    return outcome.error.detail if isinstance(outcome, _NoReply) else f"status {outcome.status}"


def _wait_s(outcome: Union[_Reply, _NoReply], policy: Retry) -> Optional[float]:
    """Seconds until the next attempt; None when there should be none."""
    backoff_s = policy.get_backoff_time()
    if isinstance(outcome, _NoReply):
        return None if outcome.hopeless else backoff_s
    asked_s = _retry_after_s(outcome)
    if asked_s is None:
        return backoff_s
    if asked_s > RETRY_AFTER_MAX_S:
        return None
    # The server spreads its clients by what it asks for; the little that is added keeps equals apart.
    return asked_s + random.uniform(0.0, min(asked_s, backoff_s) * 0.1)


def _retry_after_s(reply: _Reply) -> Optional[float]:
    header = reply.headers.get("Retry-After")
    if header is None:
        return None
    try:
        return float(Retry().parse_retry_after(header))
    except urllib3.exceptions.InvalidHeader:
        return None


def _problem_error(where: str, reply: _Reply) -> ProblemError:
    problem = decode_problem(reply.content, reply.status, reply.headers.get("Content-Type", ""), reply.reason)
    if 300 <= reply.status < 400:
        target = without_user(reply.headers.get("Location", "nowhere"))
        problem = msgspec.structs.replace(
            problem, detail=f"{where} is redirected to {target}, which is not followed: correct the server's address"
        )
    return ProblemError(reply.status, problem, _retry_after_s(reply))


def _diagnose(error: BaseException, handled: Optional[BaseException]) -> tuple[str, bool]:
    """What went wrong in the words of its first cause, and whether trying again is pointless.

    ``handled`` is what the caller was dealing with already: Python links it below the first cause, where it has no say.
    """
    if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)):
        return str(error), True
    causes: list[BaseException] = []
    cause: Optional[BaseException] = error
    while cause is not None and cause is not handled and cause not in causes:
        causes.append(cause)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"the server's certificate is not trusted ({cause.verify_message}); set ca_file to its authority",
                True,
            )
        cause = cause.__cause__ or cause.__context__
    # The last cause that says something: the outer layers only repeat it with object addresses around it.
    words = [cause.strerror or str(cause) if isinstance(cause, OSError) else str(cause) for cause in causes]
    return next((text for text in reversed(words) if text), type(error).__name__), False
