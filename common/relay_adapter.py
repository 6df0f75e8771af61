"""The pilot's side of the mailbox: a transport for :class:`common.http.HttpClient` in place of a network."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

import requests
import urllib3
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from common.errors import PilotageError
from common.relay import (
    REPLIES,
    REQUESTS,
    Damaged,
    ReplyHead,
    RequestHead,
    check_folder,
    get,
    mailbox_folder,
    new_name,
    put,
    stir,
)

FIRST_LOOK_S = 0.01
SLOWER = 1.3
"""Each wait for the reply is so many times the last."""
LAST_LOOK_S = 0.2
STIR_S = 1.0
"""A shared folder is stirred so often while a reply is waited for."""


class MailboxAdapter(BaseAdapter):
    """Carries the calls to ``url`` (``mailbox:///shared/folder``) to the relay as files. Threads may share it.

    Shared file systems send no notices, so the reply is looked for on a timer: often at first, a few times a second later.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._folder = mailbox_folder(url)
        self._box = new_name()
        self._closed = threading.Event()

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Union[None, float, tuple[float, float], tuple[float, None]] = None,
        verify: Union[bool, str] = True,
        cert: Any = None,
        proxies: Optional[Mapping[str, str]] = None,
    ) -> requests.Response:
        """Put the request into the mailbox and wait for its reply. Raises requests' ConnectionError or ReadTimeout."""
        wait_s = timeout[1] if isinstance(timeout, tuple) else timeout
        head = RequestHead(
            method=request.method or "GET",
            path=(request.url or "")[len(self._url) :],
            headers={
                name: value if isinstance(value, str) else value.decode() for name, value in request.headers.items()
            },
            wait_s=wait_s or 60.0,
        )
        body = request.body or b""
        try:
            reply, content = self._exchange(head, body.encode() if isinstance(body, str) else bytes(body))
            return _response(request, reply, content)
        except requests.RequestException:
            raise
        except (PilotageError, OSError) as error:
            trouble = error.detail if isinstance(error, PilotageError) else str(error)
        # Outside of the handler: the words of the first cause are those that are told.
        raise requests.ConnectionError(f"the mailbox cannot be used: {trouble}", request=request)

    def close(self) -> None:
        """Give up what waits for a reply, and leave no empty box behind."""
        self._closed.set()
        with contextlib.suppress(OSError):
            (self._folder / REPLIES / self._box).rmdir()

    def _exchange(self, head: RequestHead, body: bytes) -> tuple[ReplyHead, bytes]:
        check_folder(self._folder)
        requests_folder, box = self._folder / REQUESTS, self._folder / REPLIES / self._box
        call = new_name()
        request, reply = requests_folder / f"{self._box}.{call}", box / call
        # The relay removes a box that has been unused for long: it is made again, or its time renewed.
        try:
            box.mkdir(0o700)
        except FileExistsError:
            os.utime(box)
        try:
            put(requests_folder, request.name, head, body)
            found = self._reply(reply, head.wait_s)
        finally:
            for path in (request, reply):
                path.unlink(missing_ok=True)
        if found is None:
            raise requests.ConnectionError("this client is closed")
        return found

    def _reply(self, path: Path, wait_s: float) -> Optional[tuple[ReplyHead, bytes]]:
        """The reply once it is there; None when this client was closed meanwhile."""
        began = time.monotonic()
        look_s, stirred = FIRST_LOOK_S, began
        damage = ""
        while not self._closed.wait(look_s):
            try:
                return get(path, ReplyHead)
            except FileNotFoundError:
                damage = ""
            except Damaged as error:
                damage = f"; there is a reply, but {error}"
            now = time.monotonic()
            if now - began >= wait_s:
                raise requests.ReadTimeout(f"no reply from the relay in {wait_s:.0f} s: does it run?{damage}")
            if now - stirred >= STIR_S:
                stir(path.parent)
                stirred = now
            look_s = min(look_s * SLOWER, LAST_LOOK_S, max(began + wait_s - now, FIRST_LOOK_S))
        return None


def _response(request: requests.PreparedRequest, head: ReplyHead, content: bytes) -> requests.Response:
    response = requests.Response()
    response.status_code, response.reason = head.status, head.reason
    response.headers = CaseInsensitiveDict(head.headers)
    response.url, response.request = request.url or "", request
    response.raw = urllib3.HTTPResponse(
        body=io.BytesIO(content), headers=head.headers, status=head.status, reason=head.reason, preload_content=False
    )
    return response
