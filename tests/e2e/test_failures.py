"""What goes wrong, with the real programs: every failure ends where DESIGN says, with its number, and nothing is left.

One system serves all tests of this module, so that each takes a second or two; whatever a test leaves is killed.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional
from urllib.parse import unquote, urlsplit

import psutil
import pytest

from common.errors import ErrorCode
from common.http import ProblemError
from common.states import FINAL_TASK_STATES
from common.wire import JobView, OutputView, UnitView
from tests.e2e.system import System, gone, wait_for
from tests.services.xrootd import XrootdServer

NOTHING = "#!/bin/sh\n"
LONG_S = 600
QUICK_S = 20.0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("failures"), queue={"tags": ["apptainer"]}) as system:
        system.storage("disk")
        yield system


@pytest.fixture
def system(shared: System) -> Iterator[System]:
    """The module's system; what a test leaves in it is killed, so that the next one finds free slots."""
    yield shared
    if not shared.server.running:
        shared.server.start()
    open_tasks = [task.id for task in shared.calls.tasks(1000) if task.state not in FINAL_TASK_STATES]
    for task_id in open_tasks:
        shared.command(task_id, "kill")
    shared.wait(lambda: not any(alive(shared, one) for one in open_tasks), "jobs of killed tasks end", QUICK_S)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that payloads wait for: absent until the test makes it."""
    return tmp_path / "gate"


def alive(system: System, task_id: int) -> list[JobView]:
    return [job for job in system.jobs(task_id) if job.ended is None]


def adler32(content: bytes) -> str:
    return f"adler32:{zlib.adler32(content):08x}"


def file_input(*files: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "files", "files": list(files)}


def described(name: str, content: bytes, *storages: str) -> dict[str, Any]:
    """A file of a task's input with replicas of its name on ``storages``."""
    replicas = [{"storage": storage, "path": name} for storage in storages]
    return {"did": f"test:{name}", "size": len(content), "checksum": adler32(content), "replicas": replicas}


def keep_and_wait(gate: Path) -> str:
    """A jobscript that says ``started``, waits for the gate, and writes ``out.txt``."""
    return f"#!/bin/sh\necho started\nwhile [ ! -e {gate} ]; do sleep 0.05; done\necho result > out.txt\n"


def only_unit(system: System, task_id: int) -> UnitView:
    (unit,) = system.units(task_id)
    return unit


def only_job(system: System, task_id: int) -> JobView:
    (job,) = system.jobs(task_id)
    return job


def path_of(output: OutputView) -> Path:
    return Path(unquote(urlsplit(output.url).path))


def log_text(system: System, task_id: int, job_id: Optional[int] = None) -> str:
    """All text in the log archives of a task's jobs, as they lie on the storage."""
    text = ""
    for output in system.outputs(task_id, "log"):
        if job_id in (None, output.job_id):
            with tarfile.open(fileobj=io.BytesIO(path_of(output).read_bytes())) as archive:
                for file in filter(None, map(archive.extractfile, archive.getmembers())):
                    text += file.read().decode()
    return text


def bad_replicas(system: System, task_id: int) -> list[tuple[str, str, int]]:
    found = [event for event in system.events(task=task_id) if event.kind == "REPLICA_BAD"]
    return [(event.subject_id, event.detail["storage"], event.detail["error_code"]) for event in found]


# ---------------------------------------------------------------- input


@pytest.mark.parametrize(
    "damage, code",
    [("missing", ErrorCode.NO_SUCH_FILE), ("damaged", ErrorCode.GET_ADLER32_MISMATCH)],
)
def test_next_replica_is_tried_and_the_bad_one_reported(system: System, damage: str, code: ErrorCode) -> None:
    near, far = system.storage(f"near-{damage}"), system.storage(f"far-{damage}", site="there", distance=30)
    content, name = b"what was measured", "next.dat"
    if damage == "damaged":
        (near / name).write_bytes(b"what was mea5ured")
    (far / name).write_bytes(content)
    file = described(name, content, near.name, far.name)
    task = system.task(
        input=file_input(file), jobscript='#!/bin/sh\ncat $(cat "$PILOTAGE_INPUT_FILES")\necho > out.txt\n'
    )
    system.wait_task(task, "done", QUICK_S)
    job = only_job(system, task)
    assert content.decode() in log_text(system, task)
    assert job.error_code is None
    assert bad_replicas(system, task) == [(f"test:{name}", near.name, int(code))]
    assert only_unit(system, task).other_failures == 0
    system.assert_sums(task, 1)


@pytest.mark.parametrize(
    "damage, code",
    [("missing", ErrorCode.NO_SUCH_FILE), ("damaged", ErrorCode.GET_ADLER32_MISMATCH)],
)
def test_unit_without_a_good_replica_is_lost_and_the_others_are_done(
    system: System, damage: str, code: ErrorCode
) -> None:
    one, two = system.storage(f"one-{damage}"), system.storage(f"two-{damage}")
    good, bad = b"good", b"bad!"
    (one / "good.dat").write_bytes(good)
    if damage == "damaged":
        for folder in (one, two):
            (folder / "bad.dat").write_bytes(b"b4d!")
    files = [described("good.dat", good, one.name), described("bad.dat", bad, one.name, two.name)]
    task = system.task(input=file_input(*files), jobscript=NOTHING)
    system.wait_task(task, "finished", QUICK_S)
    units = {unit.did: unit for unit in system.units(task)}
    assert units["test:good.dat"].state == "done"
    lost = units["test:bad.dat"]
    assert (lost.state, lost.error_code, lost.payload_failures) == ("lost", int(code), 0)
    assert sorted(bad_replicas(system, task)) == [("test:bad.dat", name.name, int(code)) for name in (one, two)]
    failed = [job for job in system.jobs(task) if job.state == "failed"]
    assert [job.error_code for job in failed] == [int(code)]
    system.assert_sums(task, 2)


def test_common_input_that_is_missing_fails_the_job_as_the_sites_fault(system: System) -> None:
    system.storage("calibrations")
    missing = described("calibration.dat", b"calibration", "calibrations")
    task = system.task(common_input=[missing], jobscript=NOTHING)
    failed = system.wait_jobs(task, "failed", deadline=QUICK_S)
    assert failed[0].error_code == ErrorCode.NO_SUCH_FILE
    unit = only_unit(system, task)
    assert unit.state != "lost" and unit.payload_failures == 0 and unit.other_failures >= 1


def test_real_xrootd_that_is_down_costs_a_site_fault_and_succeeds_when_it_is_back(
    system: System, xrootd: XrootdServer, tmp_path: Path
) -> None:
    content = os.urandom(10_000)
    (tmp_path / "in.dat").write_bytes(content)
    xrootd.put(tmp_path / "in.dat", "/failures/in.dat")
    system.storage("xrd", f"{xrootd.url}/failures")
    with xrootd.outage():
        task = system.task(input=file_input(described("in.dat", content, "xrd")), jobscript=NOTHING)
        failed = system.wait_jobs(task, "failed", deadline=60)[0]
        unit = only_unit(system, task)
    assert failed.error_code in (ErrorCode.STAGE_IN_FAILED, ErrorCode.REPLICA_NOT_FOUND)
    assert "xrd" in failed.error_detail
    assert unit.state in ("ready", "reserved")
    assert unit.other_failures >= 1 and unit.payload_failures == 0
    system.wait_task(task, "done", 60)
    assert bad_replicas(system, task) == []
    system.assert_sums(task, 1)


# ---------------------------------------------------------------- the payload


def test_payload_that_fails_uses_up_its_attempts(system: System) -> None:
    task = system.task(
        jobscript="#!/bin/sh\necho to-stdout\necho to-stderr >&2\necho x > out.txt\nexit 3\n",
        outputs=[{"pattern": "out.txt", "storage": "disk"}],
        max_attempts=2,
    )
    system.wait_task(task, "failed", QUICK_S)
    unit = only_unit(system, task)
    assert (unit.state, unit.error_code, unit.payload_failures) == ("failed", ErrorCode.PAYLOAD_FAILED, 2)
    jobs = system.jobs(task)
    assert [(job.state, job.exit_code, job.error_code) for job in jobs] == [("failed", 3, ErrorCode.PAYLOAD_FAILED)] * 2
    for job in jobs:
        assert "to-stdout" in job.log_tail and "to-stderr" in job.log_tail
        assert "to-stdout" in log_text(system, task, job.id) and "to-stderr" in log_text(system, task, job.id)
        assert job.log_did in [output.did for output in system.outputs(task, "log")]
    assert system.outputs(task) == []
    assert not list(system.folder.glob("storages/disk/**/*out.txt"))
    system.assert_sums(task, 1)


def test_retry_gives_a_failed_unit_new_attempts(system: System, gate: Path) -> None:
    task = system.task(jobscript=f"#!/bin/sh\n[ -e {gate} ]\n", max_attempts=1)
    system.wait_task(task, "failed", QUICK_S)
    gate.touch()
    system.command(task, "retry")
    system.wait_task(task, "done", QUICK_S)
    assert [job.state for job in system.jobs(task)] == ["failed", "finished"]


@pytest.mark.parametrize(
    "name, code", [("SEGV", ErrorCode.SIGSEGV), ("KILL", ErrorCode.KILL_SIGNAL), ("BUS", ErrorCode.SIGBUS)]
)
def test_payload_ended_by_a_signal_fails_with_the_signals_number(system: System, name: str, code: ErrorCode) -> None:
    task = system.task(jobscript=f"#!/bin/sh\nkill -{name} $$\n", max_attempts=1)
    system.wait_task(task, "failed", QUICK_S)
    job = only_job(system, task)
    assert (job.error_code, job.exit_code) == (code, None)
    assert f"SIG{name}" in job.error_detail
    assert only_unit(system, task).payload_failures == 1


@pytest.mark.parametrize(
    "script, code, word",
    [
        (NOTHING, ErrorCode.MISSING_OUTPUT, "out.txt"),
        ("#!/bin/sh\nln -s /etc/hostname out.txt\n", ErrorCode.OUTPUT_NOT_REGULAR, "out.txt"),
        ("#!/bin/sh\nmkdir out.txt\n", ErrorCode.OUTPUT_NOT_REGULAR, "out.txt"),
        ("#!/no/such/interpreter\n", ErrorCode.BAD_JOBSCRIPT, "shebang"),
    ],
    ids=["missing", "a link", "a folder", "no interpreter"],
)
def test_output_that_cannot_be_had_fails_the_job_and_uploads_nothing(
    system: System, script: str, code: ErrorCode, word: str
) -> None:
    task = system.task(jobscript=script, outputs=[{"pattern": "out.txt", "storage": "disk"}], max_attempts=1)
    system.wait_task(task, "failed", QUICK_S)
    job = only_job(system, task)
    assert (job.state, job.error_code) == ("failed", code)
    assert word in job.error_detail
    assert system.outputs(task) == []
    assert len(system.outputs(task, "log")) == 1
    assert not list(system.folder.glob(f"storages/disk/test/{task}/**/*out.txt"))


def test_payload_that_fills_its_disk_is_killed(system: System) -> None:
    task = system.task(
        jobscript=f"#!/bin/sh\nhead -c 40000000 /dev/zero > big\nsleep {LONG_S}\n",
        requirements={"cores": 1, "memory_mb": 500, "disk_mb": 10},
        max_attempts=1,
    )
    system.wait_task(task, "failed", QUICK_S)
    job = only_job(system, task)
    assert job.error_code == ErrorCode.WORK_DIR_TOO_LARGE
    assert "allowed 10" in job.error_detail
    assert job.metrics["work_dir_mb"] > 10


def test_payload_that_takes_too_much_memory_is_killed(system: System) -> None:
    hungry = f"import time; data = bytearray(300_000_000); time.sleep({LONG_S})"
    task = system.task(
        command=[sys.executable, "-c", hungry],
        requirements={"cores": 1, "memory_mb": 100, "disk_mb": 50},
        max_attempts=1,
    )
    system.wait_task(task, "failed", QUICK_S)
    job = only_job(system, task)
    assert job.error_code == ErrorCode.MEMORY_EXCEEDED
    assert job.metrics["max_rss_mb"] > 250
    assert not system.payloads("bytearray(300_000_000)")


@pytest.mark.usefixtures("apptainer")
def test_real_apptainer_image_that_does_not_exist_fails_at_once(system: System, tmp_path: Path) -> None:
    task = system.task(jobscript=NOTHING, image=str(tmp_path / "nothing.sif"))
    system.wait_task(task, "failed", QUICK_S)
    job = only_job(system, task)
    assert job.error_code == ErrorCode.IMAGE_NOT_FOUND
    assert "nothing.sif" in job.error_detail


# ---------------------------------------------------------------- refused at submission


@pytest.mark.parametrize(
    "change, path",
    [
        ({"jobscript": "echo no shebang\n"}, "$.stages[0].jobscript"),
        ({"outputs": [{"pattern": "*", "storage": "nowhere"}]}, "$.stages[0].outputs[0].storage"),
        ({"input": file_input(described("a", b"", "nowhere"))}, "$.stages[0].input.files[0].replicas[0].storage"),
        ({"input": {"kind": "files", "files": []}}, "$.stages[0].input.files"),
        ({"input": file_input(*[described("a", b"", "disk")] * 2)}, "$.stages[0].input.files[1].did"),
        ({"input": {"kind": "stage", "stage": "other"}}, "$.stages[0].input.stage"),
        ({"jobscrip": NOTHING}, "$.stages[0]"),
        ({"files_per_job": "two"}, "$.stages[0].files_per_job"),
    ],
    ids=["shebang", "output storage", "replica storage", "no files", "same DID", "no stage", "field", "type"],
)
def test_submission_that_is_wrong_is_refused_and_nothing_of_it_kept(
    system: System, change: dict[str, Any], path: str
) -> None:
    before = [workflow.id for workflow in system.calls.workflows(1000)]
    with pytest.raises(ProblemError) as refused:
        system.task(**{"jobscript": NOTHING, **change})
    assert refused.value.status == 400
    assert path in [error.path for error in refused.value.problem.errors], refused.value.problem
    assert all(error.message for error in refused.value.problem.errors)
    assert [workflow.id for workflow in system.calls.workflows(1000)] == before


# ---------------------------------------------------------------- commands


def test_killed_task_loses_its_payload_within_seconds_and_keeps_its_log(system: System) -> None:
    script = f"#!/bin/sh\necho before-the-kill\nsleep {LONG_S}.25 &\nsetsid sleep {LONG_S}.25 &\nsleep {LONG_S}.25\n"
    task = system.task(jobscript=script, input={"kind": "counter", "count": 3})
    system.wait(lambda: len(system.payloads(f"{LONG_S}.25")) >= 6, "two payloads run", QUICK_S)
    running = system.payloads(f"{LONG_S}.25")
    system.command(task, "kill")
    wait_for(lambda: all(map(gone, running)), "the payload's processes are gone", 10.0)
    jobs = system.wait_jobs(task, "cancelled", 2, QUICK_S)
    assert system.view(task).state == "aborted"
    assert {job.error_code for job in jobs} <= {ErrorCode.KILLED_BY_SERVER, ErrorCode.TASK_CANCELLED}
    for job in jobs:
        assert "before-the-kill" in job.log_tail
        assert "before-the-kill" in log_text(system, task, job.id)
    assert [unit.state for unit in system.units(task)] == ["cancelled"] * 3
    assert not system.payloads(f"{LONG_S}.25")
    system.assert_sums(task, 3)


def test_paused_task_gives_no_more_units_until_it_is_resumed(system: System, gate: Path) -> None:
    task = system.task(jobscript=keep_and_wait(gate), input={"kind": "counter", "count": 6})
    system.wait_jobs(task, "running", 2, QUICK_S)
    system.command(task, "pause")
    gate.touch()
    system.wait_jobs(task, "finished", 2, QUICK_S)
    # Both pilots ask again, are refused by name, and get other work meanwhile.
    other = system.task(jobscript=NOTHING, input={"kind": "counter", "count": 4})
    system.wait_task(other, "done", QUICK_S)
    assert len(system.jobs(task)) == 2
    assert system.view(task).units == {"ready": 4, "done": 2}
    assert ("task", f"task {task} is paused") in [
        (refusal.filter, refusal.detail) for refusal in system.calls.why_queue("local").refusals
    ]
    system.command(task, "resume")
    system.wait_task(task, "done", QUICK_S)
    system.assert_sums(task, 6)


# ---------------------------------------------------------------- get-file

TAKE_TWO_PROCESS_ONE = """#!/bin/sh
for turn in 1 2; do
    line=$("{command}") || break
    set -- $line
    cat "$2" >> out.txt
    [ $turn = 1 ] && echo "$1" >> {listed}
done
exit 0
"""


@pytest.mark.parametrize(
    "command, listed",
    [
        ("pilotage-get-file", "pilotage-processed-dids.txt"),
        ("$JUSTIN_PATH/justin-get-file", "justin-processed-dids.txt"),
    ],
    ids=["own names", "justin names"],
)
def test_what_a_jobscript_does_not_list_as_processed_is_done_by_another_job(
    system: System, command: str, listed: str
) -> None:
    folder = system.storage("events")
    files = []
    for number in range(5):
        content = f"event {number}\n".encode()
        (folder / f"e{number}").write_bytes(content)
        files.append(described(f"e{number}", content, "events"))
    task = system.task(
        input=file_input(*files),
        jobscript=TAKE_TWO_PROCESS_ONE.format(command=command, listed=listed),
        outputs=[{"pattern": "out.txt", "storage": "disk"}],
    )
    system.wait_task(task, "done", 40)
    jobs = system.jobs(task)
    units = system.units(task)
    assert all(job.state == "finished" for job in jobs), system.describe(task)
    # One file a job, so five jobs did one each; who asked for a second one while there was any left gave it back.
    assert len({unit.job_id for unit in units}) == 5
    assert any(job.n_units > 1 for job in jobs), "no job was handed a second file"
    assert len(system.outputs(task)) == len(jobs)
    system.assert_sums(task, 5)


def test_get_file_takes_all_files_of_a_task_one_at_a_time(system: System) -> None:
    folder = system.storage("stream")
    files = []
    for number in range(6):
        (folder / f"s{number}").write_bytes(b"%d\n" % number)
        files.append(described(f"s{number}", b"%d\n" % number, "stream"))
    script = """#!/bin/sh
while line=$("$JUSTIN_PATH/justin-get-file" --seconds-needed 1); do
    set -- $line
    [ "$3" = stream ] || exit 9
    cat "$2" >> out.txt
    echo "$2" >> justin-processed-pfns.txt
done
"""
    system.put_queue(wall_s=0)
    task = system.task(
        input=file_input(*files), jobscript=script, outputs=[{"pattern": "out.txt", "storage": "disk"}], max_attempts=1
    )
    system.wait_task(task, "done", QUICK_S)
    lines = "".join(path_of(output).read_text() for output in system.outputs(task)).split()
    assert sorted(lines) == [str(number) for number in range(6)]
    assert len(system.jobs(task)) <= 2
    system.assert_sums(task, 6)


# ---------------------------------------------------------------- the slot is taken away


def test_pilot_reports_with_its_log_within_20_s_of_sigterm_though_the_payload_ignores_it(
    system: System, gate: Path
) -> None:
    stubborn = f"""#!/bin/sh
[ -e {gate} ] && exit 0
trap '' TERM INT HUP
echo still-here
touch {gate}
while :; do sleep 1; done
"""
    task = system.task(jobscript=stubborn)
    system.wait(gate.exists, "the payload runs", QUICK_S)
    job = system.wait(lambda: alive(system, task), "its job")[0]
    (pilot,) = [one for one in system.pilots if any("jobscript" in " ".join(child.cmdline()) for child in below(one))]
    payload = [child for child in below(pilot) if "jobscript" in " ".join(child.cmdline())]
    told = time.time()
    pilot.terminate()
    wait_for(lambda: gone(pilot), "the pilot ends", 20.0)
    ended = system.calls.job(job.id)
    assert ended.state == "failed" and ended.error_code == ErrorCode.SIGTERM
    assert ended.ended is not None and ended.ended - told < 20.0
    assert "still-here" in ended.log_tail and "still-here" in log_text(system, task, job.id)
    assert all(map(gone, payload))
    # Nobody's fault: the unit goes back, and another pilot does it.
    system.wait_task(task, "done", QUICK_S)
    assert only_unit(system, task).payload_failures == 0
    system.assert_sums(task, 1)


def below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


# ---------------------------------------------------------------- the server is away


def spooled(system: System) -> list[Path]:
    """Final reports that wait on the pilots' disks."""
    return [path for path in system.workers.glob("*/work/**/*.json") if "spool" in str(path.parent)]


def test_server_away_when_pilots_ask_for_work(system: System) -> None:
    before = system.task(jobscript=NOTHING)
    system.wait_task(before, "done", QUICK_S)
    pilots = {pilot.pid for pilot in system.pilots}
    assert pilots
    system.server.stop()
    time.sleep(1.0)  # how long it is away, not how long something takes
    assert {pilot.pid for pilot in system.pilots} >= pilots
    system.server.start()
    task = system.task(jobscript=NOTHING)
    system.wait_task(task, "done", QUICK_S)
    assert {pilot.pid for pilot in system.pilots} >= pilots


def test_server_away_while_the_payload_runs(system: System, gate: Path) -> None:
    task = system.task(jobscript=keep_and_wait(gate), outputs=[{"pattern": "out.txt", "storage": "disk"}])
    system.wait_jobs(task, "running", deadline=QUICK_S)
    (payload,) = system.payloads("/bin/jobscript")
    system.server.stop()
    time.sleep(2.5)  # longer than two heartbeats
    assert payload.is_running()
    system.server.start()
    gate.touch()
    system.wait_task(task, "done", QUICK_S)
    assert only_job(system, task).state == "finished"
    assert len(system.outputs(task)) == 1


def test_server_away_when_outputs_are_recorded(system: System, gate: Path) -> None:
    task = system.task(jobscript=keep_and_wait(gate), outputs=[{"pattern": "out.txt", "storage": "disk"}])
    system.wait_jobs(task, "running", deadline=QUICK_S)
    (payload,) = system.payloads("/bin/jobscript")
    system.server.kill9()
    gate.touch()
    wait_for(lambda: gone(payload), "the payload ends", QUICK_S)
    time.sleep(1.0)  # the pilot finds nobody to record with
    assert not list(system.folder.glob(f"storages/disk/test/{task}/**/*out.txt"))
    system.server.start()
    system.wait_task(task, "done", QUICK_S)
    assert only_job(system, task).state == "finished"
    (output,) = system.outputs(task)
    assert path_of(output).read_text() == "result\n"


def test_real_xrootd_server_away_between_record_and_confirm(system: System, gate: Path, xrootd: XrootdServer) -> None:
    system.storage("xrd-confirm", f"{xrootd.url}/confirm")
    task = system.task(jobscript=keep_and_wait(gate), outputs=[{"pattern": "out.txt", "storage": "xrd-confirm"}])
    (job,) = system.wait_jobs(task, "running", deadline=QUICK_S)
    storage = psutil.Process(xrootd.pid)
    storage.suspend()  # so that the upload lasts until we say
    try:
        gate.touch()
        system.wait_jobs(task, ["holding", "transferring"], deadline=QUICK_S)
        system.server.kill9()
    finally:
        storage.resume()
    # It is uploaded, and the report that nobody takes is on disk.
    wait_for(lambda: [path for path in spooled(system) if str(job.id) in path.name], "the report is spooled", QUICK_S)
    uploaded = xrootd.local_path(f"/confirm/test/{task}/{job.id}/{task}.{job.id}.out.txt")
    assert uploaded.read_text() == "result\n"
    system.server.start()
    system.wait_task(task, "done", QUICK_S)
    assert only_job(system, task).state == "finished"
    assert len(system.outputs(task)) == 1
    wait_for(lambda: not spooled(system), "the spool is empty", QUICK_S)


# ---------------------------------------------------------------- why


def test_why_names_the_filter_that_refused(system: System) -> None:
    task = system.task(jobscript=NOTHING, requirements={"cores": 64, "memory_mb": 100, "disk_mb": 10})
    system.wait(lambda: system.view(task).state == "ready", "the task is ready", QUICK_S)
    said = system.cli("why", "--queue", "local")
    assert said.returncode == 0, said.stderr
    assert "cores" in said.stdout and "the job needs 64 cores, the slot has 1" in " ".join(said.stdout.split())
    unknown = system.cli("why", "--queue", "nowhere")
    assert unknown.returncode != 0 and "nowhere" in unknown.stderr
