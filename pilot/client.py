"""The pilot's side of the native protocol: one method a call, and four ways in which a call can fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Optional, Protocol, TypeVar, Union

from common.errors import ErrorCode, PilotageError
from common.http import BadReply, HttpClient, ProblemError, Unreachable
from common.wire import (
    AcquireReply,
    AcquireRequest,
    CredentialReply,
    CredentialRequest,
    FinishReply,
    FinishRequest,
    HeartbeatReply,
    HeartbeatRequest,
    PeekAnswer,
    PilotEnd,
    PilotGrant,
    PilotRegistration,
    RecordReply,
    RecordRequest,
    UnitsAcquireReply,
    UnitsAcquireRequest,
)

T = TypeVar("T")

CALL_S = 30.0
"""How long one call may take before it counts as unanswered."""
TRANSFER_S = 90.0
"""What is added to that where many bytes come along."""
LAST_CALL_S = 3.0
"""The same when the slot is being taken away."""
OURS = "pilotage:"
"""What the type of every problem begins with that the server itself reports."""


class ServerError(Exception):
    """A call that did not do what it should; it is one of the four below."""


class ServerAway(ServerError):
    """No usable answer; the call may have been served. ``retry_after_s`` is what the server asked for, if it did."""

    def __init__(self, detail: str, retry_after_s: Optional[float] = None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class JobGone(ServerError):
    """410: the server has ended the job; its results are not wanted."""


class NotAccepted(ServerError):
    """401 or 403: the server does not accept this pilot (any more)."""


class CallRefused(ServerError):
    """The server refuses this call for good: another attempt would be refused too."""

    def __init__(self, status: int, detail: str, code: Optional[ErrorCode] = None) -> None:
        super().__init__(f"{status} {detail}")
        self.status = status
        self.code = code


class Server(Protocol):
    """What a pilot asks of the server. Each call may raise ServerAway, NotAccepted or CallRefused; those about one
    job JobGone as well. All may be repeated."""

    def register(self, registration: PilotRegistration) -> PilotGrant:
        """Become known, with the worker's secret; later calls use the granted token."""

    def acquire(self, request: AcquireRequest) -> AcquireReply:
        """Ask for jobs."""

    def heartbeat(self, request: HeartbeatRequest) -> HeartbeatReply:
        """Report all jobs; takes over a new token."""

    def acquire_units(self, job_id: int, request: UnitsAcquireRequest) -> UnitsAcquireReply:
        """More units for a running job."""

    def record(self, job_id: int, request: RecordRequest) -> RecordReply:
        """Ask where outputs go."""

    def finish(self, job_id: int, request: FinishRequest) -> FinishReply:
        """Deliver the final report."""

    def credentials(self, request: CredentialRequest) -> CredentialReply:
        """Fetch a credential for a storage."""

    def sandbox(self, sha256: str) -> bytes:
        """The content of a sandbox that one of the pilot's jobs unpacks."""

    def keep_log(self, job_id: int, archive: bytes) -> None:
        """Have the server keep the log of a failed job."""

    def answer_peek(self, job_id: int, peek_id: int, answer: PeekAnswer) -> None:
        """Show a person what was asked for."""

    def end(self, pilot_id: int, request: PilotEnd) -> None:
        """Say farewell."""

    def hurry(self) -> None:
        """From now on no call may take long."""

    def close(self) -> None:
        """End all calls."""


class HttpServer:
    """The server at ``url``. ``secret`` is the worker's, needed to register; ``token`` that of a pilot already known.

    Nothing is retried here: the agent decides when to ask again.
    """

    def __init__(
        self, url: str, *, ca_file: Union[str, Path, None] = None, secret: str = "", token: Optional[str] = None
    ) -> None:
        self.token = token
        self._pilot_id: Optional[int] = None
        self._call_s = CALL_S
        self._http = HttpClient(url, token=lambda: self.token, ca_file=ca_file, retries=0)
        self._registrar = HttpClient(url, token=lambda: secret, ca_file=ca_file, retries=0)

    def register(self, registration: PilotRegistration) -> PilotGrant:
        """``POST /v1/pilots``."""
        grant = self._call(self._registrar, "/v1/pilots", registration, PilotGrant)
        self.token, self._pilot_id = grant.token, grant.pilot_id
        return grant

    def acquire(self, request: AcquireRequest) -> AcquireReply:
        """``POST /v1/jobs:acquire``."""
        return self._call(self._http, "/v1/jobs:acquire", request, AcquireReply, request.wait_s)

    def heartbeat(self, request: HeartbeatRequest) -> HeartbeatReply:
        """``POST /v1/jobs:heartbeat``."""
        reply = self._call(self._http, "/v1/jobs:heartbeat", request, HeartbeatReply)
        self.token = reply.token or self.token
        return reply

    def acquire_units(self, job_id: int, request: UnitsAcquireRequest) -> UnitsAcquireReply:
        """``POST /v1/jobs/{id}/units:acquire``."""
        return self._call(self._http, f"/v1/jobs/{job_id}/units:acquire", request, UnitsAcquireReply)

    def record(self, job_id: int, request: RecordRequest) -> RecordReply:
        """``POST /v1/jobs/{id}/outputs``."""
        return self._call(self._http, f"/v1/jobs/{job_id}/outputs", request, RecordReply)

    def finish(self, job_id: int, request: FinishRequest) -> FinishReply:
        """``POST /v1/jobs/{id}:finish``."""
        return self._call(self._http, f"/v1/jobs/{job_id}:finish", request, FinishReply)

    def credentials(self, request: CredentialRequest) -> CredentialReply:
        """``POST /v1/pilots/{id}/credentials``."""
        if self._pilot_id is None:
            raise CallRefused(0, "this pilot is not registered")
        return self._call(self._http, f"/v1/pilots/{self._pilot_id}/credentials", request, CredentialReply)

    def sandbox(self, sha256: str) -> bytes:
        """``GET /v1/sandboxes/{sha256}``."""
        call_s = self._call_s + TRANSFER_S
        path = f"/v1/sandboxes/{sha256}"
        return translated(lambda: self._http.transfer("GET", path, timeout=call_s, total_s=call_s, retry=False))

    def keep_log(self, job_id: int, archive: bytes) -> None:
        """``PUT /v1/jobs/{id}/log``."""
        path = f"/v1/jobs/{job_id}/log"
        call_s = self._call_s
        translated(
            lambda: self._http.transfer(
                "PUT", path, archive, content_type="application/gzip", timeout=call_s, total_s=call_s, retry=False
            )
        )

    def answer_peek(self, job_id: int, peek_id: int, answer: PeekAnswer) -> None:
        """``POST /v1/jobs/{id}/peeks/{peek_id}:answer``."""
        self._call(self._http, f"/v1/jobs/{job_id}/peeks/{peek_id}:answer", answer, type(None))

    def end(self, pilot_id: int, request: PilotEnd) -> None:
        """``POST /v1/pilots/{id}:end``."""
        self._call(self._http, f"/v1/pilots/{pilot_id}:end", request, type(None))

    def clock_ahead_s(self) -> Optional[float]:
        """How far this machine's clock is ahead of the server's; None while it is not known."""
        known = [http.clock_ahead_s for http in (self._http, self._registrar) if http.clock_ahead_s is not None]
        return known[0] if known else None

    def hurry(self) -> None:
        """Calls from now on are given up after :data:`LAST_CALL_S`."""
        self._call_s = LAST_CALL_S

    def close(self) -> None:
        """Close all connections."""
        self._http.close()
        self._registrar.close()

    def _call(self, http: HttpClient, path: str, body: object, reply: type[T], extra_s: float = 0.0) -> T:
        call_s = self._call_s + extra_s
        return translated(lambda: http.call("POST", path, body, reply, timeout=call_s, total_s=call_s, retry=False))


def translated(call: Callable[[], T]) -> T:
    """The result of ``call``, its failures in this module's words."""
    try:
        return call()
    except (Unreachable, BadReply) as error:
        raise ServerAway(error.detail) from error
    except ProblemError as error:
        raise _meaning(error) from error
    except PilotageError as error:  # a request that is too large, a token that cannot be sent
        raise CallRefused(0, str(error), error.code) from error


def _meaning(error: ProblemError) -> ServerError:
    """What an error status means. One that does not come from the server itself (a proxy, a captive portal, another
    program at that address) tells nothing about the pilot and its jobs."""
    retry_later = error.status >= 500 or error.status in (408, 425, 429)
    if retry_later or not error.problem.type.startswith(OURS):
        return ServerAway(str(error), error.retry_after_s)
    if error.status == 410:
        return JobGone(str(error.problem))
    if error.status in (401, 403):
        return NotAccepted(str(error))
    return CallRefused(error.status, str(error.problem), _number(error.problem.extensions))


def _number(extensions: dict[str, object]) -> Optional[ErrorCode]:
    number = extensions.get("error_code")
    try:
        return ErrorCode(number) if isinstance(number, int) else None
    except ValueError:
        return None
