"""Pilots fetch credentials for the storages that their jobs use: the rule which, and the record of each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from common.proxies import BadRequest
from common.states import FINAL_JOB_STATES
from common.wire import CredentialKind, CredentialReply, CredentialRequest, OutputRole, ReplicaSpec
from server.access.providers import Given, ProviderFailed
from server.dispatch.acquire import not_held
from server.dispatch.assign import secondary_files
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Unprocessable
from server.dispatch.facts import task_facts
from server.dispatch.probes import files_of
from server.engine.credentials import File, Grant, Held, grant
from server.store import events, jobs, outputs, units
from server.store.codes import OutputState
from server.store.database import Connection
from server.store.jobs import JobRow
from server.store.outputs import OutputRow

logger = logging.getLogger(__name__)

SCOPES_TOLD = 5
"""Of a token, in its event."""


def give(dispatcher: Dispatcher, pilot_id: int, request: CredentialRequest) -> CredentialReply:
    """What a storage wants to be shown for a transfer of one of the pilot's own jobs, and no more than that.

    Raises:
        NotFound, Gone: the job is not this pilot's (any more).
        Unprocessable: the job has nothing to do with the URL, the CSR proves no key, or no payload may have this.
        ProviderFailed: whoever gives such credentials does not do so now.
    """
    if request.payload and request.write:
        raise Unprocessable("a payload only reads", [("$.write", "leave it out")])
    world = dispatcher.looks.get().world
    with dispatcher.database.read() as connection:
        job = jobs.get(connection, request.job_id)
        if job is None or job.pilot_id != pilot_id:
            raise not_held(job, pilot_id, request.job_id)
        held = _held(dispatcher, connection, job, request.write)
        task = dispatcher.task(connection, job.task_id)
        if task is not None and job.state not in FINAL_JOB_STATES:
            reads, writes = files_of(connection, dispatcher.looks.get(), task.spec, job)
            held = replace(held, inputs=[*held.inputs, *reads], outputs=[*held.outputs, *writes])
    granted = grant(world, held, request.urls, write=request.write)
    if granted is None:
        if job.state in FINAL_JOB_STATES:
            raise not_held(job, pilot_id, request.job_id)
        what = "stores nothing" if request.write else "reads nothing"
        raise Unprocessable(f"job {job.id} {what} there", [("$.urls[0]", "name a URL as the server told it")])
    return _answer(dispatcher, job, granted, request)


def _held(dispatcher: Dispatcher, connection: Connection, job: JobRow, write: bool) -> Held:
    over = job.state in FINAL_JOB_STATES
    if write and over:
        left = outputs.of_jobs(connection, [job.id], [OutputState.ABANDONED])
        return Held(job.site, abandoned=[_file(each) for each in left])
    if over:
        return Held(job.site)
    recorded = outputs.of_jobs(connection, [job.id], [OutputState.RECORDED])
    inputs = [] if write else _inputs(dispatcher, connection, job)
    return Held(job.site, inputs, [_file(each) for each in recorded])


def _file(row: OutputRow) -> File:
    return File(row.storage, row.path, row.role == OutputRole.LOG.value)


def _inputs(dispatcher: Dispatcher, connection: Connection, job: JobRow) -> Sequence[ReplicaSpec]:
    """Every replica of everything that a job reads."""
    task = task_facts(dispatcher, connection, job.task_id)
    beside = secondary_files(connection, task.id, task.spec, job.id) if task.spec.secondary_inputs else {}
    files = chain(task.spec.common_input, *beside.values())
    taken = units.taken_by(connection, job.id)
    return [
        *chain.from_iterable(each.replicas for each in taken),
        *chain.from_iterable(each.replicas for each in files),
    ]


def _answer(dispatcher: Dispatcher, job: JobRow, granted: Grant, request: CredentialRequest) -> CredentialReply:
    endpoint = granted.endpoint
    reply = CredentialReply(kind=endpoint.credential, covers=list(granted.covers))
    provider = endpoint.provider
    if endpoint.credential is CredentialKind.PROXY and request.payload:
        provider = endpoint.payload_provider
    if provider is None:
        # What the pilot has itself is never the payload's.
        reply.ambient = not request.payload and endpoint.credential is not CredentialKind.NONE
        return reply
    reply.provider = provider
    if endpoint.credential is CredentialKind.PROXY:
        # A proxy is good for all of the robot's: it is not narrowed, but need not be asked for again either.
        reply.covers = sorted({*reply.covers, endpoint.url.removesuffix("/") + "/"})
        if request.csr is None:
            reply.csr_wanted = True
            return reply
    try:
        given = _from_provider(dispatcher, granted, provider, request)
    except ProviderFailed as error:
        _note_failure(dispatcher, job, granted, provider, error)
        raise
    dispatcher.providers.well(provider)
    reply.life_s = given.life_s
    if endpoint.credential is CredentialKind.PROXY:
        reply.chain = given.content
    else:
        reply.token = given.content
    _note(dispatcher, job, granted, provider, request, given)
    return reply


def _from_provider(dispatcher: Dispatcher, granted: Grant, provider: str, request: CredentialRequest) -> Given:
    providers = dispatcher.providers
    if granted.endpoint.credential is CredentialKind.TOKEN:
        tokens = providers.tokens.get(provider)
        if tokens is None:
            raise ProviderFailed(f"storage {granted.storage}: there is no [server.credentials.{provider}] for tokens")
        return tokens.token(granted.endpoint.audience, granted.scopes)
    proxies = providers.proxies.get(provider)
    if proxies is None:
        raise ProviderFailed(f"storage {granted.storage}: there is no [server.credentials.{provider}] for proxies")
    if request.payload and not proxies.section.read_only:
        words = f"[server.credentials.{provider}] may write: a payload's needs read_only = true, and a robot that only reads"
        raise ProviderFailed(words)
    try:
        return proxies.proxy(request.csr or "")
    except BadRequest as error:
        raise Unprocessable(f"the CSR cannot be signed: {error}", [("$.csr", str(error))]) from error


def _note(
    dispatcher: Dispatcher, job: JobRow, granted: Grant, provider: str, request: CredentialRequest, given: Given
) -> None:
    detail: dict[str, object] = {
        "storage": granted.storage,
        "provider": provider,
        "kind": granted.endpoint.credential.value,
        "write": request.write,
        "payload": request.payload,
        "life_s": round(given.life_s),
        "number": given.number,
    }
    if granted.endpoint.credential is CredentialKind.TOKEN:
        detail["audience"] = granted.endpoint.audience
        detail["scopes"] = [*granted.scopes[:SCOPES_TOLD]]
        detail["scopes_in_all"] = len(granted.scopes)
    _write(dispatcher, job, "CREDENTIAL_GIVEN", "pilot", job.pilot_id, detail)


def _note_failure(dispatcher: Dispatcher, job: JobRow, granted: Grant, provider: str, error: ProviderFailed) -> None:
    """Tell it once in a while: pilots ask again and again."""
    logger.error("[server.credentials.%s] gives nothing for storage %s: %s", provider, granted.storage, error)
    if dispatcher.providers.failed(provider):
        detail: dict[str, object] = {"provider": provider, "error": str(error)}
        _write(dispatcher, job, "CREDENTIAL_FAILED", "storage", granted.storage, detail)


def _write(
    dispatcher: Dispatcher, job: JobRow, kind: str, subject: str, subject_id: object, detail: dict[str, object]
) -> None:
    event = events.Event(dispatcher.now(), kind, subject, subject_id, job.task_id, job.id, detail=detail)
    with dispatcher.database.write() as connection:
        events.add(connection, event)
