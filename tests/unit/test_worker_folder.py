"""The folder that a worker starts from, and the script in it, run by a real shell."""

from __future__ import annotations

import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from common.wire import Shape
from harvester.backends.base import MARK_VARIABLE, WorkerSpec
from harvester.worker_folder import FOLDER_VARIABLE, WorkerFolders


def spec(folder: Path, *command: str, **environment: str) -> WorkerSpec:
    bundle = folder / "bundle"
    bundle.write_text("#!/bin/sh\nprintf '<%s>\\n' \"$@\"; env\n")
    bundle.chmod(0o755)
    return WorkerSpec(
        mark="m" * 16,
        queue="q",
        shape=Shape(cores=1),
        command=command,
        environment=environment,
        secret="pls_it",
        files={"pilotage": bundle},
    )


def run(folder: Path, **variables: str) -> list[str]:
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(folder), **variables}
    where = folder if FOLDER_VARIABLE not in variables else Path("/")
    script = variables.get(FOLDER_VARIABLE, str(folder)) + "/start"
    return subprocess.run(
        [script], cwd=where, env=environment, capture_output=True, text=True, check=True, timeout=20
    ).stdout.splitlines()


def test_files_have_their_modes_and_the_script_no_secret(tmp_path: Path) -> None:
    folder = WorkerFolders(tmp_path / "workers").prepare(spec(tmp_path, "{folder}/pilotage"))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"start": 0o700, "secret": 0o600, "pilotage": 0o755}
    assert "pls_it" not in (folder / "start").read_text()


def test_words_arrive_as_they_were_written(tmp_path: Path) -> None:
    odd = 'it\'s "$HOME" `id` a\nb'
    command = ("{folder}/pilotage", "--secret={secret_file}", "{work_dir}", odd, "")
    folder = WorkerFolders(tmp_path / "work ers").prepare(spec(tmp_path, *command, EXTRA=odd))
    lines = run(folder)
    text = "\n".join(lines)
    assert lines[0] == f"<--secret={folder}/secret>"
    assert lines[1].startswith(f"<{folder}/pilotage-")
    assert f"<{odd}>\n<>" in text
    assert f"EXTRA={odd}" in text
    assert f"{MARK_VARIABLE}={'m' * 16}" in lines


def test_the_folder_may_be_elsewhere_than_where_it_is_started(tmp_path: Path) -> None:
    folder = WorkerFolders(tmp_path / "workers").prepare(spec(tmp_path, "{folder}/pilotage", "{secret_file}"))
    assert run(folder, **{FOLDER_VARIABLE: str(folder)})[0] == f"<{folder}/secret>"


def test_preparing_again_changes_nothing(tmp_path: Path) -> None:
    folders = WorkerFolders(tmp_path / "workers")
    first = {path.name: path.read_bytes() for path in folders.prepare(spec(tmp_path, "x")).iterdir()}
    again = {path.name: path.read_bytes() for path in folders.prepare(spec(tmp_path, "x")).iterdir()}
    assert first == again
    folders.remove(["m" * 16, "never there"])
    assert list(folders.root.iterdir()) == []


@pytest.mark.parametrize("nodes", [1, 2])
def test_pilots_of_one_worker_know_their_nodes(tmp_path: Path, nodes: int) -> None:
    """All pilots of a worker of several nodes registered as that of node 0, and all but one were refused."""
    one = replace(spec(tmp_path, "{folder}/pilotage"), nodes=nodes)
    folder = WorkerFolders(tmp_path / "workers").prepare(one)
    told = "PILOTAGE_PILOT_NODE=3"
    assert (told in run(folder, SLURM_NODEID="3", PMI_RANK="0")) is (nodes > 1)
    assert (told in run(folder, PMI_RANK="3")) is (nodes > 1)
    assert ("PILOTAGE_PILOT_NODE=0" in run(folder)) is (nodes > 1)
