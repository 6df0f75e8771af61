"""The frame of the service fixtures itself: reasons, deadlines, and processes that never outlive the test run."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.services.base import Service, ServiceFailed, ServiceUnavailable, require, wait_until


def has_ended(process: psutil.Process) -> bool:
    """Whether the process is gone, or is only waiting for its parent to notice."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_unavailable_service_skips_here_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    def obtain() -> None:
        raise ServiceUnavailable("no such thing")

    monkeypatch.setenv("CI", "false")
    with pytest.raises(pytest.skip.Exception, match="no such thing"):
        require(obtain)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI=true demands every real service: no such thing"):
        require(obtain)


def test_server_that_ends_at_once_fails_with_its_log(tmp_path: Path) -> None:
    server = Service("broken", ["sh", "-c", "echo no configuration; exit 3"], tmp_path / "log", lambda: False)
    with pytest.raises(ServiceFailed, match=r"(?s)exit code 3.*no configuration"):
        server.start()
    assert not server.running


def test_stopped_server_leaves_no_process_of_its_group(tmp_path: Path) -> None:
    child_pid = tmp_path / "pid"
    script = (
        f"trap '' TERM; sleep 600 & echo $! > {child_pid}.new; mv {child_pid}.new {child_pid}; trap 'exit 0' TERM; wait"
    )
    server = Service("with a child", ["sh", "-c", script], tmp_path / "log", child_pid.exists)
    server.start()
    child = psutil.Process(int(child_pid.read_text()))
    server.stop()
    wait_until(lambda: has_ended(child), "the child ends")


def test_server_ends_with_a_test_run_that_is_killed(tmp_path: Path) -> None:
    program = """
import sys, tempfile
from pathlib import Path
from tests.services.base import Service, switch_to
server = Service("sleeper", [*switch_to("nobody"), "sleep", "600"], Path(sys.argv[1]), lambda: True)
server.start()
print(server.pid, flush=True)
sys.stdin.read()
"""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "log"], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as test_run:
        assert test_run.stdout is not None
        server = psutil.Process(int(test_run.stdout.readline()))
        wait_until(lambda: server.name() == "sleep", "the server runs under its own name")
        test_run.send_signal(signal.SIGKILL)
    wait_until(lambda: has_ended(server), "the server ends")
