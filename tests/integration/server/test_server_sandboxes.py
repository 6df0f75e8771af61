"""Sandboxes, secrets and kept logs on the server: who gives, who gets, how long."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from common.clock import FrozenClock
from common.problem import decode_problem
from common.wire import (
    Assignment,
    OutputPattern,
    ProcessFailure,
    ProcessSpec,
    ProcessWhen,
    SandboxList,
    SandboxView,
    SecretList,
    SecretValue,
    SecretView,
    StageSpec,
    Transformation,
    WorkflowRequest,
    WorkflowView,
)
from server.dispatch.logs import drop_old
from server.dispatch.sandboxes import drop_unused
from server.store import sandboxes
from server.store.schema_commands import user_secret
from tests.integration.server.harness import Pilot, Refused, Site, stage

DAY = 86400.0


def days_pass(site: Site, days: float) -> None:
    assert isinstance(site.clock, FrozenClock)
    site.clock.advance(days * DAY)
    site.say_up()


def gz(text: str) -> bytes:
    return b"\x1f\x8b" + text.encode()


def send(site: Site, method: str, path: str, body: bytes, token: str) -> bytes:
    result = site.raw(method, path, body, token)
    if result.status_code >= 400:
        kind = result.headers["content-type"]
        raise Refused(result.status_code, decode_problem(result.content, result.status_code, kind))
    return result.content


def upload(site: Site, content: bytes, name: str = "u") -> SandboxView:
    reply = send(site, "POST", "/v1/sandboxes", content, site.token("user", name))
    return msgspec.json.decode(reply, type=SandboxView)


def refused(call: Any, *args: Any) -> tuple[int, list[str]]:
    with pytest.raises(Refused) as error:
        call(*args)
    return error.value.status, error.value.paths


def submit(site: Site, *stages: StageSpec, name: str = "u") -> WorkflowView:
    request = WorkflowRequest(name="w", stages=list(stages))
    view = site.user("POST", "/v1/workflows", request, WorkflowView, name)
    site.agents()
    return view


def fetch(site: Site, pilot: Pilot, sha256: str) -> bytes:
    return send(site, "GET", f"/v1/sandboxes/{sha256}", b"", pilot.grant.token)


# ---------------------------------------------------------------- sandboxes


def test_a_sandbox_goes_from_its_owner_to_the_pilots_of_its_tasks(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandboxes, "PART_BYTES", 1000)
    site.world()
    content = gz("x" * 2500)
    view = upload(site, content)
    assert (view.sha256, view.size) == (hashlib.sha256(content).hexdigest(), 2502)
    assert upload(site, content) == view  # once more is as well
    pilot, other = site.pilot(), site.pilot()
    assert refused(fetch, site, pilot, view.sha256)[0] == 404
    task = submit(site, stage(count=1, sandbox=view.sha256), stage("two", count=1)).tasks[0]
    job = next(each for each in (pilot.acquire(), pilot.acquire()) if each.task_id == task.id)
    assert job.sandbox is not None and (job.sandbox.sha256, job.sandbox.size) == (view.sha256, view.size)
    assert fetch(site, pilot, view.sha256) == content
    assert refused(fetch, site, other, view.sha256)[0] == 404  # none of its jobs wants it
    pilot.succeed(job)
    assert refused(fetch, site, pilot, view.sha256)[0] == 404


def test_the_same_content_is_kept_once_and_counts_for_each_owner(site: Site) -> None:
    content = gz("same")
    for name in ("ann", "bob"):
        upload(site, content, name)
    rows = site.row_counts()
    assert (rows["sandbox"], rows["sandbox_part"], rows["sandbox_owner"]) == (1, 1, 2)
    for name in ("ann", "bob"):
        mine = site.user("GET", "/v1/sandboxes", None, SandboxList, name)
        assert ([each.size for each in mine.items], mine.used) == ([len(content)], len(content))
    assert site.user("GET", "/v1/sandboxes", None, SandboxList, "eve").items == []


def test_what_is_too_large_or_no_archive_is_not_kept(site: Site) -> None:
    site.turn("sandbox_mb", 1)
    assert refused(upload, site, gz("x" * 1024 * 1024))[0] == 413
    assert refused(upload, site, b"#!/bin/sh")[0] == 422
    site.turn("sandbox_quota_mb", 1)
    upload(site, gz("x" * 600_000))
    assert refused(upload, site, gz("y" * 600_000))[0] == 422
    upload(site, gz("y" * 600_000), "other")
    assert site.row_counts()["sandbox_owner"] == 2


def test_a_stage_names_a_sandbox_that_is_there(site: Site) -> None:
    site.world()
    status, paths = refused(submit, site, stage(sandbox="a" * 64))
    assert (status, paths) == (400, ["$.stages[0].sandbox"])
    assert refused(submit, site, stage(sandbox="../x"))[0] == 400


def test_sandboxes_stay_while_a_task_names_them_and_a_while_longer(site: Site) -> None:
    site.world()
    named, unnamed = upload(site, gz("named")), upload(site, gz("unnamed"))
    submit(site, stage(sandbox=named.sha256))
    assert drop_unused(site.dispatcher) == 0
    days_pass(site, 15)
    assert drop_unused(site.dispatcher) == 1
    assert [each.sha256 for each in site.user("GET", "/v1/sandboxes", None, SandboxList).items] == [named.sha256]
    assert unnamed.sha256 != named.sha256
    rows = site.row_counts()
    assert (rows["sandbox"], rows["sandbox_part"], rows["sandbox_owner"]) == (1, 1, 1)


# ---------------------------------------------------------------- logs


def test_the_log_of_a_failed_job_can_be_read_for_a_while(site: Site) -> None:
    site.world()
    site.counter(3, max_attempts=1)
    pilot, other = site.pilot(), site.pilot()
    job, good = pilot.acquire(), pilot.acquire()
    path = f"/v1/jobs/{job.job_id}/log"
    pilot.fail(job, 1305)
    pilot.succeed(good)
    assert refused(send, site, "GET", path, b"", site.token("user", "u"))[0] == 404
    assert refused(send, site, "PUT", path, gz("log"), other.grant.token)[0] == 404
    for text in ("log", "again"):  # a repeat replaces it
        send(site, "PUT", path, gz(text), pilot.grant.token)
    assert send(site, "GET", path, b"", site.token("user", "u")) == gz("again")
    assert send(site, "GET", path, b"", site.token("admin")) == gz("again")
    assert refused(send, site, "GET", path, b"", site.token("user", "eve"))[0] == 403
    assert refused(send, site, "PUT", f"/v1/jobs/{good.job_id}/log", gz("log"), pilot.grant.token)[0] == 422
    assert refused(send, site, "PUT", path, b"plain", pilot.grant.token)[0] == 422
    site.turn("log_kb", 1)
    assert refused(send, site, "PUT", path, gz("x" * 1024), pilot.grant.token)[0] == 413
    days_pass(site, 13)
    assert drop_old(site.dispatcher) == 0
    days_pass(site, 2)
    assert drop_old(site.dispatcher) == 1
    assert refused(send, site, "GET", path, b"", site.token("user", "u"))[0] == 404


# ---------------------------------------------------------------- secrets


def put_secret(site: Site, name: str, value: str, owner: str = "u") -> SecretView:
    return site.user("PUT", f"/v1/secrets/{name}", SecretValue(value), SecretView, owner)


def names(site: Site, owner: str = "u") -> list[str]:
    return [each.name for each in site.user("GET", "/v1/secrets", None, SecretList, owner).items]


def first_job(site: Site, pilot: Pilot, task_id: int) -> Assignment:
    while (job := pilot.acquire()).task_id != task_id:
        pass
    return job


def test_a_secret_reaches_the_jobs_that_ask_for_it_and_nobody_else(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    site.world()
    put_secret(site, "token", "first-xyzzy")
    put_secret(site, "token", "xyzzy-plugh")
    put_secret(site, "token", "eves-own", owner="eve")
    assert (names(site), names(site, "eve"), names(site, "bob")) == (["token"], ["token"], [])
    asks, plain = submit(site, stage(secrets=["token"]), stage("plain")).tasks
    pilot = site.pilot()
    jobs = {job.task_id: job for job in (pilot.acquire(), pilot.acquire())}
    assert jobs[asks.id].secrets == {"token": "xyzzy-plugh"}
    assert jobs[plain.id].secrets == {}
    with site.database.read() as connection:
        rows = connection.execute(select(user_secret.c.sealed)).scalars().all()
    assert len(rows) == 2 and not any(b"xyzzy" in bytes(row) for row in rows)
    told = site.raw("GET", f"/v1/tasks/{asks.id}", token=site.token("user")).text
    events = site.raw("GET", "/v1/events", token=site.token("admin")).text
    assert "xyzzy" not in told + events + caplog.text


def test_a_secret_that_is_not_there(site: Site) -> None:
    site.world()
    put_secret(site, "token", "x", owner="eve")
    assert refused(submit, site, stage(secrets=["token"])) == (400, ["$.stages[0].secrets"])
    assert refused(put_secret, site, "to-ken", "x")[0] == 400
    put_secret(site, "token", "x")
    task = submit(site, stage(secrets=["token"])).tasks[0]
    site.user("DELETE", "/v1/secrets/token")
    assert refused(site.user, "DELETE", "/v1/secrets/token")[0] == 404
    assert first_job(site, site.pilot(), task.id).secrets == {}


def test_a_secret_put_in_anothers_place_or_sealed_with_another_key_opens_nothing(site: Site) -> None:
    site.world()
    put_secret(site, "token", "mine")
    put_secret(site, "token", "hers", owner="eve")
    with site.database.write() as connection:
        theirs = connection.execute(select(user_secret.c.sealed).where(user_secret.c.owner == "u")).scalar_one()
        connection.execute(user_secret.update().where(user_secret.c.owner == "eve").values(sealed=theirs))
    task = submit(site, stage(secrets=["token"]), name="eve").tasks[0]
    assert first_job(site, site.pilot(), task.id).secrets == {}


# ---------------------------------------------------------------- placeholders


def test_placeholders_are_filled_in_for_each_job(site: Site) -> None:
    site.world()
    command = ["run", "%RNDM:100", "100%", "%OUT.root"]
    task = submit(site, stage(count=2, command=command, environment={"SEED": "%RNDM=5"})).tasks[0]
    pilot = site.pilot()
    jobs = [pilot.acquire(), pilot.acquire()]
    assert [job.command for job in jobs] == [
        ["run", "100", "100%", f"{task.id}._000001.root"],
        ["run", "101", "100%", f"{task.id}._000002.root"],
    ]
    assert [job.environment for job in jobs] == [{"SEED": "5"}, {"SEED": "6"}]


def test_a_placeholder_that_means_nothing_is_refused(site: Site) -> None:
    site.world()
    assert refused(submit, site, stage(command=["x", "%DB:latest"])) == (400, ["$.stages[0].command[1]"])
    assert refused(submit, site, stage(attributes={"a": "x" * 20_000})) == (400, ["$.stages[0].attributes"])


# ---------------------------------------------------------------- what goes around a payload


def test_a_transformation_and_all_that_goes_around_it_reach_the_pilot(site: Site) -> None:
    site.world()
    program = Transformation(url="https://x.example/run.sh", parameters=["%RNDM:1"])
    process = ProcessSpec(command=["check"], when=ProcessWhen.BEFORE, on_failure=ProcessFailure.SITE, timeout_s=60)
    outputs = [OutputPattern(pattern="*.root", max_mb=5)]
    more: dict[str, Any] = {"plugin": "skim", "allow_no_output": True, "log_files": ["*.cfg"], "outputs": outputs}
    submit(site, stage(command=None, transformation=program, processes=[process], **more))
    job = site.pilot().acquire()
    assert job.command is None and job.transformation is not None
    assert (job.transformation.url, job.transformation.parameters) == (program.url, ["1"])
    [told] = job.processes
    assert (told.command, told.when, told.on_failure) == (["check"], ProcessWhen.BEFORE, ProcessFailure.SITE)
    assert (told.timeout_s, job.plugin, job.allow_no_output, job.log_files) == (60, "skim", True, ["*.cfg"])
    assert job.outputs[0].max_mb == 5


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"command": ["x"], "transformation": Transformation(url="https://x.example/a")}, ""),
        ({"transformation": Transformation(url="http://x.example/a")}, ".transformation.url"),
        ({"transformation": Transformation(url="https://me:secret@x.example/a")}, ".transformation.url"),
        ({"command": ["x"], "log_files": ["../pilot.log"]}, ".log_files[0]"),
        (
            {"command": ["x"], "processes": [ProcessSpec(command=["a\0"], when=ProcessWhen.AFTER)]},
            ".processes[0].command",
        ),
    ],
)
def test_what_cannot_be_a_payload_is_refused(site: Site, fields: dict[str, Any], path: str) -> None:
    site.world()
    assert refused(submit, site, stage(**{"command": None, **fields})) == (400, [f"$.stages[0]{path}"])
