"""The parts of watching: one pass over /proc for all jobs, memory read only when it must be, gaps in time, free space,
the rhythm, a job's own cgroup."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pilot.watch import JobLimits, JobMetrics, Watch, Watcher
from pilot.watch.cgroup import own_cgroup, read_memory
from pilot.watch.files import FolderLook, FolderUse, folder_use
from pilot.watch.gaps import Clocks, GapWatch
from pilot.watch.lifetimes import Lifetimes, expires
from pilot.watch.limits import is_near
from pilot.watch.looping import BUSY_FACTOR, Quiet
from pilot.watch.memory import READ_AGAIN_S, TreeMemory
from pilot.watch.processes import PAGE, ProcessGone, ProcessSeen, ProcessTable, catches, in_out, read_process
from pilot.watch.scratch import Scratch
from tests.unit.test_watch import FakeClocks

MB = 1024 * 1024


@pytest.fixture
def tree() -> Iterator[subprocess.Popen[str]]:
    """A parent with two children, which tell when they are there."""
    code = """
import os, sys
r, w = os.pipe()
for _ in range(2):
    if os.fork() == 0:
        os.close(w); os.read(r, 1); os._exit(0)
print("up", flush=True); sys.stdin.readline(); os.close(w)
while True:
    try: os.wait()
    except ChildProcessError: break
"""
    wrapper = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", wrapper], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdout.readline()
    yield process
    process.stdin.close()
    process.stdout.close()
    process.wait()


# ---------------------------------------------------------------- processes


def test_one_pass_for_all_jobs(tree: subprocess.Popen[str]) -> None:
    clock = FakeClocks()
    table = ProcessTable(lambda: clock.steady)
    table.add(tree.pid)
    table.add(os.getpid())
    assert len(table.tree(tree.pid)) == 3
    assert {seen.pid for seen in table.tree(os.getpid())} >= {seen.pid for seen in table.tree(tree.pid)}
    assert table.passes == 1
    clock.pass_s(1.0)
    table.tree(tree.pid)
    assert table.passes == 2


def test_what_is_not_ours_is_read_once(tree: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a node with thousands of other processes the pilot read all of them, every five seconds."""
    read: list[int] = []

    def counting(pid: int) -> ProcessSeen:
        read.append(pid)
        return read_process(pid)

    monkeypatch.setattr("pilot.watch.processes.read_process", counting)
    table = ProcessTable()
    table.add(tree.pid)
    assert len(table.tree(tree.pid, 0.0)) == 3
    first = set(read)
    read.clear()
    assert len(table.tree(tree.pid, 0.0)) == 3
    ours = {seen.pid for seen in table.tree(tree.pid)}
    assert ours <= set(read) and len(set(read) & first - ours) < len(first) / 2
    assert 1 in first and 1 not in read


def test_a_job_that_begins_is_seen_although_its_processes_were_passed_by(tree: subprocess.Popen[str]) -> None:
    table = ProcessTable()
    assert table.tree(2**22, 0.0) == []  # a pass before anybody knew whose these processes are
    table.add(tree.pid)
    assert len(table.tree(tree.pid)) == 3
    table.remove(tree.pid)


def test_a_process_that_has_ended() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    for read in (read_process, in_out):
        with pytest.raises(ProcessGone):
            read(process.pid)


def test_a_process_with_a_difficult_name(tmp_path: Path) -> None:
    """``) R 1 1`` in a program's name moved all of the fields that follow it."""
    program = tmp_path / ") R 1 (x"
    program.symlink_to(Path(sys.executable).resolve())
    code = "import sys; print('up', flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [str(program), "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        seen = read_process(process.pid)
        process.stdin.close()
    assert (seen.parent, seen.name) == (os.getpid(), ") R 1 (x") and seen.rss > MB


def test_who_has_a_handler_for_a_signal() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        assert catches(os.getpid(), signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        assert not catches(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_bytes_of_children_that_have_ended(tree: subprocess.Popen[str], tmp_path: Path) -> None:
    before = in_out(os.getpid())
    subprocess.run(["dd", "if=/dev/zero", f"of={tmp_path / 'x'}", "bs=1M", "count=3"], check=True, capture_output=True)
    assert in_out(os.getpid()).asked_written - before.asked_written >= 3 * MB


# ---------------------------------------------------------------- memory


def seen(pid: int, rss_mb: float, faults: int = 0, start: int = 1) -> ProcessSeen:
    return ProcessSeen(pid, 1, 1, start, "x", "S", int(rss_mb * MB), faults, 1, 0.0, 0.0)


class Machine:
    """Processes whose PSS a test knows."""

    def __init__(self) -> None:
        self.pss: dict[int, float] = {}
        self.read: list[int] = []
        self.memory = TreeMemory(self.proportional, lambda pid: 0)

    def proportional(self, pid: int) -> int:
        self.read.append(pid)
        if pid not in self.pss:
            raise ProcessGone(pid)
        return int(self.pss[pid] * MB)

    def look(self, processes: Sequence[ProcessSeen], limit_mb: float, now: float = 0.0) -> float:
        self.read.clear()
        return self.memory.look(processes, limit_mb, now).counted_mb


def test_memory_is_not_read_far_from_the_limit() -> None:
    machine = Machine()
    assert machine.look([seen(1, 200), seen(2, 300)], 1000) == 500
    assert machine.read == []


def test_workers_that_share_their_memory_are_read_once_and_not_at_every_look() -> None:
    """Reading 32 GB of shared memory took half a second of CPU time, every five seconds."""
    machine = Machine()
    machine.pss = dict.fromkeys(range(20), 10.0)
    workers = [seen(pid, 200) for pid in range(20)]
    assert machine.look(workers, 1000) == 200 and len(machine.read) == 20
    assert machine.look(workers, 1000, 5.0) == 200 and machine.read == []
    assert machine.look(workers, 1000, READ_AGAIN_S + 1) == 200 and len(machine.read) == 20


def test_shared_pages_that_are_written_are_noticed() -> None:
    """Each worker made the pages that it had shared its own: the sum of resident memory stayed the same."""
    machine = Machine()
    machine.pss = dict.fromkeys(range(20), 10.0)
    machine.look([seen(pid, 200) for pid in range(20)], 1000)
    machine.pss = dict.fromkeys(range(20), 200.0)
    grown = [seen(pid, 200, faults=190 * MB // PAGE) for pid in range(20)]
    assert machine.look(grown, 1000, 5.0) == 4000


def test_only_those_are_read_that_may_have_grown() -> None:
    machine = Machine()
    machine.pss = dict.fromkeys(range(20), 10.0)
    workers = [seen(pid, 200) for pid in range(20)]
    machine.look(workers, 1000)
    machine.pss[3] = 15.0
    workers[3] = seen(3, 200, faults=900 * MB // PAGE)
    assert machine.look(workers, 1000, 5.0) == 205
    assert machine.read == [3]


def test_what_a_worker_shared_goes_to_the_others_when_it_ends() -> None:
    machine = Machine()
    machine.pss = {1: 400.0, 2: 400.0}
    both = [seen(1, 700), seen(2, 700)]
    assert machine.look(both, 1000) == 800
    machine.pss = {1: 700.0, 3: 310.0}
    # The one that has ended is still counted, a new one with all that it has.
    assert machine.look([seen(1, 700), seen(3, 310)], 1000, 5.0) == 1010


def test_a_number_that_was_given_again_is_another_process() -> None:
    machine = Machine()
    machine.pss = {1: 10.0, 2: 500.0}
    machine.look([seen(1, 900), seen(2, 500)], 1000)
    machine.pss[1] = 800.0
    assert machine.look([seen(1, 800, start=2), seen(2, 500)], 1000, 5.0) == 1300


def test_a_process_that_cannot_be_read_counts_with_all_that_is_resident() -> None:
    machine = Machine()
    machine.pss = {1: 10.0}
    assert machine.look([seen(1, 600), seen(2, 600)], 1000) == 610


def test_what_is_swapped_out_counts() -> None:
    """A payload ate the node's swap, while its resident memory stayed below the limit."""
    memory = TreeMemory(lambda pid: 900 * MB, lambda pid: 500 * MB)
    use = memory.look([seen(1, 400)], 1000, 0.0, swaps=True)
    assert (use.rss_mb, use.swap_mb, use.counted_mb) == (400, 500, 900)
    assert memory.look([seen(1, 600)], 1000, 1.0, swaps=True).pss_mb == 900


# ---------------------------------------------------------------- a job's own cgroup


def test_a_jobs_own_cgroup(tmp_path: Path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    for pid, where in ((10, "/batch/slot1"), (20, "/batch/slot1/job-7"), (30, "/batch/slot2")):
        (proc / str(pid)).mkdir(parents=True)
        (proc / str(pid) / "cgroup").write_text(f"5:memory:/old\n0::{where}\n")
    folder = root / "batch/slot1/job-7"
    folder.mkdir(parents=True)
    assert own_cgroup(20, 10, root, proc) is None  # its memory is not accounted
    for name, text in {
        "memory.current": f"{900 * MB}\n",
        "memory.swap.current": f"{20 * MB}\n",
        "memory.peak": f"{950 * MB}\n",
        "memory.stat": f"anon {300 * MB}\ninactive_file {500 * MB}\n",
        "memory.events": "low 0\noom 1\noom_kill 1\n",
    }.items():
        (folder / name).write_text(text)
    assert own_cgroup(20, 10, root, proc) == folder
    assert own_cgroup(10, 10, root, proc) is None  # the pilot is in it as well
    assert own_cgroup(30, 10, root, proc) is None  # another slot's
    assert own_cgroup(99, 10, root, proc) is None
    found = read_memory(folder)
    # Pages of files that were read once are the kernel's to drop: a payload that read a large file was killed for them.
    assert found is not None and (found.used_mb, found.swap_mb, found.peak_mb, found.killed) == (400, 20, 950, 1)
    assert read_memory(root / "gone") is None


# ---------------------------------------------------------------- time


def test_a_suspended_machine_is_held_against_nobody(tmp_path: Path) -> None:
    """A node that had slept for a night came back, and the pilot killed a payload that had done nothing for so long."""
    clock = FakeClocks()
    watcher = Watcher(os.getpid(), tmp_path, JobLimits(wall_s=600, looping_s=300), clock.watch())
    clock.pass_s(5.0)
    assert watcher.look().breaches == []
    clock.pass_s(3600.0)
    look = watcher.look()
    assert look.breaches == [] and look.metrics.wall_s <= 11
    assert "stood still for 359" in look.notes[0]
    clock.pass_s(look.again_s)
    assert watcher.look().notes == []
    assert 580 < (watcher.seconds_left() or 0) < 600


def test_clocks_that_are_set_are_told() -> None:
    clock = FakeClocks()
    watch = GapWatch(Clocks(lambda: clock.wall, lambda: clock.steady, lambda: clock.boot))
    watch.look(5.0)
    clock.pass_s(5.0)
    clock.wall += 3600
    assert watch.look(5.0).words == "the machine's clock was set forward by 3600 s"
    clock.pass_s(5.0)
    clock.wall -= 60
    gap = watch.look(5.0)
    assert (gap.words, gap.missing_s) == ("the machine's clock was set back by 60 s", 0.0)
    clock.pass_s(5.0)
    clock.wall, clock.boot = clock.wall + 300, clock.boot + 300
    assert watch.look(5.0).words == "the machine was suspended for 300 s"
    clock.pass_s(5.0)
    assert watch.look(5.0).words == ""


def test_all_jobs_are_looked_at_at_the_same_moments() -> None:
    clock = FakeClocks()
    watch = clock.watch(5.0)
    moments = set()
    for step in (0.3, 1.1, 0.9):
        clock.pass_s(step)
        moments.add(round(clock.steady + watch.again_s(False), 6))
    assert moments == {1005.0}
    assert clock.steady + watch.again_s(True) in (1002.5, 1003.75)
    clock.steady = 1004.9
    assert 5.0 <= watch.again_s(False) <= 5.2
    assert FakeClocks().watch(0.1).again_s(True) <= 0.2


def test_near_a_limit_a_job_is_looked_at_more_often() -> None:
    limits = JobLimits(memory_mb=1000, wall_s=100)
    assert not is_near(JobMetrics(memory_mb=700, wall_s=50), limits, 10)
    assert is_near(JobMetrics(memory_mb=900, wall_s=50), limits, 10)
    assert is_near(JobMetrics(memory_mb=700, wall_s=95), limits, 10)


# ---------------------------------------------------------------- files


def test_a_payload_that_waits_and_one_that_computes() -> None:
    quiet = Quiet(0.0, 100.0)
    files = FolderUse(10, 1, 10, 5)
    assert quiet.look(1.0, files, 0.0) == 0.0
    assert quiet.look(61.0, files, 0.5) == 60.0
    # It computes: only the files count, and for much less.
    assert quiet.look(62.0, files, 30.0) == pytest.approx(61 / BUSY_FACTOR)
    assert quiet.look(102.0, files, 70.0) == pytest.approx(101 / BUSY_FACTOR)
    assert quiet.look(103.0, FolderUse(11, 1, 11, 5), 70.0) == 0.0
    quiet.touched(200.0, 70.0)
    assert quiet.look(210.0, FolderUse(11, 1, 11, 5), 70.0) == 10.0


def test_any_change_of_a_file_is_seen(tmp_path: Path) -> None:
    uses = [folder_use(tmp_path)]
    (tmp_path / "a").touch()
    uses.append(folder_use(tmp_path))
    os.utime(tmp_path / "a", (1, 1))
    uses.append(folder_use(tmp_path))
    (tmp_path / "b").write_bytes(b"x" * 10_000)
    os.utime(tmp_path / "b", (1, 1))
    uses.append(folder_use(tmp_path))
    assert len({use.mark for use in uses}) == 4


def test_a_large_folder_is_walked_through_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClocks()
    walks: list[Path] = []
    ticks = iter(range(100))

    def slow(folder: Path, idle: Sequence[str]) -> FolderUse:
        walks.append(folder)
        return FolderUse(len(walks))

    monkeypatch.setattr("pilot.watch.files.folder_use", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: 0.1 * next(ticks))
    look = FolderLook(tmp_path, lambda: clock.steady)
    for _ in range(5):
        look.look()
        clock.pass_s(5.0)
    assert len(walks) == 1
    clock.pass_s(5.0)
    assert look.look().size == 2
    assert look.look(at_once=True).size == 3


def test_the_job_that_uses_most_beyond_its_part_goes_first() -> None:
    scratch = Scratch(1000)
    assert scratch.look("a", 5000, 4000, 3000) is None
    assert scratch.look("b", 9000, 8900, 2000) is None
    assert scratch.look("b", 9000, 8900, 900) is None
    breach = scratch.look("a", 5000, 4000, 900)
    assert breach is not None and breach.words.startswith("scratch_mb: 900.0, must be at least 1000.0")
    assert scratch.look("b", 99000, 8900, 100) is None  # one at a time: the files of the first go last
    scratch.leave("a")
    assert scratch.look("b", 99000, 8900, 100) is not None
    scratch.leave("b")


def test_what_all_share_is_left_when_a_job_is_over(tmp_path: Path) -> None:
    watch = Watch()
    watcher = Watcher(os.getpid(), tmp_path, JobLimits(), watch)
    assert watcher.look().metrics.processes >= 0
    watcher.close()
    assert watch.table.tree(os.getpid(), 0.0) is not None


# ---------------------------------------------------------------- credentials


def token(ends: float) -> str:
    payload = base64.urlsafe_b64encode(json.dumps({"exp": ends}).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJub25lIn0.{payload}.sig\n"


def test_a_credential_that_ends_is_told_once(tmp_path: Path) -> None:
    clock = FakeClocks()
    path = tmp_path / "token"
    path.write_text(token(clock.wall + 3600))
    lifetimes = Lifetimes({"BEARER_TOKEN_FILE": str(path), "HOME": "/"}, lambda: clock.wall)
    assert lifetimes.look() == []
    clock.pass_s(3000)
    assert lifetimes.look() == ["the credential in BEARER_TOKEN_FILE expires in 600 s, and has not been renewed"]
    clock.pass_s(61)
    assert lifetimes.look() == []
    path.write_text(token(clock.wall + 3600))
    clock.pass_s(61)
    assert lifetimes.look() == []
    clock.pass_s(3600)
    assert lifetimes.look() == ["the credential in BEARER_TOKEN_FILE has expired"]
    path.unlink()
    path.symlink_to("/etc/passwd")
    clock.pass_s(61)
    assert lifetimes.look() == ["the credential in BEARER_TOKEN_FILE cannot be read: is a link"]
    assert Lifetimes({}, lambda: clock.wall).look() == []


def test_the_end_of_a_proxy_is_that_of_its_first_certificate_to_end() -> None:
    ends = [datetime(2027, 1, 1, tzinfo=timezone.utc), datetime(2026, 12, 1, tzinfo=timezone.utc)]
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a person")])
    pem = b""
    for moment in ends:
        begun = moment - timedelta(days=1)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        builder = builder.serial_number(1).not_valid_before(begun).not_valid_after(moment)
        pem += builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    assert expires(pem) == ends[1].timestamp()


@pytest.mark.parametrize("content", [b"", b"opaque", b"a.b.c", b"a.W10.c", b"-----BEGIN CERTIFICATE-----\nx\n"])
def test_what_is_no_credential_says_nothing(content: bytes) -> None:
    assert expires(content) is None
