"""What a real Slurm cluster does to workers, and what harvester makes of it; what ``kill -9`` leaves of submissions."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import tomllib

from common.clock import FrozenClock, SystemClock
from common.config import ConfigError
from common.states import FINAL_WORKER_STATES, WorkerState
from common.wire import Shape
from harvester.backends import slurm_arrays
from harvester.backends.base import BackendError, Observation, StatusOutcome, SubmitResult, WorkerRef, WorkerSpec
from harvester.backends.psij import PsijBackend
from harvester.backends.slurm import LATE_S, SlurmBackend
from harvester.config import HarvesterConfig
from harvester.service import make_backends
from harvester.transport.base import TransportError
from harvester.transport.local import LocalTransport
from harvester.transport.ssh import SshOptions, SshTransport
from tests.contract.rigs_slurm import TIMEOUT_S, PsijRig, SlurmRig, SlurmSshRig, ssh_options
from tests.services.base import ServiceFailed, wait_until
from tests.services.slurm import SlurmCluster
from tests.services.sshd import SshServer

W = WorkerState
SOON_S = 240.0
"""Slurm looks after some things every half minute, and this machine may be busy."""


@pytest.fixture
def rig(slurm: SlurmCluster, tmp_path: Path) -> Iterator[SlurmRig]:
    made = SlurmRig(slurm, tmp_path)
    yield made
    made.close()


@pytest.fixture
def ssh_rig(slurm: SlurmCluster, sshd: SshServer, tmp_path: Path) -> Iterator[SlurmSshRig]:
    made = SlurmSshRig(slurm, tmp_path, sshd)
    yield made
    made.close()


# ---------------------------------------------------------------- what happens to workers


def test_scancel_of_a_running_worker(rig: SlurmRig) -> None:
    (ref,) = rig.submit(rig.spec())
    rig.until(ref, W.RUNNING)
    rig.cluster.call("scancel", ref.batch_id)
    outcome = _soon(rig, ref, W.CANCELLED)
    assert outcome.native == "CANCELLED"
    assert "it was cancelled" in outcome.reason


def test_scancel_of_waiting_workers_that_slurm_forgets_at_once(rig: SlurmRig) -> None:
    """Of an array, elements cancelled before they start leave no trace in Slurm: neither queue nor accounting has them."""
    refs = rig.submit(*(_waiting(rig) for _ in range(4)))
    rig.cluster.call("scancel", refs[1].batch_id, refs[2].batch_id)
    statuses = rig.backend.status(refs)
    assert [statuses[ref.mark].state for ref in refs] == [W.SUBMITTED, W.CANCELLED, W.CANCELLED, W.SUBMITTED]
    assert rig.backend.kill(refs) == {}
    for ref in refs:
        _soon(rig, ref, W.CANCELLED)


def test_time_limit_and_the_notice_before_it(rig: SlurmRig) -> None:
    """Slurm looks after limits every 30 s: one wait for both."""
    script = "trap 'echo told; exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    told = replace(rig.spec(), shape=Shape(cores=1, wall_s=600), command=["/bin/sh", "-c", script])
    untold = replace(rig.spec(), shape=Shape(cores=1, wall_s=600), submit={"notice_s": 0})
    ref, noticed = rig.submit(untold, told)
    rig.until(ref, W.RUNNING)
    rig.until(noticed, W.RUNNING)
    _wait_for(lambda: "ready" in _stdout(rig, noticed))
    # Minutes are what Slurm counts in: an admin has them end sooner.
    rig.cluster.call("scontrol", "update", f"JobId={ref.batch_id}", "EndTime=now+1seconds")
    rig.cluster.call("scontrol", "update", f"JobId={noticed.batch_id}", "EndTime=now+100seconds")
    outcome = _soon(rig, ref, W.FAILED)
    assert outcome.native == "TIMEOUT"
    assert "it reached its time limit" in outcome.reason
    assert rig.backend.fetch_logs({ref: rig.folder / "log"}) == {}
    assert "DUE TO TIME LIMIT" in (rig.folder / "log" / "stderr").read_text()
    outcome = _soon(rig, noticed, W.FAILED)
    assert (outcome.native, outcome.exit_code) == ("FAILED", 9)
    assert _stdout(rig, noticed).split() == ["ready", "told"]


def test_requeued_worker_waits_and_runs_again(rig: SlurmRig) -> None:
    (ref,) = rig.submit(rig.spec())
    rig.until(ref, W.RUNNING)
    _wait_for(lambda: len(_starts(rig, ref)) == 1)
    rig.cluster.call("scontrol", "requeuehold", ref.batch_id)
    outcome = _soon(rig, ref, W.HELD)
    assert "JobHeld" in outcome.reason or "held" in outcome.reason.lower()
    brought_forward = float("-inf")

    def runs_again() -> bool:
        """Slurm holds it and puts it off once more when the end of its first run comes after an admin's words.

        It puts a job off since a node refuses the credential of one that starts in the second in which it was stopped.
        """
        nonlocal brought_forward
        state = rig.backend.status([ref])[ref.mark].state
        assert state not in FINAL_WORKER_STATES
        with suppress(ServiceFailed):  # it has started meanwhile
            if state is W.HELD:
                rig.cluster.call("scontrol", "release", ref.batch_id)
            elif state is W.SUBMITTED and time.monotonic() - brought_forward > 15.0:
                rig.cluster.call("scontrol", "update", f"JobId={ref.batch_id}", "StartTime=now+3seconds")
                brought_forward = time.monotonic()
        return state is W.RUNNING

    _wait_for(runs_again)
    _wait_for(lambda: _starts(rig, ref) == [ref.batch_id.partition("_")[0]] * 2)


def test_held_suspended_and_back(rig: SlurmRig) -> None:
    (waits,) = rig.submit(_waiting(rig))
    assert rig.backend.status([waits])[waits.mark].state is W.SUBMITTED
    rig.cluster.call("scontrol", "hold", waits.batch_id)
    assert _soon(rig, waits, W.HELD).reason.startswith("PENDING: JobHeld")
    (runs,) = rig.submit(rig.spec())
    rig.until(runs, W.RUNNING)
    rig.cluster.call("scontrol", "suspend", runs.batch_id)
    assert _soon(rig, runs, W.HELD).native == "SUSPENDED"
    rig.cluster.call("scontrol", "resume", runs.batch_id)
    _soon(rig, runs, W.RUNNING)


def test_node_down(rig: SlurmRig) -> None:
    spec = replace(rig.spec(), submit={"requeue": False, "directives": ["--nodelist=node3"]})
    again = replace(rig.spec(), submit={"requeue": True, "directives": ["--nodelist=node3"]})
    gone, requeued = rig.submit(spec, again)
    for ref in (gone, requeued):
        assert rig.until(ref, W.RUNNING).host == "node3"
    rig.cluster.call("scontrol", "update", "NodeName=node3", "State=DOWN", "Reason=test")
    try:
        outcome = _soon(rig, gone, W.FAILED)
        assert outcome.native == "NODE_FAIL"
        assert "its node failed" in outcome.reason
        _soon(rig, requeued, W.SUBMITTED)
    finally:
        rig.cluster.resume("node3")


def test_controller_down_for_a_while_changes_nothing(rig: SlurmRig) -> None:
    (ref, done) = rig.submit(rig.spec(), rig.spec("good"))
    rig.until(ref, W.RUNNING)
    rig.until(done, W.FINISHED)
    quick = SlurmBackend.create({**rig.options, "timeout_s": 1.5}, rig.folder, FrozenClock())
    spec = rig.spec()
    with rig.cluster.controller.outage():
        began = time.monotonic()
        outcomes = _down(lambda: quick.status([ref, done]))
        assert isinstance(outcomes, BackendError) or outcomes[ref.mark].observation is Observation.UNKNOWN
        (refused,) = quick.submit([spec])
        assert refused.result is SubmitResult.UNKNOWN
        assert isinstance(_down(lambda: quick.find_by_marks([ref.mark])), BackendError)
        assert isinstance(_down(lambda: quick.kill([ref])), BackendError)
        assert time.monotonic() - began < 100
    assert _soon(rig, ref, W.RUNNING).state is W.RUNNING
    assert rig.backend.status([done])[done.mark].state is W.FINISHED
    with pytest.raises(BackendError, match="may still arrive"):
        rig.backend.find_by_marks([spec.mark])


def test_accounting_down_is_no_denial(rig: SlurmRig) -> None:
    (ref,) = rig.submit(rig.spec())
    rig.until(ref, W.RUNNING)
    stranger = WorkerRef("f" * 32, "4000000_0")
    with rig.cluster.accounting.outage():
        statuses = rig.backend.status([ref, stranger])
        assert statuses[ref.mark].state is W.RUNNING
        assert statuses[stranger.mark].observation is Observation.UNKNOWN
    assert rig.backend.status([stranger])[stranger.mark].observation is Observation.DENIED


def test_end_is_known_after_the_controller_has_forgotten_it(rig: SlurmRig, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = rig.submit(rig.spec("good"), rig.spec("bad"))
    rig.until(good, W.FINISHED)
    rig.until(bad, W.FAILED)
    monkeypatch.setattr(rig.backend._client, "queue", list)
    _wait_for(lambda: rig.backend.status([good])[good.mark].state is W.FINISHED)
    _wait_for(lambda: rig.backend.status([bad])[bad.mark].exit_code == 1)


def test_all_answers_as_json_and_plain_say_the_same(rig: SlurmRig) -> None:
    refs = rig.submit(rig.spec(), rig.spec("good"), rig.spec("bad"), *(_waiting(rig) for _ in range(40)))
    rig.until(refs[0], W.RUNNING)
    rig.until(refs[1], W.FINISHED)
    rig.until(refs[2], W.FAILED)
    backends = {
        words: SlurmBackend.create({**rig.options, "answers": words}, rig.folder, FrozenClock())
        for words in ("json", "plain")
    }
    told = {words: backend.status(refs) for words, backend in backends.items()}
    for _ in range(10):  # why a worker waits changes by itself, and may have done so between the two
        if told["json"] == told["plain"]:
            break
        threading.Event().wait(1.0)
        told = {words: backend.status(refs) for words, backend in backends.items()}
    assert told["json"] == told["plain"]


def test_two_nodes_start_two_pilots(rig: SlurmRig) -> None:
    script = 'echo "on $SLURMD_NODENAME"; exec sleep 300'
    spec = replace(rig.spec(), nodes=2, command=["/bin/sh", "-c", script, "pilot", "{secret_file}"])
    (ref,) = rig.submit(spec)
    output = Path(rig.workers_dir, ref.mark, "stdout")
    _wait_for(lambda: output.exists() and output.read_text().count("on ") == 2)
    assert len(set(output.read_text().split("\n")[:2])) == 2, "each on a node of its own"
    assert rig.backend.kill([ref]) == {}
    _soon(rig, ref, W.CANCELLED)


def test_refusal_carries_the_words_of_sbatch(rig: SlurmRig) -> None:
    (no_partition,) = rig.backend.submit([replace(rig.spec(), submit={"partition": "nowhere"})])
    assert no_partition.result is SubmitResult.REFUSED
    assert "Invalid partition name" in no_partition.reason
    (wrong,) = rig.backend.submit([replace(rig.spec(), submit={"directives": ["--no-such-option"]})])
    assert (wrong.result, "no-such-option" in wrong.reason) == (SubmitResult.REFUSED, True)


def test_limit_of_submitted_jobs_is_a_refusal(ssh_rig: SlurmSshRig, slurm: SlurmCluster, sshd: SshServer) -> None:
    user = sshd.account.name
    slurm.allow(user, "MaxSubmitJobs=2")
    try:
        kept = ssh_rig.submit(ssh_rig.spec(), ssh_rig.spec())
        (refused,) = ssh_rig.backend.submit([ssh_rig.spec()])
        assert refused.result is SubmitResult.REFUSED, refused
        assert "AssocMaxSubmitJobLimit" in refused.reason or "job submit limit" in refused.reason
        marks = [ref.mark for ref in kept]
        clock = FrozenClock()
        later = SlurmBackend.create(ssh_rig.options, ssh_rig.folder, clock)
        with pytest.raises(BackendError, match="may still arrive"):
            later.find_by_marks([*marks, refused.mark])
        clock.advance(TIMEOUT_S + LATE_S + 1)
        assert set(later.find_by_marks([*marks, refused.mark])) == set(marks)
    finally:
        slurm.allow(user, "MaxSubmitJobs=-1")


def test_only_waiting_workers_are_withdrawn(rig: SlurmRig) -> None:
    (runs,) = rig.submit(rig.spec())
    rig.until(runs, W.RUNNING)
    (waits,) = rig.submit(_waiting(rig))
    load = rig.backend.backlog({"partition": "main"})
    assert (load.waiting, load.running) == (1, 1)
    assert rig.backend.withdraw([runs, waits]) == {}
    _soon(rig, waits, W.CANCELLED)
    assert rig.backend.status([runs])[runs.mark].state is W.RUNNING


def test_one_job_a_worker_where_there_are_no_arrays(slurm: SlurmCluster, tmp_path: Path) -> None:
    rig = SlurmRig(slurm, tmp_path, array_size=0)
    try:
        good, stay = rig.submit(rig.spec("good"), rig.spec())
        assert good.batch_id.isdecimal()
        rig.until(good, W.FINISHED)
        rig.until(stay, W.RUNNING)
        assert rig.restarted().find_by_marks([good.mark, stay.mark]) == {good.mark: good, stay.mark: stay}
        assert rig.backend.kill([stay]) == {}
        _soon(rig, stay, W.CANCELLED)
    finally:
        rig.close()


def test_folders_and_secrets_are_private_and_go_with_their_workers(ssh_rig: SlurmSshRig, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.write_text("#!/bin/sh\necho bundle $(stat -c %a $1) $(id -un)\n")
    bundle.chmod(0o755)
    spec = replace(ssh_rig.spec(), command=["{folder}/pilotage", "{secret_file}"], files={"pilotage": bundle})
    refs = ssh_rig.submit(spec, replace(spec, mark=ssh_rig.spec().mark))
    logs = {}
    for ref in refs:
        ssh_rig.until(ref, W.FINISHED)
        logs[ref] = tmp_path / "logs" / ref.mark
    assert not list((tmp_path / "outgoing").glob("*")), "no copy of a secret stays behind"
    assert ssh_rig.backend.fetch_logs(logs) == {}
    user = ssh_rig.cluster and str(ssh_rig.options["ssh"]["user"])
    assert {(folder / "stdout").read_text() for folder in logs.values()} == {f"bundle 600 {user}\n"}
    assert Path(ssh_rig.workers_dir, refs[0].mark).stat().st_mode & 0o777 == 0o700
    inodes = {Path(ssh_rig.workers_dir, ref.mark, "pilotage").stat().st_ino for ref in refs}
    assert len(inodes) == 1, "the bundle goes over the line once"
    ssh_rig.backend.clean(refs[:1])
    assert sorted(path.name for path in Path(ssh_rig.workers_dir).iterdir()) == sorted(["arrays", refs[1].mark])
    ssh_rig.backend.clean(refs)
    assert list(Path(ssh_rig.workers_dir, "arrays").iterdir()) == []


# ---------------------------------------------------------------- kill -9 at each point of a submission


@pytest.mark.parametrize("point", ["laid out", "put", "sent", "answered"])
def test_kill_9_at_each_write_point(point: str, rig: SlurmRig) -> None:
    """The process is killed at that point, another comes: each worker is found, or ruled out and submitted again."""
    specs = [rig.spec() for _ in range(3)]
    _in_a_process_killed_with_9(lambda: _submit_until(rig, specs, point))
    clock = FrozenClock()
    later = SlurmBackend.create(rig.options, rig.folder, clock)
    found = _recovered(later, clock, specs)
    assert set(found) == ({spec.mark for spec in specs} if point in ("sent", "answered") else set())
    missing = [spec for spec in specs if spec.mark not in found]
    refs = [*found.values(), *(WorkerRef(o.mark, o.batch_id) for o in later.submit(missing))]
    for ref in refs:
        rig.until(ref, W.RUNNING, backend=later)
    assert _names_in_queue(rig) == 3, "none doubled"


@pytest.mark.parametrize("rig_name", ["rig", "ssh_rig"])
def test_kill_9_of_sbatch_before_it_says_anything_is_ruled_out(rig_name: str, request: pytest.FixtureRequest) -> None:
    """``sent`` and no job: nobody knows; Slurm's queue says no; after the time that it may still arrive, it never will."""
    rig: SlurmRig = request.getfixturevalue(rig_name)
    spec = rig.spec()
    clock = FrozenClock()
    backend = SlurmBackend.create(rig.options, rig.folder, clock)
    arrays = backend._arrays
    backend._lay_out("pilotage-lost", [spec], backend._script(spec, "pilotage-lost"))
    assert arrays.take("pilotage-lost")
    with pytest.raises(BackendError, match="may still arrive"):
        backend.find_by_marks([spec.mark])
    (outcome,) = backend.submit([spec])
    assert outcome.result is SubmitResult.UNKNOWN, "not again while that is open"
    clock.advance(TIMEOUT_S + LATE_S + 1)
    assert backend.find_by_marks([spec.mark]) == {}
    # It comes nevertheless, as late as can be: its element sees that it was given up, and starts no pilot.
    late = f"{arrays.folder('pilotage-lost')}"
    command = ["sbatch", "--parsable", "--array=0-0", f"--chdir={late}", "--output=late", f"{late}/script"]
    done = backend._transport.run(["env", f"SLURM_CONF={rig.cluster.conf}", *command])
    assert done.code == 0, done
    (ref,) = [WorkerRef(o.mark, o.batch_id) for o in backend.submit([spec])]
    rig.until(ref, W.RUNNING)
    ghost = WorkerRef(spec.mark, f"{done.stdout.strip()}_0")
    assert rig.until(ghost, W.FAILED).exit_code == 75
    assert backend.find_by_marks([spec.mark]) == {spec.mark: ref}


def test_psij_submission_that_nobody_answered_is_ruled_out_and_leaves_at_once(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    rig = PsijRig(slurm, tmp_path)
    clock = FrozenClock()
    backend = PsijBackend.create(rig.options, tmp_path, clock)
    spec = rig.spec()
    backend._lay_out(spec, "pilotage-lost")
    assert backend._arrays.take("pilotage-lost")
    with pytest.raises(BackendError, match="may still arrive"):
        backend.find_by_marks([spec.mark])
    clock.advance(TIMEOUT_S + LATE_S + 1)
    assert backend.find_by_marks([spec.mark]) == {}
    folder = Path(rig.workers_dir, "arrays", "pilotage-lost")
    late = slurm.call("sbatch", "--parsable", str(folder / "submit")).strip()
    try:
        (outcome,) = backend.submit([spec])
        ref = WorkerRef(spec.mark, outcome.batch_id)
        rig.until(ref, W.RUNNING, backend=backend)
        _wait_for(lambda: (folder / f"{late}.ec").exists() and (folder / f"{late}.ec").read_text().strip() == "75")
        assert backend.find_by_marks([spec.mark]) == {spec.mark: ref}
    finally:
        rig.close()


def test_submission_that_was_answered_to_nobody_is_found_by_its_name(rig: SlurmRig) -> None:
    """sbatch got through and died before it could write the answer down."""
    (ref,) = rig.submit(rig.spec())
    rig.until(ref, W.RUNNING)
    folder = next(Path(rig.workers_dir, "arrays").iterdir())
    (folder / "job").unlink()
    for trace in Path(rig.workers_dir, ref.mark).glob("started.*"):
        trace.unlink()
    assert rig.restarted().find_by_marks([ref.mark]) == {ref.mark: ref}


def test_worker_that_ran_and_was_forgotten_is_found_by_its_trace(
    rig: SlurmRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ref,) = rig.submit(rig.spec("good"))
    rig.until(ref, W.FINISHED)
    (next(Path(rig.workers_dir, "arrays").iterdir()) / "job").unlink()
    monkeypatch.setattr(rig.backend._client, "queue", list)
    assert rig.backend.find_by_marks([ref.mark]) == {ref.mark: ref}


def test_folders_on_a_file_system_that_is_not_mounted_are_no_proof(rig: SlurmRig) -> None:
    """Their absence would read as: none of the workers ever arrived."""
    (ref,) = rig.submit(rig.spec())
    rig.until(ref, W.RUNNING)
    root = Path(rig.workers_dir)
    root.rename(f"{root}.away")
    root.mkdir()
    with pytest.raises(BackendError, match="mounted"):
        rig.restarted().find_by_marks([ref.mark])
    with pytest.raises(BackendError, match="mounted"):
        rig.restarted().submit([rig.spec()])
    root.rmdir()
    Path(f"{root}.away").rename(root)
    assert rig.restarted().find_by_marks([ref.mark]) == {ref.mark: ref}


def test_line_that_drops_half_way_is_unknown_and_found_again(
    ssh_rig: SlurmSshRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ssh_rig.spec()
    transport = ssh_rig.backend._transport
    run = transport.run

    def drops(command: Sequence[str], stdin: Any = None, timeout_s: float = 60.0) -> Any:
        done = run(command, stdin, timeout_s)
        if command[2] == slurm_arrays._SUBMIT:
            raise TransportError("127.0.0.1: the connection was closed by remote host")
        return done

    monkeypatch.setattr(transport, "run", drops)
    (outcome,) = ssh_rig.backend.submit([spec])
    assert outcome.result is SubmitResult.UNKNOWN
    assert set(ssh_rig.restarted().find_by_marks([spec.mark])) == {spec.mark}


# ---------------------------------------------------------------- the how-to's configurations


@pytest.mark.parametrize("name", ["slurm", "ssh", "slurmrestd", "psij"])
def test_configuration_of_the_how_to_runs_a_worker(
    name: str, slurm: SlurmCluster, sshd: SshServer, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/harvester-slurm.md").read_text()
    (block,) = (text for text in re.findall(r"```toml\n(.*?)```", page, re.S) if text.startswith(f"# {name}\n"))
    slurm.allow(sshd.account.name)
    token = tmp_path / "token"
    token.write_text(slurm.token("root"))
    token.chmod(0o600)
    root = sshd.account.home if name == "ssh" else slurm.folder
    for written, real in {
        "/shared/pilotage/workers": str(root / f"how-to-{name}"),
        "login.example.org": "127.0.0.1",
        '"pilots"': f'"{sshd.account.name if name == "ssh" else "root"}"',
        "port = 22": f"port = {sshd.port}",
        "/etc/pilotage/ssh_key": str(sshd.key_file),
        "/etc/pilotage/known_hosts": str(sshd.known_hosts),
        "http://127.0.0.1:6820": slurm.rest_url,
        "/etc/pilotage/slurm-token": str(token),
        'executor = "pbs"': f'executor = "slurm"\nenvironment = {{ SLURM_CONF = "{slurm.conf}" }}',
    }.items():
        block = block.replace(written, real)
    text = f'[harvester]\nserver_url = "http://127.0.0.1:1"\ntoken_file = "t"\nstate_dir = "{tmp_path}/state"\n{block}'
    read = tomllib.loads(text)["harvester"]
    (queue,) = read["queues"]
    if name in ("slurm", "ssh"):  # it is not the machine's default cluster
        read["queues"][queue]["options"]["slurm_conf"] = str(slurm.conf)
    config = msgspec.convert(read, HarvesterConfig)
    backend = make_backends(config, tmp_path, SystemClock())[queue]
    spec = WorkerSpec(
        "e" * 32, queue, Shape(cores=1, wall_s=600), ["/bin/true"], {}, "s", submit=config.queues[queue].submit
    )
    try:
        (outcome,) = backend.submit([spec])
        ref = WorkerRef(outcome.mark, outcome.batch_id)
        _wait_for(lambda: backend.status([ref])[ref.mark].state is W.FINISHED, SOON_S)
    finally:
        slurm.cancel_all()


# ---------------------------------------------------------------- transports


def test_ssh_says_what_is_wrong(sshd: SshServer, tmp_path: Path) -> None:
    good = ssh_options(sshd)
    stranger = tmp_path / "known_hosts"
    stranger.touch()
    cases = {
        "Host key verification failed": {**good, "known_hosts": str(stranger)},
        "Permission denied": {**good, "key_file": str(_new_key(tmp_path))},
        "Connection refused": {**good, "port": 1},
    }
    for words, options in cases.items():
        transport = SshTransport(SshOptions(**options))
        with pytest.raises(TransportError, match=words):
            transport.run(["true"], timeout_s=20)
    with pytest.raises(ConfigError, match="workers_dir"):
        SlurmBackend.create({"ssh": good}, tmp_path, FrozenClock())


def test_transports_quote_time_out_and_copy(sshd: SshServer, tmp_path: Path) -> None:
    far = str(sshd.account.home / "far")
    for transport in (SshTransport(SshOptions(**ssh_options(sshd))), LocalTransport()):
        word = "a 'b\" $HOME `id` \\ * \n!"
        assert transport.run(["printf", "%s", word]).stdout == word
        assert transport.run(["cat"], b"given").stdout == "given"
        assert transport.run(["sh", "-c", "echo no >&2; exit 3"]).code == 3
        began = time.monotonic()
        with pytest.raises(TransportError, match="no answer within"):
            transport.run(["sleep", "100"], timeout_s=0.5)
        assert time.monotonic() - began < 50
        source = tmp_path / "source"
        (source / "one").mkdir(parents=True, exist_ok=True)
        (source / "one" / "file").write_bytes(b"\x00\xff content")
        transport.put(source, ["one"], far)
        transport.fetch(far, ["one/file", "one/missing"], tmp_path / "home")
        assert (tmp_path / "home/one/file").read_bytes() == b"\x00\xff content"
        (tmp_path / "home/one/file").unlink()
        transport.close()


def test_commands_share_one_connection(sshd: SshServer) -> None:
    transport = SshTransport(SshOptions(**ssh_options(sshd)))
    try:
        first = transport.run(["sh", "-c", "echo $SSH_CONNECTION"]).stdout
        assert first == transport.run(["sh", "-c", "echo $SSH_CONNECTION"]).stdout
    finally:
        transport.close()


def test_a_connection_that_nobody_needs_any_more_does_not_stay(sshd: SshServer) -> None:
    """It outlived harvester by two minutes. A command of another program that shares it goes through."""
    transport = SshTransport(SshOptions(**ssh_options(sshd)))
    transport.run(["true"])
    begun = sshd.account.home / "begun"
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(transport.run, ["sh", "-c", f"echo >{begun}; sleep 1; echo through"])
        wait_until(begun.exists, "the other's command runs")
        transport.close()
        assert other.result(120).stdout == "through\n"
    wait_until(lambda: masters_of(transport) == [], "ssh has ended")
    assert transport.run(["echo", "again"]).stdout == "again\n"
    transport.close()
    transport.close()
    wait_until(lambda: masters_of(transport) == [], "ssh has ended")


# ---------------------------------------------------------------- helpers


def masters_of(transport: SshTransport) -> list[int]:
    """The processes that hold the connection: they are named by its socket."""
    socket = str(transport._socket())
    words = {process.pid: process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])}
    return [pid for pid, line in words.items() if any(socket in word for word in line)]


def _waiting(rig: SlurmRig) -> WorkerSpec:
    """A worker that has to wait: its array begins in an hour."""
    return (
        replace(rig.spec(), submit={"directives": ["--begin=now+1hour"]})
        if not isinstance(rig, SlurmSshRig)
        else rig.spec()
    )


def _stdout(rig: SlurmRig, ref: WorkerRef) -> str:
    path = Path(rig.workers_dir, ref.mark, "stdout")
    return path.read_text() if path.exists() else ""


def _starts(rig: SlurmRig, ref: WorkerRef) -> list[str]:
    """The array's id in Slurm, for each start of a worker."""
    return [word for trace in Path(rig.workers_dir, ref.mark).glob("started.*") for word in trace.read_text().split()]


def _soon(rig: SlurmRig, ref: WorkerRef, *states: WorkerState) -> StatusOutcome:
    seen: list[StatusOutcome] = []

    def there() -> bool:
        seen[:] = [rig.backend.status([ref])[ref.mark]]
        return seen[0].state in states

    _wait_for(there, SOON_S)
    return seen[0]


def _wait_for(condition: Callable[[], bool], deadline_s: float = SOON_S) -> None:
    give_up = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up
        threading.Event().wait(0.1)


def _down(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BackendError as error:
        return error


def _names_in_queue(rig: SlurmRig) -> int:
    return len(rig.cluster.call("squeue", "--noheader", "--array", "--format=%i").split())


def _recovered(backend: SlurmBackend, clock: FrozenClock, specs: Sequence[WorkerSpec]) -> dict[str, WorkerRef]:
    """As harvester does: asked again until there is an answer. Its clock runs as slowly as the machine."""
    give_up = time.monotonic() + SOON_S
    while True:
        try:
            return backend.find_by_marks([spec.mark for spec in specs])
        except BackendError:
            assert time.monotonic() < give_up, "no answer"
            clock.advance(0.05)
            threading.Event().wait(0.1)


def _submit_until(rig: SlurmRig, specs: Sequence[WorkerSpec], point: str) -> None:
    """Submit, and die by SIGKILL at a point of it."""
    backend = rig.restarted()
    arrays, transport = backend._arrays, backend._transport

    def die(*_: object, **__: object) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    if point == "laid out":
        transport.put = die  # type: ignore[method-assign]
    elif point == "put":
        arrays.submit = die  # type: ignore[method-assign]
    elif point == "sent":
        threading.Thread(target=_die_when_sent, args=(Path(rig.workers_dir, "arrays"),), daemon=True).start()
    backend.submit(specs)
    die()


def _die_when_sent(arrays: Path) -> None:
    while not list(arrays.glob("*/sent")):
        time.sleep(0.0005)
    os.kill(os.getpid(), signal.SIGKILL)


def _in_a_process_killed_with_9(work: Callable[[], None]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def _new_key(folder: Path) -> Path:
    key = folder / "other_key"
    done = LocalTransport().run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    assert done.code == 0
    return key
