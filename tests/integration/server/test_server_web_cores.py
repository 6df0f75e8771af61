"""The real server's web processes keep to cores of their own, unless it is told otherwise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.services.base import wait_until


@pytest.mark.parametrize("keep", [True, False])
def test_web_processes_keep_to_cores_if_they_are_to(tmp_path: Path, keep: bool) -> None:
    config = tmp_path / "server.toml"
    settings = f'state_dir = "{tmp_path}/state"\nport = 0\nweb_processes = 2\nkeep_to_cores = {str(keep).lower()}\n'
    config.write_text(f"[server]\n{settings}")
    own = {name: value for name, value in os.environ.items() if not name.startswith("PILOTAGE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "common.cli.main", "--config", str(config), "server"],
        env={**own, "XDG_CONFIG_HOME": str(tmp_path / "none"), "PYTHONUNBUFFERED": "1"},
        cwd=Path(__file__).parents[3],
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        assert any(b"listening on" in line for line in process.stderr)
        allowed = sorted(os.sched_getaffinity(0))
        if keep:  # the second may still be starting when the first one answers
            wait_until(lambda: len(_kept(process.pid)) >= 2, "web processes that keep to cores")
            assert len(set(_kept(process.pid))) == min(2, len(allowed))
        elif len(allowed) > 1:
            assert _kept(process.pid) == []
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)


def _kept(parent: int) -> list[int]:
    """The cores of those of its processes that keep to one."""
    found = [os.sched_getaffinity(each.pid) for each in psutil.Process(parent).children()]
    return [core for cores in found if len(cores) == 1 for core in cores]
