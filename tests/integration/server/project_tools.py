"""Projects and their workers, for the tests."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Optional

from common.wire import ReplicaSpec
from common.wire.projects import (
    FileOutcome,
    FileRelease,
    ProjectFile,
    ProjectFilePage,
    ProjectFileView,
    ProjectRequest,
    ProjectRestart,
    ProjectView,
    ReleasedFile,
    ReleaseReply,
    ReleaseRequest,
    ReserveReply,
    ReserveRequest,
    RestartState,
)
from server.agents.projects import mind_projects, time_out_workers
from tests.integration.server.harness import Site

_NUMBERS = itertools.count(1)


def listed(*names: str, storages: Sequence[str] = ("disk",), **more: Any) -> list[ProjectFile]:
    """Files with a replica on each storage; of none, those of a virtual project."""
    return [
        ProjectFile(did=f"data:{name}", replicas=[ReplicaSpec(each, f"d/{name}") for each in storages], **more)
        for name in names
    ]


def make(site: Site, *names: str, name: str = "u", storages: Sequence[str] = ("disk",), **more: Any) -> int:
    """A project whose files are all known; its id."""
    request = ProjectRequest(files=[*listed(*names, storages=storages), *more.pop("files", [])], **more)
    project = site.user("POST", "/v1/projects", request, ProjectView, name).id
    site.agents()
    return project


def look(site: Site, project: int, name: str = "u") -> ProjectView:
    return site.user("GET", f"/v1/projects/{project}", reply=ProjectView, name=name)


def reserve(
    site: Site, project: int, worker: str = "w", *, token: Optional[str] = None, request_id: str = "", **more: Any
) -> ReserveReply:
    body = ReserveRequest(request_id=request_id or f"request-{next(_NUMBERS):05d}", worker=worker, **more)
    path = f"/v1/projects/{project}/files:reserve"
    return site.call("POST", path, body, ReserveReply, token or site.token("user", "u"))


def take(site: Site, project: int, worker: str = "w", **more: Any) -> str:
    """The name of one file, which must be there."""
    reply = reserve(site, project, worker, **more)
    assert len(reply.files) == 1, reply
    return reply.files[0].did.partition(":")[2]


def release(
    site: Site,
    project: int,
    *names: str,
    worker: str = "w",
    outcome: FileOutcome = FileOutcome.DONE,
    retry: bool = True,
    token: Optional[str] = None,
) -> list[ReleasedFile]:
    body = ReleaseRequest(worker, [FileRelease(f"data:{name}", outcome, retry) for name in names])
    path = f"/v1/projects/{project}/files:release"
    return site.call("POST", path, body, ReleaseReply, token or site.token("user", "u")).files


def done(site: Site, project: int, *names: str, worker: str = "w") -> None:
    for each in release(site, project, *names, worker=worker):
        assert each.accepted, each


def failed(site: Site, project: int, *names: str, worker: str = "w", retry: bool = True) -> None:
    for each in release(site, project, *names, worker=worker, outcome=FileOutcome.FAILED, retry=retry):
        assert each.accepted, each


def restart(site: Site, project: int, *states: RestartState, dids: Iterable[str] = ()) -> ProjectView:
    body = ProjectRestart(list(states), [f"data:{each}" for each in dids])
    return site.user("POST", f"/v1/projects/{project}:restart", body, ProjectView)


def command(site: Site, project: int, word: str, name: str = "u") -> ProjectView:
    return site.user("POST", f"/v1/projects/{project}:{word}", reply=ProjectView, name=name)


def files(site: Site, project: int, query: str = "") -> dict[str, ProjectFileView]:
    page = site.user_page(f"/v1/projects/{project}/files?limit=1000&{query}", ProjectFilePage)
    return {each.did.partition(":")[2]: each for each in page.items}


def states(site: Site, project: int) -> dict[str, int]:
    return dict(Counter(each.state.value for each in files(site, project).values()))


def agents(site: Site) -> None:
    """All agents, until none finds anything to do."""
    while mind_projects(site.dispatcher) + time_out_workers(site.dispatcher):
        site.agents()
    site.agents()
