"""The HTCondor backend against a real pool: what HTCondor does to workers, a schedd that is away, crashes of harvester."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
import tomllib

from common.clock import SystemClock
from common.wire import Shape
from harvester.backends.base import BackendError, SubmitResult, WorkerRef, WorkerSpec
from harvester.backends.htcondor import CondorBackend
from harvester.config import HarvesterConfig, QueueConfig
from tests.contract.backends import LIVE, W, new_mark
from tests.contract.rigs_htcondor import HtcondorRig
from tests.harvester_world import config
from tests.integration.crash_matrix import as_table, crash_matrix
from tests.services.base import wait_until
from tests.services.htcondor import CondorPool

NEVER = {"requirements": "false"}  # no slot will do
SOON_S = 240.0
SECRET = "pls_test-secret-value"


@pytest.fixture
def rig(condor_pool: CondorPool, tmp_path: Path) -> Iterator[HtcondorRig]:
    made = HtcondorRig(condor_pool, tmp_path)
    made.deadline_s = SOON_S
    yield made
    made.close()


def changed(spec: WorkerSpec, **changes: object) -> WorkerSpec:
    return WorkerSpec(**{**vars(spec), **changes})


def runs(rig: HtcondorRig, script: str, **changes: object) -> WorkerSpec:
    """A worker whose pilot is a script; ``$1`` is its secret file, ``$2`` its work dir."""
    command = ["/bin/sh", "-c", script, "pilot", "{secret_file}", "{work_dir}"]
    return changed(rig.spec(), command=command, **changes)


def uploaded(rig: HtcondorRig, refs: list[WorkerRef]) -> bool:
    """Whether no worker's files are on the way any more."""
    return all(one.native != "spooling" for one in rig.backend.status(refs).values())


# ---------------------------------------------------------------- what HTCondor does to workers


@pytest.mark.parametrize("option", [[], ["-fast"]], ids=["gently", "fast"])
def test_a_vacated_worker_waits_and_runs_again(rig: HtcondorRig, option: list[str]) -> None:
    (ref,) = rig.submit(rig.spec())
    rig.until(ref, W.RUNNING)
    rig.pool.command("condor_vacate_job", *option, ref.batch_id)
    waiting = rig.until(ref, W.SUBMITTED)
    assert waiting.native == "idle" and waiting.reason.startswith("requeued after 1 start")
    rig.until(ref, W.RUNNING)
    # The second start is counted a little after the job shows as running.
    wait_until(lambda: rig.pool.job(ref.batch_id, "NumJobStarts") == {"NumJobStarts": "2"}, "it has started twice")


def test_a_worker_whose_node_fails_it_runs_again(rig: HtcondorRig) -> None:
    """Its starter dies without a word, as with the node."""
    (ref,) = rig.submit(runs(rig, 'echo "$PPID"; exec sleep 300'))
    rig.until(ref, W.RUNNING)
    rig.pool.kill_starters()
    rig.until(ref, W.SUBMITTED)
    rig.until(ref, W.RUNNING)


def test_a_held_worker_says_why_and_comes_back_when_it_is_released(rig: HtcondorRig) -> None:
    (ref,) = rig.submit(rig.spec())
    rig.until(ref, W.RUNNING)
    rig.pool.command("condor_hold", "-reason", "the disk of node 7 is full", ref.batch_id)
    held = rig.until(ref, W.HELD)
    assert "the disk of node 7 is full" in held.reason and "condor_release" in held.reason
    rig.pool.command("condor_release", ref.batch_id)
    assert rig.until(ref, *LIVE).state in LIVE
    rig.until(ref, W.RUNNING)


def test_a_removed_worker_is_cancelled_running_or_waiting(rig: HtcondorRig) -> None:
    running, waiting = rig.submit(rig.spec(), changed(rig.spec(), submit=NEVER))
    rig.until(running, W.RUNNING)
    rig.pool.command("condor_rm", "-reason", "maintenance", running.batch_id, waiting.batch_id)
    for ref in (running, waiting):
        ended = rig.until(ref, W.CANCELLED)
        assert ended.reason.startswith("maintenance")
    assert rig.restarted().find_by_marks([running.mark, waiting.mark]) == {ref.mark: ref for ref in (running, waiting)}


def test_a_signal_that_ends_a_worker_has_a_name(rig: HtcondorRig) -> None:
    (ref,) = rig.submit(runs(rig, "kill -9 $$"))
    ended = rig.until(ref, W.FAILED)
    assert (ended.exit_code, ended.reason) == (-9, "it was ended by SIGKILL")


def test_a_worker_over_its_wall_time_is_held_and_then_removed(rig: HtcondorRig) -> None:
    submit = {"wall_margin_s": 1, "held_remove_s": 1}
    (ref,) = rig.submit(changed(rig.spec(), shape=Shape(cores=1, wall_s=1), submit=submit))
    ended = rig.until(ref, W.FAILED)
    assert ended.native == "given up" and "its wall time is over" in ended.reason


def test_a_worker_that_would_be_held_again_stays_held_until_its_time(rig: HtcondorRig) -> None:
    (ref,) = rig.submit(changed(rig.spec("bad"), submit={"commands": ["on_exit_hold = true"]}))
    held = rig.until(ref, W.HELD)
    assert "look at the queue's template (JobPolicy, code 3)" in held.reason


def test_submissions_that_htcondor_does_not_take_are_refused_with_its_words(rig: HtcondorRig) -> None:
    bad = changed(rig.spec(), submit={"requirements": "1 +"})
    good = rig.spec()
    parallel = changed(rig.spec(), nodes=2)
    outcomes = rig.backend.submit([bad, good, parallel])
    assert [one.result for one in outcomes] == [SubmitResult.REFUSED, SubmitResult.ACCEPTED, SubmitResult.REFUSED]
    assert "Parse error in expression" in outcomes[0].reason and "parallel" in outcomes[2].reason
    assert rig.backend.find_by_marks([bad.mark, parallel.mark]) == {}


def test_many_alike_are_one_cluster_and_others_another(rig: HtcondorRig) -> None:
    alike = [changed(rig.spec(), submit=NEVER) for _ in range(5)]
    other = changed(rig.spec(), shape=Shape(cores=2, memory_mb=300, disk_mb=10, wall_s=600), submit=NEVER)
    refs = rig.submit(alike[0], other, *alike[1:])
    clusters = [ref.batch_id.partition(".")[0] for ref in refs]
    assert len({clusters[0], *clusters[2:]}) == 1 and len(set(clusters)) == 2
    names = ("RequestCpus", "RequestMemory", "RequestDisk", "MaxRuntime", "AllowedJobDuration", "PilotageMark")
    values = rig.pool.job(refs[1].batch_id, *names)
    assert values == dict(zip(names, ["2", "300", "10240", "600", "1200", other.mark]))


def test_a_mark_that_is_there_already_is_not_submitted_again(rig: HtcondorRig) -> None:
    spec = changed(rig.spec(), submit=NEVER)
    (ref,) = rig.submit(spec)
    assert rig.submit(spec, rig.spec())[0] == ref


# ---------------------------------------------------------------- secrets, logs, ends


def test_the_secret_is_a_file_of_mode_0600_on_the_node_and_nowhere_else(rig: HtcondorRig, tmp_path: Path) -> None:
    script = 'stat -c %a "$1"; cat "$1"; id -un; echo "$2"; env | grep -c pls_; echo oops >&2'
    (ref,) = rig.submit(runs(rig, script))
    rig.until(ref, W.RUNNING, W.FINISHED, W.FAILED)
    assert SECRET not in rig.pool.command("condor_q", "-l", ref.batch_id)
    rig.until(ref, W.FINISHED, W.FAILED)
    assert rig.backend.fetch_logs({ref: tmp_path / "logs"}) == {}
    lines = (tmp_path / "logs/stdout").read_text().split()
    assert lines[:3] == ["600", SECRET, "grid"] and lines[4] == "0"
    assert "/execute/dir_" in lines[3] and "pilotage-" in lines[3]
    assert (tmp_path / "logs/stderr").read_text() == "oops\n"
    assert "Job terminated" in (tmp_path / "logs/condor.log").read_text()


def test_cleaned_workers_leave_the_queue_but_not_the_history(rig: HtcondorRig) -> None:
    good, stay = rig.submit(rig.spec("good"), rig.spec())
    rig.until(good, W.FINISHED)
    rig.until(stay, W.RUNNING)
    rig.backend.clean([good])
    rig.backend.clean([good])
    assert not rig.worker_folder(good.mark).exists()
    wait_until(lambda: not rig.pool.job(good.batch_id, "JobStatus"), "the job has left the queue")
    outcomes = rig.backend.status([good, stay])
    assert (outcomes[good.mark].state, outcomes[good.mark].exit_code) == (W.FINISHED, 0)
    assert outcomes[stay.mark].state is W.RUNNING
    assert rig.backend.find_by_marks([good.mark]) == {good.mark: good}


def test_logs_that_are_nowhere_are_told(rig: HtcondorRig, tmp_path: Path) -> None:
    (ref,) = rig.submit(changed(rig.spec(), submit=NEVER))
    assert "no output" in rig.backend.fetch_logs({ref: tmp_path / "logs"})[ref.mark]


def test_only_those_that_wait_are_withdrawn(rig: HtcondorRig) -> None:
    running, waiting = rig.submit(rig.spec(), changed(rig.spec(), submit=NEVER))
    rig.until(running, W.RUNNING)
    load = rig.backend.backlog({})
    assert (load.waiting, load.running) == (1, 1)
    assert rig.backend.withdraw([running, waiting]) == {}
    rig.until(waiting, W.CANCELLED)
    assert rig.backend.status([running])[running.mark].state is W.RUNNING


def test_a_worker_is_asked_to_end_before_it_is_killed(rig: HtcondorRig, tmp_path: Path) -> None:
    said = rig.pool.folder / f"said-{new_mark()}"
    said.touch()
    said.chmod(0o666)
    (ref,) = rig.submit(
        runs(rig, f"trap 'echo term >>{said}; exit 0' TERM; echo up >>{said}; while :; do sleep 0.1; done")
    )
    wait_until(lambda: said.read_text() == "up\n", "the worker runs")
    assert rig.backend.kill([ref]) == {}
    rig.until(ref, W.CANCELLED)
    assert said.read_text() == "up\nterm\n"


def test_workers_of_another_user_cannot_be_ended(rig: HtcondorRig, tmp_path: Path) -> None:
    (ref,) = rig.submit(changed(rig.spec(), submit=NEVER))
    (tmp_path / "other").mkdir()
    other = HtcondorRig(rig.pool, tmp_path / "other", identity="nobody")
    try:
        assert "refuses" in other.backend.kill([ref])[ref.mark]
    finally:
        other.close_backends()
    assert rig.backend.status([ref])[ref.mark].state is W.SUBMITTED


# ---------------------------------------------------------------- a schedd that is away


def test_a_schedd_that_is_down_changes_nothing(rig: HtcondorRig) -> None:
    good, waiting = rig.submit(rig.spec("good"), changed(rig.spec(), submit=NEVER))
    rig.until(good, W.FINISHED)
    with rig.pool.without_schedd():
        for call in (
            lambda: rig.backend.status([good, waiting]),
            lambda: rig.backend.find_by_marks([good.mark]),
            lambda: rig.backend.submit([rig.spec()]),
            lambda: rig.backend.kill([waiting]),
        ):
            with pytest.raises(BackendError, match="HTCondor"):
                call()
    outcomes = rig.backend.status([good, waiting])
    assert (outcomes[good.mark].state, outcomes[waiting.mark].state) == (W.FINISHED, W.SUBMITTED)
    assert rig.backend.find_by_marks([good.mark, waiting.mark]) == {ref.mark: ref for ref in (good, waiting)}


def test_a_schedd_that_hangs_is_not_waited_for(rig: HtcondorRig) -> None:
    (ref,) = rig.submit(changed(rig.spec(), submit=NEVER))
    spec = changed(rig.spec(), submit=NEVER)
    rig.options.timeout_s = 1.5
    impatient = rig.restarted()
    with rig.pool.frozen_schedd():
        begun = time.monotonic()
        with pytest.raises(BackendError, match=r"no answer within 1.5 s"):
            impatient.status([ref])
        with pytest.raises(BackendError):
            impatient.submit([spec])
        assert time.monotonic() - begun < 40
    # It has to wake up, and answers the impatient one as soon as that may be.
    wait_until(partial(_answered, impatient, ref), "the schedd answers again")
    assert rig.backend.find_by_marks([spec.mark]) == {}


def _answered(backend: CondorBackend, ref: WorkerRef) -> bool:
    try:
        return backend.status([ref])[ref.mark].state is W.SUBMITTED
    except BackendError:
        return False


def test_a_pool_that_is_not_there(tmp_path: Path, rig: HtcondorRig) -> None:
    rig.options.pool = "127.0.0.1:1"
    with pytest.raises(BackendError, match="HTCondor"):
        rig.restarted().find_by_marks([new_mark()])
    rig.options.pool = rig.pool.pool
    rig.options.schedd = "misspelt.example.org"
    with pytest.raises(BackendError, match="the pool knows no schedd 'misspelt.example.org'"):
        rig.restarted().find_by_marks([new_mark()])


# ---------------------------------------------------------------- crashes


HALF = """
import sys, htcondor2
for name, value in (("SEC_TOKEN_DIRECTORY", sys.argv[2]), ("SEC_CLIENT_AUTHENTICATION_METHODS", "IDTOKENS")):
    htcondor2.param[name] = value
schedd = htcondor2.Schedd(htcondor2.Collector(sys.argv[1]).locateAll(htcondor2.DaemonType.Schedd)[0])
job = {"executable": "/bin/true", "My.PilotageMark": f'"{sys.argv[3]}"', "log": "log"}
schedd.submit(htcondor2.Submit(job), spool=True, itemdata=iter([{"mark": "x"}]))
"""


def test_a_job_whose_files_were_never_sent_counts_as_never_arrived_and_goes(rig: HtcondorRig) -> None:
    """Killed between the schedd's commit and the upload: the job can never start, and its mark is submitted again."""
    spec = rig.spec()
    tokens = str(rig.options.token_dir)
    subprocess.run([sys.executable, "-c", HALF, rig.pool.pool, tokens, spec.mark], check=True, timeout=180)
    listed = rig.pool.command(
        "condor_q", "-allusers", "-constraint", f'PilotageMark == "{spec.mark}"', "-format", "%d\n", "JobStatus"
    )
    assert listed.split() == ["5"]
    # Under load the schedd may have begun to wait for the files, which count as on their way until it has given up.
    wait_until(lambda: rig.backend.find_by_marks([spec.mark]) == {}, "the job has gone")
    assert rig.restarted().find_by_marks([spec.mark]) == {}
    (ref,) = rig.submit(spec)
    rig.until(ref, W.RUNNING)
    assert rig.backend.find_by_marks([spec.mark]) == {spec.mark: ref}


def _submit(rig: HtcondorRig, specs: list[WorkerSpec]) -> None:
    rig.restarted().submit(specs)


def _forked(work: Callable[[], None]) -> int:
    """Do ``work`` in a process that ends with it, however that ends; its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def test_an_upload_that_was_cut_off_leaves_no_worker(rig: HtcondorRig, tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(1_500_000_000)
    spec = changed(rig.spec(), files={"pilotage": big})
    child = _forked(partial(_submit, rig, [spec]))
    query = (
        "condor_q",
        "-allusers",
        "-constraint",
        f'PilotageMark == "{spec.mark}" && StageInStart > 0',
        "-format",
        "%d\n",
        "JobStatus",
    )
    wait_until(lambda: rig.pool.command(*query).split() == ["5"], "the upload has begun")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until(lambda: rig.backend.find_by_marks([spec.mark]) == {}, "the schedd has removed it")
    (ref,) = rig.submit(changed(spec, files={}))
    rig.until(ref, W.RUNNING)


def test_killed_at_any_moment_of_a_submission_it_finds_what_arrived(rig: HtcondorRig) -> None:
    begun = time.monotonic()
    rig.restarted().submit([changed(rig.spec(), submit=NEVER) for _ in range(30)])
    whole_s = time.monotonic() - begun
    rig.pool.remove_all()
    for part in (0.4, 0.7, 0.8, 0.9, 1.0):
        specs = [changed(rig.spec(), submit=NEVER) for _ in range(30)]
        child = _forked(partial(_submit, rig, specs))
        time.sleep(part * whole_s)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        backend = rig.restarted()
        found = backend.find_by_marks([spec.mark for spec in specs])
        outcomes = backend.submit([spec for spec in specs if spec.mark not in found])
        assert all(one.result is SubmitResult.ACCEPTED for one in outcomes)
        refs = [*found.values(), *(WorkerRef(one.mark, one.batch_id) for one in outcomes)]
        # What was found with its upload under way is decided by the schedd: whole, or removed.
        wait_until(partial(uploaded, rig, refs), "the uploads have ended")
        waits = {mark for mark, one in rig.backend.status(refs).items() if one.native == "idle"}
        shown = ("-allusers", "-constraint", "StageInStart > 0", "-format", "%s\n", "PilotageMark")
        there = rig.pool.command("condor_q", *shown).split()
        assert sorted(there) == sorted(set(there)), "nobody is there twice"
        assert waits <= set(there) and set(there) - waits <= set(found)
        rig.pool.remove_all()


def test_kill_at_each_write_point_then_restart(rig: HtcondorRig, tmp_path: Path) -> None:
    options = {"pool": rig.pool.pool, "token_dir": rig.options.token_dir, "timeout_s": 20}

    def make(folder: Path) -> HarvesterConfig:
        command = ["/bin/sh", "-c", "exec sleep 300", "{secret_file}"]
        return config(folder, QueueConfig(backend="htcondor", max_workers=10, command=command, options=options))

    def marks(folder: Path) -> list[str]:
        """Of every job that ever had its files, whoever submitted it."""
        shown = ("-constraint", "PilotageMark isnt undefined && StageInStart > 0", "-format", "%s\n", "PilotageMark")
        return [
            *rig.pool.command("condor_q", "-allusers", *shown).split(),
            *rig.pool.command("condor_history", *shown).split(),
        ]

    rows = crash_matrix(
        tmp_path,
        make,
        marks,
        inner=[f"harvester.backends.htcondor_client:_Child.{method}" for method in ("send", "receive")],
        cycles=1,
        chosen=lambda point: "backend.submit" in point or "receive" in point,
        finish=lambda folder: rig.pool.remove_all(),
    )
    print(as_table(rows))
    assert {len(row.found) for row in rows} >= {0, 3}, "it was killed before and after the submission"
    assert [row for row in rows if row.wrong] == []


# ---------------------------------------------------------------- the how-to


def test_the_worked_configuration_of_the_how_to(rig: HtcondorRig) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/harvester-htcondor.md").read_text(encoding="utf-8")
    text = page.partition("```toml\n")[2].partition("```")[0]
    bundle = rig.folder / "bundle"
    bundle.write_text('#!/bin/sh\necho "$@"\n')
    bundle.chmod(0o755)
    for written, real in {
        "condor.example.org:9618": rig.pool.pool,
        'schedd = "schedd.example.org"\n': "",
        "/etc/pilotage/condor-tokens": str(rig.options.token_dir),
        "/var/lib/pilotage/pilotage.pyz": str(bundle),
        'accounting_group = "group_example.pilots"': "",
    }.items():
        assert written in text
        text = text.replace(written, real)
    queue = msgspec.convert(tomllib.loads(text)["harvester"]["queues"]["CONDOR"], QueueConfig)
    backend = CondorBackend.create(queue.options, rig.folder, SystemClock())
    backend.check_submit(queue.submit)
    spec = changed(
        rig.spec(),
        command=["{folder}/pilotage", "{secret_file}"],
        files={"pilotage": Path(str(queue.ship_bundle))},
        submit=queue.submit,
        shape=Shape(cores=1, memory_mb=100, wall_s=600),
    )
    (done,) = backend.submit([spec])
    ref = WorkerRef(done.mark, done.batch_id)
    rig.until(ref, W.FINISHED, backend=backend)
    assert backend.fetch_logs({ref: rig.folder / "logs"}) == {}
    assert (rig.folder / "logs/stdout").read_text().strip().endswith("/secret")
    assert rig.pool.job(ref.batch_id, "JobFlavour") == {"JobFlavour": "longlunch"}
    backend.close()


def test_what_other_jobs_there_are_does_not_matter(rig: HtcondorRig) -> None:
    stranger = WorkerRef(new_mark(), "999999.0")
    odd = WorkerRef(new_mark(), "not a job")
    outcomes = rig.backend.status([stranger, odd])
    assert {one.observation.value for one in outcomes.values()} == {"denied"}
