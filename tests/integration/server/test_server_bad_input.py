"""Bad input gets a problem document that names the field, and nothing half done; never a mistake inside the server."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from falcon.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.wire import WorkersReportReply
from server.access.limits import MIB
from server.access.settings import Limits, RoleLimit
from server.api.routes import ROUTES
from server.api.routing import Role
from server.config import ServerConfig
from tests.integration.server.harness import CHECKSUM, Site, stage, uploaded


def workflow(**changes: Any) -> dict[str, Any]:
    """A good workflow of one stage over two files; ``changes`` go to the stage."""
    listed = [
        {"did": f"data:{name}", "size": 5, "replicas": [{"storage": "disk", "path": f"d/{name}"}]} for name in "ab"
    ]
    one = {
        "name": "one",
        "input": {"kind": "files", "files": listed},
        "command": ["true"],
        "outputs": [{"pattern": "*"}],
    }
    return {"name": "w", "stages": [{**one, **changes}]}


def files_with(**changes: Any) -> dict[str, Any]:
    """A good workflow but for its second file."""
    made = workflow()
    made["stages"][0]["input"]["files"][1].update(changes)
    return made


def staged(*inputs: str, **more: Any) -> dict[str, Any]:
    """Stages that feed one another: each takes the one that is named."""
    stages = [
        {"name": f"s{n}", "input": {"kind": "stage", "stage": word}, "command": ["x"], "outputs": [{"pattern": "*"}]}
        for n, word in enumerate(inputs)
    ]
    return {"name": "w", "stages": stages, **more}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


FILE = "$.stages[0].input.files[1]"
BAD_WORKFLOWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown field": (workflow() | {"nam": 1}, "$", "unknown field `nam`"),
    "unknown field of a stage": (workflow(wall=1), "$.stages[0]", "unknown field `wall`"),
    "unknown field of a file": (files_with(colour=1), FILE, "unknown field `colour`"),
    "unknown field of requirements": (workflow(requirements={"cpu": 1}), "$.stages[0].requirements", "`cpu`"),
    "wrong type": (workflow(files_per_job="many"), "$.stages[0].files_per_job", "Expected `int | null`"),
    "zero cores": (workflow(requirements={"cores": 0}), "$.stages[0].requirements.cores", ">= 1"),
    "no name": ({"stages": workflow()["stages"]}, "$", "missing required field `name`"),
    "no stages": ({"name": "w", "stages": []}, "$.stages", "length >= 1"),
    "a name that is none": (workflow() | {"name": "a b"}, "$.name", "regex"),
    "kind of input unknown": (workflow(input={"kind": "magic"}), "$.stages[0].input.kind", "magic"),
    "unknown stage": (staged("nobody"), "$.stages[0].input.stage", "no stage is called 'nobody'; there are s0"),
    "itself": (staged("s0"), "$.stages[0].input.stage", "cannot feed itself"),
    "cycle": (staged("s2", "s0", "s1"), "$.stages", "in a circle: s0 -> s2 -> s1 -> s0"),
    "two stages of a name": (
        {"name": "w", "stages": workflow()["stages"] * 2},
        "$.stages",
        "2 stages are called 'one': give each a name of its own",
    ),
    "empty list of files": (workflow(input={"kind": "files", "files": []}), "$.stages[0].input.files", "empty"),
    "empty counter": (workflow(input={"kind": "counter", "count": 0}), "$.stages[0].input.count", "zero units"),
    "negative counter": (workflow(input={"kind": "counter", "count": -1}), "$.stages[0].input.count", ">= 0"),
    "duplicate DID": (files_with(did="data:a"), f"{FILE}.did", "data:a is in the list already, at [0]"),
    "no replicas": (files_with(replicas=[]), f"{FILE}.replicas", "length >= 1"),
    "unknown storage": (
        files_with(replicas=[{"storage": "dsk", "path": "x"}]),
        f"{FILE}.replicas[0].storage",
        "there is no storage 'dsk'; known: disk",
    ),
    "path that leads out": (
        files_with(replicas=[{"storage": "disk", "path": "../../etc/passwd"}]),
        f"{FILE}.replicas[0].path",
        "lead out of the storage's prefix",
    ),
    "bad checksum": (files_with(checksum="adler32:xyz"), f"{FILE}.checksum", "regex"),
    "bad DID": (files_with(did="nothing"), f"{FILE}.did", "regex"),
    "negative size": (files_with(size=-1), f"{FILE}.size", ">= 0"),
    "huge size": (files_with(size=2**63), f"{FILE}.size", "<= 4611686018427387904"),
    "attributes too deep": (files_with(attributes=nested(200)), f"{FILE}.attributes", "levels"),
    "attributes of too large a number": (files_with(attributes={"a": 10**30}), f"{FILE}.attributes", "number"),
    "unknown output storage": (
        workflow(outputs=[{"pattern": "*", "storage": "tape"}]),
        "$.stages[0].outputs[0].storage",
        "there is no storage 'tape'",
    ),
    "output pattern with a slash": (workflow(outputs=[{"pattern": "a/b"}]), "$.stages[0].outputs[0].pattern", "regex"),
    "unknown share": (workflow(share="rich"), "$.stages[0].share", "there is no share 'rich'; known: default"),
    "jobscript without shebang": (
        workflow(command=None, jobscript="echo hello"),
        "$.stages[0].jobscript",
        "the first line must be a shebang such as #!/bin/sh",
    ),
    "jobscript with carriage returns": (
        workflow(command=None, jobscript="#!/bin/sh\r\necho"),
        "$.stages[0].jobscript",
        "carriage return",
    ),
    "neither jobscript nor command": (workflow(command=None), "$.stages[0]", "give either jobscript"),
    "both": (workflow(jobscript="#!/bin/sh\n"), "$.stages[0]", "give either jobscript"),
    "empty command": (workflow(command=[]), "$.stages[0].command", "length >= 1"),
    "merge that cannot be": (
        workflow(merge={"min_files": 5, "max_files": 2}),
        "$.stages[0].merge",
        "min_files is larger",
    ),
    "variable that is none": (workflow(environment={"A B": "1"}), "$.stages[0].environment", "'A B' is no name"),
    "our own variable": (workflow(environment={"PILOTAGE_X": "1"}), "$.stages[0].environment", "PILOTAGE_X"),
}


def refuse(result: Result, status: int = 400) -> dict[str, Any]:
    assert result.status_code == status, result.text
    assert result.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = result.json
    assert problem["status"] == status
    assert problem["title"]
    return problem


@pytest.mark.parametrize("name", BAD_WORKFLOWS)
def test_a_bad_workflow_is_refused_whole(site: Site, name: str) -> None:
    site.world()
    body, path, words = BAD_WORKFLOWS[name]
    before = site.row_counts()
    problem = refuse(site.raw("POST", "/v1/workflows", json.dumps(body).encode(), site.token("user")))
    assert problem["type"] == "pilotage:invalid"
    assert [each["path"] for each in problem["errors"]] == [path]
    assert words in problem["errors"][0]["message"]
    assert site.row_counts() == before


def test_the_good_workflow_that_the_bad_ones_differ_from(site: Site) -> None:
    site.world()
    assert site.raw("POST", "/v1/workflows", workflow(), site.token("user")).status_code == 201


def test_all_mistakes_are_told_at_once(site: Site) -> None:
    site.world()
    body = workflow(share="rich", command=None)
    body["stages"].append({**staged("nobody")["stages"][0]})
    problem = refuse(site.raw("POST", "/v1/workflows", body, site.token("user")))
    assert [each["path"] for each in problem["errors"]] == [
        "$.stages[0]",
        "$.stages[0].share",
        "$.stages[1].input.stage",
    ]
    assert problem["detail"] == "the workflow has 3 mistakes"


ADMINS: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("PUT", "/v1/queues/x", {"name": "x", "site": "nowhere"}, 400, "$.site"),
    ("PUT", "/v1/queues/x", {"name": "y", "site": "s"}, 400, "$.name"),
    ("PUT", "/v1/queues/x", {"name": "x", "site": "s", "cores": -1}, 400, "$.cores"),
    ("PUT", "/v1/queues/x", {"name": "x", "site": "s", "status": "odd"}, 400, "$.status"),
    ("PUT", "/v1/queues/x", {"name": "x", "site": "s", "corse": 1}, 400, "$"),
    ("PUT", "/v1/storages/x", {"name": "x", "site": "nowhere", "endpoints": [{"url": "file:///a"}]}, 400, "$.site"),
    ("PUT", "/v1/storages/x", {"name": "x", "site": "s", "endpoints": []}, 400, "$.endpoints"),
    ("PUT", "/v1/storages/x", {"name": "x", "site": "s", "endpoints": [{"url": "/data"}]}, 400, "$.endpoints[0].url"),
    ("PUT", "/v1/sites/x", {"name": "x", "distances": {"disk": 102}}, 400, "$.distances[...]"),
    ("PUT", "/v1/shares/x", {"name": "x", "parent": "nobody"}, 400, "$.parent"),
    ("PUT", "/v1/shares/x", {"name": "x", "parent": "x"}, 400, "$.parent"),
    ("PUT", "/v1/shares/x", {"name": "x", "weight": 0}, 400, "$.weight"),
    ("PUT", "/v1/settings/heartbeat_s", {"value": "soon"}, 400, "$.value"),
    ("PUT", "/v1/settings/heartbeat_s", {"value": 0}, 400, "$.value"),
    ("PUT", "/v1/settings/heartbeat_s", {"value": 10**400}, 400, "$.value"),
    ("PUT", "/v1/settings/site_failures", {"value": 1.5}, 400, "$.value"),
    ("PUT", "/v1/settings/site_failures", {"value": 10**30}, 400, "$.value"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "field"), ADMINS, ids=range(len(ADMINS)))
def test_a_bad_piece_of_the_world_is_refused(
    site: Site, method: str, path: str, body: dict[str, Any], status: int, field: str
) -> None:
    site.world()
    before = site.row_counts()
    problem = refuse(site.raw(method, path, json.dumps(body).encode(), site.token("admin")), status)
    assert [each["path"] for each in problem["errors"]] == [field]
    assert site.row_counts() == before


def test_unknown_things_are_not_found(site: Site) -> None:
    site.world()
    for path in ("/v1/queues/x", "/v1/storages/x", "/v1/sites/x", "/v1/tasks/7", "/v1/jobs/7", "/v1/workflows/7",
                 "/v1/tasks/7/units", "/v1/tasks/7/outputs", "/v1/tasks/7/why", "/v1/queues/x/why", "/v1/tasks/x",
                 "/v1/tasks/99999999999999999999", "/v1/tasks/-1", "/v2/tasks"):  # fmt: skip
        refuse(site.raw("GET", path, token=site.token("user")), 404)
    refuse(site.raw("GET", "/v1/queues/x/demand", token=site.token("harvester")), 404)
    refuse(site.raw("PUT", "/v1/settings/x", {"value": 1}, site.token("admin")), 404)
    refuse(site.raw("DELETE", "/v1/settings/x", token=site.token("admin")), 404)
    refuse(site.raw("POST", "/v1/tasks/7:command", {"command": "kill"}, site.token("user")), 404)
    refuse(site.raw("DELETE", "/v1/sites/x", token=site.token("admin")), 404)
    refuse(site.raw("PATCH", "/v1/tasks", token=site.token("user")), 405)


def test_what_is_still_used_cannot_be_deleted(site: Site) -> None:
    site.world()
    site.worker()
    for path in ("/v1/sites/s", "/v1/queues/q"):
        refuse(site.raw("DELETE", path, token=site.token("admin")), 409)
    site.admin("PUT", "/v1/shares/a", {"name": "a"})
    site.admin("PUT", "/v1/shares/b", {"name": "b", "parent": "a"})
    refuse(site.raw("DELETE", "/v1/shares/a", token=site.token("admin")), 409)
    assert site.raw("DELETE", "/v1/shares/b", token=site.token("admin")).status_code == 204
    assert site.raw("DELETE", "/v1/storages/disk", token=site.token("admin")).status_code == 204


QUERIES = [
    ("/v1/tasks", "colour=red", "colour"),
    ("/v1/tasks", "state=happy", "state"),
    ("/v1/tasks", "limit=1001", "limit"),
    ("/v1/tasks", "limit=-1", "limit"),
    ("/v1/tasks", "after=x", "after"),
    ("/v1/tasks", "after=99999999999999999999", "after"),
    ("/v1/tasks", "workflow=%00", "workflow"),
    ("/v1/tasks", "limit=1&limit=2", "limit"),
    ("/v1/queues/q/why", "cores=1.5", "cores"),
    ("/v1/queues/q/why", "gpus=99999", "gpus"),
    ("/v1/jobs", "state=done", "state"),
    ("/v1/events", "job=one", "job"),
]


@pytest.mark.parametrize(("path", "query", "name"), QUERIES, ids=[f"{p}?{q}" for p, q, _ in QUERIES])
def test_a_bad_parameter_is_named(site: Site, path: str, query: str, name: str) -> None:
    site.world()
    problem = refuse(site.raw("GET", path, token=site.token("user"), query_string=query))
    assert [each["path"] for each in problem["errors"]] == [name]


BODIES = {
    "empty": b"",
    "no JSON": b"{name: w}",
    "cut off": b'{"name": "w", "stages": [',
    "not UTF-8": b'{"name": "\xff"}',
    "half a surrogate": b'{"name": "\\ud800"}',
    "list": b"[]",
    "null": b"null",
    "not a number": b'{"name": NaN}',
    "two values": b"{} {}",
    "nested": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "nested and closed": b'{"name":' + b"[" * 5000 + b"]" * 5000 + b"}",
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_message(site: Site, name: str) -> None:
    site.world()
    before = site.row_counts()
    for path, token in (("/v1/workflows", site.token("user")), ("/v1/workers:report", site.token("harvester"))):
        problem = refuse(site.raw("POST", path, BODIES[name], token))
        assert [each["path"][0] for each in problem["errors"]] == ["$"]
    assert site.row_counts() == before


def test_a_body_that_is_too_large(site: Site) -> None:
    site.world()
    body = b'{"harvester": "' + b"h" * Limits().harvester.body_mb * MIB + b'", "workers": []}'
    problem = refuse(site.raw("POST", "/v1/workers:report", body, site.token("harvester")), 413)
    assert problem["type"] == "pilotage:too-large"
    headers = {"Content-Length": str(10**12), "Authorization": f"Bearer {site.token('user')}"}
    refuse(site.client.simulate_post("/v1/workflows", headers=headers), 413)


def test_a_body_is_not_read_of_somebody_who_may_not_send_it(site: Site) -> None:
    headers = {"Content-Length": str(10**12)}
    refuse(site.client.simulate_post("/v1/workflows", headers=headers), 401)


# ---------------------------------------------------------------- pilots and harvester


@pytest.fixture
def held(site: Site) -> Iterator[tuple[Site, Any, Any]]:
    """A site, a pilot, and the job that it holds."""
    site.world()
    site.submit(stage(count=4, files_per_job=2))
    pilot = site.pilot()
    yield site, pilot, pilot.acquire()


def test_outputs_with_bad_names_are_refused(held: tuple[Site, Any, Any]) -> None:
    site, pilot, job = held
    before = site.row_counts()
    for bad in ("..", ".", "a:b", "x" * 255, "a?b"):
        body = {"outputs": [{"name": name, "size": 1, "checksum": CHECKSUM} for name in ("good", bad)]}
        problem = refuse(site.raw("POST", f"/v1/jobs/{job.job_id}/outputs", body, pilot.grant.token), 422)
        assert [each["path"] for each in problem["errors"]] == ["$.outputs[1].name"]
    for bad in ("a/b", "", "a\nb", "x" * 300):
        body = {"outputs": [{"name": bad, "size": 1, "checksum": CHECKSUM}]}
        problem = refuse(site.raw("POST", f"/v1/jobs/{job.job_id}/outputs", body, pilot.grant.token))
        assert [each["path"] for each in problem["errors"]] == ["$.outputs[0].name"]
    body = {"outputs": [{"name": "a", "size": 1, "checksum": CHECKSUM}] * 2}
    problem = refuse(site.raw("POST", f"/v1/jobs/{job.job_id}/outputs", body, pilot.grant.token), 422)
    assert [each["path"] for each in problem["errors"]] == ["$.outputs[1].name"]
    assert site.row_counts() == before


def test_a_confirmation_that_does_not_agree_is_refused_whole(held: tuple[Site, Any, Any]) -> None:
    site, pilot, job = held
    known = uploaded(pilot.record(job, "a"))[0]
    before, units = site.row_counts(), site.units(1)
    good = [{"unit_id": each.unit_id, "outcome": "processed"} for each in job.units]
    bad: list[tuple[dict[str, Any], int, str]] = [
        ({"state": "finished", "units": [*good, {"unit_id": 3, "outcome": "processed"}]}, 422, "$.units"),
        ({"state": "finished", "units": good, "outputs": [{"did": "u:never", "url": "x"}]}, 422, "$.outputs"),
        ({"state": "running"}, 422, "$.state"),
        ({"state": "sleeping"}, 400, "$.state"),
        ({"state": "finished", "units": [{"unit_id": 1, "outcome": "great"}]}, 400, "$.units[0].outcome"),
        ({"state": "finished", "units": [{"unit_id": 2**70, "outcome": "processed"}]}, 400, "$.units[0].unit_id"),
        ({"units": good}, 400, "$"),
    ]
    for body, status, path in bad:
        raw = json.dumps(body).encode()
        problem = refuse(site.raw("POST", f"/v1/jobs/{job.job_id}:finish", raw, pilot.grant.token), status)
        assert [each["path"] for each in problem["errors"]] == [path]
    assert (site.row_counts(), site.units(1)) == (before, units)
    pilot.beat(job)
    problem = refuse(
        site.raw("POST", f"/v1/jobs/{job.job_id}:finish", {"state": "closed"}, pilot.grant.token), 422
    )  # it runs already
    assert [each["path"] for each in problem["errors"]] == ["$.state"]
    done = {"state": "finished", "units": good, "outputs": [{"did": known.did, "url": known.url}]}
    assert site.raw("POST", f"/v1/jobs/{job.job_id}:finish", done, pilot.grant.token).status_code == 200


def test_reports_of_workers_get_an_outcome_each(site: Site) -> None:
    site.world()
    mark, _ = site.worker()
    rows = [
        {"mark": "mark-new1", "queue": "q", "state": "planned", "secret_hash": "a" * 64, "valid_s": 10},
        {"mark": "mark-new2", "queue": "nowhere", "state": "planned", "secret_hash": "b" * 64},
        {"mark": "mark-new3", "queue": "q", "state": "planned"},
        {"mark": "mark-new4", "queue": "q", "state": "planned", "secret_hash": "a" * 64},
        {"mark": mark, "queue": "q", "state": "finished"},
        {"mark": mark, "queue": "q", "state": "running"},
    ]
    body = {"harvester": "h", "workers": rows}
    reply = site.call("POST", "/v1/workers:report", body, WorkersReportReply, site.token("harvester", "h"))
    assert [each.accepted for each in reply.workers] == [True, False, False, False, True, False]
    assert [each.reason for each in reply.workers if each.reason] == [
        "there is no queue 'nowhere'",
        "a new worker must come with the hash of its secret",
        "another worker has this secret",
        "this worker is finished already",
    ]


def test_a_field_that_programs_do_not_know_is_no_error(held: tuple[Site, Any, Any]) -> None:
    site, pilot, job = held
    body = {"jobs": [{"job_id": job.job_id, "state": "running", "mood": "fine"}], "weather": {"rain": 1}}
    assert site.raw("POST", "/v1/jobs:heartbeat", body, pilot.grant.token).status_code == 200


# ---------------------------------------------------------------- anything else


EXAMPLES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("POST", "/v1/workflows", "user", workflow(labels={"a": "b"}, priority=1) | {"request_id": "x", "group": "g"}),
    ("POST", "/v1/tasks/1:command", "user", {"command": "pause", "reason": "r"}),
    ("PUT", "/v1/sites/x", "admin", {"name": "x", "distances": {"disk": 3}, "status": "online", "description": ""}),
    ("PUT", "/v1/queues/x", "admin", {"name": "x", "site": "s", "cores": 1, "wall_s": 5, "tags": ["a"], "gpus": 1}),
    ("PUT", "/v1/storages/x", "admin", {"name": "x", "site": "s", "endpoints": [{"url": "file:///a"}]}),
    ("PUT", "/v1/shares/x", "admin", {"name": "x", "weight": 2.5}),
    ("PUT", "/v1/settings/sweep_after_s", "admin", {"value": 5}),
    (
        "POST",
        "/v1/workers:report",
        "harvester",
        {
            "harvester": "u",
            "workers": [
                {
                    "mark": "mark-fuzz", "queue": "q", "state": "planned", "shape": {"cores": 1, "memory_mb": 5},
                    "nodes": 1, "batch_id": "7", "secret_hash": "c" * 64, "valid_s": 10.5, "reason": "r",
                }
            ],
        },
    ),
    ("POST", "/v1/pilots", "worker", {"worker": "MARK", "nonce": "nonce-00", "host": "h", "node": 0, "version": "1"}),
    (
        "POST",
        "/v1/jobs:acquire",
        "pilot",
        {
            "request_id": "request-1", "max_jobs": 2, "wait_s": 0,
            "offer": {"cores": 2, "tags": ["a"], "gpus": [{"vendor": "n", "model": "m", "memory_mb": 5}]},
        },
    ),
    (
        "POST",
        "/v1/jobs:heartbeat",
        "pilot",
        {"jobs": [{"job_id": 1, "state": "running", "metrics": {"wall_s": 1.5, "stage_in_bytes": 7}}]},
    ),
    (
        "POST",
        "/v1/harvesters/u/commands",
        "admin",
        {
            "kind": "cancel", "request_id": "request-1", "queue": "q", "marks": ["mark-0001"], "waiting_only": True,
            "workers": 1, "valid_s": 60.0,
        },
    ),
    ("POST", "/v1/harvesters/u/commands/1:done", "harvester", {"ok": True, "detail": "x"}),
    ("POST", "/v1/workers:acquire", "harvester", {"harvester": "u", "marks": ["mark-0001"]}),
    (
        "POST",
        "/v1/direct:acquire",
        "harvester",
        {"harvester": "u", "places": [{"queue": "q", "url": "https://ce/arex", "batch_queue": "g"}], "most": 5},
    ),
    (
        "POST",
        "/v1/direct:report",
        "harvester",
        {
            "harvester": "u",
            "jobs": [
                {
                    "mark": "mark-0001", "state": "running", "batch_id": "b", "native": "RUNNING", "reason": "r",
                    "exit_code": 1, "host": "h", "results": False, "left_out": "", "killed": False, "cleaned": False,
                }
            ],
        },
    ),
    ("POST", "/v1/direct/proxies:sign", "harvester", {"harvester": "u", "proxies": [{"proxy_id": 1, "csr": "x"}]}),
    ("POST", "/v1/jobs/1/peeks", "user", {"kind": "tail", "path": "stdout", "lines": 5}),
    ("POST", "/v1/jobs/1/peeks/1:answer", "pilot", {"text": "x", "error": "", "cut": False, "end": 5}),
    ("POST", "/v1/pilots/1/credentials", "pilot", {"job_id": 1, "urls": ["root://disk//x"], "write": False}),
    ("POST", "/v1/jobs/1/units:acquire", "pilot", {"request_id": "request-2", "count": 1}),
    ("POST", "/v1/jobs/1/units:release", "pilot", {"units": [{"unit_id": 2, "outcome": "returned"}]}),
    (
        "POST",
        "/v1/jobs/1/outputs",
        "pilot",
        {"outputs": [{"name": "a", "size": 1, "checksum": CHECKSUM, "events": 5, "attributes": {"a": 1}, "pattern": "*"}]},
    ),
    (
        "POST",
        "/v1/jobs/1:finish",
        "pilot",
        {
            "state": "failed", "units": [{"unit_id": 1, "outcome": "failed"}], "exit_code": 1, "error_code": 1305,
            "error_detail": "d", "log_tail": "l", "metrics": {"cpu_s": 5},
            "bad_replicas": [{"did": "data:a", "storage": "disk", "error_code": 1103, "detail": "x"}],
            "probe": {
                "storages": [{"storage": "disk", "read": {"ok": False, "error_code": 1, "seconds": 0.5, "mb_s": 1.5}}],
                "environment": [{"name": "scratch", "level": "ok", "detail": "d", "remedy": "r"}],
            },
        },
    ),
    ("POST", "/v1/pilots/1:end", "pilot", {"reason": "r", "error_code": 5, "log_tail": "t"}),
    (
        "PUT",
        "/v1/tagging-rules/x",
        "admin",
        {
            "name": "x", "position": 1, "active": True, "description": "d", "set": {"share": "default", "priority": 1},
            "when": {"owner": "^u", "labels": {"a": "b"}, "attributes": {"c": "d"}},
        },
    ),
    (
        "PATCH",
        "/v1/tasks/1",
        "user",
        {"priority": 5, "share": "default", "max_attempts": 3, "sites": ["s"], "exclude_sites": [], "reason": "r"},
    ),
    ("POST", "/v1/workflows/1:command", "user", {"command": "pause", "reason": "r"}),
    (
        "POST",
        "/v1/workflows/1:clone",
        "user",
        {"name": "n", "overrides": {"step": {"priority": 4}}, "labels": {"a": "b"}, "request_id": "request-9"},
    ),
    ("POST", "/v1/tasks/1/inputs", "user", {"files": [{"did": "data:z", "size": 5, "replicas": []}]}),
    (
        "POST",
        "/v1/projects",
        "user",
        {
            "name": "p", "files": [{"did": "data:p", "attributes": {"a": 1}}], "attributes": {"b": 2}, "virtual": True,
            "worker_timeout_s": 60, "users": ["u"], "request_id": "request-7",
        },
    ),
    ("POST", "/v1/projects/2/files", "user", {"files": [{"did": "data:q"}]}),
    (
        "POST",
        "/v1/projects/2/files:reserve",
        "user",
        {"request_id": "request-8", "worker": "w", "cpu_site": "s", "count": 1, "wait_s": 0},
    ),
    (
        "POST",
        "/v1/projects/2/files:release",
        "user",
        {"worker": "w", "files": [{"did": "data:p", "outcome": "done"}]},
    ),
    ("POST", "/v1/projects/2:restart", "user", {"states": ["failed"], "dids": ["data:p"]}),
    ("POST", "/v1/projects/2:copy", "user", {"name": "c", "users": ["v"], "idle_timeout_s": None}),
    ("PUT", "/v1/secrets/x", "user", {"value": "v"}),
    ("POST", "/v1/login", "user", {"code": "c" * 20, "nonce": "n" * 20}),
    ("POST", "/v1/login:renew", "user", {"refresh_token": "t" * 40}),
    ("POST", "/v1/logout", "user", {"refresh_token": "t" * 40}),
    ("POST", "/v1/bans", "admin", {"kind": "user", "name": "zoe", "reason": "r", "expires": 5e9}),
    ("POST", "/v1/revocations", "admin", {"kind": "person", "value": "zoe", "reason": "r"}),
    (
        "PUT",
        "/v1/retry-rules/x",
        "admin",
        {
            "name": "x", "action": {"kind": "more_memory", "cap_mb": 9000, "factor": 2.0}, "position": 3, "active": False,
            "when": {"sources": ["payload"], "message": "out of .*", "labels": {"a": "b"}, "sites": ["s"]},
        },
    ),
    ("PUT", "/v1/agents/sweep-unconfirmed", "admin", {"enabled": False}),
    ("POST", "/v1/probes", "admin", {"site": "s"}),
    ("POST", "/v1/imports/x", "admin", {"dry_run": True, "take": ["x"], "believe": True}),
]  # fmt: skip


def test_every_route_with_a_body_has_an_example() -> None:
    def shape(path: str) -> str:
        for name in ("{job_id}", "{task_id}", "{pilot_id}", "{workflow_id}", "{peek_id}", "{command_id}"):
            path = path.replace(name, "1")
        path = path.replace("/v1/harvesters/{name}", "/v1/harvesters/u")
        path = path.replace("{project_id}", "2").replace("/v1/agents/{name}", "/v1/agents/sweep-unconfirmed")
        return path.replace("{name}", "x").replace("{source}", "x").replace("{key}", "sweep_after_s")

    wanted = {(route.method, shape(route.path)) for route in ROUTES if route.request is not None}
    assert {(method, path) for method, path, _, _ in EXAMPLES} == wanted


def leaves(value: Any, trail: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places in a JSON value, itself included."""
    yield trail
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from leaves(each, (*trail, key))


def replaced(value: Any, trail: tuple[Any, ...], new: Any) -> Any:
    if not trail:
        return new
    made = copy.deepcopy(value)
    place = made
    for key in trail[:-1]:
        place = place[key]
    place[trail[-1]] = new
    return made


ODD = [
    None, True, -1, 0, 2**31 - 1, 2**31, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63) - 1, 1.5, 1e308, -1e308,
    "", "x", "a\0b", "\x7f", "\u202e", "x" * 300, "x" * 5000, "'; DROP TABLE unit; --", "../..", "é" * 200,
    [], [None], [1] * 50, {}, {"a": {"b": [1]}}, nested(50), nested(400),
]  # fmt: skip


UNLIMITED = RoleLimit(0.0, 0.0, 256)


@pytest.fixture
def fuzzed(site: Site) -> Iterator[tuple[Site, dict[str, str]]]:
    # Its clock stands still, so that whoever asks too often would have to wait for ever.
    limits = Limits(anybody=UNLIMITED, person=UNLIMITED, admin=UNLIMITED, harvester=UNLIMITED)
    url = site.database.url.render_as_string(hide_password=False)
    site = Site(url, site.clock, ServerConfig(limits=limits))
    site.world()
    site.submit(stage(count=200, files_per_job=2))
    site.call(
        "POST",
        "/v1/projects",
        {"name": "p", "virtual": True, "files": [{"did": "data:p"}]},
        None,
        site.token("user", "u"),
    )
    pilot = site.pilot(cores=4)
    pilot.acquire()
    while site.dispatcher.polls.acquire(blocking=False):
        pass  # nobody waits for work: this clock stands still
    mark, secret = site.worker()
    tokens = {role: site.token(role, "u") for role in ("user", "admin", "harvester")}
    yield site, tokens | {"pilot": pilot.grant.token, "worker": secret, "MARK": mark}


def send(site: Site, tokens: dict[str, str], example: int, trail: tuple[Any, ...], new: Any) -> None:
    method, path, role, good = EXAMPLES[example]
    body = replaced(good, trail, new)
    if role == "worker" and isinstance(body, dict) and body.get("worker") == "MARK":
        body["worker"] = tokens["MARK"]
    result = site.raw(method, path, json.dumps(body).encode(), tokens[role])
    assert result.status_code < 500, (method, path, trail, new, result.text)
    if result.status_code >= 400:
        refuse(result, result.status_code)


ALL = [(number, trail) for number, each in enumerate(EXAMPLES) for trail in leaves(each[3])]


@given(
    place=st.sampled_from(ALL),
    new=st.sampled_from(ODD) | st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_message_is_a_mistake_inside_the_server(
    fuzzed: tuple[Site, dict[str, str]], place: tuple[int, tuple[Any, ...]], new: Any
) -> None:
    site, tokens = fuzzed
    send(site, tokens, *place, new)
    site.check_counts()


def test_no_odd_value_anywhere_is_a_mistake_inside_the_server(fuzzed: tuple[Site, dict[str, str]]) -> None:
    site, tokens = fuzzed
    for number, trail in ALL:
        for new in ODD:
            send(site, tokens, number, trail, new)
    site.check_counts()
    site.dispatcher.looks.forget()
    site.agents()  # nothing that was taken keeps the agents from their work
    fresh = site.counter(1)
    assert site.task(fresh).units == {"ready": 1}


@given(query=st.text(max_size=30) | st.sampled_from(["after=%FF", "state=%00", "owner=%00", "kind=a%00", "%00=1"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_query_is_a_mistake_inside_the_server(fuzzed: tuple[Site, dict[str, str]], query: str) -> None:
    site, tokens = fuzzed
    query = query.lstrip("?")
    for route in ROUTES:
        if route.method == "GET" and Role.USER in route.access:
            path = route.path.replace("{name}", "q")
            for name in ("{task_id}", "{job_id}", "{workflow_id}"):
                path = path.replace(name, "1")
            result = site.raw("GET", path, token=tokens["user"], query_string=query)
            assert result.status_code < 500, (path, query, result.text)
