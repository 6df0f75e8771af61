"""How the server says no; ``api`` turns each into a problem document."""

from __future__ import annotations

from collections.abc import Sequence

from common.states import JobState


class Refused(Exception):
    """A request that is not carried out, and nothing of it."""

    status = 400
    type = "pilotage:bad-request"
    title = "The request cannot be carried out"

    def __init__(self, detail: str, errors: Sequence[tuple[str, str]] = (), **extensions: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = list(errors)
        self.extensions = extensions


class Invalid(Refused):
    """A field is wrong; ``errors`` names path and remedy."""

    type = "pilotage:invalid"
    title = "The request is not valid"


class Unprocessable(Refused):
    """Well formed, but it does not agree with what the server knows."""

    status = 422
    type = "pilotage:invalid"
    title = "The request does not agree with what the server knows"


class Unauthenticated(Refused):
    """No credential, or one that is not valid."""

    status = 401
    type = "pilotage:unauthenticated"
    title = "Who are you?"


class Forbidden(Refused):
    """Known, but may not do this."""

    status = 403
    type = "pilotage:forbidden"
    title = "This is not allowed to you"


class UsedUp(Forbidden):
    """A worker's secret that has served already, or has expired."""

    type = "pilotage:worker-used-up"
    title = "The worker's secret cannot be used (again)"


class TooLarge(Refused):
    """The body is larger than allowed."""

    status = 413
    type = "pilotage:too-large"
    title = "The request is too large"


class NotFound(Refused):
    """There is no such thing."""

    status = 404
    type = "pilotage:not-found"
    title = "There is no such thing"


class Conflict(Refused):
    """It contradicts what was said or done before."""

    status = 409
    type = "pilotage:conflict"
    title = "This contradicts what was done before"


class Gone(Refused):
    """A job that ended otherwise meanwhile: its late results are not taken."""

    status = 410
    type = "pilotage:job-gone"
    title = "The job is gone"

    def __init__(self, job_id: int, state: JobState, error_code: int | None) -> None:
        super().__init__(
            f"job {job_id} is {state.value} already: remove what it uploaded",
            job_id=job_id,
            state=state.value,
            error_code=error_code,
        )
