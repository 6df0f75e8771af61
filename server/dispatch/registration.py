"""Workers are written down, pilots register with their worker's secret."""

from __future__ import annotations

import msgspec

from common.states import FINAL_WORKER_STATES, WorkerState
from common.tokens import hash_secret
from common.wire import (
    PilotEnd,
    PilotGrant,
    PilotRegistration,
    PilotSettings,
    QueueMode,
    QueueSpec,
    WorkerOutcome,
    WorkerReport,
    WorkersReportReply,
    WorkersReportRequest,
)
from server.config import Knobs
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound, Unauthenticated, UsedUp
from server.dispatch.preassigned import release_ended
from server.dispatch.reap import lose_jobs
from server.store import events, pilots, pushed
from server.store.codes import PilotState
from server.store.pilots import PilotRow, WorkerRow


def register(dispatcher: Dispatcher, secret: str, request: PilotRegistration) -> PilotGrant:
    """A pilot for a worker's secret: one for each node and start. The same nonce gets the same pilot again.

    Raises:
        Unauthenticated: no worker has this secret.
        UsedUp: it has expired, its worker has ended, or another pilot used it.
    """
    now = dispatcher.now()
    look = dispatcher.looks.get()
    with dispatcher.database.write() as connection:
        owner = pilots.worker_by_secret(connection, hash_secret(secret))
        if owner is None or owner.mark != request.worker:
            raise Unauthenticated("no worker of that mark has this secret, or it has ended")
        owner = pilots.worker_by_mark(connection, owner.mark)
        assert owner is not None
        _check_worker(owner, request, now)
        queue = look.world.queues.get(owner.queue)
        if queue is None:
            raise NotFound(f"queue {owner.queue} was deleted")
        earlier = pilots.find_registered(connection, owner.mark, request.node, owner.starts)
        if earlier is not None and earlier.state != PilotState.EXPECTED:
            if earlier.nonce != request.nonce:
                raise UsedUp(f"another pilot registered for node {request.node} of worker {owner.mark}")
            pilot_id = earlier.id
        else:
            values: dict[str, object] = {
                "nonce": request.nonce,
                "node": request.node,
                "host": request.host,
                "version": request.version[:64],
                "node_info": msgspec.json.encode(request.node_info).decode() if request.node_info is not None else None,
            }
            taken = pushed.adopt(connection, owner, request.node, values, request.offer, now)
            if taken is None and earlier is not None:
                raise UsedUp(f"the pilot on node {request.node} of worker {owner.mark} is expected no more")
            pilot_id = taken or pilots.register(connection, owner, queue.site, values, request.offer, now)
            events.add(
                connection,
                events.Event(
                    now, "PILOT_REGISTERED", "pilot", pilot_id,
                    detail={"worker": owner.mark, "queue": owner.queue, "host": request.host},
                ),
            )  # fmt: skip
    token, expires = mint(dispatcher, pilot_id, look.knobs)
    return PilotGrant(pilot_id, token, expires, queue, settings_of(look.knobs), owner.shape)


def _check_worker(owner: WorkerRow, request: PilotRegistration, now: float) -> None:
    if owner.expires < now:
        raise UsedUp(f"the secret of worker {owner.mark} has expired")
    if owner.state in FINAL_WORKER_STATES:
        raise UsedUp(f"worker {owner.mark} is {owner.state.value}")
    if request.node >= owner.nodes:
        raise UsedUp(f"worker {owner.mark} has {owner.nodes} nodes, numbered from 0")


def mint(dispatcher: Dispatcher, pilot_id: int, knobs: Knobs) -> tuple[str, float]:
    """A pilot's token and the moment of its end."""
    return dispatcher.issuer.mint_pilot(pilot_id, knobs.pilot_token_s, knobs.token_epoch)


def settings_of(knobs: Knobs) -> PilotSettings:
    """What the server wants of a pilot."""
    return PilotSettings(knobs.heartbeat_s, knobs.idle_exit_s, knobs.acquire_wait_s)


def end(dispatcher: Dispatcher, pilot: PilotRow, request: PilotEnd) -> None:
    """A pilot leaves. Jobs that it still holds are given up."""
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        if pilots.end(connection, pilot.id, request.reason, request.log_tail, now):
            detail: dict[str, object] = {"reason": request.reason}
            if request.error_code is not None:
                detail["error_code"] = request.error_code
            events.add(connection, events.Event(now, "PILOT_ENDED", "pilot", pilot.id, detail=detail))
    dispatcher.pilots.drop(pilot.id)
    dispatcher.idle.busy(pilot.id)
    # Also when that was known: the server may have died between the two steps.
    lose_jobs(dispatcher, pilot.id, "the pilot left without reporting the job's end")


def report_workers(dispatcher: Dispatcher, request: WorkersReportRequest) -> WorkersReportReply:
    """Write down what harvester says of its workers, an outcome for each.

    A worker that the server does not know yet must come with its queue and the hash of its secret.
    """
    now = dispatcher.now()
    queues = dispatcher.looks.get().world.queues
    outcomes = []
    with dispatcher.database.write() as connection:
        for report in map(_explained, request.workers):
            known = pilots.worker_by_mark(connection, report.mark)
            refusal = _refusal(known, report, request.harvester, set(queues))
            if known is None and not refusal:
                owner = pilots.worker_by_secret(connection, report.secret_hash or "")
                if owner is not None and owner.mark != report.mark:
                    refusal = "another worker has this secret"
            if refusal:
                outcomes.append(WorkerOutcome(report.mark, False, refusal))
                continue
            if known is None:
                pilots.add_worker(connection, request.harvester, report, now)
            else:
                requeued = known.state == WorkerState.RUNNING and report.state == WorkerState.SUBMITTED
                pilots.update_worker(connection, report, requeued, now)
            if known is None or known.state != report.state:
                events.add(
                    connection,
                    events.Event(
                        now, f"WORKER_{report.state.name}", "worker", report.mark,
                        source=known.state if known else None, target=report.state,
                        detail=_detail(report),
                    ),
                )  # fmt: skip
            since = now - 2 * dispatcher.looks.get().knobs.heartbeat_s
            outcomes.append(
                WorkerOutcome(
                    report.mark,
                    True,
                    pilots_alive=pilots.pilots_alive(connection, report.mark, since),
                    pilots_seen=pilots.pilots_seen(connection, report.mark),
                    push=report.state == WorkerState.PLANNED and _pushes(queues.get(report.queue)),
                )
            )
    over = {report.mark for report in request.workers if report.state in FINAL_WORKER_STATES}
    # Also when that was known: the server may have died between the two steps.
    release_ended(dispatcher, [outcome.mark for outcome in outcomes if outcome.accepted and outcome.mark in over])
    return WorkersReportReply(outcomes)


def _pushes(queue: QueueSpec | None) -> bool:
    return queue is not None and queue.mode == QueueMode.PUSH


def _explained(report: WorkerReport) -> WorkerReport:
    """The report, its reason with the exit code if that isn't in it: so it is there wherever reasons are shown."""
    code = f"exit code {report.exit_code}"
    if not report.exit_code or code in report.reason:
        return report
    return msgspec.structs.replace(report, reason=f"{report.reason} ({code})" if report.reason else code)


def _detail(report: WorkerReport) -> dict[str, object]:
    detail: dict[str, object] = {"queue": report.queue, "batch_id": report.batch_id, "reason": report.reason}
    if report.host:
        detail["host"] = report.host
    if report.exit_code is not None:
        detail["exit_code"] = report.exit_code
    return detail


def _refusal(known: WorkerRow | None, report: WorkerReport, harvester: str, queues: set[str]) -> str:
    if known is None:
        if report.queue not in queues:
            return f"there is no queue {report.queue!r}"
        if report.secret_hash is None:
            return "a new worker must come with the hash of its secret"
        return ""
    if known.harvester != harvester:
        return f"this worker belongs to harvester {known.harvester!r}"
    if known.state in FINAL_WORKER_STATES and report.state != known.state:
        return f"this worker is {known.state.value} already"
    return ""


def pilot_of(dispatcher: Dispatcher, pilot_id: int) -> PilotRow | None:
    """The pilot of a token."""
    with dispatcher.database.read() as connection:
        return pilots.get(connection, pilot_id)
