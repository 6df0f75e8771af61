"""What ``pilotage harvester check`` looks at: everything that a queue needs, with what to do where something is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from common.errors import PilotageError
from common.http import HttpError, ProblemError, Unreachable
from common.quantities import format_about
from common.tokens import SecretFileError, read_secret_file
from harvester.backends.base import Backend, BackendError
from harvester.config import backend_key
from harvester.credentials.ends import ends_of
from harvester.credentials.keeper import CredentialState, told_states
from harvester.service import Parts, alone, in_use

NO_MARK = "00000000000000000000000000000000"
SOON_S = 86400.0
"""A token that ends sooner, and that nobody here renews, is worth a warning."""


class Verdict(str, Enum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Check(NamedTuple):
    """One thing that was looked at; ``remedy`` says what to do about it, where something is wrong."""

    what: str
    verdict: Verdict
    words: str = ""
    remedy: str = ""


def checks(parts: Parts) -> Iterator[Check]:
    """Everything, in the order in which one rests on another. Credentials are obtained unless a harvester runs."""
    yield _state_dir(parts)
    yield from _credentials(parts)
    token = _token(parts)
    yield token
    if token.verdict is not Verdict.FAILED:
        yield from _server(parts)
    yield from _backends(parts)
    yield from _bundles(parts)


def _state_dir(parts: Parts) -> Check:
    free = os.statvfs(parts.state_dir)
    free_mb = free.f_bavail * free.f_frsize // 1024**2
    words = (
        f"{parts.state_dir}, {free_mb} MiB free{', in use by a running harvester' if in_use(parts.state_dir) else ''}"
    )
    if free_mb < 100:
        return Check("state_dir", Verdict.WARNING, words, "make room: without it no worker can be written down")
    return Check("state_dir", Verdict.OK, words)


def _credentials(parts: Parts) -> Iterator[Check]:
    if not parts.config.credentials:
        return
    with alone(parts.state_dir) as first:
        if first:
            parts.keeper.renew_due()
            states = parts.keeper.states()
        else:
            states = [state for state in told_states(parts.state_dir) if state.name in parts.config.credentials]
    for state in states:
        yield _credential(state, parts.clock.now())


def _credential(state: CredentialState, now: float) -> Check:
    what = f"credential {state.name}"
    words = ", ".join([state.kind, until(state.expires, now), *state.attributes])
    if not state.problem:
        return Check(what, Verdict.OK, words)
    usable = Path(state.file).exists() and (state.expires is None or state.expires > now)
    remedy = f"correct [harvester.credentials.{state.name}], or what it gets the credential from"
    return Check(what, Verdict.WARNING if usable else Verdict.FAILED, f"{state.kind}: {state.problem}", remedy)


def _token(parts: Parts) -> Check:
    path = Path(parts.config.token_file).expanduser().absolute()
    remedy = f"put a token of role harvester into {path}: pilotage server token --role harvester"
    try:
        end = ends_of(read_secret_file(path)).expires
    except SecretFileError as error:
        return Check("token", Verdict.FAILED, error.detail, remedy)
    except ValueError as error:
        return Check("token", Verdict.FAILED, str(error), remedy)
    now = parts.clock.now()
    renewed = path.parent == parts.state_dir / "credentials"
    if end is not None and end <= now:
        return Check("token", Verdict.FAILED, f"it has expired {format_about(now - end)} ago", remedy)
    if end is not None and end - now < SOON_S and not renewed:
        return Check("token", Verdict.WARNING, until(end, now), f"{remedy}; or have it renewed by a credential")
    return Check("token", Verdict.OK, until(end, now))


def _server(parts: Parts) -> Iterator[Check]:
    for queue in parts.config.queues:
        what = f"queue {queue}: server"
        try:
            demand = parts.server.demand(queue)
        except PilotageError as error:
            yield Check(what, Verdict.FAILED, str(error), _remedy(error, parts, queue))
            if isinstance(error, Unreachable):
                return  # the other queues' calls would only take as long again
            continue
        wanted = sum(shape.pilots for shape in demand.shapes)
        yield Check(what, Verdict.OK, f"{demand.queue.status.value}, {wanted} pilots wanted")


def _remedy(error: PilotageError, parts: Parts, queue: str) -> str:
    if isinstance(error, Unreachable):
        return f"see that {parts.config.server_url} answers from here; correct server_url or ca_file"
    if isinstance(error, ProblemError) and error.status in (401, 403):
        return "get another token of role harvester: pilotage server token --role harvester"
    if isinstance(error, ProblemError) and error.status == 404:
        return f"make the queue known to the server: pilotage admin queue {queue}; or correct its name here"
    return "look at the server's log" if isinstance(error, HttpError) else "correct the configuration"


def _backends(parts: Parts) -> Iterator[Check]:
    asked: dict[bytes, tuple[Backend, list[str]]] = {}
    for name, queue in parts.config.queues.items():
        asked.setdefault(backend_key(queue), (parts.backends[name], []))[1].append(name)
    for backend, queues in asked.values():
        kind = parts.config.queues[queues[0]].backend
        what = f"queue {', '.join(queues)}: backend {kind}"
        try:
            backend.find_by_marks([NO_MARK])
        except BackendError as error:
            remedy = f"see that its batch system answers here, and correct [harvester.queues.{queues[0]}] options"
            yield Check(what, Verdict.FAILED, str(error), remedy)
        else:
            yield Check(what, Verdict.OK, "it answers")


def _bundles(parts: Parts) -> Iterator[Check]:
    for name, queue in parts.config.queues.items():
        if queue.ship_bundle is not None and not os.access(queue.ship_bundle, os.R_OK):
            yield Check(
                f"queue {name}: bundle",
                Verdict.FAILED,
                f"{queue.ship_bundle} can't be read",
                "make it: pilotage pilot bundle",
            )


def until(end: float | None, now: float) -> str:
    """How long something is good for."""
    if end is None:
        return "its end is not known"
    return f"good for {format_about(end - now)}" if end > now else f"ended {format_about(now - end)} ago"
