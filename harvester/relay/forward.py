"""Handing a pilot's call on to the server, over pooled connections, and its answer back. Nothing is added or kept."""

from __future__ import annotations

import http.cookiejar
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies

from common.endpoint import certificate_authorities, checked_url, is_private
from common.errors import ErrorCode, PilotageError
from common.problem import Problem
from common.relay import MAX_BODY_BYTES, SCHEME

log = logging.getLogger(__name__)

THREADS = 64
"""The most calls under way at a time. The server grants long polls to a few pilots only, so that the others are short."""
CONNECT_S = 5.0
WAIT_MAX_S = 300.0
"""No call waits longer for the server, whatever its pilot says."""
CHUNK_BYTES = 256 * 1024
METHODS = frozenset({"GET", "POST", "PUT"})
CALL = re.compile(r"/v1/[A-Za-z0-9._~:/@!$&'()*+,;=%?-]*|/healthz")
"""The calls that are handed on: those of the native protocol."""
UP = re.compile(r"(/|%2f)(\.|%2e){1,2}(/|%2f|$|\?)", re.IGNORECASE)
"""A path that means another path."""
REQUEST_HEADERS = frozenset({"accept", "authorization", "content-type", "user-agent"})
REPLY_HEADERS = frozenset({"content-type", "date", "retry-after"})
RETRY_AFTER_S = 5


@dataclass(frozen=True)
class Call:
    """What a pilot asks; ``wait_s`` is how long it waits for the reply. The headers hold its token."""

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    wait_s: float = 60.0


@dataclass(frozen=True)
class Reply:
    """What the server answered."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


class Forwarder:
    """Calls the server at ``server_url``; ``ca_file`` as with :class:`common.http.HttpClient`. Threads may share it.

    Raises PilotageError (BAD_CONFIGURATION) for an address or a file that cannot be used.
    """

    def __init__(self, server_url: str, ca_file: str | Path | None = None) -> None:
        self.server_url = checked_url(server_url)
        if self.server_url.startswith(SCHEME):
            detail = (
                f"server address {server_url!r}: a relay hands calls on to a server, not to another relay's mailbox"
            )
            raise PilotageError(ErrorCode.BAD_CONFIGURATION, detail)
        if not is_private(self.server_url):
            log.warning("%s: tokens travel unencrypted to this address; use https", self.server_url)
        verify = certificate_authorities(ca_file) if self.server_url.startswith("https:") else None
        self._verify: str | bool = verify or True
        self._session = requests.Session()
        self._session.trust_env = False
        # One pilot's cookies must not reach another's call.
        self._session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=THREADS, max_retries=0)
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)

    def close(self) -> None:
        """Close all connections."""
        self._session.close()

    def __call__(self, call: Call) -> Reply:
        """The server's answer; a problem of status 400 for a call that is none of the protocol, 413 for one that is too
        large, 502 for an answer that is, and 503 when the server does not answer."""
        if call.method not in METHODS or not CALL.fullmatch(call.path) or UP.search(call.path):
            return problem(400, "Not a call of the protocol", f"{call.method} {call.path[:200]!r} is not handed on")
        if len(call.body) > MAX_BODY_BYTES:
            return problem(413, "Too large", f"{len(call.body)} bytes are more than the limit of {MAX_BODY_BYTES}")
        began = time.monotonic()
        try:
            reply = self._ask(call, began)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            log.warning("%s %s: the server does not answer: %s", call.method, call.path, type(error).__name__)
            return problem(503, "The relay cannot reach the server", type(error).__name__)
        log.debug("%s %s: %d in %.3f s", call.method, call.path, reply.status, time.monotonic() - began)
        return reply

    def _ask(self, call: Call, began: float) -> Reply:
        wait_s = min(call.wait_s, WAIT_MAX_S)
        url = self.server_url + call.path
        headers: dict[str, str | None] = {"Accept-Encoding": "identity", "User-Agent": None}
        headers |= {name: value for name, value in call.headers.items() if name.lower() in REQUEST_HEADERS}
        with self._session.request(
            call.method,
            url,
            data=call.body or None,
            headers=headers,
            timeout=(min(CONNECT_S, wait_s), wait_s),
            allow_redirects=False,
            stream=True,
            proxies=get_environ_proxies(url),
            verify=self._verify,
        ) as response:
            content = bytearray()
            while piece := response.raw.read1(CHUNK_BYTES, decode_content=True):
                content += piece
                if len(content) > MAX_BODY_BYTES:
                    return problem(502, "Too large", f"the answer is larger than the limit of {MAX_BODY_BYTES} bytes")
                if time.monotonic() - began >= wait_s:
                    raise requests.ReadTimeout("the answer came too slowly")
            kept = {name: value for name, value in response.headers.items() if name.lower() in REPLY_HEADERS}
            return Reply(response.status_code, response.reason or "", kept, bytes(content))


def problem(status: int, title: str, detail: str) -> Reply:
    """An answer of the relay's own. Its type is not one of the server's, so that a pilot takes it for a fault on the way."""
    body = msgspec.json.encode(Problem(type="about:blank", title=title, status=status, detail=detail))
    headers = {"Content-Type": "application/problem+json"}
    if status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return Reply(status, title, headers, body)
