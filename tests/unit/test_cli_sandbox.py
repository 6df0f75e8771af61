"""Packing sandboxes, jobscripts from git, and the commands around them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import responses
from click.testing import CliRunner, Result

from common.cli import Frame, commands
from common.cli.jobscript import fetch_jobscript, parse_reference
from common.cli.pack import pack
from common.cli.sandbox import log, sandbox, secret
from common.cli.strict import InputError
from common.cli.submit import submit
from common.states import TaskState
from common.wire import AssignedSandbox, SandboxView, TaskRefusal, TaskView, WorkflowCommandReply, WorkflowView, encode
from pilot.sandbox import unpack

URL = "http://server.test"
TASK = TaskView(12, 7, "fit", TaskState.RUNNING, units={"ready": 3})
WORKFLOW = WorkflowView(id=7, name="w", owner="alice", scope="alice", tasks=[TASK])


@pytest.fixture
def server() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def call(command: click.Command, *arguments: str, **more: Any) -> Result:
        words = [*arguments, "--server", URL]
        return CliRunner().invoke(command, words, obj=Frame(None, False), **more)

    return call


def body(server: responses.RequestsMock, index: int = -1) -> Any:
    return json.loads(server.calls[index].request.body or b"")


# ---------------------------------------------------------------- packing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "analysis"
    (made / "lib").mkdir(parents=True)
    (made / "run.sh").write_text("#!/bin/sh\n")
    (made / "run.sh").chmod(0o755)
    (made / "lib" / "cuts.py").write_text("cut = 1\n")
    (made / "lib" / "link").symlink_to("../run.sh")
    (made / ".git").mkdir()
    (made / ".git" / "config").write_text("private")
    return made


def test_the_same_folder_always_makes_the_same_bytes(folder: Path) -> None:
    first = pack(folder)
    os.utime(folder / "run.sh", (1, 1))
    (folder / "lib" / "cuts.py").chmod(0o600)
    assert pack(folder) == first
    (folder / "lib" / "cuts.py").write_text("cut = 2\n")
    assert pack(folder) != first


def test_what_is_packed_is_what_a_worker_node_unpacks(folder: Path, tmp_path: Path) -> None:
    content = pack(folder)
    into = tmp_path / "work"
    into.mkdir()
    unpack(content, AssignedSandbox(hashlib.sha256(content).hexdigest(), len(content)), into)
    assert sorted(path.relative_to(into).as_posix() for path in into.rglob("*")) == [
        "lib", "lib/cuts.py", "lib/link", "run.sh",
    ]  # fmt: skip
    assert os.access(into / "run.sh", os.X_OK) and not os.access(into / "lib" / "cuts.py", os.X_OK)
    assert (into / "lib" / "link").read_text() == "#!/bin/sh\n"
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        assert {(member.uid, member.mtime, member.uname) for member in archive} == {(0, 0, "")}


@pytest.mark.parametrize("target", ["/etc/passwd", "../../etc", "x/../../.."])
def test_a_link_out_of_the_folder_is_named(folder: Path, target: str) -> None:
    (folder / "bad").symlink_to(target)
    with pytest.raises(InputError, match="leads out of the folder") as error:
        pack(folder)
    assert error.value.where.endswith("bad")


def test_a_pipe_is_no_part_of_a_sandbox(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        pack(folder)


def test_upload_prints_what_a_stage_names(server: responses.RequestsMock, run: Any, folder: Path) -> None:
    view = SandboxView("ab" * 32, 10, 1.0, 1.0)
    server.add("POST", f"{URL}/v1/sandboxes", encode(view), status=201)
    result = run(sandbox, "upload", str(folder))
    assert (result.exit_code, result.output.strip()) == (0, "ab" * 32), result.output
    assert server.calls[0].request.body == pack(folder)


def test_submit_with_a_folder(server: responses.RequestsMock, run: Any, folder: Path, tmp_path: Path) -> None:
    server.add("POST", f"{URL}/v1/sandboxes", encode(SandboxView("ab" * 32, 10, 1.0, 1.0)), status=201)
    server.add("POST", f"{URL}/v1/workflows", encode(WORKFLOW), status=201)
    file = tmp_path / "w.toml"
    own = f'[[stage]]\nname = "b"\ncommand = ["x"]\ninput.single = true\nsandbox = "{"cd" * 32}"\n'
    file.write_text('name = "w"\n[[stage]]\nname = "a"\ncommand = ["x"]\ninput.single = true\n' + own)
    result = run(submit, str(file), "--sandbox", str(folder))
    assert result.exit_code == 0, result.output
    assert [stage["sandbox"] for stage in body(server)["stages"]] == ["ab" * 32, "cd" * 32]


# ---------------------------------------------------------------- git


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    made = tmp_path / "repository"
    made.mkdir()
    for words in (
        ["init", "--quiet", "-b", "main"],
        ["config", "user.email", "a@example.org"],
        ["config", "user.name", "a"],
    ):
        subprocess.run(["git", "-C", str(made), *words], check=True)
    return made


def commit(repository: Path, text: str, tag: str = "") -> str:
    (repository / "jobs").mkdir(exist_ok=True)
    (repository / "jobs" / "run.sh").write_text(text)
    git = ["git", "-C", str(repository)]
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "x"], check=True)
    if tag:
        subprocess.run([*git, "tag", "-a", "-m", "x", tag], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def test_a_jobscript_comes_with_the_commit_that_it_is_from(repository: Path) -> None:
    first = commit(repository, "#!/bin/sh\necho 1\n", "v1")
    second = commit(repository, "#!/bin/sh\necho 2\n")
    url = repository.as_uri()
    tagged = fetch_jobscript(f"{url}#jobs/run.sh@v1")
    assert (tagged.text, tagged.source.commit) == ("#!/bin/sh\necho 1\n", first)  # the commit, not the tag's own id
    assert (tagged.source.url, tagged.source.path, tagged.source.ref) == (url, "jobs/run.sh", "v1")
    assert fetch_jobscript(f"{url}#jobs/run.sh").source.commit == second
    for wrong in (f"{url}#jobs/none.sh", f"{url}#jobs/run.sh@nowhere", f"{url}-none#jobs/run.sh"):
        with pytest.raises(InputError, match="jobscript_git: git "):
            fetch_jobscript(wrong)


@pytest.mark.parametrize(
    "reference",
    ["https://h/r", "#run.sh", "https://h/r#", "--upload-pack=x#a", "https://h/r#../a", "https://h/r#-a", "h#a@--x"],
)
def test_what_is_no_reference(reference: str) -> None:
    with pytest.raises(InputError, match="jobscript_git"):
        parse_reference(reference)


def test_git_runs_no_command_that_a_workflow_file_names(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(InputError, match="not allowed"):
        fetch_jobscript(f"ext::touch {mark}#x")
    assert not mark.exists()


def test_a_workflow_file_may_name_git(
    server: responses.RequestsMock, run: Any, repository: Path, tmp_path: Path
) -> None:
    first = commit(repository, "#!/bin/sh\n", "v1")
    server.add("POST", f"{URL}/v1/workflows", encode(WORKFLOW), status=201)
    file = tmp_path / "w.toml"
    reference = f"{repository.as_uri()}#jobs/run.sh@v1"
    named = f'[[stage]]\nname = "a"\njobscript_git = "{reference}"\ninput.single = true\n'
    file.write_text('name = "w"\n' + named + '[[stage]]\nname = "b"\ninput.single = true\n')
    result = run(submit, str(file), "--jobscript-git", reference)
    assert result.exit_code == 0, result.output
    for stage in body(server)["stages"]:
        assert stage["jobscript"] == "#!/bin/sh\n"
        assert stage["jobscript_git"]["commit"] == first
    result = run(submit, str(file))
    assert result.exit_code == 2 and "stage[1]: the payload is missing" in result.output


# ---------------------------------------------------------------- commands, secrets, logs


def test_a_hard_finish_of_a_workflow(server: responses.RequestsMock, run: Any) -> None:
    refusal = TaskRefusal(11, "make", TaskState.DONE, "task 11 is done")
    reply = WorkflowCommandReply(WORKFLOW, [refusal])
    server.add("POST", f"{URL}/v1/workflows/7:command", encode(reply))
    result = run(commands.finish, "--workflow", "7", "--hard")
    assert result.exit_code == 0 and "not told: task 11 is done" in result.output
    assert body(server) == {"command": "finish", "hard": True}
    for arguments in ((), ("1", "--workflow", "7")):
        assert run(commands.finish, *arguments).exit_code == 2


def test_a_change_names_only_what_changes(server: responses.RequestsMock, run: Any) -> None:
    server.add("PATCH", f"{URL}/v1/tasks/12", encode(TASK))
    assert run(commands.change, "12", "--priority", "5", "--any-site").exit_code == 0
    assert body(server) == {"priority": 5, "sites": []}
    assert run(commands.change, "12", "--site", "a", "--any-site").exit_code == 2


def test_a_clone_with_changes(server: responses.RequestsMock, run: Any) -> None:
    server.add("POST", f"{URL}/v1/workflows/7:clone", encode(WORKFLOW), status=201)
    settings = ("fit.requirements.memory_mb=4000", "fit.image=null", "*.environment.A=x=y")
    result = run(commands.clone, "7", *[word for each in settings for word in ("--set", each)], "--label", "run=2")
    assert result.exit_code == 0, result.output
    sent = body(server)
    assert sent.pop("request_id")
    assert sent == {
        "overrides": {
            "fit": {"requirements": {"memory_mb": 4000}, "image": None},
            "*": {"environment": {"A": "x=y"}},
        },
        "labels": {"run": "2"},
    }
    for wrong in ("fit", "fit=1", "fit.=1", "=1"):
        assert run(commands.clone, "7", "--set", wrong).exit_code == 2


def test_a_secret_is_read_from_standard_input_only(server: responses.RequestsMock, run: Any) -> None:
    server.add("PUT", f"{URL}/v1/secrets/token", b'{"name":"token","changed":1.0}')
    result = run(secret, "set", "token", input="xyzzy")
    assert result.exit_code == 0 and "xyzzy" not in result.output
    assert body(server) == {"value": "xyzzy"}


def test_a_log_is_written_to_a_file(server: responses.RequestsMock, run: Any, tmp_path: Path) -> None:
    server.add("GET", f"{URL}/v1/jobs/5/log", b"\x1f\x8bbytes")
    result = run(log, "5")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "job-5.log.tgz").read_bytes() == b"\x1f\x8bbytes"
