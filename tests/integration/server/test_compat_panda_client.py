"""PanDA's users against the dispatcher: what their parameters become, what is refused and how, and that nothing is kept of it."""

from __future__ import annotations

import copy
import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from common.states import TaskState
from common.wire import OutputRecord, RecordReply, RecordRequest
from server.compat.panda_client.parameters import PARAMETERS, Use
from server.compat.settings import Compat, PandaClient, PandaLogin
from server.config import ServerConfig
from server.dispatch.cloning import delete_workflows
from server.dispatch.sandboxes import drop_unused
from server.store import workflows
from tests.integration.server.harness import CHECKSUM, Site, uploaded

ARCHIVE = "jobO.0b1c.tar.gz"
NAME = "user.ann.test"
TEMPLATE = "user.ann.$JEDITASKID._${SN/P}.out.txt"


BOTH = pytest.mark.parametrize("kind", ["sqlite", "real_postgres"])


@pytest.fixture
def kind() -> str:
    """Most of this does not depend on the kind of database; what does is marked."""
    return "sqlite"


@pytest.fixture
def site(url: str) -> Iterator[Site]:
    """A site ``s`` with the queue ``q``, and the face."""
    login = PandaLogin(client_id="pilotage", config_url="https://issuer.example.org/.well-known/openid-configuration")
    face = PandaClient(on=True, catalog="made-up", logins={"test": login})
    config = ServerConfig(
        compat=Compat(panda_client=face), catalogs={"made-up": {"plugin": "fake", "datasets": {"four": 4}}}
    )
    made = Site(url, config=config)
    made.say_up()
    made.world()
    yield made
    made.database.close()


class Ann:
    """A person with PanDA's client."""

    def __init__(self, site: Site, name: str = "ann") -> None:
        self.site = site
        self.name = name
        self.token = site.token("user", name)

    def raw(self, method: str, verb: str, body: bytes | None = None, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", **more.pop("headers", {})}
        return self.site.client.simulate_request(method, f"/api/v1/{verb}", body=body, headers=headers, **more)

    def post(self, verb: str, **fields: Any) -> dict[str, Any]:
        return _answer(self.raw("POST", verb, json.dumps(fields).encode()))

    def get(self, verb: str, **fields: Any) -> dict[str, Any]:
        return _answer(self.raw("GET", verb, params={name: str(value) for name, value in fields.items()}))

    def upload(self, content: bytes, name: str = ARCHIVE) -> dict[str, Any]:
        body, kind = form(content, name)
        return _answer(self.raw("POST", "file_server/upload_cache_file", body, headers={"Content-Type": kind}))

    def submit(self, **changes: Any) -> dict[str, Any]:
        return self.post("task/submit", task_parameters=parameters(**changes), parent_tid=None)

    def task(self, **changes: Any) -> int:
        """A task that must be taken, with its units made."""
        answer = self.submit(**changes)
        assert answer["success"], answer
        self.site.agents()
        return int(answer["message"].partition("jediTaskID=")[2])


def _answer(result: Any) -> dict[str, Any]:
    assert result.status_code == 200
    assert set(result.json) == {"success", "message", "data"}
    found: dict[str, Any] = result.json
    return found


def form(content: bytes, name: str, field: str = "file") -> tuple[bytes, str]:
    head = f'--edge\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
    head += "Content-Type: application/octet-stream\r\n\r\n"
    return head.encode() + content + b"\r\n--edge--\r\n", "multipart/form-data; boundary=edge"


def archive(text: str = "hello") -> bytes:
    """A gzipped tar archive with one file."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as made:
        member = tarfile.TarInfo("words.txt")
        member.size = len(text)
        made.addfile(member, io.BytesIO(text.encode()))
    return gzip.compress(raw.getvalue())


def constant(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "constant", "value": value, **more}


def line(command: str = "run.sh", *more: dict[str, Any], outputs: bool = True) -> list[dict[str, Any]]:
    """Job parameters as ``prun`` makes them."""
    output = {
        "type": "template",
        "param_type": "output",
        "value": TEMPLATE,
        "dataset": f"{NAME}_out.txt/",
        "hidden": True,
    }
    written = [output, constant(f"-o \"{{'out.txt': '{TEMPLATE}'}}\"")] if outputs else []
    return [
        constant('-j "" --sourceURL ${SURL}'),
        constant("-r ."),
        constant(f"-a {ARCHIVE}"),
        *written,
        *more,
        constant('-p "', padding=False),
        constant(quote(command), padding=False),
        constant('"'),
    ]


def primary(dataset: str = "four", **more: Any) -> dict[str, Any]:
    exclude = r"\.log\.tgz(\.\d+)*$"
    item = {"type": "template", "param_type": "input", "value": '-i "${IN/T}"', "dataset": dataset, "exclude": exclude}
    return {**item, "expand": True, **more}


def parameters(**changes: Any) -> dict[str, Any]:
    """Task parameters as ``prun`` sends them; None takes one away."""
    made: dict[str, Any] = {
        "taskName": f"{NAME}/",
        "uniqueTaskName": True,
        "vo": "test",
        "architecture": "",
        "transUses": "",
        "transHome": None,
        "processingType": "panda-client-2.2.0-jedi-run",
        "prodSourceLabel": "user",
        "site": None,
        "excludedSite": [],
        "includedSite": None,
        "nEvents": 3,
        "nEventsPerJob": 1,
        "cliParams": "prun",
        "osInfo": "Linux",
        "nMaxFilesPerJob": 200,
        "respectSplitRule": True,
        "sourceURL": "http://127.0.0.1",
        "log": {"dataset": f"{NAME}.log/", "type": "template", "param_type": "log", "value": "x.${SN}.log.tgz"},
        "jobParameters": line(),
        "noInput": True,
    }
    return {**made, **changes}


@pytest.fixture
def ann(site: Site) -> Ann:
    made = Ann(site)
    assert made.upload(archive())["success"]
    return made


def test_a_task_becomes_units_and_jobs_with_the_command_and_the_sandbox(site: Site, ann: Ann) -> None:
    counted = {"type": "template", "param_type": "pseudo_input", "value": "${SEQNUMBER}", "dataset": "seq_number"}
    command = [*line()[:-2], constant("run.sh%20", padding=False), {**counted, "offset": 10, "padding": False}]
    task_id = ann.task(jobParameters=[*command, constant('5"')])
    assert len(site.units(task_id)) == 3
    site.pilot().acquire()
    job = site.pilot().acquire()
    assert (
        job.environment["PANDA_EXEC"]
        == "run.sh %RNDM:0000000000000000105"[:-1].replace("%RNDM:000000000000000010", "11") + "5"
    )
    assert job.environment["PANDA_SERIAL"] == f"{task_id}._000002"
    assert job.environment["PANDA_OUTPUTS"] == "out.txt/user.ann./.out.txt"
    assert job.sandbox is not None and job.jobscript is not None and job.jobscript.startswith("#!/bin/sh")
    assert [output.pattern for output in job.outputs] == ["user.ann.*._*.out.txt"]


def test_a_dataset_of_the_catalogue_becomes_units(site: Site, ann: Ann) -> None:
    task_id = ann.task(
        noInput=None, nEvents=None, nEventsPerJob=None, nFilesPerJob=2, jobParameters=line("run %IN", primary())
    )
    assert [unit.did is not None for unit in site.units(task_id)] == [True] * 4
    job = site.pilot().acquire()
    names = ",".join(unit.file.did.partition(":")[2] for unit in job.units if unit.file is not None)
    assert job.environment["PANDA_EXEC"] == f"run {names}" and len(job.units) == 2


def test_what_is_asked_for_reaches_the_task(site: Site, ann: Ann) -> None:
    asked = {
        "coreCount": 2,
        "ramCount": 700,
        "ramCountUnit": "MBPerCoreFixed",
        "maxWalltime": 3,
        "noLoopingCheck": True,
    }
    task_id = ann.task(**asked, site="q", maxAttempt=7, skipScout=True, currentPriority=5, container_name="debian:12")
    needs = site.task(task_id).requirements
    assert (needs.cores, needs.memory_mb, needs.wall_s, needs.looping_s) == (2, 1400, 10_800, 0)
    assert site.task(task_id).priority == 5
    with site.database.read() as connection:
        row = workflows.get_task(connection, task_id)
    assert row is not None
    assert (row.spec.sites, row.spec.max_attempts, row.spec.scouts, row.spec.image) == (
        ["s"],
        7,
        False,
        "docker://debian:12",
    )


@BOTH
def test_one_is_built_first_where_a_build_is_asked_for(site: Site, ann: Ann) -> None:
    spec = {"archiveName": ARCHIVE, "jobParameters": f'-i ${{IN}} -o ${{OUT}} -r . --bexec "{quote("make all")}" '}
    changed = [constant("-l ${LIB}") if item["value"].startswith("-a") else item for item in line()]
    task_id = ann.task(jobParameters=changed, buildSpec=spec)
    job = site.pilot().acquire()
    assert job.environment["PANDA_BUILD"] == "make all" and job.task_id == task_id - 1
    assert ann.get("task/get_job_ids", task_id=task_id)["data"] == [job.job_id]
    assert [each["jediTaskID"] for each in ann.get("task/get_tasks_detailed_info_since")["data"]] == [task_id]
    assert ann.post("task/kill", task_id=task_id)["success"]
    assert {site.task(each).state for each in (task_id, task_id - 1)} == {TaskState.ABORTED}


def test_without_a_build_command_the_jobs_unpack_the_sources_themselves(site: Site, ann: Ann) -> None:
    changed = [constant("-l ${LIB}") if item["value"].startswith("-a") else item for item in line()]
    ann.task(jobParameters=changed, buildSpec={"archiveName": ARCHIVE, "jobParameters": "-i ${IN} -o ${OUT} -r . "})
    assert site.pilot().acquire().sandbox is not None


def test_a_program_of_the_users_own_gets_the_whole_line(site: Site, ann: Ann) -> None:
    output = {"type": "template", "param_type": "output", "value": "out=x.${SN}.root", "dataset": "x"}
    job_parameters = [constant("energy=8000 in=${IN}", param_type=None), output, primary(value="${IN}", hidden=True)]
    ann.task(
        transPath="https://software.example.org/sim.sh", jobParameters=job_parameters,
        noInput=None, nEvents=None, nEventsPerJob=None, nFilesPerJob=1,
    )  # fmt: skip
    job = site.pilot().acquire()
    assert job.transformation is not None and job.transformation.url.endswith("sim.sh")
    assert job.transformation.parameters[0] == "energy=8000" and job.transformation.parameters[2] == "out=x.1.root"
    assert [output.pattern for output in job.outputs] == ["x.*.root"]


def test_a_program_of_the_users_own_is_told_the_names_that_panda_would_give(site: Site, ann: Ann) -> None:
    """The serial number was not padded, and so no name was known before the program had written it."""
    output = {"type": "template", "param_type": "output", "value": f"out={TEMPLATE}", "dataset": f"{NAME}_out.txt/"}
    task_id = ann.task(transPath="https://software.example.org/sim.sh", jobParameters=[output])
    job = site.pilot().acquire()
    assert job.transformation is not None
    assert job.transformation.parameters == [f"out=user.ann.{task_id}._000001.out.txt"]
    assert [output.pattern for output in job.outputs] == ["user.ann.*._*.out.txt"]


REFUSED = [name for name, known in PARAMETERS.items() if known.use is Use.REFUSED]


def test_what_cannot_be_translated_is_refused_by_name_with_a_remedy(site: Site, ann: Ann) -> None:
    before = site.row_counts()
    for name in REFUSED:
        answer = ann.submit(**{name: "something"})
        assert not answer["success"] and answer["data"] == 4
        assert f"{name}: {PARAMETERS[name].words}" in answer["message"]
    answer = ann.submit(nobodyKnows=1, mergeOutput=True)
    assert "nobodyKnows: this parameter is not known here" in answer["message"] and "mergeOutput: " in answer["message"]
    assert site.row_counts() == before


ODD: list[tuple[dict[str, Any], str]] = [
    ({"taskName": ""}, "taskName"),
    ({"taskName": 5}, "taskName"),
    ({"taskName": "x" * 300}, "taskName"),
    ({"jobParameters": None}, "jobParameters"),
    ({"jobParameters": [{"type": "constant"}]}, "jobParameters[0]"),
    ({"jobParameters": [constant("--useRootCore")]}, "--useRootCore"),
    ({"jobParameters": [constant('-p "')]}, "no command line"),
    ({"jobParameters": line()[:-3]}, "-p"),
    ({"jobParameters": [constant("-j run.sh"), *line()[1:]]}, "-j"),
    ({"jobParameters": [constant("-r ../.."), *line()[2:]]}, "-r"),
    ({"jobParameters": [constant("-o \"__import__('os')\""), *line(outputs=False)]}, "-o"),
    ({"jobParameters": [constant("-o \"{'a': 'b'}\""), *line(outputs=False)]}, "-o"),
    ({"jobParameters": [constant("-a other.tar.gz"), *line()[3:]]}, "other.tar.gz"),
    ({"jobParameters": line("a\0b")}, "NUL"),
    ({"jobParameters": line("run %IN")}, "%IN"),
    ({"jobParameters": line("run", primary())}, "noInput"),
    ({"noInput": None}, "${IN}"),
    ({"noInput": None, "jobParameters": line("run", primary("what=4"))}, "what=4"),
    ({"noInput": None, "jobParameters": line("run", primary(include="(a+)+$"))}, "include"),
    ({"noInput": None, "jobParameters": line("run", primary(include="nothing"))}, "no file is left"),
    ({"noInput": None, "jobParameters": line("run", primary()), "nEvents": 7}, "nEvents"),
    ({"nEvents": 4, "nEventsPerJob": 3}, "nEvents"),
    ({"nEvents": -1}, "nEvents"),
    ({"nEvents": 10**30}, "nEvents"),
    ({"nEvents": "many"}, "nEvents"),
    ({"nEvents": 20_000_000}, "at most 10000000"),
    ({"noInput": None, "jobParameters": line("run", primary(exclude=",".join("abcdefghijklmnopqrstuvw")))}, "exclude"),
    (
        {"noInput": None, "jobParameters": line("run", primary(",".join(f"d{each}" for each in range(101))))},
        "at most 100",
    ),
    ({"jobParameters": line("x" * 100_001)}, "100000"),
    ({"jobParameters": [{**constant("x"), "mystery": 1}, *line()]}, "mystery"),
    ({"cliParams": "x" * 17_000_000}, "task parameters have at most"),
    ({"coreCount": 10**12}, "coreCount"),
    ({"ramCount": 1, "ramCountUnit": "GB"}, "ramCountUnit"),
    ({"maxAttempt": 1000}, "max_attempts"),
    ({"site": "nowhere"}, "nowhere"),
    ({"site": {"a": 1}}, "site"),
    ({"container_name": 7}, "container_name"),
    ({"multiStepExec": {"containerOptions": {}}}, "multiStepExec"),
    ({"processingType": "panda-client-2.2.0-jedi-athena"}, "processingType"),
    ({"transPath": "ftp://somewhere/x", "jobParameters": [constant("x")]}, "url"),
    ({"workingGroup": "a b"}, "group"),
]


def test_odd_parameters_are_refused_by_name_and_nothing_is_kept(site: Site, ann: Ann) -> None:
    before = site.row_counts()
    for changes, words in ODD:
        answer = ann.submit(**changes)
        assert not answer["success"] and answer["data"] == 4 and words in answer["message"], (changes, answer)
    assert site.row_counts() == before


@BOTH
def test_a_name_is_taken_until_its_task_came_to_nothing(site: Site, ann: Ann) -> None:
    task_id = ann.task()
    before = site.row_counts()
    again = ann.submit()
    assert (again["success"], again["data"]) == (False, 2) and f"jediTaskID={task_id}" in again["message"]
    assert site.row_counts() == before
    other = ann.task(uniqueTaskName=None)
    assert other != task_id
    for each in (task_id, other):
        assert ann.post("task/kill", task_id=each)["success"]
    third = ann.task()
    assert third not in (task_id, other)
    assert Ann(site, "bob").submit()["message"].startswith("jobParameters")  # the sandbox is another person's


@BOTH
def test_the_same_sandbox_is_found_again_by_its_owner_only(site: Site, ann: Ann) -> None:
    content = archive()
    crc, size = zlib.crc32(gzip.decompress(content)), len(content)
    found = ann.post("file_server/validate_cache_file", file_size=size, checksum=crc)
    assert found["message"] == f"FOUND:falconframework.org:{ARCHIVE}"
    assert (
        Ann(site, "bob").post("file_server/validate_cache_file", file_size=size, checksum=crc)["message"] == "NOTFOUND"
    )
    assert ann.post("file_server/validate_cache_file", file_size=size, checksum=crc + 1)["message"] == "NOTFOUND"
    site.turn("sandbox_keep_s", 1)
    site.tick(10)
    assert drop_unused(site.dispatcher) == 1
    assert ann.post("file_server/validate_cache_file", file_size=size, checksum=crc)["message"] == "NOTFOUND"


UPLOADS: dict[str, tuple[bytes, str]] = {
    "no form": (b"{}", "application/json"),
    "no boundary": (form(archive(), ARCHIVE)[0], "multipart/form-data"),
    "cut": (form(archive(), ARCHIVE)[0][:-30], "multipart/form-data; boundary=edge"),
    "empty": (b"", "multipart/form-data; boundary=edge"),
    "other field": form(archive(), ARCHIVE, "other"),
    "a way out": form(archive(), "..\\x;y"),
    "no name": form(archive(), ""),
    "no gzip": form(b"plain", ARCHIVE),
    "nothing in it": form(b"", ARCHIVE),
    "odd head": (b"--edge\r\n\xff\xfe: \0\r\n\r\n\r\n--edge--", "multipart/form-data; boundary=edge"),
}


def test_an_upload_that_is_none_is_refused(site: Site) -> None:
    ann = Ann(site)
    before = site.row_counts()
    for what, (content, kind) in UPLOADS.items():
        answer = _answer(ann.raw("POST", "file_server/upload_cache_file", content, headers={"Content-Type": kind}))
        assert not answer["success"] and answer["message"], what
    assert site.row_counts() == before


def test_a_sandbox_that_is_too_large_is_refused(site: Site) -> None:
    site.turn("sandbox_mb", 1)
    ann = Ann(site)
    before = site.row_counts()
    answer = ann.upload(gzip.compress(b"") + b"0" * 1_100_000)
    assert not answer["success"] and "at most 1048576 bytes" in answer["message"]
    assert site.row_counts() == before


COMMANDS = (
    "kill",
    "finish",
    "retry",
    "pause",
    "resume",
    "avalanche",
    "reactivate",
    "increase_attempts",
    "change_priority",
)


def test_the_commands_of_others_are_refused_with_their_codes(site: Site, ann: Ann) -> None:
    task_id = ann.task()
    bob = Ann(site, "bob")
    before = site.row_counts()
    for verb in COMMANDS:
        answer = bob.post(f"task/{verb}", task_id=task_id, priority=1)
        assert (answer["success"], answer["data"]) == (False, 3), (verb, answer)
        assert ann.post(f"task/{verb}", task_id=10**9, priority=1)["data"] == 2
        assert not ann.post(f"task/{verb}")["success"]
        assert not ann.post(f"task/{verb}", task_id="x" * 50)["success"]
    assert site.row_counts() == before
    assert ann.post("task/kill", task_id=task_id)["success"]
    assert ann.post("task/kill", task_id=task_id)["success"]
    answer = ann.post("task/pause", task_id=task_id)
    assert (answer["success"], answer["data"]) == (False, 4) and "aborted" in answer["message"]


def test_commands_do_what_their_names_say(site: Site, ann: Ann) -> None:
    task_id = ann.task(maxAttempt=2)

    def status() -> str:
        return str(ann.get("task/get_status", task_id=task_id)["data"])

    assert status() == "ready"
    assert ann.post("task/pause", task_id=task_id)["data"] == 0 and status() == "paused"
    assert ann.post("task/resume", task_id=task_id)["data"] == 0 and status() == "ready"
    assert ann.post("task/change_priority", task_id=task_id, priority=7)["success"]
    assert site.task(task_id).priority == 7
    assert "5 times" in ann.post("task/increase_attempts", task_id=task_id)["message"]
    pilot = site.pilot()
    job = pilot.acquire()
    assert ann.post("task/finish", task_id=task_id, soft=True)["success"] and status() == "finishing"
    pilot.succeed(job, f"user.ann.{task_id}._000001.out.txt")
    site.agents()
    assert status() == "finished"
    wrong = ann.post("task/retry", task_id=task_id, new_parameters={"nFilesPerJob": 3})
    assert not wrong["success"] and "nFilesPerJob" in wrong["message"] and status() == "finished"
    answer = ann.post("task/retry", task_id=task_id, new_parameters={"excludedSite": "s"})
    assert (answer["success"], answer["data"]) == (True, 3)


@BOTH
def test_tasks_and_jobs_are_shown(site: Site, ann: Ann) -> None:
    task_id = ann.task()
    pilot = site.pilot()
    job = pilot.acquire()
    pilot.succeed(job, f"user.ann.{task_id}._000001.out.txt")
    pilot.fail(pilot.acquire(), 1305, error_detail="it broke")
    site.agents()
    told = ann.get(
        "task/get_tasks_detailed_info_since", filters=json.dumps({"reqID": task_id, "superStatus": "running"})
    )
    [shown] = told["data"]
    assert (shown["jediTaskID"], shown["taskName"], shown["status"]) == (task_id, f"{NAME}/", "running")
    assert (shown["nFiles"], shown["nFilesFinished"], shown["pctFinished"]) == (3, 1, 33)
    assert shown["creationDate"]["__datetime__"].startswith("20")
    for filters, count in (
        ({"taskName": NAME}, 1), ({"taskName": "other"}, 0), ({"status": "done"}, 0), ({"status": "nonsense"}, 0),
        ({"jediTaskID": task_id, "reqID": task_id + 1}, 0), ({"userName": "bob"}, 0), ({"userName": "ann"}, 1),
    ):  # fmt: skip
        assert len(ann.get("task/get_tasks_detailed_info_since", filters=json.dumps(filters))["data"]) == count, filters
    assert not ann.get("task/get_tasks_detailed_info_since", filters='{"errorDialog": "x"}')["success"]
    assert len(ann.get("task/get_tasks_modified_since", since="2020-01-01 00:00:00")["data"]) == 1
    bad = ann.get("task/get_job_descriptions", task_id=task_id, unsuccessful_only=True)["data"]
    assert [(each["jobStatus"], each["pilotErrorCode"], each["pilotErrorDiag"]) for each in bad] == [
        ("failed", 1305, "it broke")
    ]
    jobs = ann.post("job/get_description", job_ids=[job.job_id, 10**9])["data"]
    assert jobs[0]["jobStatus"] == "finished" and jobs[0]["jediTaskID"] == task_id and jobs[1] is None
    files = ann.get("task/get_datasets_and_files", task_id=task_id, dataset_types="output")["data"]
    assert len(files[0]["files"]) == 1
    details = ann.get("task/get_details", task_id=task_id, include_parameters=True)["data"]
    assert details["outDS"] == f"{NAME}_out.txt/" and details["taskParams"]["vo"] == "test"
    assert ann.get("task/get_parent_detailed_info", task_id=task_id)["success"] is False


def test_a_native_task_is_seen_and_commanded_too(site: Site, ann: Ann) -> None:
    from tests.integration.server.harness import stage

    task_id = site.submit(stage(), name="ann")[0]
    assert ann.get("task/get_tasks_detailed_info_since")["data"][0]["taskName"] == "w.one"
    assert not ann.get("task/get_task_parameters", task_id=task_id)["success"]
    assert ann.post("task/kill", task_id=task_id)["success"]
    assert ann.get("task/get_status", task_id=task_id)["data"] == "aborted"


@BOTH
def test_outputs_of_a_task_are_input_of_the_next(site: Site, ann: Ann) -> None:
    first = ann.task(nEvents=2)
    reads = {
        "noInput": None,
        "nEvents": None,
        "nEventsPerJob": None,
        "jobParameters": line("x", primary(f"{NAME}_out.txt/")),
    }
    early = ann.submit(taskName="user.ann.next", **reads)
    assert f"task {first}, which writes it, is ready" in early["message"]
    pilot = site.pilot()
    for number in (1, 2):
        job = pilot.acquire()
        file = OutputRecord(f"user.ann.{first}._{number:06d}.out.txt", 1, CHECKSUM, pattern=job.outputs[0].pattern)
        recorded = pilot.post(f"/v1/jobs/{job.job_id}/outputs", RecordRequest([file]), RecordReply)
        success = pilot.success(job)
        success.outputs = uploaded(recorded)
        pilot.finish(job, success)
    site.agents()
    second = ann.task(taskName="user.ann.next", **reads)
    assert sorted(unit.did or "" for unit in site.units(second)) == sorted(each.did for each in site.outputs(first))
    hidden = Ann(site, "bob")
    hidden.upload(archive())
    assert not hidden.submit(taskName="user.bob.x", **reads)["success"]


@BOTH
def test_tasks_of_others_are_hidden_where_people_are_kept_apart(site: Site, ann: Ann) -> None:
    task_id = ann.task()
    pilot = site.pilot()
    job = pilot.acquire()
    site.turn("isolation", "group")
    bob = Ann(site, "bob")
    site.dispatcher.looks.forget()
    assert bob.get("task/get_status", task_id=task_id)["data"] == 2
    assert bob.get("task/get_task_parameters", task_id=task_id)["data"] == 2
    assert bob.get("task/get_tasks_detailed_info_since", filters=json.dumps({"userName": "ann"}))["data"] == []
    assert bob.post("job/get_description", job_ids=[job.job_id])["data"] == [None]
    assert ann.get("task/get_status", task_id=task_id)["success"]


def test_secrets_are_set_and_never_told(site: Site, ann: Ann) -> None:
    assert ann.post("creds/set_user_secrets", key="colour", value="dark red")["success"]
    told = ann.raw("GET", "creds/get_user_secrets")
    assert "colour" in told.json["data"] and "dark red" not in told.text
    for wrong in (
        {"key": "___file___:x", "value": "eA=="},
        {"key": "a b", "value": "x"},
        {"key": "a", "value": "x" * 70_000},
    ):
        assert not ann.post("creds/set_user_secrets", **wrong)["success"]
    assert ann.post("creds/set_user_secrets", key="colour", value=None)["success"]
    assert json.loads(ann.get("creds/get_user_secrets")["data"]) == {}


def test_a_secret_in_the_address_is_not_taken(site: Site, ann: Ann) -> None:
    """Addresses are written down in the audit, and in the logs of front ends."""
    ann.raw("POST", "creds/set_user_secrets", b"{}", params={"key": "colour", "value": "red"})
    assert json.loads(ann.get("creds/get_user_secrets")["data"]) == {}


def test_strangers_and_pilots_are_refused_in_the_clients_words(site: Site, ann: Ann) -> None:
    task_id = ann.task()
    before = site.row_counts()
    for token in ("nonsense", site.token("harvester", "h"), site.token("foreign_pilot")):
        stranger = Ann(site)
        stranger.token = token
        answer = stranger.post("task/kill", task_id=task_id)
        assert (answer["success"], answer["data"]) == (False, 3)
    assert site.row_counts() == before


def test_bodies_that_cannot_be_read_are_refused(site: Site, ann: Ann) -> None:
    before = site.row_counts()
    whole = gzip.compress(json.dumps({"task_parameters": parameters()}).encode())
    for body in (
        whole[:-9],
        b"{",
        b"[1]",
        b'{"task_parameters": 5}',
        b'{"task_parameters": "{"}',
        b"\xff",
        b"{" * 100_000,
    ):
        answer = _answer(ann.raw("POST", "task/submit", body))
        assert not answer["success"] and answer["data"] == 4
    assert site.row_counts() == before
    assert _answer(ann.raw("POST", "task/submit", whole))["success"]


def test_where_people_log_in_is_told_without_a_secret(site: Site) -> None:
    told = site.client.simulate_get("/auth/test_auth_config.json").json
    assert (
        told["client_id"] == "pilotage" and told["client_secret"] == "" and told["oidc_config_url"].startswith("https")
    )
    assert site.client.simulate_get("/auth/other_auth_config.json").json["success"] is False


def test_jobs_are_not_killed_one_by_one_and_files_not_asked_back(site: Site, ann: Ann) -> None:
    task_id = ann.task()
    before = site.row_counts()
    job = site.pilot().acquire()
    assert "kill or finish the task" in ann.post("job/kill", job_ids=[job.job_id])["message"]
    assert not ann.post("task/reload_input", task_id=task_id)["success"]
    assert not ann.post("file_server/upload_file_recovery_request", task_id=task_id)["success"]
    assert ann.post("job/set_debug_mode", job_id=job.job_id, mode=True)["success"]
    assert before.keys() == site.row_counts().keys()


def test_parameters_are_kept_as_they_were_sent(site: Site, ann: Ann) -> None:
    sent = parameters()
    task_id = ann.task()
    assert ann.get("task/get_task_parameters", task_id=task_id)["data"] == sent
    assert sent == copy.deepcopy(parameters())
    from server.store.schema_panda_client import panda_dataset, panda_task

    site_tables = site.row_counts()
    assert (site_tables[panda_task.name], site_tables[panda_dataset.name]) == (1, 1)
    assert msgspec.json.encode(sent)


@BOTH
def test_two_submissions_of_a_name_at_the_same_moment_make_one_task(site: Site, ann: Ann) -> None:
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: ann.submit(), range(4)))
    assert any(answer["success"] for answer in answers)
    assert {answer["data"] for answer in answers if answer["success"]} == {1}
    assert site.row_counts()["panda_task"] == site.row_counts()["workflow"] == 1


def test_the_name_of_a_deleted_task_gives_a_new_one(site: Site, ann: Ann) -> None:
    """The number of earlier tasks once named the request: after a deletion it was that of another task, which was told
    again as if it were new."""
    first, second = ann.task(uniqueTaskName=None), 0
    ann.post("task/kill", task_id=first)
    second = ann.task()
    ann.post("task/kill", task_id=second)
    with site.database.read() as connection:
        row = workflows.get_task(connection, first)
    assert row is not None
    site.call("DELETE", f"/v1/workflows/{row.workflow_id}", None, None, ann.token)
    while delete_workflows(site.dispatcher):
        pass
    assert site.row_counts()["panda_task"] == 1
    assert ann.task() > second


def test_files_are_cut_and_chosen_as_asked(site: Site, ann: Ann) -> None:
    reads = {"noInput": None, "nEvents": None, "nEventsPerJob": None, "uniqueTaskName": None}

    def units(item: dict[str, Any], **more: Any) -> list[Any]:
        return site.units(ann.task(**{**reads, "jobParameters": line("x", item), **more}))

    assert len(units(primary(), nFiles=3)) == 3
    assert len(units(primary(offset=1))) == 3
    assert [each.did for each in units(primary(files=["four.2", "nothing"]))] == ["fake:four.2"]
    assert [each.did for each in units(primary(include=r"four\.1"))] == ["fake:four.1"]
    assert len(units(primary(exclude=r"\.log\.tgz(\.\d+)*$,four\.1"))) == 3
    assert len(units(primary(), nEvents=2000)) == 2
    assert len(units(primary(), nEventsPerJob=500)) == 8
    assert [each.events for each in units(primary(), nEventsPerFile=10, nFiles=1)] == [10]
    assert len(units(primary("four,four"))) == 4


def test_jobs_are_as_large_as_asked(site: Site, ann: Ann) -> None:
    reads = {"noInput": None, "nEvents": None, "nEventsPerJob": None, "jobParameters": line("x", primary())}
    for sizes, count in (
        ({"nFilesPerJob": 3}, 3), ({"nMaxFilesPerJob": 2}, 2), ({"nGBPerJob": 1}, 4), ({"nFilesPerJob": 3, "nMaxFilesPerJob": 2}, 2),
        ({"nEventsPerJob": 20, "nEventsPerFile": 10}, 2), ({"nEventsPerJob": 500}, 1),
    ):  # fmt: skip
        task_id = ann.task(**{**reads, "uniqueTaskName": None, **sizes})
        assert len(site.pilot().acquire().units) == count, sizes
        assert ann.post("task/kill", task_id=task_id)["success"]


def test_secondary_files_go_with_each_job(site: Site, ann: Ann) -> None:
    stream = {
        "type": "template",
        "param_type": "input",
        "value": "${IN2}",
        "dataset": "four",
        "nFilesPerJob": 2,
        "hidden": True,
    }
    inputs = (stream, constant("--inMap \"{'IN2': ${IN2/T}}\""))
    ann.task(jobParameters=line("run %IN2", *inputs))
    job = site.pilot().acquire()
    assert len(job.secondary["IN2"]) == 2 and job.environment["PANDA_STREAMS"] == "IN2"
    assert job.environment["PANDA_EXEC"].startswith("run four.")
    twice = ann.submit(taskName="user.ann.twice", jobParameters=line("run", stream, {**stream, "value": "${in2}"}))
    assert "two inputs" in twice["message"]


def test_secrets_reach_the_jobs_of_a_task_that_asks(site: Site, ann: Ann) -> None:
    ann.post("creds/set_user_secrets", key="colour", value="red")
    ann.task(useSecrets=True)
    job = site.pilot().acquire()
    assert job.secrets == {"colour": "red"} and job.environment["PANDA_SECRETS"] == "colour"


def test_verbs_that_are_not_served_are_refused_in_the_clients_words(site: Site, ann: Ann) -> None:
    before = site.row_counts()
    for verb in (
        "task/enable_jumbo_jobs",
        "job/submit",
        "workflow/submit_workflow_raw_request",
        "creds/get_access_token",
    ):
        answer = ann.post(verb, task_id=1)
        assert (answer["success"], answer["data"]) == (False, 2) and verb.partition("/")[2] in answer["message"]
    assert site.row_counts() == before
