"""A dispatcher in the test's own process: the app without a socket, the agents called by hand, the clock standing still."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, TypeVar

import msgspec
from falcon.testing import Result, TestClient
from sqlalchemy import func, select

from common.clock import Clock, FrozenClock
from common.problem import Problem, decode_problem
from common.states import JobState, UnitState, WorkerState
from common.tokens import TokenIssuer, hash_secret, new_secret
from common.wire import (
    AcquireReply,
    AcquireRequest,
    Assignment,
    BadReplica,
    CounterInput,
    Endpoint,
    FilesInput,
    FileSpec,
    FinishReply,
    FinishRequest,
    HeartbeatReply,
    HeartbeatRequest,
    JobReport,
    JobView,
    Offer,
    OutputPage,
    OutputPattern,
    OutputRecord,
    OutputRole,
    OutputView,
    PilotEnd,
    PilotGrant,
    PilotRegistration,
    QueueSpec,
    RecordReply,
    RecordRequest,
    ReplicaSpec,
    Shape,
    SiteSpec,
    StageSpec,
    StorageSpec,
    TaskCommand,
    TaskInput,
    TaskView,
    UnitOutcome,
    UnitPage,
    UnitResult,
    UnitView,
    UploadedOutput,
    WorkerReport,
    WorkersReportReply,
    WorkersReportRequest,
    WorkflowRequest,
    WorkflowView,
)
from server.agents.duties import LIVENESS_GAP_S, reap, recount
from server.agents.feed import feed_next_stage
from server.agents.resolve import resolve_input
from server.agents.scouting import scout
from server.agents.tasks import advance_tasks
from server.api.application import create_application
from server.config import ServerConfig
from server.dispatch.context import Dispatcher
from server.store import agents
from server.store.all_tables import metadata
from server.store.codes import UNIT_STATES
from server.store.database import Database
from server.store.schema import unit, unit_count, unit_delta

KEY = b"k" * 32
CHECKSUM = "adler32:00000001"
T = TypeVar("T", bound=msgspec.Struct)


class Refused(Exception):
    """The server said no."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(f"{status}: {problem}")
        self.status = status
        self.problem = problem

    @property
    def paths(self) -> list[str]:
        """The fields that it names."""
        return [error.path for error in self.problem.errors]


class Site:
    """A dispatcher, its app, and what the tests do with them."""

    def __init__(self, url: str, clock: Optional[Clock] = None, config: Optional[ServerConfig] = None) -> None:
        self.clock = clock or FrozenClock()
        self.database = Database(url)
        self.issuer = TokenIssuer(KEY, "pilotage", self.clock)
        self.dispatcher = Dispatcher(self.database, self.issuer, config or ServerConfig(), self.clock)
        self.client = TestClient(create_application(self.dispatcher))
        self._numbers = itertools.count(1)
        self.alive = True

    def number(self) -> int:
        """One that was not given out before."""
        return next(self._numbers)

    def token(self, role: str, subject: str = "") -> str:
        """A bearer token."""
        return self.issuer.mint(subject or role, [role], 30 * 86400.0)

    def raw(self, method: str, path: str, body: Any = None, token: Optional[str] = None, **more: Any) -> Result:
        """A request; ``body`` is a message, or bytes as they are."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        data = body if isinstance(body, bytes) else msgspec.json.encode(body) if body is not None else None
        return self.client.simulate_request(method, path, body=data, headers=headers, **more)

    def call(self, method: str, path: str, body: Any, reply: Optional[type[T]], token: Optional[str]) -> T:
        """A request that must succeed; raises :class:`Refused`."""
        result = self.raw(method, path, body, token)
        if result.status_code >= 400:
            problem = decode_problem(result.content, result.status_code, result.headers.get("content-type", ""))
            raise Refused(result.status_code, problem)
        if reply is None:
            return None  # type: ignore[return-value]
        return msgspec.json.decode(result.content, type=reply)

    def admin(self, method: str, path: str, body: Any = None, reply: Optional[type[T]] = None) -> T:
        """A request of an admin."""
        return self.call(method, path, body, reply, self.token("admin"))

    def user(self, method: str, path: str, body: Any = None, reply: Optional[type[T]] = None, name: str = "u") -> T:
        """A request of a user."""
        return self.call(method, path, body, reply, self.token("user", name))

    # ------------------------------------------------------------ the world

    def world(self, queues: Sequence[str] = ("q",), storages: Sequence[str] = ("disk",)) -> Site:
        """A site ``s`` with queues and storages."""
        self.put_site("s")
        for name in storages:
            self.put_storage(name, "s")
        for name in queues:
            self.put_queue(name, "s")
        return self

    def put_site(self, name: str, **more: Any) -> None:
        self.admin("PUT", f"/v1/sites/{name}", SiteSpec(name, **more))

    def put_queue(self, name: str, site: str = "s", **more: Any) -> None:
        self.admin("PUT", f"/v1/queues/{name}", QueueSpec(name=name, site=site, **{"trusted": True, **more}))

    def put_storage(self, name: str, site: str = "s", **more: Any) -> None:
        endpoint = Endpoint(f"file:///{name}")
        self.admin("PUT", f"/v1/storages/{name}", StorageSpec(name=name, site=site, endpoints=[endpoint], **more))

    def turn(self, key: str, value: object) -> None:
        """Set a knob."""
        self.admin("PUT", f"/v1/settings/{key}", {"value": value})

    # ------------------------------------------------------------ time and agents

    def tick(self, seconds: float = 2.0) -> None:
        """Let time go by, the web side up or not."""
        assert isinstance(self.clock, FrozenClock)
        step = LIVENESS_GAP_S / 2
        while seconds > 0:
            self.clock.advance(min(step, seconds))
            seconds -= step
            if self.alive:
                self.say_up()

    def say_up(self) -> None:
        """What the web side's thread does."""
        with self.database.write() as connection:
            agents.seen_up(connection, LIVENESS_GAP_S, self.clock.now())

    def agents(self) -> None:
        """All agents but the sweeper, until none finds anything to do."""
        duties = (resolve_input, feed_next_stage, scout, advance_tasks, reap)
        for _ in range(100):
            if not sum(duty(self.dispatcher) for duty in duties):
                recount(self.dispatcher)
                return
        raise AssertionError("the agents find no end")

    # ------------------------------------------------------------ workflows

    def submit(self, *stages: StageSpec, name: str = "u", **more: Any) -> list[int]:
        """Submit a workflow and let the agents resolve it; the ids of its tasks."""
        ids = self.submit_only(*stages, name=name, **more)
        self.agents()
        return ids

    def submit_only(self, *stages: StageSpec, name: str = "u", **more: Any) -> list[int]:
        """Submit a workflow; the ids of its tasks."""
        request = WorkflowRequest(name="w", stages=list(stages), **more)
        return [task.id for task in self.user("POST", "/v1/workflows", request, WorkflowView, name).tasks]

    def counter(self, count: int, **more: Any) -> int:
        """A task over a counter; its id."""
        return self.submit(stage(count=count, **more))[0]

    def command(self, task_id: int, word: str, name: str = "u") -> TaskView:
        return self.user("POST", f"/v1/tasks/{task_id}:command", TaskCommand(word), TaskView, name)

    def task(self, task_id: int) -> TaskView:
        return self.user("GET", f"/v1/tasks/{task_id}", reply=TaskView)

    def job(self, job_id: int) -> JobView:
        return self.user("GET", f"/v1/jobs/{job_id}", reply=JobView)

    def units(self, task_id: int) -> list[UnitView]:
        """All units of a task."""
        items: list[UnitView] = []
        after: Optional[int] = 0
        while after is not None:
            page = self.user_page(f"/v1/tasks/{task_id}/units?limit=1000&after={after}", UnitPage)
            items += page.items
            after = page.next
        return items

    def outputs(self, task_id: int) -> list[OutputView]:
        return self.user_page(f"/v1/tasks/{task_id}/outputs?limit=1000", OutputPage).items

    def user_page(self, path: str, kind: type[T]) -> T:
        route, _, query = path.partition("?")
        result = self.raw("GET", route, token=self.token("user"), query_string=query)
        assert result.status_code == 200, result.text
        return msgspec.json.decode(result.content, type=kind)

    # ------------------------------------------------------------ workers and pilots

    def worker(self, queue: str = "q", *, shape: Optional[Shape] = None, **more: Any) -> tuple[str, str]:
        """A worker that harvester means to submit: its mark and its secret."""
        mark, secret = f"mark-{self.number():06d}", new_secret()
        report = WorkerReport(
            mark, queue, WorkerState.PLANNED, shape or Shape(), secret_hash=hash_secret(secret), valid_s=1e6, **more
        )
        outcome = self.report(report).workers[0]
        assert outcome.accepted, outcome.reason
        return mark, secret

    def report(self, *reports: WorkerReport, harvester: str = "h") -> WorkersReportReply:
        body = WorkersReportRequest(harvester, list(reports))
        return self.call("POST", "/v1/workers:report", body, WorkersReportReply, self.token("harvester", harvester))

    def register(self, mark: str, secret: str, nonce: str = "nonce-00", **more: Any) -> PilotGrant:
        return self.call("POST", "/v1/pilots", PilotRegistration(mark, nonce, **more), PilotGrant, secret)

    def pilot(self, queue: str = "q", *, cores: int = 1, offer: Optional[Offer] = None) -> Pilot:
        """A registered pilot."""
        offer = offer or Offer(cores=cores, memory_mb=4000 * cores, disk_mb=20_000, tags=["apptainer"])
        mark, secret = self.worker(queue, shape=Shape(cores=offer.cores))
        return Pilot(self, self.register(mark, secret, host="node"), offer, mark)

    # ------------------------------------------------------------ what must always hold

    def real_counts(self) -> dict[tuple[int, UnitState], int]:
        """Units of each task by state: the rows themselves."""
        with self.database.read() as connection:
            query = select(unit.c.task_id, unit.c.state, func.count().label("n")).group_by(unit.c.task_id, unit.c.state)
            return {(row.task_id, UNIT_STATES[row.state]): int(row.n) for row in connection.execute(query)}

    def told_counts(self) -> dict[tuple[int, UnitState], int]:
        """The same, as the counts say."""
        return dict(Counter({(task, state): n for (task, _, state), n in self.told_by_bucket().items()}))

    def told_by_bucket(self) -> Counter[tuple[int, int, UnitState]]:
        total: Counter[tuple[int, int, UnitState]] = Counter()
        with self.database.read() as connection:
            for row in connection.execute(select(unit_count)):
                total[row.task_id, row.bucket_id, UNIT_STATES[row.state]] += row.n
            for row in connection.execute(select(unit_delta)):
                total[row.task_id, row.bucket_id, UNIT_STATES[row.state]] += row.n
                if row.source is not None:
                    total[row.task_id, row.bucket_id, UNIT_STATES[row.source]] -= row.n
        return Counter({key: n for key, n in total.items() if n})

    def real_by_bucket(self) -> Counter[tuple[int, int, UnitState]]:
        with self.database.read() as connection:
            query = select(unit.c.task_id, unit.c.bucket_id, unit.c.state)
            return Counter((row.task_id, row.bucket_id, UNIT_STATES[row.state]) for row in connection.execute(query))

    def check_counts(self) -> None:
        """The counts equal the rows, bucket by bucket."""
        assert self.told_by_bucket() == self.real_by_bucket()

    def row_counts(self) -> dict[str, int]:
        """Rows in each table."""
        with self.database.read() as connection:
            return {
                table.name: int(connection.execute(select(func.count()).select_from(table)).scalar_one())
                for table in metadata.sorted_tables
            }


@dataclass
class Pilot:
    """A pilot that speaks to the server."""

    site: Site
    grant: PilotGrant
    offer: Offer
    worker: str
    requests: Callable[[], int] = field(default_factory=lambda: itertools.count(1).__next__)

    def post(self, path: str, body: Any, reply: Optional[type[T]]) -> T:
        return self.site.call("POST", path, body, reply, self.grant.token)

    @property
    def id(self) -> int:
        return self.grant.pilot_id

    def ask(self, max_jobs: int = 1, request_id: str = "", offer: Optional[Offer] = None) -> AcquireReply:
        """Ask for jobs."""
        request_id = request_id or f"request-{self.requests():04d}"
        return self.post("/v1/jobs:acquire", AcquireRequest(request_id, offer or self.offer, max_jobs), AcquireReply)

    def acquire(self) -> Assignment:
        """One job, which must be there."""
        reply = self.ask()
        assert len(reply.jobs) == 1, reply
        return reply.jobs[0]

    def beat(self, *jobs: Assignment, state: JobState = JobState.RUNNING) -> HeartbeatReply:
        request = HeartbeatRequest([JobReport(job.job_id, state) for job in jobs])
        return self.post("/v1/jobs:heartbeat", request, HeartbeatReply)

    def record(self, job: Assignment, *names: str, **more: Any) -> RecordReply:
        files = [OutputRecord(name, 1, CHECKSUM, pattern="*", **more) for name in names]
        return self.post(f"/v1/jobs/{job.job_id}/outputs", RecordRequest(files), RecordReply)

    def end(self, **more: Any) -> None:
        self.post(f"/v1/pilots/{self.id}:end", PilotEnd(**more), None)

    def finish(self, job: Assignment, request: FinishRequest) -> FinishReply:
        return self.post(f"/v1/jobs/{job.job_id}:finish", request, FinishReply)

    def succeed(self, job: Assignment, *names: str, units: Optional[Iterable[int]] = None) -> FinishReply:
        """Upload outputs ``names``, and confirm all units or some."""
        return self.finish(job, self.success(job, *names, units=units))

    def success(self, job: Assignment, *names: str, units: Optional[Iterable[int]] = None) -> FinishRequest:
        """Records the outputs; the confirmation to be sent."""
        ids = [each.unit_id for each in job.units] if units is None else list(units)
        outputs = uploaded(self.record(job, *names)) if names else []
        results = [UnitResult(each, UnitOutcome.PROCESSED) for each in ids]
        return FinishRequest(JobState.FINISHED, results, outputs, exit_code=0)

    def fail(self, job: Assignment, code: Optional[int], *bad: BadReplica, **more: Any) -> FinishReply:
        return self.finish(job, FinishRequest(JobState.FAILED, error_code=code, bad_replicas=list(bad), **more))

    def run_all(self, *names: str, limit: int = 1000) -> int:
        """Work until there is none; how many jobs."""
        for number in range(limit):
            reply = self.ask()
            if not reply.jobs:
                return number
            self.succeed(reply.jobs[0], *names)
        raise AssertionError(f"still work after {limit} jobs")


def uploaded(reply: RecordReply) -> list[UploadedOutput]:
    """Everything that was recorded, as uploaded."""
    return [UploadedOutput(each.did, each.urls[0]) for each in reply.destinations]


def stage(name: str = "one", *, count: int = 1, given: Optional[TaskInput] = None, **more: Any) -> StageSpec:
    """A stage over a counter, or over ``given``."""
    more.setdefault("command", ["true"])
    more.setdefault("scouts", False)
    more.setdefault("outputs", [OutputPattern("*")])
    return StageSpec(name=name, input=given or CounterInput(count), **more)


def files(*names: str, storages: Sequence[str] = ("disk",), **more: Any) -> FilesInput:
    """Files with a replica on each storage."""
    return FilesInput([file(name, *storages, **more) for name in names])


def file(name: str, *storages: str, **more: Any) -> FileSpec:
    return FileSpec(did=f"data:{name}", replicas=[ReplicaSpec(each, f"d/{name}") for each in storages], **more)


def states(views: Iterable[UnitView]) -> dict[str, int]:
    """Units by state."""
    return dict(Counter(view.state.value for view in views))


LOG = OutputRole.LOG
