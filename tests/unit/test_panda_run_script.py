"""The script that runs payloads of PanDA's users, on its own, with the shell that a minimal image has."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from server.compat.panda_client.payload import SCRIPT


class Job:
    """A job's folder as the pilot makes it."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        self.inputs = folder / "inputs.txt"
        for path in (self.work, folder / "tmp"):
            path.mkdir()
        self.inputs.write_text("")
        (folder / "jobscript").write_text(SCRIPT)
        self._script = folder / "jobscript"
        self.environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "TMPDIR": str(folder / "tmp"),
            "PILOTAGE_INPUT_FILES": str(self.inputs),
            "PANDA_RUN_DIR": ".",
            "PANDA_SERIAL": "7._000003",
        }

    def run(self, command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(self._script)],
            cwd=self.work,
            env={**self.environment, "PANDA_EXEC": command, **more},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.work.iterdir() if not path.name.startswith("__"))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_outputs_get_their_names_with_what_the_job_says_of_itself(job: Job) -> None:
    command = 'echo one > a.txt; echo "{\\"events\\": 5}" > userJobMetadata.json'
    done = job.run(command, PANDA_OUTPUTS="a.txt/user.x./.a.txt\nb.txt//.b.txt")
    assert done.returncode == 0, done.stderr
    assert (job.work / "user.x.7._000003.a.txt").read_text() == "one\n"
    assert json.loads((job.work / "user.x.7._000003.a.txt.json").read_text()) == {"events": 5}
    assert not [name for name in job.names if "b.txt" in name]


def test_what_a_wildcard_finds_is_packed(job: Job) -> None:
    done = job.run(
        "echo 1 > h1.root; echo 2 > h2.root", PANDA_OUTPUTS="h*.root/user./.hXYZ.root.tgz\nz*.root/user./.z.tgz"
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(job.work / "user.7._000003.hXYZ.root.tgz") as packed:
        assert sorted(packed.getnames()) == ["h1.root", "h2.root"]
    assert not [name for name in job.names if name.endswith(".z.tgz")]


def test_the_exit_code_of_the_command_is_that_of_the_job(job: Job) -> None:
    done = job.run("echo x > a.txt; exit 7", PANDA_OUTPUTS="a.txt/user./.a.txt")
    assert done.returncode == 7 and "exit code 7" in done.stderr
    assert job.names == ["a.txt"]


def test_it_runs_below_the_top_with_the_inputs_beside_it(job: Job, tmp_path: Path) -> None:
    data = tmp_path / "data file.root"
    data.write_text("data")
    job.inputs.write_text(f"{data}\n")
    done = job.run(
        'cat "data file.root" > out.txt; cat names.txt',
        PANDA_RUN_DIR="a/b",
        PANDA_TXT="IN\tnames.txt",
        PANDA_OUTPUTS="out.txt/u./.txt",
    )
    assert done.returncode == 0, done.stderr
    assert (job.work / "u.7._000003.txt").read_text() == "data" and "data file.root" in done.stdout


def test_secondary_files_of_any_case_are_linked(job: Job, tmp_path: Path) -> None:
    """A stream ``in2`` was looked for under a name that no pilot sets."""
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'jobscript'}\n")
    done = job.run("test -e jobscript", PANDA_STREAMS="in2", PILOTAGE_SECONDARY_IN2=str(tmp_path / "list.txt"))
    assert done.returncode == 0, done.stderr


def test_secrets_are_beside_the_reach_of_the_log(job: Job, tmp_path: Path) -> None:
    value = 'quote " back \\ tab\tline\nend'
    (tmp_path / "secret").write_text(value)
    done = job.run(
        "cat panda_secrets.json > copy", PANDA_SECRETS="my_Key", PILOTAGE_SECRET_MY_KEY=str(tmp_path / "secret")
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((job.work / "copy").read_text()) == {"my_Key": value}
    assert (job.work / "panda_secrets.json").is_symlink()
    assert (tmp_path / "tmp" / "panda_secrets.json").stat().st_mode & 0o077 == 0


def test_a_build_packs_the_whole_folder_and_jobs_unpack_it(job: Job, tmp_path: Path) -> None:
    assert job.run("", PANDA_BUILD="echo built > lib.so", PANDA_RUN_DIR="src").returncode == 0
    assert job.names == ["pilotage-build.tgz", "src"]
    (tmp_path / "second").mkdir()
    second = Job(tmp_path / "second")
    (tmp_path / "list.txt").write_text(f"{job.work / 'pilotage-build.tgz'}\n")
    done = second.run("cat lib.so", PANDA_RUN_DIR="src", PILOTAGE_SECONDARY_BUILD=str(tmp_path / "list.txt"))
    assert done.returncode == 0 and done.stdout.endswith("built\n")


def test_a_build_leaves_out_what_a_pilot_of_panda_has_beside_it(job: Job, tmp_path: Path) -> None:
    """The jobs unpacked it over their own lists of inputs, and read those of the build."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "before.txt").write_text("./.pilotage\n./payload.stdout\n")
    (job.work / ".pilotage").mkdir()
    (job.work / ".pilotage" / "paths.txt").write_text("the build's\n")
    (job.work / "payload.stdout").write_text("the build's\n")
    assert job.run("", PANDA_BUILD="echo built > lib.so", PILOTAGE_PATH=str(tmp_path / "parts")).returncode == 0
    with tarfile.open(job.work / "pilotage-build.tgz") as packed:
        assert sorted(packed.getnames()) == [".", "./__run_build_exec.sh", "./lib.so"]


def test_a_build_that_fails_fails_the_job(job: Job) -> None:
    assert job.run("", PANDA_BUILD="exit 3").returncode == 3
    assert "pilotage-build.tgz" not in job.names
