"""``pilotage demo``, whole: it finds the Z boson, and leaves no process behind however it ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.program import words_of

for module in ("falcon", "granian", "uproot", "matplotlib"):
    pytest.importorskip(module)

DEADLINE_S = 400.0


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "common.cli.main", "demo", "--dir", str(folder), "--pilots", "2", *more]


def left_behind(folder: Path) -> list[str]:
    """Processes that work in the demo's folder, or were told of it."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if process.status() != psutil.STATUS_ZOMBIE and str(folder) in " ".join([*words, process.cwd()]):
                found.append(f"{process.pid} {' '.join(words)}")
        # The last one comes of a process that ends while it is looked at.
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue
    return found


class Running:
    """A demo in the background that is read line by line."""

    def __init__(self, folder: Path) -> None:
        # Stopped by a signal, so it must not be done before.
        self.process = subprocess.Popen(
            command(folder, "--units", "400", "--events", "20000"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A test run in the background of a shell ignores SIGINT, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.output = ""

    def read_until(self, pattern: str) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.output += line
            if re.search(pattern, line):
                return
        pytest.fail(f"the demo ended early:\n{self.output}")

    def end(self) -> int:
        rest, _ = self.process.communicate(timeout=DEADLINE_S)
        self.output += rest
        return self.process.returncode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "demo"


@pytest.fixture
def running(folder: Path) -> Iterator[Running]:
    demo = Running(folder)
    yield demo
    if demo.process.poll() is None:
        demo.process.terminate()
        demo.end()


def test_the_demo_finds_the_z_boson(folder: Path) -> None:
    done = subprocess.run(
        command(folder, "--units", "20", "--events", "3000"), capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    numbers = json.loads((folder / "z-fit.json").read_text())
    assert abs(numbers["mass"]["value"] - 91.1876) < 5 * numbers["mass"]["error"] < 0.5
    assert f"{numbers['mass']['value']:.3f} ± {numbers['mass']['error']:.3f} GeV" in done.stdout
    assert (folder / "z-peak.png").read_bytes().startswith(b"\x89PNG")
    assert "60,000 simulated" in done.stdout
    for stage in ("simulate done 20/20", "analyse done 20/20", "fit done 20/20"):
        assert stage in done.stdout
    assert f"plot         {folder}/z-peak.png" in done.stdout
    assert left_behind(folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process(running: Running, folder: Path, number: signal.Signals) -> None:
    running.read_until(r"[1-9]\d* running")
    assert left_behind(folder)
    running.process.send_signal(number)
    assert running.end() == 130, running.output
    assert left_behind(folder) == []


@pytest.mark.parametrize("name", ["server", "harvester"])
def test_a_program_that_dies_is_named(running: Running, folder: Path, name: str) -> None:
    running.read_until(r"[1-9]\d* running")
    programs = [child for child in psutil.Process(running.process.pid).children() if name in words_of(child)]
    assert len(programs) == 1
    programs[0].kill()
    assert running.end() == 1, running.output
    assert f"{name} died (by SIGKILL); the end of {folder}/{name}.log" in running.output
    assert left_behind(folder) == []
