"""The supervisor holds the payload's tree, whatever dies."""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.errors import ErrorCode, PilotageError
from pilot import supervisor
from pilot.supervised import (
    MARK,
    SUPERVISOR,
    PayloadEnd,
    PayloadEvent,
    PayloadSpec,
    PayloadStarted,
    SupervisedProcess,
)

ROOT = Path(__file__).parents[2]
PATH = "/usr/local/bin:/usr/bin:/bin"
#: A daemon as daemons are: two forks, a session of its own, a clean environment. Writes its pid to the file "daemon".
DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open('daemon.tmp', 'w').write(str(os.getpid()))
        os.rename('daemon.tmp', 'daemon')
        os.execve('/bin/sleep', ['sleep', '300'], {})
    os._exit(0)
os.wait()
"""


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Waits for a condition that no event tells of."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        select.select([], [], [], 0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def pid_in(path: Path) -> int:
    until(path.exists)
    until(lambda: path.read_text().strip())
    return int(path.read_text())


class Bench:
    """Starts payloads in one folder and ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[SupervisedProcess] = []
        self.events: queue.Queue[PayloadEvent] = queue.Queue()

    def spec(self, *argv: str, **more: object) -> PayloadSpec:
        env = {"PATH": PATH, "HERE": "yes"}
        return PayloadSpec(list(argv), self.folder, self.folder / "stdout", self.folder / "stderr", env, **more)  # type: ignore[arg-type]

    def run(self, *argv: str, **more: object) -> SupervisedProcess:
        process = SupervisedProcess.start(self.spec(*argv, **more), self.events.put)
        self.started.append(process)
        return process

    def shell(self, script: str) -> SupervisedProcess:
        return self.run("/bin/sh", "-c", script)

    def python(self, script: str) -> SupervisedProcess:
        return self.run(sys.executable, "-I", "-S", "-c", textwrap.dedent(script))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for process in bench.started:
        process.destroy()
        process.wait(120)


def test_a_payload_runs_with_its_arguments_environment_and_logs(bench: Bench) -> None:
    end = bench.shell('echo "out $HERE"; echo err >&2; pwd; umask; env | sort | cut -d= -f1 | tr "\\n" " "').wait(120)
    assert end.ok and end.exit_code == 0 and end.signal is None and end.left_behind == 0
    lines = (bench.folder / "stdout").read_text().splitlines()
    assert lines[:3] == ["out yes", str(bench.folder), "0022"]
    assert set(lines[3].split()) - {"_", "SHLVL", "OLDPWD"} == {"HERE", "PATH", "PWD", MARK}
    assert (bench.folder / "stderr").read_text() == "err\n"


def test_events_come_in_order_and_within_a_moment_of_the_end(bench: Bench) -> None:
    process = bench.shell("date +%s.%N > ended; exit 7")
    started, end = bench.events.get(timeout=120), bench.events.get(timeout=120)
    heard = time.time()
    assert isinstance(started, PayloadStarted) and started.pid == process.pid
    assert isinstance(end, PayloadEnd) and end.exit_code == 7 and end.error is ErrorCode.PAYLOAD_FAILED
    assert heard - float((bench.folder / "ended").read_text()) < 5.0


def test_a_payload_that_crashes_is_reported_by_its_signal(bench: Bench) -> None:
    end = bench.shell("kill -SEGV $$").wait(120)
    assert (end.exit_code, end.signal, end.error) == (None, "SIGSEGV", ErrorCode.SIGSEGV)


def test_what_the_payload_leaves_behind_is_killed(bench: Bench) -> None:
    process = bench.python(DAEMON)
    end = process.wait(120)
    assert end.exit_code == 0 and end.left_behind == 1
    assert not alive(pid_in(bench.folder / "daemon"))


def test_kill_ends_a_payload_that_obeys_before_the_grace(bench: Bench) -> None:
    process = bench.shell("trap 'echo bye; exit 3' TERM; echo ready > ready; while :; do sleep 0.05; done")
    until((bench.folder / "ready").exists)
    began = time.monotonic()
    process.kill("memory", grace_s=30)
    end = process.wait(120)
    assert (end.killed, end.exit_code) == ("memory", 3)
    assert time.monotonic() - began < 25
    assert (bench.folder / "stdout").read_text() == "bye\n"


def test_a_payload_that_ignores_sigterm_is_killed_after_the_grace(bench: Bench) -> None:
    process = bench.shell("trap '' TERM; (trap '' TERM; echo $$ > child; exec sleep 300) & echo x > ready; wait")
    until((bench.folder / "ready").exists)
    began = time.monotonic()
    process.kill("wall", grace_s=0.5)
    end = process.wait(120)
    took = time.monotonic() - began
    assert 0.4 < took < 60
    assert (end.killed, end.signal, end.error) == ("wall", "SIGKILL", ErrorCode.KILL_SIGNAL)


def test_the_grace_holds_for_children_of_a_shell_that_sigterm_ended_at_once(bench: Bench) -> None:
    """A jobscript's shell dies of SIGTERM at once; the program below it is still saving its results."""
    process = bench.shell(
        "sh -c 'trap \"sleep 0.3; echo saved > saved; exit 0\" TERM; echo x > ready; while :; do sleep 0.02; done'; :"
    )
    until((bench.folder / "ready").exists)
    process.kill("drain", grace_s=10)
    end = process.wait(120)
    assert end.signal == "SIGTERM" and end.killed == "drain"
    assert (bench.folder / "saved").exists()


def test_a_stopped_payload_is_killed_too(bench: Bench) -> None:
    process = bench.shell("echo x > ready; kill -STOP $$; echo resumed")
    until((bench.folder / "ready").exists)
    process.kill("server", grace_s=5)
    assert process.wait(120).signal == "SIGTERM"


def test_a_second_kill_shortens_the_grace(bench: Bench) -> None:
    process = bench.shell("trap '' TERM; echo x > ready; while :; do sleep 0.05; done")
    until((bench.folder / "ready").exists)
    process.kill("polite", grace_s=60)
    process.kill("now", grace_s=0)
    assert process.wait(120).killed == "polite"


#: Ever new processes that a walk over pids runs after: each forks its successor and ends. One at a time and at the
#: most 2,000, so that it is harmless should nobody stop it.
RELAY = """
import os, time
if os.fork() == 0:
    for _ in range(2000):
        if os.fork():
            os._exit(0)
        open('ready', 'w')
        end = time.monotonic() + 0.002
        while time.monotonic() < end: pass
    os._exit(0)
time.sleep(300)
"""


def test_a_tree_that_keeps_forking_cannot_outrun_the_kill(bench: Bench) -> None:
    """A walk over pids let an exponentially forking payload get away, and it took the machine with it."""
    process = bench.python(RELAY)
    until((bench.folder / "ready").exists)
    process.kill("bomb", grace_s=0)
    end = process.wait(120)
    assert (end.killed, end.signal) == ("bomb", "SIGKILL")
    (bench.folder / "ready").unlink(missing_ok=True)
    select.select([], [], [], 0.05)
    assert not (bench.folder / "ready").exists(), "a runner of the relay is still alive"


def test_a_group_is_killed_as_a_whole_also_where_the_walk_saw_one_member_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time that a walk over pids acts on what it saw, a payload that forks has others."""
    with subprocess.Popen(
        ["/bin/sh", "-c", "sleep 300 & echo $!; wait"], stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        unseen = int(leader.stdout.readline())
        walks = iter([{leader.pid: leader.pid}, {}])
        monkeypatch.setattr(supervisor, "descendants", lambda _root: next(walks))
        supervisor.Supervisor(0, 1)._kill_tree()
        until(lambda: not alive(unseen), 5)
    assert leader.returncode == -signal.SIGKILL


def test_the_supervisor_holds_nothing_of_the_pilots_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A payload of the same user can read it."""
    monkeypatch.setenv("BEARER_TOKEN", "secret")
    process = bench.shell("sleep 300")
    assert process.wait_started(10)
    assert b"secret" not in Path(f"/proc/{process.supervisor_pid}/environ").read_bytes()


def test_a_supervisor_killed_above_a_forking_payload_leaves_none_of_it(bench: Bench) -> None:
    process = bench.python(RELAY)
    until((bench.folder / "ready").exists)
    process.destroy()
    assert process.wait(120).error is ErrorCode.SUPERVISOR_DIED
    (bench.folder / "ready").unlink(missing_ok=True)
    select.select([], [], [], 0.05)
    assert not (bench.folder / "ready").exists(), "a runner of the relay is still alive"


def test_a_signal_reaches_the_payload(bench: Bench) -> None:
    process = bench.shell("trap 'echo usr1; exit 0' USR1; echo x > ready; while :; do sleep 0.02; done")
    until((bench.folder / "ready").exists)
    process.signal("SIGUSR1")
    assert process.wait(120).ok
    assert (bench.folder / "stdout").read_text() == "usr1\n"
    with pytest.raises(ValueError, match="SIGFOO"):
        process.signal("SIGFOO")


def test_the_supervisor_outlives_the_signals_of_a_batch_system(bench: Bench) -> None:
    os.mkfifo(bench.folder / "fifo")
    process = bench.shell("echo x > ready; read line < fifo; echo $line")
    until((bench.folder / "ready").exists)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(process.supervisor_pid, number)
    (bench.folder / "fifo").write_text("still here\n")
    assert process.wait(120).ok
    assert (bench.folder / "stdout").read_text() == "still here\n"


@pytest.mark.parametrize("ignored", [(), (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)])
def test_the_payload_gets_default_signal_handling(bench: Bench, ignored: tuple[signal.Signals, ...]) -> None:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}  # as nohup and a shell's & do
    try:
        process = bench.shell("grep -E 'SigIgn|SigBlk' /proc/self/status")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    process.wait(120)
    masks = [int(line.split()[1], 16) for line in (bench.folder / "stdout").read_text().splitlines()]
    # The C library keeps 32 and 33 to itself (signal(7), "Real-time signals"): no program can set them through it.
    ours = sum(1 << (number - 1) for number in signal.valid_signals())
    assert [mask & ours for mask in masks] == [0, 0]


def test_the_payload_inherits_no_descriptors(bench: Bench) -> None:
    bench.python("import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:-1])").wait(120)
    assert (bench.folder / "stdout").read_text() == "[0, 1, 2]\n"


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["/no/such/program"], ErrorCode.BAD_JOBSCRIPT),
        (["no-such-program"], ErrorCode.BAD_JOBSCRIPT),
        (["/etc/passwd"], ErrorCode.BAD_JOBSCRIPT),
        (["x" * 10, "y" * 3_000_000], ErrorCode.BAD_JOBSCRIPT),
        (["a\0b"], ErrorCode.SETUP_FAILED),
    ],
)
def test_a_program_that_cannot_be_executed_says_why(bench: Bench, argv: list[str], code: ErrorCode) -> None:
    end = bench.run(*argv).wait(120)
    assert end.error is code and not end.ok and end.exit_code is None
    assert isinstance(bench.events.get(timeout=1), PayloadEnd), "a payload that never started must not say so"


def test_a_log_that_is_a_link_is_not_written_through(bench: Bench) -> None:
    (bench.folder / "victim").write_text("precious")
    (bench.folder / "stdout").symlink_to("victim")
    assert bench.shell("echo overwritten").wait(120).error is ErrorCode.SETUP_FAILED
    assert (bench.folder / "victim").read_text() == "precious"


def test_names_that_are_not_ascii_arrive(bench: Bench) -> None:
    bench.run("/bin/echo", "Zürich \udcff").wait(120)
    assert (bench.folder / "stdout").read_bytes() == "Zürich ".encode() + b"\xff\n"


def test_a_python_that_cannot_start_is_an_error_of_the_setup(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/python")
    with pytest.raises(PilotageError, match="SETUP_FAILED"):
        bench.shell("true")


def test_cpu_and_memory_are_accounted_for_the_whole_tree(bench: Bench) -> None:
    busy = "x=bytearray(60_000_000); t=__import__('time'); e=t.process_time()+0.3\nwhile t.process_time()<e: pass"
    end = bench.python(f"import subprocess, sys; subprocess.run([sys.executable, '-I', '-S', '-c', {busy!r}])").wait(
        120
    )
    assert end.ok and 0.3 <= end.cpu_s < 5
    assert 60_000 < end.max_rss_kb < 200_000


def test_wait_with_a_timeout(bench: Bench) -> None:
    process = bench.shell("sleep 300")
    with pytest.raises(TimeoutError):
        process.wait(0.05)


def test_commands_to_a_payload_that_has_ended_do_nothing(bench: Bench) -> None:
    process = bench.shell("true")
    end = process.wait(120)
    process.kill("late")
    process.signal("SIGUSR1")
    process.destroy()
    assert process.wait(1) == end and end.killed is None


def test_a_supervisor_that_is_killed_takes_its_payload_with_it(bench: Bench) -> None:
    process = bench.shell("echo $$ > main; setsid sleep 301 & echo $! > other; sleep 302")
    pids = [pid_in(bench.folder / "main"), pid_in(bench.folder / "other")]
    os.kill(process.supervisor_pid, signal.SIGKILL)
    end = process.wait(120)
    assert end.error is ErrorCode.SUPERVISOR_DIED and "signal 9" in end.detail
    assert not any(alive(pid) for pid in pids)


def test_the_kernel_kills_the_payload_of_a_killed_supervisor_without_any_pilot(tmp_path: Path) -> None:
    """The belt (PR_SET_PDEATHSIG) by itself: nobody is there to look for leftovers."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(SUPERVISOR)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    spec = {"argv": ["/bin/sleep", "300"], "cwd": "/", "env": {}, "stdout": "/dev/null", "stderr": "/dev/null"}
    assert process.stdin is not None and process.stdout is not None
    with process.stdin as stdin, process.stdout as stdout:
        stdin.write(json.dumps(spec).encode() + b"\n")
        stdin.flush()
        pid = json.loads(stdout.readline())["started"]["pid"]
        assert alive(pid)
        process.kill()
        process.wait()
        until(lambda: not alive(pid), 2)


PARENT = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from pilot.supervised import PayloadSpec, SupervisedProcess
here = Path({folder!r})
spec = PayloadSpec([sys.executable, "-I", "-S", "-c", {payload!r}], here, here / "stdout", here / "stderr")
process = SupervisedProcess.start(spec)
process.wait_started()
(here / "supervisor.tmp").write_text(str(process.supervisor_pid))
(here / "supervisor.tmp").rename(here / "supervisor")
process.wait()
"""


def test_kill_9_of_the_pilot_leaves_no_payload_process(tmp_path: Path) -> None:
    payload = (
        DAEMON + "\nimport subprocess\nopen('main', 'w').write(str(os.getpid()))\nsubprocess.run(['sleep', '303'])"
    )
    source = PARENT.format(root=str(ROOT), folder=str(tmp_path), payload=payload)
    parent = subprocess.Popen([sys.executable, "-c", source], env={"PATH": PATH})
    names = ("daemon", "main", "supervisor")
    pids = [pid_in(tmp_path / name) for name in names]
    assert all(alive(pid) for pid in pids)
    parent.kill()
    parent.wait()
    until(lambda: not any(alive(pid) for pid in pids))


def test_no_descriptors_or_threads_leak_over_many_payloads(bench: Bench) -> None:
    bench.shell("true").wait(120)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        bench.shell("true").wait(120)
    bench.run("/no/such").wait(120)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_the_supervisor_is_small_and_quick(bench: Bench) -> None:
    began = time.monotonic()
    process = bench.shell("sleep 300")
    assert process.wait_started(10)
    assert time.monotonic() - began < 20.0  # some 20 ms on a quiet machine
    status = Path(f"/proc/{process.supervisor_pid}/status").read_text()
    rss_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert rss_kb < 15_000
