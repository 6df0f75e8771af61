"""PanDA's words for states and numbers for errors, and ours."""

from __future__ import annotations

from common.errors import ErrorCode
from common.states import JobState, ResourceState, WorkerState

JOB_STATES: dict[str, JobState] = {
    "sent": JobState.SENT,
    "starting": JobState.STARTING,
    "running": JobState.RUNNING,
    "holding": JobState.HOLDING,
    "transferring": JobState.HOLDING,
    "finished": JobState.FINISHED,
    "failed": JobState.FAILED,
    "cancelled": JobState.CANCELLED,
}
"""What pilots and Harvester report. To us the outputs of a job that is ``transferring`` are still on their way."""
STATUS_OF: dict[JobState, str] = {state: state.value for state in JobState}
"""What they are told: for jobs both have the same words."""
QUEUE_STATUS: dict[ResourceState, str] = {
    ResourceState.ONLINE: "online",
    ResourceState.PAUSED: "brokeroff",
    ResourceState.DRAINING: "brokeroff",
    ResourceState.TEST: "test",
    ResourceState.OFFLINE: "offline",
}
WORKER_STATES: dict[str, WorkerState] = {
    "pending": WorkerState.PLANNED,
    "submitted": WorkerState.SUBMITTED,
    "ready": WorkerState.SUBMITTED,
    "running": WorkerState.RUNNING,
    "idle": WorkerState.RUNNING,
    "missing": WorkerState.MISSING,
    "missed": WorkerState.MISSING,
    "finished": WorkerState.FINISHED,
    "failed": WorkerState.FAILED,
    "cancelled": WorkerState.CANCELLED,
}
"""A worker that is ``ready`` waits for its jobs, one that is ``idle`` runs and has none."""

_C = ErrorCode
PILOT_ERRORS: dict[int, ErrorCode] = {
    1116: _C.SERVICE_UNAVAILABLE,
    1117: _C.BAD_CONFIGURATION,
    1143: _C.FILE_HANDLING_FAILED,
    1177: _C.NO_PROXY,
    1180: _C.STAGE_IN_FAILED,
    1181: _C.STAGE_OUT_FAILED,
    1186: _C.MISSING_INSTALLATION,
    1187: _C.PAYLOAD_FAILED,
    1191: _C.EMPTY_OUTPUT,
    1220: _C.PAYLOAD_FAILED,
    1223: _C.OUT_OF_MEMORY,
    1224: _C.PAYLOAD_FAILED,
    1228: _C.PAYLOAD_FAILED,
    1234: _C.GIVEN_BACK,
    1238: _C.PAYLOAD_FAILED,
    1240: _C.INTERNAL_PILOT_PROBLEM,
    1244: _C.MISSING_INSTALLATION,
    1246: _C.BAD_SANDBOX,
    1247: _C.INTERNAL_PILOT_PROBLEM,
    1300: _C.INTERNAL_PILOT_PROBLEM,
    1301: _C.INTERNAL_PILOT_PROBLEM,
    1302: _C.INTERNAL_PILOT_PROBLEM,
    1307: _C.CONTAINER_FAILED,
    1310: _C.INTERNAL_PILOT_PROBLEM,
    1311: _C.INTERNAL_PILOT_PROBLEM,
    1312: _C.INTERNAL_PILOT_PROBLEM,
    1315: _C.PAYLOAD_FAILED,
    1316: _C.SERVICE_UNAVAILABLE,
    1317: _C.WALL_TIME_REACHED,
    1321: _C.SERVICE_UNAVAILABLE,
    1322: _C.REPLICA_NOT_FOUND,
    1326: _C.REPLICA_NOT_FOUND,
    1328: _C.SIGSEGV,
    1329: _C.BAD_CONFIGURATION,
    1330: _C.SERVICE_UNAVAILABLE,
    1332: _C.RESOURCE_UNAVAILABLE,
    1334: _C.PAYLOAD_FAILED,
    1335: _C.BAD_SANDBOX,
    1336: _C.GIVEN_BACK,
    1337: _C.INTERNAL_PILOT_PROBLEM,
    1339: _C.SETUP_FAILED,
    1340: _C.CONTAINER_NO_USER_NAMESPACE,
    1341: _C.BAD_CONFIGURATION,
    1343: _C.MISSING_OUTPUT,
    1347: _C.MISSING_INSTALLATION,
    1348: _C.RESOURCE_UNAVAILABLE,
    1351: _C.PAYLOAD_FAILED,
    1352: _C.INTERNAL_PILOT_PROBLEM,
    1353: _C.INTERNAL_PILOT_PROBLEM,
    1354: _C.INTERNAL_PILOT_PROBLEM,
    1358: _C.MISSING_INSTALLATION,
    1359: _C.BAD_CONFIGURATION,
    1361: _C.STAGE_IN_FAILED,
    1362: _C.STAGE_IN_FAILED,
    1363: _C.KILL_SIGNAL,
    1365: _C.MIDDLEWARE_IMPORT_FAILED,
} | {int(code): code for code in ErrorCode if code < 1400}
"""Numbers of PanDA's pilot. Ours below 1400 are its own."""


def error_of(pilot_code: int, payload_code: int) -> ErrorCode:
    """Our number for a failed job, by the pilot's number and the payload's exit code.

    Some of its numbers come negative: a later job might mend it. What nobody knows is the payload's fault if that says
    of itself that it failed, else the site's.
    """
    found = PILOT_ERRORS.get(abs(pilot_code))
    if found is not None:
        return found
    return ErrorCode.PAYLOAD_FAILED if payload_code else ErrorCode.GENERAL_ERROR


KILLED = frozenset({ErrorCode.KILLED_BY_SERVER, ErrorCode.USER_KILL})
"""Ends that were asked for: such a job is cancelled, not failed."""
