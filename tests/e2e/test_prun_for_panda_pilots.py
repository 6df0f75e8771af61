"""Tasks of the real ``prun``, run to their ends by pilots of PanDA, and by ours beside them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import requests

from tests.e2e.system import SITE_NAME, System
from tests.panda_pilot import Node, PandaPilot, listed
from tests.services.panda_client import PandaClient
from tests.transcripts import keep

QUEUE = "theirs"
NAME = "ann"


class Both:
    """A server with the faces of PanDA's users and pilots, a person and a pilot; our own pilots wait in another queue."""

    def __init__(self, system: System, client: PandaClient, node: Node) -> None:
        self.system = system
        self.client = client
        self.node = node

    def describe(self, **more: object) -> None:
        """Describe the queue of PanDA's pilots."""
        spec = {"name": QUEUE, "site": SITE_NAME, "cores": 1, "memory_mb": 4000, "disk_mb": 20_000, "trusted": True}
        self.system.put(f"/v1/queues/{QUEUE}", {**spec, **more})

    def prun(self, folder: Path, *words: str) -> int:
        """The number of the task that this submits."""
        done = self.client.run("prun", *words, "--vo", "test", cwd=folder)
        assert done.returncode == 0 and "jediTaskID=" in done.stdout, done.stdout
        return int(done.stdout.rpartition("jediTaskID=")[2].split()[0])

    def job(self) -> Mapping[str, str]:
        """The next job, once there is one."""
        pilot = self.node.pilot
        return self.system.wait(pilot.job_if_any, lambda: pilot.transcript[-1])

    def run(self, job: Mapping[str, str]) -> Path:
        """Run a job to its good end; its folder."""
        code, uploaded, work = self.node.run(job)
        assert code == 0, (work / "payload.stderr").read_text()
        assert set(uploaded) == set(listed(job, "outFiles"))
        assert self.node.pilot.finish(job, uploaded)["StatusCode"] == 0
        return work


@pytest.fixture
def both(tmp_path: Path, panda_client_venv: Path, request: pytest.FixtureRequest) -> Iterator[Both]:
    faces = {"compat.panda_client.on": True, "compat.panda.on": True}
    with System(tmp_path, configuration={"server": faces}, queue={"status": "paused"}) as system:
        system.storage("disk")

        def token(role: str, subject: str) -> str:
            made = system.cli("server", "token", "--role", role, "--subject", subject, "--ttl", "1d")
            assert made.returncode == 0, made.stderr
            return made.stdout.strip()

        def send(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
            answer = requests.request(method, system.url + path, data=body, headers=dict(headers), timeout=30)
            return answer.status_code, answer.content

        def fetch(url: str) -> bytes:
            answer = requests.get(url, timeout=30)
            assert answer.status_code == 200, answer.text
            return answer.content

        pilot = PandaPilot(send, token("foreign_pilot", "pilots"), QUEUE)
        storages = requests.get(f"{system.url}/cache/ddmendpoints.json", timeout=30).json()
        client = PandaClient(panda_client_venv, tmp_path, system.url, token("user", NAME))
        made = Both(system, client, Node(pilot, tmp_path / "node", fetch, storages))
        made.describe()
        yield made
        keep(f"prun-for-panda-pilots-{request.node.name}", "\n".join(pilot.transcript))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A person's folder with a script."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "words.txt").write_text("from the sandbox\n")
    script = folder / "run.sh"
    script.write_text('#!/bin/sh\ncat words.txt > out.txt\necho "seed $1" >> out.txt\ntouch a.dat b.dat\n')
    script.chmod(0o755)
    return folder


def contents(system: System, task_id: int, ending: str) -> list[str]:
    paths = [Path(each.url.removeprefix("file://")) for each in system.outputs(task_id)]
    return sorted(path.read_text() for path in paths if path.name.endswith(ending))


def test_a_task_of_prun_runs_in_pilots_of_panda_and_its_rest_in_ours(both: Both, work: Path) -> None:
    """Its outputs were wildcards, and no pilot of PanDA got its jobs."""
    system = both.system
    task_id = both.prun(
        work, "--outDS", f"user.{NAME}.mixed", "--exec", "./run.sh %RNDM:10", "--outputs", "out.txt,*.dat", "--nJobs", "3",
        "--noBuild",
    )  # fmt: skip
    for number in (1, 2):
        job = both.job()
        own = f"{task_id}.{job['PandaID']}.user.{NAME}.{task_id}._{number:06d}"
        assert listed(job, "outFiles") == [f"{own}.out.txt", f"{own}.XYZ.dat.tgz", job["logFile"]]
        datasets = [f"user.{NAME}.mixed_out.txt", f"user.{NAME}.mixed_XYZ.dat.tgz", "NULL"]
        assert listed(job, "realDatasets") == listed(job, "destinationDblock") == datasets
        archive = both.run(job) / f"{own}.XYZ.dat.tgz"
        with tarfile.open(archive) as packed:
            assert sorted(packed.getnames()) == ["a.dat", "b.dat"]
    both.describe(status="paused")  # else the last job would be counted on for this queue
    system.put_queue(status="online")
    system.wait_task(task_id, "done")
    system.assert_sums(task_id, 3)
    texts = [f"from the sandbox\nseed {seed}\n" for seed in (10, 11, 12)]
    assert contents(system, task_id, ".out.txt") == texts
    names = sorted(each.did.partition(":")[2].split(".", 2)[2] for each in system.outputs(task_id))
    assert names == sorted(
        f"user.{NAME}.{task_id}._{number:06d}.{end}" for number in (1, 2, 3) for end in ("out.txt", "XYZ.dat.tgz")
    )
    said = both.client.run("pbook", "show", str(task_id)).stdout
    assert "done" in said and "100%" in said


def test_a_build_a_dataset_and_a_secondary_one_reach_pilots_of_panda(both: Both, work: Path) -> None:
    system = both.system
    first = both.prun(
        work, "--outDS", f"user.{NAME}.source", "--exec", "./run.sh %RNDM:1", "--outputs", "out.txt", "--nJobs", "2",
        "--noBuild",
    )  # fmt: skip
    for _ in range(2):
        both.run(both.job())
    system.wait_task(first, "done")
    dataset = f"user.{NAME}.source_out.txt"
    second = both.prun(
        work, "--outDS", f"user.{NAME}.second", "--bexec", "cp words.txt built.txt", "--inDS", dataset,
        "--secondaryDSs", f"EXTRA:1:{dataset}", "--nFilesPerJob", "2", "--writeInputToTxt", "IN:in.txt,EXTRA:extra.txt",
        "--exec", "cat built.txt $(cat in.txt) $(cat extra.txt) > sum.txt; echo %IN >> sum.txt", "--outputs", "sum.txt",
    )  # fmt: skip
    built = both.job()
    assert listed(built, "outFiles")[0].endswith("pilotage-build.tgz")
    both.run(built)
    job = both.job()
    sources = sorted(each.did.partition(":")[2] for each in system.outputs(first))
    assert sorted(listed(job, "inFiles")) == sorted([*sources, listed(built, "outFiles")[0]])
    both.run(job)
    system.wait_task(second, "done")
    (text,) = contents(system, second, ".sum.txt")
    lines = text.splitlines()
    assert lines.count("from the sandbox") == 4 and sum(line.startswith("seed ") for line in lines) == 3
    assert sorted(lines[-1].split(",")) == sources
