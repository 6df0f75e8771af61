"""PanDA's pilots: what they get, what they may look at, bad input, the program that they run. One database is enough."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import ErrorCode
from common.states import JobState
from common.wire import (
    CounterInput,
    FileSpec,
    OutputPattern,
    PeekKind,
    PeekRequest,
    PeekView,
    QueueSpec,
    ReplicaSpec,
    Requirements,
    SecondaryInput,
    Transformation,
    WhyReply,
)
from tests.integration.server.harness import Site, files, stage, states
from tests.integration.server.panda_tools import made, pilot, send_to
from tests.panda_pilot import PandaPilot, listed, words_of

OUT = [OutputPattern("out.root")]
SMALL = Requirements(memory_mb=100, disk_mb=10)


@pytest.fixture
def kind() -> str:
    return "sqlite"


@pytest.fixture
def site(url: str) -> Iterator[Site]:
    found = made(url)
    yield found
    found.database.close()


def task(site: Site, count: int = 1, **more: Any) -> int:
    """A task of a PanDA pilot's kind; its id."""
    return site.counter(
        count, **{"outputs": OUT, "requirements": SMALL, "command": ["run", "a b", "{counter}"], **more}
    )


def job_of(site: Site, job: dict[str, str]) -> Any:
    return site.job(int(job["PandaID"]))


# ---------------------------------------------------------------- who gets what


def test_there_is_nothing_and_it_is_said_why(site: Site) -> None:
    before = site.row_counts()
    answer = pilot(site).get_job()
    assert answer["StatusCode"] == 20 and answer["errorDialog"] == "no task has ready units"
    after = site.row_counts()
    assert after.pop("foreign_offer") == 1 and before.pop("foreign_offer") == 0
    assert before == after


def test_outputs_with_names_ahead_and_their_datasets_are_told(site: Site) -> None:
    named = OutputPattern("u.*.root", dataset="mine.{task}", name="u.%OUT.root")
    of = task(site, outputs=[named, OutputPattern("log.txt")])
    job = pilot(site).job()
    own = f"{of}.{job['PandaID']}"
    assert listed(job, "outFiles") == [f"{own}.u.{of}._000001.root", f"{own}.log.txt", job["logFile"]]
    assert listed(job, "realDatasets") == [f"mine.{of}", "w1.one.p2", "NULL"]
    assert listed(job, "destinationDblock") == listed(job, "realDatasets")


def test_a_pattern_without_names_is_for_our_own_pilots_and_why_tells(site: Site) -> None:
    of = task(site, outputs=[OutputPattern("*.root")])
    words = "the output pattern *.root names no file ahead: write a name, or %OUT in the command"
    answer = pilot(site).get_job()
    assert answer["StatusCode"] == 20 and answer["errorDialog"] == f"foreign_pilot: {words}"
    why = site.user_page("/v1/queues/q/why", WhyReply)
    assert [(each.task_id, each.filter, each.detail) for each in why.refusals] == [(of, "foreign_pilot", words)]
    assert why.note.startswith("what a pilot of another system asked for in vain")
    assert site.pilot().acquire().task_id == of


@pytest.mark.parametrize(
    ("kind", "requirements", "got"),
    [
        ("SCORE", SMALL, True),
        ("SCORE", Requirements(cores=2, memory_mb=100), False),
        ("SCORE", Requirements(memory_mb=3000), False),
        ("SCORE_HIMEM", Requirements(memory_mb=3000), True),
        ("MCORE", Requirements(cores=4, memory_mb=4000), True),
        ("MCORE", SMALL, False),
        ("MCORE_HIMEM", Requirements(cores=4, memory_mb=12_000), True),
        ("", Requirements(cores=4, memory_mb=12_000), True),
    ],
    ids=["score", "two", "fat", "himem", "mcore", "small", "mcore_himem", "any"],
)
def test_a_pilot_gets_the_kind_of_job_that_it_asks_for(
    site: Site, kind: str, requirements: Requirements, got: bool
) -> None:
    site.put_queue("q", cores=8, memory_mb=32_000)
    task(site, requirements=requirements)
    answer = pilot(site).get_job(resourceType=kind, mem=32_000)
    assert (answer["StatusCode"] == 0) is got, answer
    if not got:
        assert "resource_type" in answer["errorDialog"] or "cores" in answer["errorDialog"]


def test_what_the_queue_allows_bounds_what_a_pilot_says(site: Site) -> None:
    site.put_queue("q", memory_mb=500)
    task(site, requirements=Requirements(memory_mb=600))
    answer = pilot(site).get_job(mem=10**30, diskSpace="1e9")
    assert answer["errorDialog"] == "memory: the job needs 600 MB of memory, the slot has 500"


def test_labels_have_shares(url: str) -> None:
    site = made(url, labels={"user": ["analysis"]})
    try:
        task(site)
        answer = pilot(site).get_job(prodSourceLabel="user")
        assert answer["errorDialog"] == "foreign_pilot: the pilot takes jobs of analysis only, not of share default"
        assert pilot(site).job(prodSourceLabel="managed")["prodSourceLabel"] == "managed"
    finally:
        site.database.close()


def test_the_same_request_twice_is_two_jobs_and_the_lost_one_comes_back(site: Site) -> None:
    of = task(site, 2)
    one = pilot(site)
    first, second = one.job(), one.job()
    assert first["PandaID"] != second["PandaID"]
    assert one.finish(second)["StatusCode"] == 0
    site.tick(3700)
    site.agents()
    assert job_of(site, first).error_code == ErrorCode.HEARTBEAT_LOST
    assert states(site.units(of)) == {"done": 1, "ready": 1}


@pytest.mark.parametrize("name", ["a,b", "a b"])
def test_a_name_that_lists_cannot_hold_goes_back_untouched(site: Site, name: str) -> None:
    of = site.submit(stage(given=files(name), outputs=OUT))[0]
    answer = pilot(site).get_job()
    assert answer["StatusCode"] == 20 and name in answer["errorDialog"]
    assert states(site.units(of)) == {"ready": 1}
    assert site.pilot().acquire().task_id == of


def test_a_command_that_makes_no_sense_fails_its_job(site: Site) -> None:
    of = task(site, command=["run", "{input}"])
    answer = pilot(site).get_job()
    assert answer["StatusCode"] == 20 and "{input} stands for one" in answer["errorDialog"]
    assert states(site.units(of)) == {"failed": 1}


# ---------------------------------------------------------------- looking at jobs


def ask(site: Site, job: dict[str, str], **more: Any) -> PeekView:
    return site.user("POST", f"/v1/jobs/{job['PandaID']}/peeks", PeekRequest(**more), PeekView)


def seen(site: Site, asked: PeekView) -> PeekView:
    return site.user("GET", f"/v1/jobs/{asked.job_id}/peeks/{asked.peek_id}", reply=PeekView)


@pytest.mark.parametrize(
    ("more", "command"),
    [
        ({"kind": PeekKind.TAIL, "path": "stdout"}, "tail payload.stdout"),
        ({"kind": PeekKind.TAIL, "path": "logs/my.log"}, "tail logs/my.log"),
        ({"kind": PeekKind.LS}, "ls -l"),
        ({"kind": PeekKind.PS}, "ps -ef"),
        ({"kind": PeekKind.DU}, "du -sk ."),
        ({"kind": PeekKind.GDB, "pid": 12}, "gdb --pid 12"),
    ],
    ids=lambda value: value["kind"].value if isinstance(value, dict) else "",
)
def test_who_looks_at_a_job_has_its_pilot_told(site: Site, more: dict[str, Any], command: str) -> None:
    task(site)
    one = pilot(site)
    job = one.job()
    one.update(job, "running")
    asked = ask(site, job, **more)
    assert one.update(job, "running", stdout="said before it was asked")["command"] == command
    assert one.update(job, "running")["command"] == command
    assert one.update(job, "running", stdout="line 1\nline 2")["command"] == "debugoff"
    found = seen(site, asked)
    assert found.state.value == "answered" and found.answer is not None and found.answer.text == "line 1\nline 2"
    assert one.update(job, "running")["command"] == "NULL"


@pytest.mark.parametrize("more", [{"kind": PeekKind.PILOT_LOG}, {"kind": PeekKind.TAIL, "path": "a;rm -rf b"}])
def test_what_they_cannot_show_is_answered_for_them(site: Site, more: dict[str, Any]) -> None:
    task(site)
    one = pilot(site)
    job = one.job()
    asked = ask(site, job, **more)
    assert one.update(job, "running")["command"] == "NULL"
    found = seen(site, asked)
    assert found.state.value == "answered" and found.answer is not None and found.answer.error


def test_set_debug_mode_asks_for_the_output(site: Site) -> None:
    task(site)
    one = pilot(site)
    job = one.job()
    person = PandaPilot(send_to(site), site.token("user", "u"))
    assert person.post("setDebugMode", {"pandaID": job["PandaID"], "modeOn": True}) == {"StatusCode": 0}
    assert one.update(job, "running")["command"] == "tail payload.stdout"
    stranger = PandaPilot(send_to(site), site.token("user", "eve"))
    assert stranger.post("setDebugMode", {"pandaID": job["PandaID"], "modeOn": "True"})["StatusCode"] == 60


# ---------------------------------------------------------------- other verbs, bad input


def test_other_verbs(site: Site) -> None:
    task(site)
    one = pilot(site)
    job = one.job()
    found = one.post("getStatus", {"ids": f"{job['PandaID']},999999,x"})
    assert found == {"StatusCode": 0, "status": "sent,notfound,notfound", "attemptNr": "0,0,0"}
    kinds = one.post("getResourceTypes", {})["ResourceTypes"]
    assert [each["resource_name"] for each in kinds] == ["SCORE", "SCORE_HIMEM", "MCORE", "MCORE_HIMEM"]
    before = site.row_counts()
    assert one.post("updateWorkerPilotStatus", {"site": "x", "workerID": "1"}) == {"StatusCode": 0}
    assert one.post("isAlive", {}) == {"StatusCode": 0}
    assert one.post("dropAllTables", {})["StatusCode"] == 30
    for verb in ("getProxy", "getKeyPair", "get_access_token", "getTokenKey"):
        answer = one.post(verb, {"role": "production", "dn": "x"})
        assert answer["StatusCode"] == 70 and set(answer) == {"StatusCode", "errorDialog"}
    assert site.row_counts() == before


def raw(site: Site, body: bytes, token: str | None = None, verb: str = "updateJob") -> dict[str, Any]:
    headers = {} if token == "" else {"Authorization": f"Bearer {token or site.token('foreign_pilot')}"}
    status, answer = send_to(site)("POST", f"/server/panda/{verb}", body, headers)
    assert status == 200
    found: dict[str, Any] = json.loads(answer)
    return found


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (gzip.compress(b'{"jobId": 1}')[:-8], "breaks off"),
        (b"\x1f\x8b nonsense", "gzip"),
        (b"[1, 2]", "neither JSON nor a form"),
        (b"{", "no JSON"),
        (b"", "names no job"),
        (b'{"jobId": "x", "state": "running"}', "names no job"),
        (b'{"jobId": 12345, "state": "running"}', "no job 12345"),
        (b'{"jobId": "12345", "state": "dancing"}', "no state"),
        (b'{"jobId": 1, "state": "finished", "xml": "{"}', "no JSON"),
        (b'{"jobId": 1, "state": "finished", "xml": "[]"}', "names no files"),
        (b'{"jobId": 1, "state": "finished", "xml": {"a": {"fsize": 1}}}', "checksum"),
        (b'{"jobId": 1, "state": "finished", "xml": {"a": {"adler32": "1", "fsize": "big"}}}', "size"),
    ],
)
def test_bad_input_is_refused_in_their_words_and_changes_nothing(site: Site, body: bytes, words: str) -> None:
    before = site.row_counts()
    answer = raw(site, body)
    assert answer["StatusCode"] == 30 and words in answer["errorDialog"], answer
    assert site.row_counts() == before


@pytest.mark.parametrize(("role", "code"), [("", 50), ("nonsense", 50), ("user", 60), ("harvester", 60)])
@pytest.mark.parametrize("verb", ["getJob", "updateJob", "getProxy", "whatever"])
def test_strangers_are_refused_in_their_words(site: Site, role: str, code: int, verb: str) -> None:
    task(site)
    before = site.row_counts()
    token = site.token(role) if role in ("user", "harvester") else role
    answer = raw(site, b"{}", token, verb)
    assert answer["StatusCode"] == code and answer["errorDialog"]
    assert site.row_counts() == before


def test_an_oversized_body_is_refused(site: Site) -> None:
    before = site.row_counts()
    answer = raw(site, gzip.compress(b" " * 60_000_000 + b"{}"))
    assert answer["StatusCode"] == 30 and "too large" in answer["errorDialog"]
    assert site.row_counts() == before


def test_an_unknown_queue_is_refused(site: Site) -> None:
    answer = pilot(site).get_job(siteName="NOWHERE")
    assert answer["StatusCode"] == 30 and "no queue 'NOWHERE'" in answer["errorDialog"]


def test_an_odd_figure_costs_nothing(site: Site) -> None:
    task(site)
    one = pilot(site)
    job = one.job()
    odd = {
        "startTime": "x",
        "endTime": None,
        "cpuConsumptionTime": -5,
        "maxRSS": 1e300,
        "jobMetrics": "nEvents=NaN a=b",
    }
    assert one.finish(job, pilotTiming="|||x", **{name: odd[name] for name in odd})["StatusCode"] == 0
    assert job_of(site, job).state is JobState.FINISHED


def test_the_vo_must_be_named_where_there_is_one(url: str) -> None:
    site = made(url, vo="atlas")
    try:
        task(site)
        assert pilot(site, vo="cms").get_job()["StatusCode"] == 60
        assert pilot(site, vo="atlas").get_job()["StatusCode"] == 0
    finally:
        site.database.close()


def test_an_outage_of_the_database_is_a_time_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from server.store.database import DatabaseUnavailable

    def unavailable(*_: Any, **__: Any) -> None:
        raise DatabaseUnavailable("gone")

    monkeypatch.setattr("server.dispatch.foreign.fetch", unavailable)
    assert pilot(site).get_job()["StatusCode"] == 10


# ---------------------------------------------------------------- data of queues and storages


def get(site: Site, path: str) -> tuple[int, Any]:
    status, body = send_to(site)("GET", path, b"", {})
    return status, json.loads(body)


def test_a_queues_data(site: Site) -> None:
    site.put_queue(
        "q", cores=8, memory_mb=16_000, disk_mb=50_000, wall_s=3600, tags=["apptainer"], copytools=["xrootd", "file"]
    )
    status, found = get(site, "/cache/schedconfig/PANDA_Q.all.json")
    assert status == 200
    told = {
        "nickname": "PANDA_Q", "panda_resource": "PANDA_Q", "siteid": "PANDA_Q", "atlas_site": "s", "state": "ACTIVE",
        "status": "online", "type": "unified", "maxwdir": 50_000, "maxrss": 16_000, "maxtime": 3600, "timefloor": 0,
        "corecount": 8, "maxinputsize": 50_000, "container_type": "singularity:pilot", "resource_type": "GRID",
        "catchall": "", "container_options": "", "params": {},
    }  # fmt: skip
    assert told.items() <= found.items()
    assert list(found["copytools"]) == ["xrdcp", "mv"] and found["acopytools"]["pw"] == ["xrdcp", "mv"]
    assert found["astorages"]["write_lan"] == ["disk"]
    assert get(site, "/cache/schedconfig/NOWHERE.all.json")[0] == 404


def test_the_storages_data(site: Site) -> None:
    from common.wire import Activity, Endpoint, StorageSpec

    endpoints = [Endpoint("root://se:1094//data"), Endpoint("davs://se:443/data/", activities=[Activity.READ_WAN])]
    site.admin("PUT", "/v1/storages/se", StorageSpec(name="se", site="s", endpoints=endpoints))
    status, found = get(site, "/cache/ddmendpoints.json")
    assert status == 200 and set(found) == {"disk", "se"}
    se = found["se"]
    assert se["name"] == "se" and se["state"] == "ACTIVE" and se["is_deterministic"] is True and se["site"] == "s"
    assert isinstance(se["id"], int) and isinstance(se["type"], str) and isinstance(se["token"], str)
    root = {"endpoint": "root://se:1094/", "flavour": "XROOTD", "id": 1, "path": "/data/"}
    davs = {"endpoint": "davs://se:443", "flavour": "WEBDAV", "id": 2, "path": "/data/"}
    assert se["arprotocols"]["write_lan"] == [root] and se["arprotocols"]["read_wan"] == [root, davs]
    assert found["disk"]["arprotocols"]["pw"][0]["endpoint"] == "file://"
    assert set(get(site, "/cache/ddmendpoints.json?ddmendpoint=se")[1]) == {"se"}


# ---------------------------------------------------------------- the program


def program_of(site: Site, job: dict[str, str]) -> tuple[int, bytes]:
    path = job["transformation"].removeprefix("http://server.example.org")
    assert path != job["transformation"]
    return send_to(site)("GET", path, b"", {})


def run(site: Site, job: dict[str, str], work: Path) -> subprocess.CompletedProcess[str]:
    status, script = program_of(site, job)
    assert status == 200
    work.mkdir(exist_ok=True)
    (work / "pilotage-run").write_bytes(script)
    (work / "pilotage-run").chmod(0o755)
    command = f"./pilotage-run {job['jobPars']}"
    return subprocess.run(
        ["/bin/sh", "-c", command], cwd=work, capture_output=True, text=True, check=False, timeout=180
    )


def test_a_command_runs_with_its_variables_and_its_outputs_get_their_names(site: Site, tmp_path: Path) -> None:
    command = ["sh", "-c", 'echo "$1 $GREETING $PILOTAGE_SEED $PILOTAGE_JOB_ID" > out.root', "x", "it's {counter}"]
    task(site, command=command, environment={"GREETING": "a 'b' $c"})
    job = pilot(site).job()
    done = run(site, job, tmp_path / "work")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "work" / listed(job, "outFiles")[0]
    assert out.read_text() == f"it's 0 a 'b' $c 0 {job['PandaID']}\n"


JOBSCRIPT = """#!/bin/sh
while line=$(pilotage-get-file); do
  set -- $line
  cat "$2" >> out.root
  [ -n "$FORGET" ] && break
  echo "$1" >> done.txt
done
echo "$(basename "$PILOTAGE_INPUT_FILES")" > names
[ -f sandboxed.txt ] || exit 9
[ -n "$FORGET" ] && touch justin-processed-dids.txt && echo data:other > justin-processed-dids.txt
exit ${CODE:-0}
"""


def sandbox(site: Site) -> str:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        entry = tarfile.TarInfo("sandboxed.txt")
        entry.size = 2
        archive.addfile(entry, io.BytesIO(b"hi"))
    answer = site.raw("POST", "/v1/sandboxes", packed.getvalue(), site.token("user", "u"))
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json["sha256"])


def test_the_lists_of_secondary_inputs_hold_whole_paths(site: Site, tmp_path: Path) -> None:
    """They held names, which meant nothing to a payload that had changed its folder."""
    stream = SecondaryInput(name="mb", files=[FileSpec(did="mb:m1", replicas=[ReplicaSpec("disk", "m1")])])
    script = '#!/bin/sh\nmkdir sub && cd sub && cat "$(cat "$PILOTAGE_SECONDARY_MB")" > ../out.root\n'
    task(site, secondary_inputs=[stream], command=None, jobscript=script)
    job = pilot(site).job()
    work = tmp_path / "work"
    work.mkdir()
    (work / "m1").write_text("minimum bias")
    done = run(site, job, work)
    assert done.returncode == 0, done.stderr
    assert (work / listed(job, "outFiles")[0]).read_text() == "minimum bias"
    assert "./pilotage-run" in (work / ".pilotage" / "before.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("environment", "code"), [({}, 0), ({"CODE": "3"}, 3), ({"FORGET": "1"}, 70)], ids=["good", "bad", "forgets"]
)
def test_a_jobscript_runs_with_sandbox_and_get_file(
    site: Site, tmp_path: Path, environment: dict[str, str], code: int
) -> None:
    site.submit(
        stage(
            given=files("f1", "f2"), jobscript=JOBSCRIPT, command=None, outputs=OUT, files_per_job=2,
            sandbox=sandbox(site), environment=environment,
        )
    )  # fmt: skip
    job = pilot(site).job()
    work = tmp_path / "work"
    work.mkdir()
    for name in ("f1", "f2"):
        (work / name).write_text(name)
    done = run(site, job, work)
    assert done.returncode == code, done.stderr
    if code == 0:
        assert (work / listed(job, "outFiles")[0]).read_text() == "f1f2"
        assert (work / "done.txt").read_text() == "data:f1\ndata:f2\n"
    else:
        assert (work / "out.root").exists()


def test_a_transformation_is_fetched_and_its_checksum_looked_at(site: Site, tmp_path: Path) -> None:
    import hashlib

    trf = tmp_path / "my trf.sh"
    trf.write_text('#!/bin/sh\necho "$1" > out.root\n')
    good = hashlib.sha256(trf.read_bytes()).hexdigest()
    url = f"file://{tmp_path}/trf.sh"
    trf.rename(tmp_path / "trf.sh")
    for checksum, code in ((good, 0), ("0" * 64, 69)):
        task(
            site,
            command=None,
            transformation=Transformation(url=url, checksum=f"sha256:{checksum}", parameters=["x y"]),
        )
        job = pilot(site).job()
        done = run(site, job, tmp_path / checksum)
        assert done.returncode == code, done.stderr


def test_a_program_is_only_for_who_was_told_of_it_and_only_while_its_job_runs(site: Site) -> None:
    task(site)
    one = pilot(site)
    job = one.job()
    assert program_of(site, job)[0] == 200
    forged = {"transformation": job["transformation"].replace(f"/{job['PandaID']}/", "/1/")}
    other = {"transformation": job["transformation"][:-20] + "0" * 5 + job["transformation"][-15:]}
    for each in (forged, other):
        if each["transformation"] != job["transformation"]:
            assert program_of(site, each)[0] == 404
    one.finish(job)
    assert program_of(site, job)[0] == 404


def test_a_queue_is_found_by_our_own_name_too(site: Site) -> None:
    task(site)
    assert pilot(site).get_job(siteName="q")["StatusCode"] == 0


def test_a_job_counts_as_a_pilots_and_a_workers_that_end_with_it(site: Site) -> None:
    task(site)
    one = pilot(site)
    job = one.job()
    found = site.user("GET", f"/v1/pilots/{job_of(site, job).pilot_id}", reply=None) is None
    assert found
    one.finish(job)
    with site.database.read() as connection:
        from sqlalchemy import select

        from server.store.schema import pilot as pilots
        from server.store.schema import worker

        assert [row.state for row in connection.execute(select(worker.c.state))] == ["finished"]
        assert [row.state for row in connection.execute(select(pilots.c.state))] == [2]


def test_queue_specs_are_not_changed_by_foreign_slots(site: Site) -> None:
    site.put_queue("q", remote_io=True)
    task(site)
    assert pilot(site).get_job()["StatusCode"] == 0
    assert site.admin("GET", "/v1/queues/q", reply=QueueSpec).remote_io is True


def test_counters_are_units(site: Site) -> None:
    site.submit(stage(given=CounterInput(3, first=10), command=["run", "{counters}"], outputs=OUT, files_per_job=3))
    assert words_of(pilot(site).job()) == ["run", "10", "11", "12"]
