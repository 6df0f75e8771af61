"""The requests of pilots, rendered ahead as far as can be: what is left for the moment of sending is a few numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from common.states import JobState
from common.wire import (
    AcquireRequest,
    CounterInput,
    HeartbeatRequest,
    JobReport,
    Metrics,
    Offer,
    OutputRecord,
    RecordRequest,
    StageSpec,
    WorkflowRequest,
)
from server.app import create_dispatcher
from server.bench.messages import Target
from server.bench.wire import Destination, head
from server.config import Knobs
from server.dispatch import registration
from server.engine.access import Role
from server.store.reports import report_text

TOKEN_S = 86400.0
"""Life of the pilots' tokens: with half an hour between heartbeats, a day."""
METRICS_BYTES = 1024
OUTPUT = "out.root"
ID_DIGITS = 16

ACQUIRE = "/v1/jobs:acquire"
HEARTBEAT = "/v1/jobs:heartbeat"
WORKFLOWS = "/v1/workflows"


def mint_tokens(target: Target, pilot_ids: Iterable[int]) -> list[str]:
    """A token for each pilot, of the server's own making."""
    dispatcher = create_dispatcher(target.config)
    knobs = Knobs(pilot_token_s=TOKEN_S)
    return [registration.mint(dispatcher, pilot_id, knobs)[0] for pilot_id in pilot_ids]


def acquire_renderer(target: Target, offer: Offer, name: str) -> Callable[[str, int], bytes]:
    """From token and number to a claim of one job. ``name`` sets this process's request ids apart from others'."""
    mark = "0" * ID_DIGITS
    request = AcquireRequest(request_id=f"{name}-{mark}", offer=offer)
    body = msgspec.json.encode(request)
    before, after = body.split(mark.encode())
    heads: dict[str, bytes] = {}

    def render(token: str, number: int) -> bytes:
        start = heads.get(token)
        if start is None:
            start = heads[token] = head(target, ACQUIRE, token, len(body)) + before
        return b"%b%016x%b" % (start, number, after)

    return render


def heartbeat_renderer(target: Target) -> Callable[[str, int], bytes]:
    """From token and job id to a heartbeat for that one job, with metrics of :data:`METRICS_BYTES`."""
    before, after = (part.encode() for part in report_around_job())
    # Blanks before a number are JSON, and keep the length the same whatever the number.
    body = before + b"%16d" + after
    mark = "@token@"
    start, end = (head(target, HEARTBEAT, mark, len(body % 0)) + body).split(mark.encode())

    def render(token: str, job_id: int) -> bytes:
        return b"%b%b%b" % (start, token.encode(), end % job_id)

    return render


def report_around_job() -> tuple[str, str]:
    """A heartbeat's body, before and after the number of its one job."""
    report = msgspec.json.encode(JobReport(0, JobState.RUNNING)).decode()
    before, after = f'{{"jobs":[{report[:-1]},"metrics":{_metrics().decode()}}}]}}'.split('"job_id":0')
    return before + '"job_id":', after


def kept_around_job() -> tuple[str, str]:
    """The same as the server keeps it."""
    jobs = msgspec.json.decode("0".join(report_around_job()), type=HeartbeatRequest).jobs
    before, after = (report_text(jobs) or "").split("0,", 1)
    return before, "," + after


def _metrics() -> bytes:
    """All metrics that the protocol knows, and samples as a newer pilot might send, together 1 kB."""
    known: dict[str, object] = {}
    for index, field in enumerate(msgspec.structs.fields(Metrics)):
        if field.type is float:
            known[field.name] = 1000.125 * (index + 1)
        elif field.type is int:
            known[field.name] = 100_003 * (index + 1)
    samples: list[int] = []
    while True:
        body = msgspec.json.encode({**known, "samples": samples})
        if len(body) >= METRICS_BYTES:
            return body
        samples.append(100_000 + len(samples))


def record_renderer(target: Target) -> Callable[[str, int], bytes]:
    """From token and job id to the record of its one output."""
    output = OutputRecord(OUTPUT, size=123_456_789, checksum="adler32:0000abcd", pattern="*.root")
    body = msgspec.json.encode(RecordRequest([output]))

    def render(token: str, job_id: int) -> bytes:
        return head(target, f"/v1/jobs/{job_id}/outputs", token, len(body)) + body

    return render


def finish_renderer(target: Target) -> Callable[[str, int, int, Destination], bytes]:
    """From token, job id, unit id and the output's destination to the confirmation of the job."""
    metrics = Metrics(wall_s=3600.0, cpu_s=3400.0, max_rss_mb=1800.0, work_dir_mb=700.0)

    def render(token: str, job_id: int, unit_id: int, place: Destination) -> bytes:
        request = {
            "state": "finished",
            "units": [{"unit_id": unit_id, "outcome": "processed"}],
            "outputs": [{"did": place.did, "url": place.urls[0]}],
            "exit_code": 0,
            "metrics": metrics,
        }
        body = msgspec.json.encode(request)
        return head(target, f"/v1/jobs/{job_id}:finish", token, len(body)) + body

    return render


def submission(target: Target, name: str, units: int, share: str) -> bytes:
    """A person submits a workflow of one task: so many numbers, a job for each."""
    issuer = create_dispatcher(target.config).issuer
    token = issuer.mint("bench", [Role.USER.value], TOKEN_S)
    stage = StageSpec(
        name="new",
        input=CounterInput(units),
        command=["/bin/sh", "-c", "simulate"],
        image="/cvmfs/images.example.org/simulation:v3",
        files_per_job=1,
        scouts=False,  # else all but a few would wait for those to end
        share=share,
    )
    body = msgspec.json.encode(WorkflowRequest(name=name, stages=[stage], request_id=name))
    return head(target, WORKFLOWS, token, len(body)) + body
