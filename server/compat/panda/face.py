"""The face of PanDA's pilots: ``POST /server/panda/VERB``, and the data of queues and storages that they fetch."""

from __future__ import annotations

import falcon

from common.problem import Problem
from server.api.routing import Raw, Role, Route, allow
from server.compat.face import Face, as_json
from server.compat.panda import verbs
from server.compat.panda.jobs import PROGRAMS
from server.compat.panda.program import NAME
from server.dispatch.foreign_reports import NotYours

SERVER = "/server/panda"
_PILOT = allow(Role.FOREIGN_PILOT)
_ANYBODY = allow(Role.ANYBODY)
TIME_OUT, FAILED, BAD_TOKEN, BAD_ROLE, NO_PERMISSION = 10, 30, 50, 60, 70
CODES = {401: BAD_TOKEN, 403: BAD_ROLE, 429: TIME_OUT, 503: TIME_OUT}
"""``StatusCode`` by the status of a refusal; of any other it is 30. After 10 they try again."""


def refused(req: falcon.Request, problem: Problem) -> Raw:
    """A refusal as these clients read it: always 200, as they look at nothing else when it is not."""
    if req.path.startswith("/cache/"):
        return as_json({"message": str(problem)}, problem.status)
    code = NO_PERMISSION if problem.type in (NotYours.type, verbs.NotGiven.type) else CODES.get(problem.status, FAILED)
    return as_json({"StatusCode": code, "errorDialog": str(problem)[:1000]})


ROUTES = (
    *(
        Route("POST", f"{SERVER}/{verb}", _PILOT, verbs.of_vo(handler), f"PanDA's {verb}", audited=False)
        for verb, handler in verbs.VERBS.items()
    ),
    Route(
        "POST", f"{SERVER}/setDebugMode", allow(Role.USER), verbs.of_vo(verbs.set_debug_mode), "PanDA's setDebugMode"
    ),
    Route("POST", f"{SERVER}/{{verb}}", _PILOT, verbs.of_vo(verbs.other), "PanDA's other verbs", audited=False),
    Route(
        "GET", "/cache/schedconfig/{queue}.all.json", _ANYBODY, verbs.queue_data, "A queue's data for PanDA's pilots"
    ),
    Route("GET", "/cache/ddmendpoints.json", _ANYBODY, verbs.storage_data, "The storages for PanDA's pilots"),
    Route("GET", f"{PROGRAMS}/{{job_id}}/{{seal}}/{NAME}", _ANYBODY, verbs.serve_program, "The program of a job"),
)

FACE = Face("panda", ROUTES, refused, below=(SERVER, "/cache"))
