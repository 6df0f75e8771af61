"""PanDA's own client, ``prun`` and ``pbook`` of panda-client, against a running system: its tasks run as ours do."""

from __future__ import annotations

import json
import re
import shlex
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.system import System
from tests.services.panda_client import PandaClient
from tests.transcripts import keep

NAME = "ann"


PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "migrate-from-panda.md"


class Session:
    """A person's commands, one after another, and what they said."""

    def __init__(self, client: PandaClient, system: System) -> None:
        self.client = client
        self.system = system
        self.transcript = ""

    def __call__(self, *words: str, code: int = 0, cwd: Path | None = None) -> str:
        done = self.client.run(*words, cwd=cwd)
        self.transcript += f"$ {' '.join(words)}\n{done.stdout}\n"
        assert done.returncode == code, self.transcript
        return done.stdout

    def prun(self, folder: Path, *words: str) -> int:
        """The number of the task that this submits."""
        said = self("prun", *words, cwd=folder)
        found = re.search(r"jediTaskID=(\d+)", said)
        assert found, said
        return int(found[1])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    face = {"compat.panda_client.on": True, "compat.panda_client.catalog": "lists"}
    folder = tmp_path_factory.mktemp("panda-client")
    lists = folder / "lists"
    lists.mkdir()
    face |= {"catalogs.lists.plugin": "file-list", "catalogs.lists.folder": str(lists)}
    with System(folder, configuration={"server": face}) as system:
        system.storage("disk")
        yield system


@pytest.fixture(scope="module")
def token(running: System) -> str:
    minted = running.cli("server", "token", "--role", "user", "--subject", NAME, "--ttl", "1d")
    assert minted.returncode == 0, minted.stderr
    return minted.stdout.strip()


@pytest.fixture
def session(
    running: System, token: str, panda_client_venv: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Session]:
    made = Session(PandaClient(panda_client_venv, tmp_path, running.url, token), running)
    yield made
    keep(f"panda-client-{request.node.name}", made.transcript)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A person's folder with a script."""
    folder = tmp_path / "work"
    folder.mkdir()
    script = folder / "run.sh"
    script.write_text(
        '#!/bin/sh\ncat words.txt >>out.txt\necho "seed $1" >>out.txt\necho "{\\"seed\\": $1}" >userJobMetadata.json\n'
    )
    script.chmod(0o755)
    (folder / "words.txt").write_text("from the sandbox\n")
    return folder


def text_of(system: System, task_id: int) -> list[str]:
    return sorted(Path(each.url.removeprefix("file://")).read_text() for each in system.outputs(task_id))


def names_of(system: System, task_id: int) -> list[str]:
    """The outputs' own names, without the numbers of task and job that come before them."""
    return sorted(each.did.partition(":")[2].split(".", 2)[2] for each in system.outputs(task_id))


def test_a_task_of_prun_is_submitted_with_its_sandbox_runs_and_is_seen(session: Session, work: Path) -> None:
    system = session.system
    words = ("--exec", "./run.sh %RNDM:10", "--outputs", "out.txt", "--nJobs", "3", "--noBuild", "--vo", "test")
    task_id = session.prun(work, "--outDS", f"user.{NAME}.first", *words)
    system.wait_task(task_id, "done")
    assert names_of(system, task_id) == [f"user.{NAME}.{task_id}._{number:06d}.out.txt" for number in (1, 2, 3)]
    assert text_of(system, task_id) == [f"from the sandbox\nseed {seed}\n" for seed in (10, 11, 12)]
    shown = session("pbook", "show", str(task_id))
    assert re.search(rf"{task_id}\s+{task_id}\s+done\s+100%\s+user\.{NAME}\.first/", shown)
    assert re.search(rf"{task_id}\s+done\s.*3\|0\|3", session("pbook", "showl", "fin"))
    assert "No secrets" not in shown
    again = session("prun", "--outDS", f"user.{NAME}.first", *words, code=90, cwd=work)
    assert f"jediTaskID={task_id} of the same name" in again

    told = json.loads(session.client.python(LOOK.format(task_id=task_id)).splitlines()[-1])
    assert told["status"] == "done"
    assert told["parameters"]["taskName"] == f"user.{NAME}.first/"
    assert len(told["ids"]) == 3
    assert [job["jobStatus"] for job in told["jobs"]] == ["finished"] * 3
    assert sorted(each["metaData"]["seed"] for each in told["metadata"]) == [10, 11, 12]
    assert told["details"]["nFilesFinished"] == 3
    assert told["files"] == [["pseudo_input", 3]]
    assert told["hello"] == "alive"


LOOK = """
import json
from pandaclient import Client
def ok(answer):
    assert answer[0] == 0, answer
    return answer[1]
ids = ok(Client.getPandaIDsWithTaskID({task_id}))
details = ok(Client.getJediTaskDetails({{"jediTaskID": {task_id}}}, True, True))
json.dump({{
    "status": ok(Client.getTaskStatus({task_id})),
    "parameters": ok(Client.getTaskParamsMap({task_id})),
    "ids": ids,
    "jobs": [{{"jobStatus": job.jobStatus}} for job in ok(Client.getFullJobStatus(ids))],
    "metadata": ok(Client.getUserJobMetadata({task_id})),
    "details": {{"nFilesFinished": details["nFilesFinished"]}},
    "files": [[each["dataset"]["type"], len(each["files"])] for each in ok(Client.get_files_in_datasets({task_id}))],
    "hello": ok(Client.hello()),
}}, __import__("sys").stdout)
"""


def test_a_task_that_is_built_reads_a_dataset_of_another_and_has_secrets(session: Session, work: Path) -> None:
    system = session.system
    common = ("--nJobs", "2", "--noBuild", "--vo", "test")
    words = ("--exec", "echo $(cat words.txt) > x.txt", "--outputs", "x.txt", *common)
    first = session.prun(work, "--outDS", f"user.{NAME}.source", *words)
    session("pbook", "set_secret", "colour", 'da"rk\\red')
    assert "colour" in session("pbook", "list_secrets", "--full")
    system.wait_task(first, "done")
    built = ("--bexec", "cp words.txt built.txt")
    read = ("--inDS", f"user.{NAME}.source_x.txt", "--nFilesPerJob", "2", "--writeInputToTxt", "IN:in.txt")
    script = "cat built.txt $(cat in.txt) > a.dat; echo %IN > b.dat; cp panda_secrets.json c.txt"
    wanted = ("--outputs", "*.dat,c.txt", "--useSecrets", "--vo", "test")
    second = session.prun(work, "--outDS", f"user.{NAME}.second", *built, *read, *wanted, "--exec", script)
    system.wait_task(second, "done")
    assert names_of(system, second) == [f"user.{NAME}.{second}._000001.{name}" for name in ("XYZ.dat.tgz", "c.txt")]
    files = {Path(each.url.removeprefix("file://")) for each in system.outputs(second)}
    archive = next(path for path in files if path.name.endswith(".tgz"))
    with tarfile.open(archive) as opened:
        found = {member: opened.extractfile(member) for member in opened.getnames()}
        read_back = {name: stream.read().decode() for name, stream in found.items() if stream is not None}
    sources = sorted(each.did.partition(":")[2] for each in system.outputs(first))
    assert read_back["a.dat"] == "from the sandbox\n" * 3
    assert sorted(read_back["b.dat"].strip().split(",")) == sources
    secret = next(path for path in files if path.name.endswith("c.txt"))
    assert json.loads(secret.read_text()) == {"colour": 'da"rk\\red'}
    assert "forgotten" in session("pbook", "delete_all_secrets")


def test_tasks_are_killed_finished_and_retried(session: Session, work: Path, gate: Path) -> None:
    system = session.system
    waits = f"until [ -e {gate} ]; do sleep 0.1; done; echo $PILOTAGE_JOB_ID > x.txt"
    common = ("--outputs", "x.txt", "--noBuild", "--vo", "test")
    killed = session.prun(work, "--outDS", f"user.{NAME}.killed", "--nJobs", "1", "--exec", waits, *common)
    system.wait_jobs(killed, "running")
    assert "ERROR" not in session("pbook", "kill", str(killed))
    system.wait_task(killed, "aborted")

    fails = f"test -e {gate}.mended && echo yes > x.txt"
    failed = session.prun(
        work, "--outDS", f"user.{NAME}.failed", "--nJobs", "1", "--maxAttempt", "1", "--exec", fails, *common
    )
    system.wait_task(failed, "failed")  # before the next one takes all slots and waits in them
    finished = session.prun(work, "--outDS", f"user.{NAME}.finished", "--nJobs", "9", "--exec", waits, *common)
    Path(f"{gate}.mended").touch()
    system.wait_jobs(finished, "running")
    assert "ERROR" not in session("pbook", "finish", str(finished), "--soft")
    assert "ERROR" not in session("pbook", "retry", str(failed), "--excludedSite", "")
    gate.touch()
    system.wait_task(finished, "finished")
    system.wait_task(failed, "done")
    shown = session("pbook", "show")
    for task_id, word in ((killed, "aborted"), (finished, "finished"), (failed, "done")):
        assert re.search(rf"\s{task_id}\s+{word}\s", shown)
    refused = session("pbook", "retry", str(killed))
    assert f"task {killed} is aborted" in refused


def test_the_commands_of_the_page_do_what_it_says(session: Session, work: Path) -> None:
    """The tasks that the page calls 12 and 13 have other numbers here."""
    page = PAGE.read_text(encoding="utf-8")
    exported = set(re.findall(r"^export ([A-Z_]+)=", page, re.MULTILINE))
    assert exported <= set(session.client.environment)
    lines = re.findall(r"^\$ ((?:prun|pbook) .*)$", page, re.MULTILINE)
    assert len(lines) > 5
    numbers: dict[str, str] = {}
    for line in lines:
        words = [numbers.get(word, word) for word in shlex.split(line)]
        if words[0] == "pbook":
            assert "ERROR" not in session(*words)
            continue
        task_id = session.prun(work, *(word.replace("user.ann.", "user.ann.page.") for word in words[1:]))
        numbers["13" if numbers else "12"] = str(task_id)
        if len(numbers) == 1:
            session.system.wait_task(task_id, "done")
            session.system.put_queue(status="paused")  # the next one is not over before it is killed
    session.system.put_queue(status="online")
    session.system.wait_task(int(numbers["13"]), "aborted")
