"""aCT's REST interface as a face: see ``docs/how-to/migrate-from-act.md``."""

from __future__ import annotations

import falcon

from common.problem import Problem
from server.api.routing import Raw, Role, Route, allow
from server.compat.act import jobs, proxies
from server.compat.face import Face, as_json

_USER = allow(Role.USER)


def refused(_: falcon.Request, problem: Problem) -> Raw:
    """A refusal as ``act`` shows it."""
    words = problem.detail or problem.title
    return as_json({"msg": words}, problem.status)


FACE = Face(
    "act",
    (
        Route("GET", "/info", _USER, jobs.info, "Clusters and columns"),
        Route("GET", "/jobs", _USER, jobs.stat, "One's own jobs"),
        Route("POST", "/jobs", _USER, jobs.create, "Make jobs"),
        Route("PUT", "/jobs", _USER, jobs.submit, "Describe jobs"),
        Route("PATCH", "/jobs", _USER, jobs.command, "Fetch, cancel or resubmit jobs"),
        Route("DELETE", "/jobs", _USER, jobs.clean, "Clean jobs"),
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
)  # fmt: skip
