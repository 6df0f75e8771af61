"""The face of Data Dispatcher: its routes, and how it says no."""

from __future__ import annotations

import falcon

from common.plugins import version
from common.problem import Problem
from server.api.auth import SCHEME, bearer
from server.api.routing import Call, Raw, Role, Route, allow
from server.compat.data_dispatcher import auth, catalog, files, projects, rses
from server.compat.face import Face, as_text, words_of
from server.dispatch.context import Dispatcher

DATA = "/compat/data-dispatcher/data"
"""What ``DATA_DISPATCHER_URL`` ends with."""
AUTH = "/compat/data-dispatcher/auth"
"""What ``DATA_DISPATCHER_AUTH_URL`` ends with."""
_NEXT = f"{DATA}/next_file"
_WORDS = {405: 400, 422: 400, 429: 503}
"""Statuses of ours that the client does not know, and what says the same; it asks again after a 503."""


def _credential(req: falcon.Request) -> str | None:
    """The token in the client's own header, else a bearer token; other schemes prove nothing here."""
    own = req.get_header(auth.TOKEN_HEADER)
    if own:
        return own.strip()
    header = req.get_header("Authorization") or ""
    return bearer(req) if header.partition(" ")[0].lower() == SCHEME else None


def _refused(req: falcon.Request, problem: Problem) -> Raw:
    if req.path == _NEXT:
        return files.next_refused(problem)
    words = words_of(problem)
    more = [f"{error.path}: {error.message}" for error in problem.errors if error.message not in words]
    if problem.status == 401 and req.path.startswith(DATA):
        more.append("ddisp login gives a new token")
    return as_text("\n".join([words, *more]) + "\n", _WORDS.get(problem.status, problem.status))


def _version(_: Dispatcher, __: Call) -> Raw:
    return as_text(version())


def _probe(dispatcher: Dispatcher, _: Call) -> Raw:
    dispatcher.looks.get()
    return as_text("OK")


_ANYBODY = allow(Role.ANYBODY)
_USER = allow(Role.USER)
_WORKER = allow(Role.USER, Role.OUTSIDE_WORKER)
_ADMIN = allow(Role.ADMIN)
_PROJECT = ("project_id",)
"""What of a query is told to the audit."""

ROUTES = (
    Route("GET", f"{DATA}/version", _ANYBODY, _version, "The server's version"),
    Route("GET", f"{DATA}/probe", _ANYBODY, _probe, "Whether the server answers"),
    Route("POST", f"{DATA}/create_project", _USER, projects.create, "Make a project"),
    Route("POST", f"{DATA}/copy_project", _USER, projects.copy, "Make a project of the same files"),
    Route("GET", f"{DATA}/project", _WORKER, projects.look, "Look at a project"),
    Route("GET", f"{DATA}/projects", _USER, projects.list_, "List projects"),
    Route("POST", f"{DATA}/search_projects", _USER, projects.search, "Search projects", changes=False),
    Route(
        "GET",
        f"{DATA}/activate_project",
        _USER,
        projects.activate,
        "Bring a project back",
        changes=True,
        query=_PROJECT,
    ),
    Route("GET", f"{DATA}/cancel_project", _USER, projects.cancel, "End a project", changes=True, query=_PROJECT),
    Route("GET", f"{DATA}/delete_project", _USER, projects.delete, "Take a project away", changes=True, query=_PROJECT),
    Route(
        "GET",
        f"{DATA}/restart_project",
        _USER,
        projects.restart_project,
        "Restart a project",
        changes=True,
        query=_PROJECT,
    ),
    Route("POST", f"{DATA}/restart_handles", _USER, projects.restart_handles, "Restart files of a project"),
    Route("GET", f"{DATA}/handles", _WORKER, files.list_, "List files of a project"),
    Route("GET", f"{DATA}/project_files", _WORKER, files.list_, "List files of a project"),
    Route("GET", f"{DATA}/file_handle", _WORKER, files.file_handle, "Look at a file of a project"),
    Route("GET", _NEXT, _WORKER, files.next_file, "Reserve the next file"),
    Route("GET", f"{DATA}/release", _WORKER, files.release, "Give a file back"),
    Route("GET", f"{DATA}/rses", _USER, rses.list_, "List RSEs"),
    Route("GET", f"{DATA}/get_rse", _USER, rses.get, "Look at an RSE"),
    Route(
        "GET",
        f"{DATA}/set_rse_availability",
        _ADMIN,
        rses.set_availability,
        "Set an RSE up or down",
        changes=True,
        query=("name", "available"),
    ),
    *(
        Route(method, f"{DATA}/{name}_rse", _ADMIN, handler, f"{name.title()} an RSE", changes=True, query=("name",))
        for name, handler in (("create", rses.create), ("update", rses.update), ("delete", rses.delete))
        for method in ("GET", "POST")
    ),
    Route("POST", f"{DATA}/data/query", _USER, catalog.query, "Ask the catalogue, as MetaCat", changes=False),
    *(
        Route(
            method,
            f"{AUTH}/auth",
            _ANYBODY,
            auth.auth(method),
            "Log in",
            recognises=True,
            changes=True,
            query=("method", "username"),
        )
        for method in ("GET", "POST")
    ),
    Route("GET", f"{AUTH}/verify", _WORKER, auth.verify, "Whether a token is good"),
    Route("GET", f"{AUTH}/whoami", _WORKER, auth.whoami, "Whose token it is"),
    Route("GET", f"{AUTH}/mydn", _ANYBODY, auth.my_dn, "The certificate's subject", recognises=True),
)

FACE = Face("data_dispatcher", ROUTES, refused=_refused, credential=_credential, below=(DATA, AUTH))
