"""What the user's commands ask of the server, one method a call."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Optional, Protocol, TypeVar, Union

import msgspec

from common.http import quoted
from common.wire import (
    EventPage,
    EventView,
    InputsRequest,
    JobPage,
    JobView,
    OutputPage,
    OutputView,
    PilotPage,
    PilotView,
    QueueList,
    QueueSpec,
    ShareList,
    ShareSpec,
    SiteList,
    SiteSpec,
    StorageList,
    StorageSpec,
    TaskCommand,
    TaskPage,
    TaskView,
    UnitPage,
    UnitView,
    WhyList,
    WhyReply,
    WorkflowPage,
    WorkflowRequest,
    WorkflowView,
)

T = TypeVar("T")
Page = Union[WorkflowPage, TaskPage, UnitPage, JobPage, OutputPage, EventPage, PilotPage]
P = TypeVar("P", WorkflowPage, TaskPage, UnitPage, JobPage, OutputPage, EventPage, PilotPage)
Spec = Union[SiteSpec, QueueSpec, StorageSpec, ShareSpec]
Param = Union[str, int, float, bool, None]
PAGE = 500
NEWEST_OF = 100_000
"""The newest of a list are found by going through all of it; longer ones are not gone through."""


class Caller(Protocol):
    """The part of :class:`common.http.HttpClient` that is needed here."""

    def call(
        self,
        method: str,
        path: str,
        body: Optional[object],
        reply_type: type[T],
        *,
        params: Optional[Mapping[str, Param]] = None,
    ) -> T:
        """Send ``body`` and read the reply as ``reply_type``. Raises common.http.HttpError."""


class Api:
    """The server's calls for people and admins. Every method raises common.http.HttpError."""

    def __init__(self, client: Caller) -> None:
        self._client = client

    def submit(self, request: WorkflowRequest) -> WorkflowView:
        """Hand in a workflow; a repeat with the same ``request_id`` gets the same workflow."""
        return self._client.call("POST", "/v1/workflows", request, WorkflowView)

    def workflow(self, workflow_id: int) -> WorkflowView:
        """One workflow with its tasks."""
        return self._client.call("GET", f"/v1/workflows/{workflow_id}", None, WorkflowView)

    def task(self, task_id: int) -> TaskView:
        """One task."""
        return self._client.call("GET", f"/v1/tasks/{task_id}", None, TaskView)

    def job(self, job_id: int) -> JobView:
        """One job."""
        return self._client.call("GET", f"/v1/jobs/{job_id}", None, JobView)

    def pilot(self, pilot_id: int) -> PilotView:
        """One pilot."""
        return self._client.call("GET", f"/v1/pilots/{pilot_id}", None, PilotView)

    def newest_pilots(self, limit: int, **filters: Param) -> tuple[list[PilotView], int]:
        """The last ``limit`` pilots, of one ``queue`` or the ``failed`` ones, and how many there are in all."""
        return _last(self._pages("/v1/pilots", PilotPage, NEWEST_OF + 1, **filters), limit)

    def workflows(self, limit: int) -> list[WorkflowView]:
        """At most ``limit`` workflows, in the server's order; likewise all lists below."""
        return [item for page in self._pages("/v1/workflows", WorkflowPage, limit) for item in page.items]

    def tasks(self, limit: int, **filters: Param) -> list[TaskView]:
        """Tasks, of one ``workflow`` or in one ``state``."""
        return [item for page in self._pages("/v1/tasks", TaskPage, limit, **filters) for item in page.items]

    def units(self, task_id: int, limit: int, **filters: Param) -> list[UnitView]:
        """Units of a task, all or in one ``state``."""
        path = f"/v1/tasks/{task_id}/units"
        return [item for page in self._pages(path, UnitPage, limit, **filters) for item in page.items]

    def outputs(self, task_id: int, limit: int) -> list[OutputView]:
        """Confirmed outputs of a task."""
        return [item for page in self._pages(f"/v1/tasks/{task_id}/outputs", OutputPage, limit) for item in page.items]

    def jobs(self, limit: int, **filters: Param) -> list[JobView]:
        """Jobs, of one ``task`` or in one ``state``."""
        return [item for page in self._pages("/v1/jobs", JobPage, limit, **filters) for item in page.items]

    def events(self, limit: int, **filters: Param) -> list[EventView]:
        """Events, of one ``task`` or ``job``."""
        return [item for page in self._pages("/v1/events", EventPage, limit, **filters) for item in page.items]

    def newest_jobs(self, limit: int, **filters: Param) -> tuple[list[JobView], int]:
        """The last ``limit`` jobs, and how many there are in all: above :data:`NEWEST_OF`, the search was given up."""
        return _last(self._pages("/v1/jobs", JobPage, NEWEST_OF + 1, **filters), limit)

    def newest_events(self, limit: int, **filters: Param) -> tuple[list[EventView], int]:
        """The same of events."""
        return _last(self._pages("/v1/events", EventPage, NEWEST_OF + 1, **filters), limit)

    def command(self, task_id: int, command: TaskCommand) -> TaskView:
        """Pause, resume, kill or retry a task."""
        return self._client.call("POST", f"/v1/tasks/{task_id}:command", command, TaskView)

    def add_inputs(self, task_id: int, request: InputsRequest) -> TaskView:
        """Give a task whose input is open more files; those that it has already are left out."""
        return self._client.call("POST", f"/v1/tasks/{task_id}/inputs", request, TaskView)

    def close_inputs(self, task_id: int) -> TaskView:
        """Say that no more files will come for a task."""
        return self._client.call("POST", f"/v1/tasks/{task_id}/inputs:close", None, TaskView)

    def why_queue(self, queue: str, **offer: Param) -> WhyReply:
        """What a slot of ``queue`` would be given, and why not more; ``offer`` changes what the slot offers."""
        return self._client.call("GET", f"/v1/queues/{quoted(queue)}/why", None, WhyReply, params=offer)

    def why_pilot(self, pilot_id: int) -> WhyReply:
        """The same for what a pilot offered last."""
        return self._client.call("GET", f"/v1/pilots/{pilot_id}/why", None, WhyReply)

    def why_task(self, task_id: int) -> list[WhyReply]:
        """The same from the side of one task: an answer for each queue."""
        return self._client.call("GET", f"/v1/tasks/{task_id}/why", None, WhyList).items

    def resource(self, kind: ResourceKind, name: str) -> Optional[msgspec.Struct]:
        """The description of one site, queue, storage or share; None when there is none of this name."""
        return next((one for one in self.resources(kind) if getattr(one, "name", None) == name), None)

    def resources(self, kind: ResourceKind) -> list[msgspec.Struct]:
        """All descriptions of a kind."""
        return list(self._client.call("GET", kind.path, None, kind.listing).items)

    def put_resource(self, kind: ResourceKind, name: str, spec: msgspec.Struct) -> msgspec.Struct:
        """Make or replace a description."""
        return self._client.call("PUT", f"{kind.path}/{quoted(name)}", spec, kind.spec)

    def delete_resource(self, kind: ResourceKind, name: str) -> None:
        """Remove a description."""
        self._client.call("DELETE", f"{kind.path}/{quoted(name)}", None, type(None))

    def _pages(self, path: str, page_type: type[P], limit: int, **params: Param) -> Iterator[P]:
        """Pages of a list until it ends or ``limit`` items have come."""
        after: Union[int, str, None] = None
        while limit > 0:
            asked = {**params, "after": after, "limit": min(limit, PAGE)}
            page = self._client.call("GET", path, None, page_type, params=asked)
            yield page
            limit -= len(page.items)
            after = page.next
            if after is None:
                return


def _last(pages: Iterator[Union[JobPage, EventPage, PilotPage]], limit: int) -> tuple[list[Any], int]:
    """The last items of a list, of which no more than these are kept, and the number of all."""
    kept: deque[Any] = deque(maxlen=limit)
    total = 0
    for page in pages:
        kept.extend(page.items)
        total += len(page.items)
    return list(kept), total


class ResourceKind:
    """A kind of thing that admins describe: its word, its message types and its path."""

    def __init__(
        self,
        word: str,
        spec: type[msgspec.Struct],
        listing: Union[type[SiteList], type[QueueList], type[StorageList], type[ShareList]],
    ) -> None:
        self.word = word
        self.spec = spec
        self.listing = listing
        self.path = f"/v1/{word}s"


SITE = ResourceKind("site", SiteSpec, SiteList)
QUEUE = ResourceKind("queue", QueueSpec, QueueList)
STORAGE = ResourceKind("storage", StorageSpec, StorageList)
SHARE = ResourceKind("share", ShareSpec, ShareList)
