"""What people tell tasks and workflows that are there already, and what they hand in beside them."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import msgspec

from common.states import TaskState
from common.wire.base import Id, Message, Name, Strict
from common.wire.workflows import WorkflowView

Reason = Annotated[str, msgspec.Meta(max_length=4096)]


class TaskCommand(Strict):
    """``POST /v1/tasks/{id}:command``, and the same for all tasks of a workflow.

    ``pause``, ``resume``, ``kill``, ``finish`` (no new jobs; with ``hard`` running ones are killed), ``retry`` (what
    failed or was lost), ``restart`` (what is done; single ``units`` with the others of their jobs), ``avalanche``
    (scouting is over).
    """

    command: str
    reason: Reason = ""
    hard: bool = False
    units: Annotated[list[Id], msgspec.Meta(max_length=10_000)] = []


class TaskChange(Strict, kw_only=True):
    """``PATCH /v1/tasks/{id}``: what may change while a task lives. What is not given stays."""

    priority: Optional[Annotated[int, msgspec.Meta(ge=-10_000, le=10_000)]] = None
    share: Optional[Name] = None
    max_attempts: Optional[Annotated[int, msgspec.Meta(ge=1, le=100)]] = None
    sites: Optional[Annotated[list[Name], msgspec.Meta(max_length=1000)]] = None
    exclude_sites: Optional[Annotated[list[Name], msgspec.Meta(max_length=1000)]] = None
    reason: Reason = ""


class TaskRefusal(Message):
    """A task of a workflow that did not take a command, and why."""

    task_id: int
    stage: str
    state: TaskState
    reason: str


class WorkflowCommandReply(Message):
    """The workflow after a command, and its tasks that did not take it."""

    workflow: WorkflowView
    refused: list[TaskRefusal] = []


class CloneRequest(Strict, kw_only=True):
    """``POST /v1/workflows/{id}:clone``: a new workflow from what was submitted, with some fields changed.

    ``overrides`` maps a stage's name, or ``*`` for all, to the fields that change: tables are changed field by field,
    ``null`` puts a field back to its default. ``request_id`` makes a repeat harmless.
    """

    name: Optional[Name] = None
    overrides: dict[str, dict[str, Any]] = {}
    labels: dict[str, str] = {}
    scope: Optional[Name] = None
    request_id: Optional[str] = None


class DeletionView(Message):
    """``DELETE /v1/workflows/{id}``: it is taken away piece by piece; ``ended`` is when nothing was left."""

    workflow_id: int
    asked: float
    who: str
    ended: Optional[float] = None


class SandboxView(Message):
    """An uploaded sandbox."""

    sha256: str
    size: int
    uploaded: float
    used: float


class SandboxList(Message):
    """A person's sandboxes, and the bytes that they may upload in all."""

    items: list[SandboxView] = []
    used: int = 0
    quota: int = 0


class SecretValue(Strict):
    """``PUT /v1/secrets/{name}``."""

    value: Annotated[str, msgspec.Meta(min_length=1, max_length=65_536)]


class SecretView(Message):
    """A secret of a person; what it is nobody is told but the jobs that ask for it."""

    name: str
    changed: float


class SecretList(Message):
    items: list[SecretView] = []
