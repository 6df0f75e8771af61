"""Sixteen client processes claim from a real server of two web processes: no unit twice, none lost, a pause is a pause."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from common.clock import SystemClock
from common.states import TaskState
from common.tokens import TokenIssuer
from server.app import create_dispatcher
from server.config import ServerConfig
from server.store.schema import job as job_table
from server.store.schema import unit
from tests.integration.server.harness import Site, stage

CLIENTS = 16
UNITS = 20_000
SIZES = [5, 10, 20, 50]
"""Units of a job, one task each."""
PATIENCE_S = 240.0
STARTED = re.compile(rb"listening on http://127.0.0.1:(\d+)")
OFFER = {"cores": 1, "memory_mb": 4000, "disk_mb": 20_000, "tags": ["apptainer"]}


@dataclass
class Served:
    """A ``pilotage server`` over a database that the test looks into."""

    port: int
    site: Site


@pytest.fixture
def served(make_url_of: Callable[[str], str], tmp_path: Path) -> Iterator[Served]:
    url = make_url_of("real_postgres")
    state = tmp_path / "state"
    config = tmp_path / "server.toml"
    config.write_text(f'[server]\nstate_dir = "{state}"\nport = 0\nweb_processes = 2\ndatabase = "{url}"\n')
    own = {name: value for name, value in os.environ.items() if not name.startswith("PILOTAGE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "common.cli.main", "--config", str(config), "server", "--web-only"],
        env={**own, "XDG_CONFIG_HOME": str(tmp_path / "none"), "PYTHONUNBUFFERED": "1"},
        cwd=Path(__file__).parents[3],
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    port = int(next(filter(None, map(STARTED.search, process.stderr)))[1])
    reader = threading.Thread(target=process.stderr.read, daemon=True)
    reader.start()
    site = Site(url, SystemClock())
    key: TokenIssuer = create_dispatcher(ServerConfig(state_dir=str(state), database=url)).issuer
    site.issuer = site.dispatcher.issuer = key
    try:
        yield Served(port, site)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        reader.join(120)
        site.database.close()


# ---------------------------------------------------------------- what a client process does


@dataclass
class Answer:
    """What a client got, or that it got nothing; ``pauses`` as it was all the while, -1 if it changed meanwhile."""

    client: int
    pauses: int
    jobs: list[tuple[int, list[int]]]


class _Client:
    """A pilot that claims, one request after another on one connection, which one of the web processes has taken."""

    def __init__(self, number: int, port: int, token: str) -> None:
        self.number, self.port = number, port
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=240)

    def ask(self, jobs: int, request_id: str, connection: http.client.HTTPConnection) -> list[tuple[int, list[int]]]:
        body = json.dumps({"request_id": request_id, "offer": {**OFFER, "cores": jobs}, "max_jobs": jobs})
        connection.request("POST", "/v1/jobs:acquire", body, self.headers)
        reply = connection.getresponse()
        text = reply.read()
        assert reply.status == 200, text
        found = json.loads(text).get("jobs", [])
        return [(each["job_id"], [one["unit_id"] for one in each["units"]]) for each in found]

    def claim(self, turn: int) -> list[tuple[int, list[int]]]:
        """One or two jobs; each tenth request is repeated on a connection of its own, as after a lost reply."""
        request_id = uuid.uuid4().hex
        found = self.ask(1 + turn % 2, request_id, self.connection)
        if found and turn % 10 == 0:
            other = http.client.HTTPConnection("127.0.0.1", self.port, timeout=240)
            assert self.ask(1 + turn % 2, request_id, other) == found, "the repeat was answered otherwise"
            other.close()
        return found


def _work(number: int, port: int, token: str, barrier: Any, pauses: Any, enough: Any, answers: Any) -> None:
    client, turn = _Client(number, port, token), 0
    barrier.wait(240)
    while not enough.is_set():
        turn += 1
        before = pauses.value
        found = client.claim(turn)
        answers.put(Answer(number, before if pauses.value == before else -1, found))
        if not found:
            enough.wait(0.2)  # a bucket that was found empty is left alone for a second


# ---------------------------------------------------------------- the race


def test_real_postgres_sixteen_processes_over_http_get_each_of_twenty_thousand_units_once(served: Served) -> None:
    """Two web processes, each with floors and looks of its own; all tasks are paused in between and resumed."""
    site = served.site.world()
    tasks = site.submit(*[stage(f"s{n}", count=UNITS // 4, files_per_job=size) for n, size in enumerate(SIZES)])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    barrier, pauses, enough, answers = context.Barrier(CLIENTS), context.Value("i", 0), context.Event(), context.Queue()
    pilots = [site.pilot(cores=2) for _ in range(CLIENTS)]
    processes = [
        context.Process(target=_work, args=(n, served.port, each.grant.token, barrier, pauses, enough, answers))
        for n, each in enumerate(pilots)
    ]
    for process in processes:
        process.start()
    try:
        found = _watch(site, tasks, pauses, answers)
    finally:
        enough.set()
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    _check(site, found)


def _watch(site: Site, tasks: list[int], pauses: Any, answers: Any) -> list[tuple[int, list[int]]]:
    """All jobs that the clients got. Early on the tasks are paused until each client got nothing."""
    found: list[tuple[int, list[int]]] = []
    idle: set[int] = set()
    taken = 0
    while taken < UNITS:
        answer: Answer = answers.get(timeout=PATIENCE_S)
        found += answer.jobs
        taken += sum(len(ids) for _, ids in answer.jobs)
        assert not (answer.pauses == 1 and answer.jobs), "a paused task gave a job"
        if pauses.value == 0 and taken >= UNITS // 10:  # soon: this process may be slow to hear of what the clients got
            for task in tasks:
                assert site.command(task, "pause").state == TaskState.PAUSED
            pauses.value = 1
        if pauses.value == 1 and answer.pauses == 1:
            idle.add(answer.client)
            if len(idle) == CLIENTS:
                assert taken < UNITS, "there was nothing left to pause"
                pauses.value = 2
                for task in tasks:
                    site.command(task, "resume")
    assert pauses.value == 2
    return found


def _check(site: Site, found: list[tuple[int, list[int]]]) -> None:
    taken = Counter(unit_id for _, ids in found for unit_id in ids)
    assert set(taken.values()) == {1}, "a unit was given twice"
    assert len(taken) == UNITS
    assert len({job_id for job_id, _ in found}) == len(found)
    with site.database.read() as connection:
        kept = {row.id: row.job_id for row in connection.execute(select(unit.c.id, unit.c.job_id))}
        jobs = {row.id: row.n_units for row in connection.execute(select(job_table.c.id, job_table.c.n_units))}
    assert kept == {unit_id: job_id for job_id, ids in found for unit_id in ids}
    assert jobs == {job_id: len(ids) for job_id, ids in found}
    site.check_counts()
