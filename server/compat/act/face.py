"""aCT's REST interface as a face: see ``docs/how-to/migrate-from-act.md``."""

from __future__ import annotations

import falcon

from common.problem import Problem
from server.api.routing import Raw, Role, Route, allow
from server.compat.act import jobs, proxies
from server.compat.face import Face, as_json, words_of

_USER = allow(Role.USER)
_CHOICE = ("id", "name", "state")
"""What chooses jobs in a query, and is told to the audit."""


def refused(_: falcon.Request, problem: Problem) -> Raw:
    """A refusal as ``act`` shows it."""
    words = words_of(problem)
    return as_json(
        {"msg": f"{words} (act proxy gives a new token)" if problem.status == 401 else words}, problem.status
    )


FACE = Face(
    "act",
    (
        Route("GET", "/info", _USER, jobs.info, "Clusters and columns"),
        Route("GET", "/jobs", _USER, jobs.stat, "One's own jobs"),
        Route("POST", "/jobs", _USER, jobs.create, "Make jobs"),
        Route("PUT", "/jobs", _USER, jobs.submit, "Describe jobs"),
        Route("PATCH", "/jobs", _USER, jobs.command, "Fetch, cancel or resubmit jobs", query=("action", *_CHOICE)),
        Route("DELETE", "/jobs", _USER, jobs.clean, "Clean jobs", query=_CHOICE),
        Route(
            "PUT", "/jobs/{direct_id}/data/{name:path}", _USER, jobs.upload, "Upload a file of a job", status=204,
            audited=False,
        ),
        Route("GET", "/jobs/{direct_id}/results/{path:path}", _USER, jobs.results, "What a job left"),
        Route("POST", "/proxies", allow(Role.ANYBODY), proxies.begin, "Begin to delegate"),
        Route("PUT", "/proxies", allow(Role.KEY_HOLDER), proxies.prove, "Delegate, and prove who one is"),
        Route(
            "DELETE", "/proxies", _USER | {Role.KEY_HOLDER}, proxies.withdraw, "Withdraw what one delegated", status=204
        ),
    ),
    refused,
    below=("/info", "/jobs", "/proxies"),
    check=proxies.check,
)  # fmt: skip
