"""What a failed job brings about beside the rules of attempts: retry rules, sites and hosts that are left alone."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from common.errors import ErrorCode
from common.plugins import PluginError, load_plugin, plugins
from common.wire import CustomAction, RetryRule, StageSpec
from server.engine import blackhole
from server.engine.blackhole import HostLimits, HostRecord
from server.engine.matching import SiteFaults
from server.engine.outcomes import Fault, fault_of
from server.engine.patterns import PatternError
from server.engine.retry_rules import Applied, CustomRetryAction, Failure, Judgement, Rule, judge
from server.engine.world import World
from server.store import events, faults, hosts, retry_rules
from server.store.database import Connection
from server.store.hosts import HostKey
from server.store.jobs import JobRow
from server.store.retry_rules import JobFacts

logger = logging.getLogger(__name__)

PLUGINS = "pilotage.retry_actions"


@dataclass(frozen=True)
class Failing:
    """What the look knows of failures: the rules in order, hosts under suspicion, sites where buckets fail."""

    rules: tuple[Rule, ...] = ()
    hosts: Mapping[HostKey, HostRecord] = field(default_factory=dict)
    sites: Mapping[int, Mapping[str, SiteFaults]] = field(default_factory=dict)
    limits: HostLimits = HostLimits()
    queues: frozenset[str] = frozenset()
    """Queues that have such hosts."""

    def blocked_hosts(self, now: float) -> dict[HostKey, str]:
        """For each (queue, host) that gets nothing now, why."""
        return hosts.blocked_among(self.hosts, now)

    def blocked_of(self, queue: str, now: float) -> int:
        """How many hosts of a queue are blocked."""
        return sum(1 for (name, _), record in self.hosts.items() if name == queue and record.until > now)


def load(connection: Connection, limits: HostLimits) -> Failing:
    """To be taken with the look."""
    rules = tuple(rule for text in retry_rules.texts(connection) if (rule := _compiled(text)) is not None)
    suspects = hosts.suspects(connection, limits)
    queues = frozenset(queue for queue, _ in suspects)
    return Failing(rules, suspects, faults.by_bucket(connection), limits, queues)


@functools.lru_cache(maxsize=1000)
def _compiled(text: str) -> Rule | None:
    spec = msgspec.json.decode(text, type=RetryRule)
    try:
        return Rule(spec, _custom(spec))
    except PatternError as error:
        # It was written by another version; the rest must go on.
        logger.error("retry rule %s cannot be used: %s", spec.name, error)
        return None


def _custom(spec: RetryRule) -> CustomRetryAction | None:
    if not isinstance(spec.action, CustomAction):
        return None
    entry = plugins(PLUGINS).get(spec.action.plugin)
    if entry is None:
        return None
    try:
        loaded: CustomRetryAction = load_plugin(entry)
    except PluginError as error:
        logger.error("retry rule %s: %s", spec.name, error)
        return None
    return loaded


@dataclass(frozen=True)
class Ended:
    """A failed job, as its end tells it."""

    error_code: int | None
    error_detail: str = ""
    exit_code: int | None = None


@dataclass(frozen=True)
class Had:
    """What a job was told that it may use."""

    memory_mb: int
    wall_s: int


def judge_job(
    failing: Failing, world: World, job: JobRow, spec: StageSpec, ended: Ended, facts: JobFacts, had: Had, now: float
) -> Judgement:
    """What the rules want of a failed job's units."""
    failure = Failure(
        error_code=ended.error_code,
        message=ended.error_detail,
        exit_code=ended.exit_code,
        task_id=job.task_id,
        share=spec.share,
        labels=facts.labels,
        image=spec.image,
        tags=spec.requirements.tags,
        site=job.site,
        queue=job.queue,
        architectures=facts.probed,
        memory_mb=had.memory_mb,
        wall_s=had.wall_s,
        ran_s=now - (facts.started or facts.claimed),
    )
    return judge(failing.rules, failure, world)


def tell_rules(connection: Connection, job: JobRow, applied: Sequence[Applied], units: int, now: float) -> None:
    """An event for each rule that applied to a job."""
    events.add(connection, *(_rule_event(job, each, units, now) for each in applied))


def _rule_event(job: JobRow, applied: Applied, units: int, now: float) -> events.Event:
    wanted = {name: value for name, value in vars(applied.verdict).items() if value}
    detail: dict[str, object] = {"rule": applied.rule, "units": units, **wanted}
    if applied.problem:
        detail["problem"] = applied.problem[:500]
        logger.error("retry rule %s, job %d: %s", applied.rule, job.id, applied.problem)
    kind = "RETRY_RULE" if applied.active else "RETRY_RULE_PASSIVE"
    return events.Event(now, kind, "job", job.id, job.task_id, job.id, detail=detail)


def note_host(
    connection: Connection, failing: Failing, job: JobRow, error_code: int | None, facts: JobFacts, now: float
) -> None:
    """A job failed: its host is remembered if it may be the host's fault, and blocked if that was once too often."""
    ran_s = now - facts.claimed
    if not facts.host or not blackhole.suspicious(error_code, ran_s, failing.limits):
        return
    before = hosts.hold(connection, job.queue, facts.host)
    payload = fault_of(error_code) == Fault.PAYLOAD
    others = failing.blocked_of(job.queue, now)
    after = blackhole.after_failure(before, job.task_id, payload, failing.limits, others, now)
    if after == before:
        return
    hosts.write(connection, job.queue, facts.host, after, error_code)
    if after.until > before.until:
        detail = {"queue": job.queue, "until": after.until, "blocks": after.blocks, "error_code": error_code}
        event = events.Event(now, "HOST_BLOCKED", "host", facts.host, job.task_id, job.id, detail=detail)
        events.add(connection, event)


def note_success(connection: Connection, failing: Failing, job: JobRow) -> None:
    """A job did some of its units: its bucket's site and its host are well. Nothing is written where nothing is known."""
    if job.site in failing.sites.get(job.bucket_id, {}):
        faults.forget(connection, job.bucket_id, job.site)
    if job.queue in failing.queues:
        host = retry_rules.host_of(connection, job.id)
        if (job.queue, host) in failing.hosts:
            hosts.forget(connection, job.queue, host)


def note_site_fault(connection: Connection, job: JobRow, now: float) -> None:
    """A job failed by the fault of its site, which gets no more of the bucket for a growing time."""
    n = faults.note(connection, job.bucket_id, job.site, now)
    detail = {"site": job.site, "in_a_row": n}
    events.add(connection, events.Event(now, "SITE_FAULT", "site", job.site, job.task_id, job.id, detail=detail))


def told_error(error_code: ErrorCode | int | None, detail: str, last: str) -> tuple[int | None, str]:
    """The error kept with a unit, with why it is not tried again."""
    code = None if error_code is None else int(error_code)
    return code, f"{detail}; {last}".removeprefix("; ") if last else detail
