"""Our projects, files and storages in the words of Data Dispatcher, by explicit tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.states import UnitState
from common.wire import StorageSpec
from common.wire.projects import ProjectFileView, ProjectState, ProjectView, ReplicaView
from server.engine.world import World

QUERY = "data_dispatcher.query"
"""The attribute of a project in which the query is kept that its client had a catalogue answer."""
TIMEOUTS = "timeouts"
"""The attribute of a file that tells how often its worker was silent for too long, as the client shows it."""

INITIAL, RESERVED, DONE, FAILED = "initial", "reserved", "done", "failed"
HANDLE_STATES = (INITIAL, RESERVED, DONE, FAILED)

FILES: Mapping[UnitState, str] = {
    UnitState.PENDING: INITIAL,
    UnitState.READY: INITIAL,
    UnitState.RESERVED: RESERVED,
    UnitState.OUTPUTTING: RESERVED,
    UnitState.DONE: DONE,
    UnitState.FAILED: FAILED,
    UnitState.LOST: FAILED,
    UnitState.CANCELLED: INITIAL,
}
"""A file of a cancelled project was not processed, and stays where it was; the client knows only these four."""

PROJECTS: Mapping[ProjectState, str] = {
    ProjectState.ACTIVE: "active",
    ProjectState.DONE: "done",
    ProjectState.FAILED: "failed",
    ProjectState.CANCELLED: "cancelled",
    ProjectState.ABANDONED: "abandoned",
}
HELD = "held"
"""A state of theirs that no project of ours is ever in."""
PROJECT_STATES: Mapping[str, ProjectState | None] = {**{word: state for state, word in PROJECTS.items()}, HELD: None}


def project(view: ProjectView) -> dict[str, Any]:
    """A project, without its files."""
    attributes = {name: value for name, value in view.attributes.items() if name != QUERY}
    return {
        "project_id": view.id,
        "owner": view.owner,
        "state": PROJECTS[view.state],
        "retry_count": None,
        "attributes": attributes,
        "created_timestamp": view.created,
        "ended_timestamp": view.ended,
        "active": view.state is ProjectState.ACTIVE,
        "query": view.query or view.attributes.get(QUERY),
        "worker_timeout": view.worker_timeout_s,
        "idle_timeout": view.idle_timeout_s,
        "users": view.users,
        "roles": view.roles,
    }


def handle(project_id: int, view: ProjectFileView, *, with_replicas: bool) -> dict[str, Any]:
    """A file of a project."""
    namespace, _, name = view.did.partition(":")
    state = FILES[view.state]
    attributes = {**view.attributes, TIMEOUTS: view.timeouts} if view.timeouts else view.attributes
    found = {
        "project_id": project_id,
        "namespace": namespace,
        "name": name,
        "state": state,
        "worker_id": None if state == INITIAL else view.worker,
        "attempts": view.attempts,
        "attributes": attributes,
        "reserved_since": view.reserved if state == RESERVED else None,
    }
    if with_replicas:
        there = view.state is not UnitState.PENDING
        found["replicas"] = {each.storage: replica(view.did, each, there=there) for each in view.replicas}
    return found


def replica(did: str, view: ReplicaView, *, there: bool) -> dict[str, Any]:
    """A replica of a file; ``there``: it need not be recalled from tape first."""
    namespace, _, name = did.partition(":")
    return {
        "name": name,
        "namespace": namespace,
        "path": view.path,
        "rse": view.storage,
        "url": view.urls[0] if view.urls else None,
        "urls": view.urls,
        "preference": view.distance,
        "available": view.available and there,
        "rse_available": view.available,
        "proximity": view.distance,
    }


def rse(spec: StorageSpec, world: World) -> dict[str, Any]:
    """A storage; what ours don't have is as it is for an RSE that has none."""
    return {
        "name": spec.name,
        "description": spec.description,
        "is_available": world.readable(spec.name),
        "is_enabled": True,
        "is_tape": spec.tape,
        "pin_url": None,
        "poll_url": None,
        "remove_prefix": "",
        "add_prefix": spec.endpoints[0].url,
        "pin_prefix": "",
        "preference": 0,
        "type": None,
    }
