"""Lives of jobs in one pilot: how long they take, how long the slot is idle between them, and how they end badly."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Optional
from urllib.parse import urlsplit

from common.checksums import file_checksum
from common.cli.demo_processes import DemoError
from common.cli.demo_world import STORAGE_NAME
from common.states import JobState
from common.wire import CounterInput, FilesInput, FileSpec, OutputPattern, ReplicaSpec, Requirements, StageSpec
from pilot.bench.place import Place

INPUT_BYTES = 1_000_000
TIMES = "times.txt"
# Written down by the payload itself, on the clock that every image can read: what the slot did, whatever others say.
_RUN = """#!/bin/sh
read now rest < /proc/uptime; echo "$now" > times.txt
sleep {seconds:g}
read now rest < /proc/uptime; echo "$now" >> times.txt
"""
_FAIL = """#!/bin/sh
date +%s.%N
exit 3
"""
_DEAF = """#!/bin/sh
trap '' TERM INT HUP
echo deaf
while :; do sleep 1; done
"""
_SLEEP = """#!/bin/sh
exec sleep 3600
"""
NEEDS = Requirements(cores=1)


@dataclass(frozen=True)
class Lives:
    """Of jobs one after another: seconds from claim to confirmation, and from a payload's end to the next one's start."""

    job_p50_s: float
    job_max_s: float
    gap_p50_s: float
    gap_max_s: float
    pilot_rss_mb: float


def run_lives(place: Place, jobs: int, payload_s: float, image: Optional[str] = None) -> Lives:
    """So many jobs, each of one input file and one output, in one pilot with one core."""
    stage = StageSpec(
        name="run",
        input=FilesInput(files=_inputs(place, jobs)),
        jobscript=_RUN.format(seconds=payload_s),
        image=image,
        outputs=[OutputPattern(TIMES, storage=STORAGE_NAME)],
        requirements=NEEDS,
        files_per_job=1,
        scouts=False,
    )
    task_id = place.submit(stage)
    with place.pilot(1) as name:
        place.wait_for_jobs(task_id, jobs // 2, all_good=True)
        rss_mb = place.rss_mb(name)
        views = place.wait_for_jobs(task_id, jobs, all_good=True)
    finished = [view for view in views if view.state == JobState.FINISHED]
    took = [(view.ended or 0.0) - view.claimed for view in finished]
    gaps = _gaps(place, task_id)
    return Lives(statistics.median(took), max(took), statistics.median(gaps), max(gaps), rss_mb)


def _inputs(place: Place, count: int) -> list[FileSpec]:
    folder = place.folder.storage / "input"
    folder.mkdir(exist_ok=True)
    path = folder / "hits.dat"
    path.write_bytes(bytes(range(256)) * (INPUT_BYTES // 256))
    checksum, size = str(file_checksum(path)), path.stat().st_size
    # Names of their own for one content: every job fetches its file.
    names = [f"hits-{number}.dat" for number in range(count)]
    for name in names:
        (folder / name).write_bytes(path.read_bytes())
    return [
        FileSpec(
            did=f"bench:{name}", size=size, checksum=checksum, replicas=[ReplicaSpec(STORAGE_NAME, f"input/{name}")]
        )
        for name in names
    ]


def _gaps(place: Place, task_id: int) -> list[float]:
    """Seconds between the payloads of a task, from what each has written."""
    urls = [view.url for view in place.api.outputs(task_id, 10_000) if view.did.endswith(TIMES)]
    lines = [Path(urlsplit(url).path).read_text("ascii").split() for url in urls]
    spans = sorted((float(start), float(end)) for start, end in lines)
    return [after[0] - before[1] for before, after in zip(spans, spans[1:])]


def failed_report_s(place: Place) -> float:
    """Seconds from the end of a payload that fails to the moment at which the server knows."""
    task_id = place.submit(_stage("fail", _FAIL, max_attempts=1))
    with place.pilot(1):
        view = place.wait_for_jobs(task_id, 1)[0]
    written = next((word for word in view.log_tail.split() if word.replace(".", "", 1).isdigit()), None)
    if view.state != JobState.FAILED or view.ended is None or written is None:
        raise DemoError(f"job {view.id} is {view.state.value}, and its log ends with {view.log_tail[-200:]!r}")
    return view.ended - float(written)


def sigterm_s(place: Place) -> float:
    """Seconds from SIGTERM to the final report of a job whose payload ignores it, its log included."""
    task_id = place.submit(_stage("deaf", _DEAF))
    with place.pilot(1) as name:
        place.wait_for_jobs(task_id, 1, JobState.RUNNING)
        sent = time.time()
        place.processes.end(name)
        view = place.wait_for_jobs(task_id, 1)[0]
    place.kill(task_id)  # else its unit would be the next pilot's
    if view.ended is None or "deaf" not in view.log_tail or view.log_did is None:
        raise DemoError(f"job {view.id} is {view.state.value} without its log: {view.error_detail}")
    return view.ended - sent


def rss_of(place: Place, jobs: int) -> float:
    """Resident memory of a pilot with so many jobs side by side, its supervisors left out, in MB (2**20 bytes)."""
    task_id = place.submit(_stage("sleep", _SLEEP, count=jobs))
    with place.pilot(jobs) as name:
        place.wait_for_jobs(task_id, jobs, JobState.RUNNING)
        rss_mb = place.rss_mb(name)
    place.kill(task_id)
    return rss_mb


def _stage(name: str, script: str, count: int = 1, max_attempts: int = 3) -> StageSpec:
    return StageSpec(
        name=name,
        input=CounterInput(count),
        jobscript=script,
        requirements=NEEDS,
        files_per_job=1,
        scouts=False,
        max_attempts=max_attempts,
    )
