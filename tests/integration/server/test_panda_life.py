"""PanDA's pilots fetch our jobs and report them, in their own words: on both databases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import ErrorCode
from common.states import JobState
from common.wire import (
    FileSpec,
    OutputPattern,
    Registration,
    ReplicaSpec,
    Requirements,
    SecondaryInput,
)
from server.agents.sweep import sweep_unconfirmed
from server.store import archive, foreign
from tests.integration.server.harness import Site, files, stage, states
from tests.integration.server.panda_tools import made, pilot
from tests.panda_pilot import delivered, hashed, listed, words_of

OUT = [OutputPattern("out.root")]
SMALL = Requirements(memory_mb=100, disk_mb=10)
ONE = pytest.mark.parametrize("kind", ["sqlite"])
"""For what does not depend on the kind of database."""


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


# ---------------------------------------------------------------- a job from beginning to end


def test_a_job_is_fetched_reported_and_confirmed(site: Site) -> None:
    of = task(site)
    one = pilot(site)
    job = one.job()
    assert words_of(job) == ["run", "a b", "0"]
    assert job["taskID"] == str(of) and job["prodUserID"] == "u" and job["coreCount"] == "1"
    lfn = f"{of}.{job['PandaID']}.out.root"
    assert listed(job, "outFiles") == [lfn, f"{of}.{job['PandaID']}.log.tgz"]
    assert listed(job, "ddmEndPointOut") == ["disk", "disk"] and listed(job, "scopeOut") == ["user.u"]
    for state, ours in (("starting", "starting"), ("running", "running"), ("holding", "holding")):
        assert one.update(job, state) == {"StatusCode": 0, "command": "NULL", "pilotSecrets": {}}
        assert job_of(site, job).state.value == ours
    assert one.finish(job)["StatusCode"] == 0
    assert states(site.units(of)) == {"done": 1}
    found = {each.did: each for each in site.outputs(of)}
    assert set(found) == {f"user.u:{lfn}", f"user.u:{job['logFile']}"}
    out = found[f"user.u:{lfn}"]
    assert (out.size, out.checksum, out.url) == (7, "adler32:0a1b2c3d", f"file:///disk/{hashed('user.u', lfn)}")
    view = job_of(site, job)
    assert view.state is JobState.FINISHED and view.host == "node7.example.org" and view.exit_code == 0
    told = {"wall_s": 60.5, "cpu_s": 55.0, "max_rss_mb": 2.0, "max_pss_mb": 1.0, "events": 100, "work_dir_mb": 1.0}
    assert told.items() <= view.metrics.items()
    site.check_counts()


@ONE
def test_files_go_in_with_their_places(site: Site) -> None:
    given = files("f1", "f2", size=5, checksum="adler32:0000000a")
    common = FileSpec(did="other:db.tgz", replicas=[ReplicaSpec("disk", "x/db.tgz")])
    stream = SecondaryInput(name="mb", files=[FileSpec(did="mb:m1", replicas=[ReplicaSpec("disk", "m1")])])
    site.submit(
        stage(
            given=given, command=["run", "{inputs}", "{secondary:mb}"], outputs=OUT, files_per_job=2,
            common_input=[common], secondary_inputs=[stream],
        )
    )  # fmt: skip
    job = pilot(site).job()
    assert listed(job, "inFiles") == ["f1", "f2", "db.tgz", "m1"]
    assert listed(job, "scopeIn") == ["data", "data", "other", "mb"]
    assert listed(job, "ddmEndPointIn") == ["disk"] * 4
    assert job["fsize"] == "5,5,0,0" and job["checksum"] == "ad:0000000a,ad:0000000a,NULL,NULL"
    assert words_of(job) == ["run", "f1", "f2", "m1"]


@ONE
def test_a_job_without_input_says_null(site: Site) -> None:
    task(site)
    job = pilot(site).job()
    assert job["inFiles"] == job["scopeIn"] == job["fsize"] == "NULL"


@ONE
def test_a_container_and_optional_outputs_are_told(site: Site) -> None:
    site.put_queue("q", tags=["apptainer"], trusted=False)
    task(site, image="/cvmfs/images/el9", outputs=[*OUT, OutputPattern("extra.txt", optional=True)])
    one = pilot(site)
    job = one.job()
    assert job["container_name"] == "/cvmfs/images/el9"
    extra = f"{job['taskID']}.{job['PandaID']}.extra.txt"
    assert job["allowNoOutput"] == extra
    assert one.finish(job, delivered(job, extra))["StatusCode"] == 0
    assert job_of(site, job).state is JobState.FINISHED


@ONE
def test_outputs_that_the_command_names_have_names_ahead(site: Site) -> None:
    of = task(
        site,
        2,
        command=["run", "-o", "%OUT.root", "%OUT.hist.txt"],
        outputs=[OutputPattern("*.root"), OutputPattern("*.txt")],
    )
    one = pilot(site)
    first, second = one.job(), one.job()
    assert words_of(first) == ["run", "-o", f"{of}._000001.root", f"{of}._000001.hist.txt"]
    assert listed(second, "outFiles")[:2] == [
        f"{of}.{second['PandaID']}.{of}._000002.root",
        f"{of}.{second['PandaID']}.{of}._000002.hist.txt",
    ]
    for job in (first, second):
        assert one.finish(job)["StatusCode"] == 0
    assert states(site.units(of)) == {"done": 2}


@ONE
def test_a_form_does_as_well_as_json(site: Site) -> None:
    of = task(site)
    one = pilot(site, fallback=True)
    job = one.job()
    assert one.update(job, "running")["command"] == "NULL"
    assert one.finish(job)["StatusCode"] == 0
    assert states(site.units(of)) == {"done": 1}


# ---------------------------------------------------------------- ends


def test_a_final_report_may_be_repeated_and_nothing_else_said(site: Site) -> None:
    of = task(site)
    one = pilot(site)
    job = one.job()
    first = one.finish(job)
    before = site.row_counts()
    assert one.finish(job) == first == {"StatusCode": 0, "command": "NULL", "pilotSecrets": {}}
    assert one.fail(job, 1305)["StatusCode"] == 30
    assert site.row_counts() == before and states(site.units(of)) == {"done": 1}


def test_an_output_that_is_not_told_fails_the_job_in_words_also_when_repeated(site: Site) -> None:
    of = task(site, outputs=[*OUT, OutputPattern("more.root")])
    one = pilot(site)
    job = one.job()
    lfn = f"{of}.{job['PandaID']}.more.root"
    for _ in range(2):
        assert one.finish(job, delivered(job, lfn))["StatusCode"] == 0
    view = job_of(site, job)
    assert (view.state, view.error_code) == (JobState.FAILED, ErrorCode.MISSING_OUTPUT)
    assert view.error_detail == f"not among the outputs that were told: {lfn}"
    assert states(site.units(of)) == {"ready": 1} and [each.role for each in site.outputs(of)] == ["log"]


@ONE
def test_no_output_at_all_is_fine_where_the_task_says_so(site: Site) -> None:
    of = task(site, allow_no_output=True)
    one = pilot(site)
    job = one.job()
    assert one.finish(job, {})["StatusCode"] == 0
    assert states(site.units(of)) == {"done": 1}


@ONE
@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"endpoint": "elsewhere"}, ErrorCode.STAGE_OUT_FAILED, "lies on elsewhere, and was to go to disk"),
        ({"surl": "file:///disk/x"}, ErrorCode.STAGE_OUT_FAILED, "lies at file:///disk/x"),
        ({"fsize": 3 * 1024 * 1024}, ErrorCode.OUTPUT_TOO_LARGE, "2 MiB are allowed"),
    ],
    ids=["storage", "path", "size"],
)
def test_an_output_that_is_not_as_it_should_be_fails_the_job(
    site: Site, change: dict[str, Any], code: ErrorCode, words: str
) -> None:
    task(site, outputs=[OutputPattern("out.root", max_mb=2)])
    one = pilot(site)
    job = one.job()
    told = delivered(job)
    told[listed(job, "outFiles")[0]].update(change)
    assert one.finish(job, told)["StatusCode"] == 0
    view = job_of(site, job)
    assert view.error_code == code and words in view.error_detail


def test_a_scope_with_a_dot_may_be_two_folders(site: Site) -> None:
    of = task(site)
    one = pilot(site)
    job = one.job()
    told = delivered(job)
    for lfn, each in told.items():
        each["surl"] = f"file:///disk/{hashed('user.u', lfn).replace('user.u', 'user/u', 1)}"
    assert one.finish(job, told)["StatusCode"] == 0
    assert {each.url.split("/")[4] for each in site.outputs(of)} == {"user"}
    assert states(site.units(of)) == {"done": 1}


@ONE
@pytest.mark.parametrize(
    ("code", "more", "state", "error", "units"),
    [
        (1305, {"exeErrorCode": 65, "transExitCode": 65}, JobState.FAILED, 1305, "ready"),
        (0, {"transExitCode": 7}, JobState.FAILED, 1305, "ready"),
        (1099, {}, JobState.FAILED, 1099, "ready"),
        (9999, {}, JobState.FAILED, 1008, "ready"),
        (9999, {"exeErrorCode": 1}, JobState.FAILED, 1305, "ready"),
        (1346, {}, JobState.FAILED, 1346, "failed"),
        (1144, {}, JobState.CANCELLED, 1144, "ready"),
        (-1137, {}, JobState.FAILED, 1137, "ready"),
    ],
    ids=["payload", "exit", "stagein", "unknown", "unknown_payload", "hopeless", "killed", "negative"],
)
def test_a_failure_has_our_number_and_their_words(
    site: Site, code: int, more: dict[str, Any], state: JobState, error: int, units: str
) -> None:
    of = task(site)
    one = pilot(site)
    job = one.job()
    log = {job["logFile"]: delivered(job)[job["logFile"]]}
    for _ in range(2):
        answer = one.fail(job, code, xml=json.dumps(log), pilotLog="the\0 last words", **more)
        assert answer["StatusCode"] == 0
    view = job_of(site, job)
    assert (view.state, view.error_code) == (state, error)
    assert "as the test wants it" in view.error_detail and view.log_tail == "the last words"
    assert view.log_did == f"user.u:{job['logFile']}"
    assert states(site.units(of)) == {units: 1}


@ONE
def test_a_users_job_that_is_held_with_an_error_has_failed(site: Site) -> None:
    of = task(site)
    one = pilot(site)
    job = one.job()
    assert one.update(job, "holding", pilotErrorCode=-1137, pilotErrorDiag="later")["StatusCode"] == 0
    assert job_of(site, job).error_code == 1137 and states(site.units(of)) == {"ready": 1}


def test_a_job_of_a_killed_task_is_to_be_killed(site: Site) -> None:
    of = task(site)
    one = pilot(site)
    job = one.job()
    one.update(job, "running")
    site.command(of, "kill")
    assert one.update(job, "running")["command"] == "tobekilled"
    assert one.fail(job, 1144) == {"StatusCode": 0, "command": "NULL", "pilotSecrets": {}}
    assert job_of(site, job).state is JobState.CANCELLED
    assert states(site.units(of)) == {"cancelled": 1}


def test_a_silent_pilot_loses_its_job_and_what_it_uploads_is_swept(site: Site, tmp_path: Path) -> None:
    of = task(site)
    one = pilot(site)
    job = one.job()
    one.update(job, "running")
    site.tick(3700)
    site.agents()
    assert states(site.units(of)) == {"ready": 1}
    assert one.update(job, "running")["command"] == "tobekilled"
    assert one.finish(job) == {"StatusCode": 0, "command": "tobekilled", "pilotSecrets": {}}
    assert job_of(site, job).error_code == ErrorCode.HEARTBEAT_LOST
    assert site.outputs(of) == [] and states(site.units(of)) == {"ready": 1}


@ONE
def test_what_a_lost_job_uploaded_is_removed_from_where_its_pilot_put_it(site: Site, tmp_path: Path) -> None:
    from common.wire import Endpoint, StorageSpec

    spec = StorageSpec(name="disk", site="s", endpoints=[Endpoint(f"file://{tmp_path}")])
    site.admin("PUT", "/v1/storages/disk", spec)
    task(site)
    one = pilot(site)
    job = one.job()
    path = tmp_path / hashed("user.u", listed(job, "outFiles")[0])
    path.parent.mkdir(parents=True)
    path.write_text("late")
    one.fail(job, 1305)
    site.tick(4000)
    sweep_unconfirmed(site.dispatcher)
    assert not path.exists()


# ---------------------------------------------------------------- whose job it is


def test_another_identity_may_not_speak_of_a_job(site: Site) -> None:
    task(site)
    job = pilot(site).job()
    before = site.row_counts()
    stranger = pilot(site, "pilots of cms")
    for answer in (stranger.update(job, "running"), stranger.finish(job), stranger.fail(job, 1305)):
        assert answer["StatusCode"] == 70 and "another than pilots of cms" in answer["errorDialog"]
    assert stranger.post("getStatus", {"ids": job["PandaID"]})["status"] == "notfound"
    assert site.row_counts() == before and job_of(site, job).state is JobState.SENT


def test_a_job_is_the_pilots_that_named_itself_first(site: Site) -> None:
    of = task(site)
    one, twin = pilot(site), pilot(site, pilot_id="another")
    job = one.job()
    assert one.update(job, "running")["StatusCode"] == 0
    before = site.row_counts()
    for answer in (twin.update(job, "holding"), twin.finish(job)):
        assert answer["StatusCode"] == 70
    assert site.row_counts() == before and job_of(site, job).state is JobState.RUNNING
    assert one.finish(job)["StatusCode"] == 0
    assert states(site.units(of)) == {"done": 1}


@ONE
def test_a_job_of_our_own_pilot_is_none_of_theirs(site: Site) -> None:
    task(site)
    ours = site.pilot().acquire()
    answer = pilot(site).update({"PandaID": str(ours.job_id), "attemptNr": "0"}, "running")
    assert answer["StatusCode"] == 30


@ONE
def test_outputs_that_pilots_register_are_none_of_theirs_unless_the_server_does(site: Site) -> None:
    site.put_storage("disk", "s", registration=Registration.PILOT)
    of = task(site)
    answer = pilot(site).get_job()
    assert answer["StatusCode"] == 20 and "registered by pilots" in answer["errorDialog"]
    assert states(site.units(of)) == {"ready": 1}


@ONE
def test_a_job_waits_for_the_registration_of_its_outputs(url: str) -> None:
    site = made(url, registrar="fake")
    try:
        site.put_storage("disk", "s", registration=Registration.PILOT)
        of = task(site)
        one = pilot(site)
        job = one.job()
        for _ in range(2):
            assert one.finish(job)["StatusCode"] == 0
        assert job_of(site, job).state is JobState.HOLDING and states(site.units(of)) == {"outputting": 1}
        assert one.update(job, "running")["command"] == "NULL"
    finally:
        site.database.close()


@ONE
def test_nothing_is_left_of_a_pilot_that_is_put_away(site: Site) -> None:
    task(site)
    one = pilot(site)
    job = one.job()
    one.finish(job)
    assert site.row_counts()["foreign_job"] == 1
    with site.database.write() as connection:
        archive.delete_pilots(connection, site.clock.now() + 1, 0, 100)
    assert site.row_counts()["foreign_job"] == 0
    assert one.update(job, "running")["StatusCode"] == 30


def test_of_two_pilots_that_name_themselves_at_once_one_has_the_job(site: Site) -> None:
    task(site)
    job_id = int(pilot(site).job()["PandaID"])
    for name, has_it in (("first", True), ("second", False), ("first", True)):
        with site.database.write() as connection:
            assert foreign.bind(connection, job_id, name) is has_it
