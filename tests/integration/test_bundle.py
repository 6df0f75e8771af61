"""The one file to ship, on nodes that have a Python and nothing else: clean trees of Debian 11 and Debian 13."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.states import JobState
from common.tokens import new_secret, write_secret_file
from pilot.bundle import build
from pilot.bundle.build import Bundle, write_bundle
from pilot.bundle.wheels import PYTHONS
from tests.e2e.system import System
from tests.integration.worker import register_worker
from tests.services.debian_tree import HOME, USER_ID, DebianTree

SUITES = {"bullseye": "3.9", "trixie": "3.13"}
MARK = "bundle-worker-1"
LIMIT_MB = 25
THIS_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"

IMPORT_ALL = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import common, pilot
failed = []
for package in (common, pilot):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if found.name.startswith(("common.cli.", "pilot.copytool.", "pilot.bundle.")):
            continue
        importlib.import_module(found.name)
print("all imported")
"""


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a start on this machine, with a folder of its own to unpack into."""
    named = {"PILOTAGE_BUNDLE_CACHE": str(tmp_path / "cache"), "PILOTAGE_PYTHON": sys.executable}
    yield {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **named}


@pytest.mark.parametrize("suite", SUITES)
def test_real_bundle_runs_a_job_on_a_bare_node(
    suite: str, bundle: Bundle, debian_tree: Callable[[str], DebianTree], tmp_path: Path
) -> None:
    tree, python = debian_tree(suite), SUITES[suite]
    file = tree.put(bundle.path, "pilotage-pilot.run")
    said = tree.run(file, "--version")
    assert said.returncode == 0, said.stderr
    assert said.stdout.split(", on ")[0] == f"pilotage {bundle.version} build {bundle.build[:16]} for x86_64"
    assert said.stdout.rstrip().endswith(f" {python}")
    unpacked = f"/tmp/pilotage-bundle-{USER_ID}/{bundle.build[:16]}-{python}"
    assert (tree.root / unpacked[1:]).stat().st_mode & 0o777 == 0o700
    imported = tree.run("python3", "-I", "-c", IMPORT_ALL, unpacked)
    assert imported.stdout == "all imported\n", imported.stderr

    with System(tmp_path, harvester=False) as system:
        system.storage("disk", f"file://{HOME}/storage")
        register_worker(system, MARK, tree.home / "secret")
        os.chown(tree.home / "secret", USER_ID, USER_ID)
        task = system.task(
            input={"kind": "counter", "count": 1},
            jobscript="#!/bin/sh\necho done by uid $(id -u) >result.txt\n",
            outputs=[{"pattern": "result.txt"}],
        )
        started = tree.run(
            *(file, "pilot", "run", "--server", system.url, "--worker", MARK, "--secret-file", f"{HOME}/secret"),
            *("--work-dir", f"{HOME}/work", "--max-jobs", "1"),
            env={"no_proxy": "127.0.0.1"},
        )
        assert started.returncode == 0, started.stderr
        assert [job.state for job in system.jobs(task)] == [JobState.FINISHED], started.stderr
        stored = [path for path in (tree.home / "storage").rglob("*result*") if path.is_file()]
        assert [path.read_text() for path in stored] == [f"done by uid {USER_ID}\n"]


def test_real_bundle_is_small_enough_and_knows_every_python(bundle: Bundle) -> None:
    assert bundle.pythons == PYTHONS
    assert bundle.size == bundle.path.stat().st_size < LIMIT_MB * 1_000_000


def test_real_bundle_of_the_same_input_has_the_same_bytes(
    wheels_dir: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = list(build._product())  # somebody may be at work on them
    monkeypatch.setattr(build, "_product", lambda: iter(ours))
    first, second = (
        write_bundle(tmp_path / name, pythons=[THIS_PYTHON], wheels_dir=wheels_dir) for name in ("first", "second")
    )
    assert first.sha256 == second.sha256 != bundle.sha256
    assert first.path.read_bytes() == second.path.read_bytes()


def test_real_bundle_gets_its_signals(bundle: Bundle, cache: dict[str, str], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    write_secret_file(secret, new_secret())
    log = tmp_path / "work" / "pilot.log"
    pilot = subprocess.Popen(
        [
            *(bundle.path, "pilot", "run", "--server", "http://127.0.0.1:1", "--worker", MARK),
            *("--secret-file", secret, "--work-dir", tmp_path / "work"),
        ],
        env=cache,
        stderr=subprocess.PIPE,
    )
    assert pilot.stderr is not None
    for line in pilot.stderr:
        if b"not registered yet" in line:
            break
    pilot.send_signal(signal.SIGTERM)
    pilot.stderr.read()
    assert pilot.wait(120) == 143, log


def test_real_bundle_starts_at_once_when_it_is_unpacked(bundle: Bundle, cache: dict[str, str]) -> None:
    def start_s() -> float:
        began = time.monotonic()
        subprocess.run([bundle.path, "--version"], env=cache, check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - began

    start_s()
    assert min(start_s() for _ in range(5)) < 0.5
