"""What PanDA's client is answered: always ``success``, ``message`` and ``data``, and HTTP 200 but for our own faults."""

from __future__ import annotations

from datetime import datetime, timezone
from enum import IntEnum
from typing import Any

import falcon

from common.problem import Problem
from server.api.routing import Raw
from server.compat.face import as_json
from server.dispatch.errors import Refused

SUBMIT = "/api/v1/task/submit"


class Code(IntEnum):
    """Return codes of commands."""

    REGISTERED = 0
    SERVER_ERROR = 1
    NOT_FOUND = 2
    FORBIDDEN = 3
    WRONG_STATE = 4


class SubmitCode(IntEnum):
    """Return codes of submissions."""

    PROCESSED = 0
    DUPLICATE = 2
    ERROR = 4


RETRIED_WITH_OPTIONS = 3
"""What the client takes for success of a retry that changes something."""
_CODES = {401: Code.FORBIDDEN, 403: Code.FORBIDDEN, 404: Code.NOT_FOUND, 409: Code.WRONG_STATE}


def done(data: Any = None, message: str = "") -> Raw:
    """It was done, or here it is."""
    return as_json({"success": True, "message": message, "data": data})


class Declined(Refused):
    """What the client is told with a code of its own; nothing was done."""

    def __init__(self, detail: str, code: int = Code.SERVER_ERROR) -> None:
        super().__init__(detail, code=int(code))


def refused(req: falcon.Request, problem: Problem) -> Raw:
    """A refusal in this client's words. A mistake of ours keeps its status, so that whoever watches the server sees it."""
    usual = SubmitCode.ERROR if req.path == SUBMIT else _CODES.get(problem.status, Code.SERVER_ERROR)
    code = problem.extensions.get("code", int(usual))
    status = 500 if problem.status == 500 else 200
    return as_json({"success": False, "message": _words(problem), "data": code}, status)


def _words(problem: Problem) -> str:
    remedies = [f"{error.path}: {error.message}" for error in problem.errors if error.message not in problem.detail]
    return "; ".join([problem.detail or problem.title, *remedies])


def moment(seconds: float | None) -> dict[str, str] | None:
    """A time as the client reads it, in UTC."""
    if seconds is None:
        return None
    return {"__datetime__": datetime.fromtimestamp(seconds, timezone.utc).replace(tzinfo=None).isoformat()}


def plain_moment(seconds: float | None) -> str | None:
    """A time in a field of a job, in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
