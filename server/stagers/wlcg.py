"""Tape systems that speak the WLCG Tape REST API, version 1 (dCache, EOS with CTA, StoRM)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Optional
from urllib.parse import quote

import msgspec

from common.errors import PilotageError
from common.http import HttpClient, HttpError, ProblemError
from common.tokens import check_bearer, read_secret_file
from server.stagers.base import Recall, Recalled, Stager, StagerError

NOT_FOUND = (404, 410)


class WlcgOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``url`` is the API's base, such as ``https://tape.example.org:8444/api/v1``; ``prefix`` stands before a replica's
    path in the tape system's own name space. ``token_file`` (mode 0600) is read at each call, so that it may be renewed."""

    url: Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s]+$")]
    prefix: Annotated[str, msgspec.Meta(pattern=r"^(/.*)?$")] = ""
    token_file: Optional[str] = None
    ca_file: Optional[str] = None
    disk_lifetime_s: Annotated[int, msgspec.Meta(ge=60)] = 7 * 86400
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0


class _Taken(msgspec.Struct, rename="camel"):
    request_id: str


class _File(msgspec.Struct, rename="camel"):
    path: str
    on_disk: Optional[bool] = None
    state: str = ""
    error: Optional[str] = None


class _Progress(msgspec.Struct):
    files: list[_File] = []


STATES: dict[str, Recall] = {
    "SUBMITTED": Recall.WAITING,
    "STARTED": Recall.WAITING,
    "COMPLETED": Recall.ONLINE,
    "FAILED": Recall.FAILED,
    "CANCELLED": Recall.FAILED,
}
"""What the API calls a file's state, where a system says it."""


class WlcgTapeStager(Stager):
    """One endpoint of the API."""

    Options = WlcgOptions

    def __init__(self, options: WlcgOptions) -> None:
        self._options = options
        self._prefix = options.prefix.rstrip("/")
        self._http = HttpClient(
            options.url,
            token=self._token if options.token_file else None,
            ca_file=options.ca_file,
            timeout=(10.0, options.timeout_s),
            retries=2,
        )

    def request(self, paths: Sequence[str]) -> str:
        """See :class:`Stager`."""
        lifetime = f"PT{self._options.disk_lifetime_s}S"
        files = [{"path": self._path(path), "diskLifetime": lifetime} for path in paths]
        # A request that was taken although its answer got lost would be made twice: it is asked for once only.
        taken: _Taken = self._call("POST", "/stage", {"files": files}, _Taken, retry=False)
        return taken.request_id

    def poll(self, request: str, paths: Sequence[str]) -> dict[str, Recalled]:
        """See :class:`Stager`."""
        where = f"/stage/{quote(request, safe='')}"
        try:
            progress: _Progress = self._http.call("GET", where, None, _Progress)
        except ProblemError as error:
            if error.status not in NOT_FOUND:
                raise StagerError(str(error)) from error
            return {path: Recalled(Recall.FAILED, f"the tape system has forgotten request {request}") for path in paths}
        except PilotageError as error:
            raise StagerError(str(error)) from error
        told = {file.path: file for file in progress.files}
        return {path: _state(told[self._path(path)]) for path in paths if self._path(path) in told}

    def release(self, request: str, paths: Sequence[str]) -> None:
        """See :class:`Stager`."""
        body = {"paths": [self._path(path) for path in paths]}
        name = quote(request, safe="")
        for call in (f"/stage/{name}/cancel", f"/release/{name}"):
            try:
                self._http.call("POST", call, body, type(None))
            except ProblemError as error:
                # Cancelling what is over may be refused, and a request that is forgotten has no pins.
                if error.status >= 500 or error.status in (401, 403, 429):
                    raise StagerError(str(error)) from error
            except PilotageError as error:
                raise StagerError(str(error)) from error

    def _call(self, method: str, path: str, body: object, reply: type[_Taken], *, retry: bool) -> _Taken:
        try:
            return self._http.call(method, path, body, reply, retry=retry)
        except (HttpError, PilotageError) as error:
            raise StagerError(str(error)) from error

    def _path(self, path: str) -> str:
        return f"{self._prefix}/{path.lstrip('/')}"

    def _token(self) -> Optional[str]:
        assert self._options.token_file is not None
        return check_bearer(read_secret_file(self._options.token_file))


def _state(file: _File) -> Recalled:
    """A file's state: some systems say it in a word, others only whether the file is on disk, or what went wrong."""
    if file.on_disk:
        return Recalled(Recall.ONLINE)
    if file.error:
        return Recalled(Recall.FAILED, file.error[:1000])
    state = STATES.get(file.state.upper(), Recall.WAITING)
    if state == Recall.ONLINE and file.on_disk is False:
        # Done, and evicted again: to be asked for once more.
        return Recalled(Recall.FAILED, "it was on disk and is there no more")
    return Recalled(state, f"the tape system says {file.state}" if state == Recall.FAILED else "")
