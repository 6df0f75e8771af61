"""The kinds of events: what is recorded, when, and what its detail holds.

Every kind that any part emits is here; the reference page is made from it, and a test reads the sources and fails when
one is not. Times, task, job, and the states before and after are columns of every event; *detail* lists what comes on
top of them. Events are per job, not per unit: what became of a job's units is in the detail of its end.
"""

from __future__ import annotations

from enum import Enum


class EventKind(str, Enum):
    """What happened. Kinds last for years: they are added, never renamed."""

    TASK_REGISTERED = "TASK_REGISTERED"
    """A task is known, its definition is not complete yet. Detail: reason, who."""
    TASK_DEFINED = "TASK_DEFINED"
    """A task was submitted. Detail: reason, who, when it came to be so by a command."""
    TASK_PENDING = "TASK_PENDING"
    """A task waits for its input: a stage before it, or files on tape. Detail: reason, who."""
    TASK_READY = "TASK_READY"
    """A task has units and no job yet. Detail: reason, who."""
    TASK_SCOUTING = "TASK_SCOUTING"
    """The first jobs of a task run alone, to be measured. Detail: reason, who."""
    TASK_RUNNING = "TASK_RUNNING"
    """A task has jobs. Detail: reason, who."""
    TASK_THROTTLED = "TASK_THROTTLED"
    """The server holds a task back for a while. Detail: reason, who."""
    TASK_PAUSED = "TASK_PAUSED"
    """A task gets no new jobs until it is resumed. Detail: reason, who."""
    TASK_EXHAUSTED = "TASK_EXHAUSTED"
    """A task has stopped by itself, because its owner has to look at it. Detail: reason, who."""
    TASK_FINISHING = "TASK_FINISHING"
    """A task makes no new jobs and waits for the last. Detail: reason, who."""
    TASK_DONE = "TASK_DONE"
    """All units of a task are done. Detail: reason, who."""
    TASK_FINISHED = "TASK_FINISHED"
    """A task is over, some of its units are not done. Detail: reason, who."""
    TASK_FAILED = "TASK_FAILED"
    """A task is over and no unit of it is done. Detail: reason, who."""
    TASK_BROKEN = "TASK_BROKEN"
    """A task cannot run as it was defined. Detail: reason, who."""
    TASK_ABORTED = "TASK_ABORTED"
    """A task was killed. Detail: reason, who."""
    TASK_OVERDUE = "TASK_OVERDUE"
    """A task is in a state for longer than its time-out. Detail: reason."""
    TASK_OUTGROWN = "TASK_OUTGROWN"
    """Units of a task ask for more than any queue has. Detail: reason."""
    TASK_CHANGED = "TASK_CHANGED"
    """A person changed a task. Detail: old, new, reason, who."""
    TASK_COMMAND = "TASK_COMMAND"
    """A person commanded a task, and its state stayed as it was. Detail: command, reason, who."""
    TASK_MEASURED = "TASK_MEASURED"
    """A task was measured by its finished jobs. Detail: what was found."""
    WORKFLOW_DELETED = "WORKFLOW_DELETED"
    """A person deleted a workflow. Detail: who, outputs."""
    NOTICE_GIVEN_UP = "NOTICE_GIVEN_UP"
    """A notice that a workflow is over could not be delivered. Detail: target, error."""

    JOB_CLAIMED = "JOB_CLAIMED"
    """A pilot has claimed units: the job begins. Detail: units, queue, pilot, host."""
    JOB_STARTING = "JOB_STARTING"
    """A job fetches its input and prepares."""
    JOB_RUNNING = "JOB_RUNNING"
    """The payload runs."""
    JOB_HOLDING = "JOB_HOLDING"
    """The payload has ended; the job uploads its outputs, or waits for their registration."""
    JOB_TRANSFERRING = "JOB_TRANSFERRING"
    """The outputs of a job are on their way to their last place."""
    JOB_FINISHED = "JOB_FINISHED"
    """A job was confirmed. Detail: outputs (how many)."""
    JOB_FAILED = "JOB_FAILED"
    """A job has failed. Detail: outputs, error_code, error_detail."""
    JOB_CANCELLED = "JOB_CANCELLED"
    """A job was killed, or its task. Detail as of a failed one."""
    JOB_CLOSED = "JOB_CLOSED"
    """A job ended without having to do anything. Detail as of a failed one."""
    JOB_LOST = "JOB_LOST"
    """A job was given up: its pilot fell silent or left, or it stayed in a state for too long. Detail: error_code, detail."""
    RETRY_RULE = "RETRY_RULE"
    """A retry rule was applied to a failed job. Detail: rule, units (how many), and what it wants: last (why they are not
    tried again), limit, memory_mb, wall_s; problem, if its plug-in failed."""
    RETRY_RULE_PASSIVE = "RETRY_RULE_PASSIVE"
    """A retry rule that is passive would have applied to a failed job. Detail as of one that is applied."""
    HOST_BLOCKED = "HOST_BLOCKED"
    """A host gets nothing for a while because it failed jobs fast. Detail: queue, until, blocks (in a row), error_code."""

    INPUT_ADDED = "INPUT_ADDED"
    """A person gave an open input more files. Detail: who, files (how many)."""
    INPUT_CLOSED = "INPUT_CLOSED"
    """A person closed an open input. Detail: who, files."""
    CATALOG_FAILED = "CATALOG_FAILED"
    """A catalogue did not answer the query of a task, which waits. Detail: catalog, reason, failures (in a row)."""
    RECALL_ASKED = "RECALL_ASKED"
    """Files were asked of a tape system. Detail: storage, files (how many), request."""
    RECALL_FAILED = "RECALL_FAILED"
    """A tape system gave up files of a task. Detail: storage, reason, files (how many), path (of the first)."""

    PROJECT_TIMED_OUT = "PROJECT_TIMED_OUT"
    """Files of a project were taken from workers that held them for too long. Detail: files (how many), failed (whether
    they count as failed)."""

    OUTPUT_SWEPT = "OUTPUT_SWEPT"
    """An output that was recorded and never confirmed was removed from its storage. Detail: path."""
    REPLICA_BAD = "REPLICA_BAD"
    """A pilot found a file missing or damaged on a storage. Detail: storage, error_code, detail."""
    SITE_FAULT = "SITE_FAULT"
    """A job failed by its site's fault. Detail: site, in_a_row."""

    PROBE_FAILED = "PROBE_FAILED"
    """What a probe tried at a site does not work, and worked before or was never tried. Detail: operation (read, write,
    environment), storage, gpu (whether by slots with GPUs), error_code, error_detail."""
    PROBE_MENDED = "PROBE_MENDED"
    """What had failed at a site works again for its probe. Detail as of the failure, without an error, and failed_s (for
    how long it had not)."""
    PROBE_MISSED = "PROBE_MISSED"
    """A site's probe was not run, the first time in a row. Detail: gpu, reason."""

    PILOT_REGISTERED = "PILOT_REGISTERED"
    """A pilot has started in its slot. Detail: worker, queue, host."""
    PILOT_ENDED = "PILOT_ENDED"
    """A pilot has left. Detail: reason, error_code."""
    PILOT_LOST = "PILOT_LOST"
    """A pilot was not heard of any more. Detail: reason, silent_s (at the least), jobs (how many were given up)."""

    WORKER_PLANNED = "WORKER_PLANNED"
    """Harvester means to submit a worker. Detail, of all workers' events: queue, batch_id, reason; host and exit_code,
    where they are known."""
    WORKER_SUBMITTING = "WORKER_SUBMITTING"
    """Harvester hands a worker to the batch system."""
    WORKER_SUBMITTED = "WORKER_SUBMITTED"
    """A worker waits in the batch system."""
    WORKER_RUNNING = "WORKER_RUNNING"
    """A worker runs."""
    WORKER_HELD = "WORKER_HELD"
    """The batch system holds a worker."""
    WORKER_MISSING = "WORKER_MISSING"
    """The batch system denies several times that it has a worker."""
    WORKER_FINISHED = "WORKER_FINISHED"
    """A worker has ended well."""
    WORKER_FAILED = "WORKER_FAILED"
    """A worker has failed."""
    WORKER_CANCELLED = "WORKER_CANCELLED"
    """A worker was removed."""
    HARVESTER_DIALOG = "HARVESTER_DIALOG"
    """A Harvester of PanDA has something to say to people. Detail: level, message, module, about."""

    CREDENTIAL_GIVEN = "CREDENTIAL_GIVEN"
    """A pilot was given a credential for a storage. Detail: storage, provider, kind, write, payload, scopes (of a token,
    the first few), life_s, number (the token's or certificate's)."""
    CREDENTIAL_FAILED = "CREDENTIAL_FAILED"
    """A provider of credentials fails, after it had been well or for long. Subject: the storage. Detail: provider, error."""

    IMPORT_CHANGED = "IMPORT_CHANGED"
    """A description of the world from elsewhere has changed ours. Subject: the site, storage or queue. Detail: source, what
    (created, changed, drained because it has vanished, back), fields."""
    IMPORT_FAILED = "IMPORT_FAILED"
    """A description of the world from elsewhere cannot be had or believed: nothing of it was taken. Subject: the source.
    Detail: document, reason."""

    AGENT_FAILED = "AGENT_FAILED"
    """An agent of the server fails, after it had been well. Detail: error."""
    AGENT_RECOVERED = "AGENT_RECOVERED"
    """An agent that had failed is well again. Detail: error (its last)."""
    AGENT_SWITCHED = "AGENT_SWITCHED"
    """A person switched an agent on or off. Detail: enabled, who."""

    AUDIT = "AUDIT"
    """A person changed something. Subject: the person. Detail: method, route, what its path and query name, proof (how
    the person was known), address, made (the id of what was made); or did (log in, log out)."""
    PERSON_INVITED = "PERSON_INVITED"
    """An admin made a person known, or gave other roles. Detail: roles, groups."""
    PERSON_FORGOTTEN = "PERSON_FORGOTTEN"
    """An admin removed a person."""
    LOGIN_REUSED = "LOGIN_REUSED"
    """A token that renews a login was used long after it was replaced: two have it. The login was ended."""


PROBLEMS: frozenset[EventKind] = frozenset(
    {
        EventKind.TASK_EXHAUSTED,
        EventKind.TASK_FINISHED,
        EventKind.TASK_FAILED,
        EventKind.TASK_BROKEN,
        EventKind.TASK_OVERDUE,
        EventKind.TASK_OUTGROWN,
        EventKind.JOB_FAILED,
        EventKind.JOB_LOST,
        EventKind.CATALOG_FAILED,
        EventKind.RECALL_FAILED,
        EventKind.REPLICA_BAD,
        EventKind.SITE_FAULT,
        EventKind.HOST_BLOCKED,
        EventKind.PROBE_FAILED,
        EventKind.PROBE_MISSED,
        EventKind.PILOT_LOST,
        EventKind.CREDENTIAL_FAILED,
        EventKind.WORKER_HELD,
        EventKind.WORKER_MISSING,
        EventKind.WORKER_FAILED,
        EventKind.IMPORT_FAILED,
        EventKind.AGENT_FAILED,
        EventKind.LOGIN_REUSED,
    }
)
"""Kinds that tell of something gone wrong: what the dashboard lists."""
