"""What comes between: commands, a slot that is taken away, a server that is away, and files that are handed out one by one."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from common.errors import ErrorCode
from tests.e2e.looks import (
    LONG_S,
    NOTHING,
    QUICK_S,
    alive,
    described,
    file_input,
    keep_and_wait,
    log_text,
    only_job,
    only_unit,
    path_of,
)
from tests.e2e.program import words_of
from tests.e2e.system import System, gone, wait_for
from tests.services.xrootd import XrootdServer

# ---------------------------------------------------------------- commands


def test_killed_task_loses_its_payload_within_seconds_and_keeps_its_log(system: System) -> None:
    script = f"#!/bin/sh\necho before-the-kill\nsleep {LONG_S}.25 &\nsetsid sleep {LONG_S}.25 &\nsleep {LONG_S}.25\n"
    task = system.task(jobscript=script, input={"kind": "counter", "count": 3})
    system.wait(lambda: len(system.payloads(f"{LONG_S}.25")) >= 6, "two payloads run", QUICK_S)
    running = system.payloads(f"{LONG_S}.25")
    system.command(task, "kill")
    wait_for(lambda: all(map(gone, running)), "the payload's processes are gone", QUICK_S)
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
    system.wait_task(task, "done", QUICK_S)
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
    (pilot,) = [one for one in system.pilots if any("jobscript" in " ".join(words_of(child)) for child in below(one))]
    payload = [child for child in below(pilot) if "jobscript" in " ".join(words_of(child))]
    told = time.time()
    pilot.terminate()
    wait_for(lambda: gone(pilot), "the pilot ends", QUICK_S)
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
    payload = system.payload("/bin/jobscript")
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
    (job,) = system.wait_jobs(task, "running", deadline=QUICK_S)
    payload = system.payload("/bin/jobscript")
    system.server.kill9()
    gate.touch()
    wait_for(lambda: gone(payload), "the payload ends", QUICK_S)
    system.wait(lambda: f"job {job.id}: recording" in system.pilot_logs(), "the pilot wants to record", QUICK_S)
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
