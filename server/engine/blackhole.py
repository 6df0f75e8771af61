"""Hosts that swallow jobs: one that fails jobs fast, of several tasks and with no success between, gets none for a while."""

from __future__ import annotations

from dataclasses import dataclass, replace

from server.engine.outcomes import Fault, fault_of


@dataclass(frozen=True)
class HostLimits:
    """When a host is blocked, and for how long. Times in seconds."""

    failures: int = 5
    """Failures within the window; of tasks' payloads only one each counts."""
    tasks: int = 2
    """How many tasks they must come from, so that one broken task blocks nobody."""
    window_s: float = 600.0
    fast_s: float = 120.0
    """A payload that fails sooner than this may be the host's fault."""
    block_s: float = 600.0
    """The first block; each further one is twice as long."""
    most_s: float = 86_400.0
    """The longest block, and how long a block is remembered."""
    hosts: int = 20
    """Hosts of a queue blocked at once: when more fail, it is not the hosts."""


@dataclass(frozen=True)
class HostRecord:
    """What is remembered of a host of a queue: failures since a moment, and its blocks."""

    failures: int = 0
    tasks: tuple[int, ...] = ()
    since: float = 0.0
    until: float = 0.0
    blocks: int = 0


def suspicious(error_code: int | None, ran_s: float, limits: HostLimits) -> bool:
    """Whether a failure may be the host's: the site's fault, or a payload's that failed fast."""
    fault = fault_of(error_code)
    return fault == Fault.SITE or (fault == Fault.PAYLOAD and ran_s < limits.fast_s)


def after_failure(
    record: HostRecord, task_id: int, payload: bool, limits: HostLimits, others_blocked: int, now: float
) -> HostRecord:
    """What to remember after a suspicious failure; the host is blocked if ``until`` has moved on.

    ``others_blocked`` is how many hosts of the queue are blocked now.
    """
    if record.until > now:
        return record  # jobs that it had before
    if now - record.since > limits.window_s or record.failures == 0:
        record = replace(record, failures=0, tasks=(), since=now)
    if record.blocks and now - record.until > limits.most_s:
        record = replace(record, blocks=0)
    if payload and task_id in record.tasks:
        return record
    tasks = record.tasks
    if task_id not in tasks and len(tasks) < max(limits.failures, limits.tasks):
        tasks = (*tasks, task_id)
    record = replace(record, failures=record.failures + 1, tasks=tasks)
    if record.failures < limits.failures or len(tasks) < limits.tasks or others_blocked >= limits.hosts:
        return record
    block_s = min(limits.most_s, limits.block_s * 2.0 ** min(record.blocks, 30))
    return HostRecord(until=now + block_s, blocks=record.blocks + 1)


def suspected(record: HostRecord, limits: HostLimits) -> bool:
    """Whether a success on the host is worth noting: it is half-way to a block, or has been blocked."""
    return record.blocks > 0 or 2 * record.failures >= limits.failures


def forgotten(record: HostRecord, limits: HostLimits, now: float) -> bool:
    """Whether nothing of the record counts any more."""
    return now - record.since > limits.window_s and now - record.until > limits.most_s
