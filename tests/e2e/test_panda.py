"""PanDA's pilots and Harvester against a real server, over its socket, with real files, set up as the how-to page says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import pytest
import requests

from tests.e2e.conftest import DATABASES
from tests.e2e.system import System
from tests.panda_harvester import PandaHarvester, said
from tests.panda_pilot import Node, PandaPilot, adler32, hashed, listed
from tests.transcripts import keep

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "migrate-from-panda.md"
COUNT = 4
SCRIPT = """#!/bin/sh
while set -- $(pilotage-get-file); [ -n "$1" ]; do
  tr a-z A-Z < "$2" >> out.txt
done
echo "job $PILOTAGE_JOB_ID of $PILOTAGE_TASK_ID on $PILOTAGE_CORES core says $GREETING"
grep -q BAD out.txt && exit 3
exit 0
"""


def shown(kind: str) -> list[str]:
    """The blocks of one kind on the page, by pilots and Harvester."""
    text = PAGE.read_text(encoding="utf-8")
    ours = text[text.index("## Pilots") :]
    return re.findall(rf"```{kind}\n(.*?)```", ours, re.DOTALL)


class Configured(System):
    """A server that is set up with what the page shows, at the address that it has here."""

    def _write_config(self) -> None:
        super()._write_config()
        pilots, harvester = shown("toml")
        text = pilots + harvester[harvester.index("[server.compat.panda_harvester]") :]
        text = text.replace("https://pilotage.example.org:8443", self.url).replace('"site-prod"', '"local"')
        with self._config.open("a", encoding="utf-8") as file:
            file.write(text)

    def token(self, command: str) -> str:
        """Run a command of the page that makes a token."""
        done = self.cli(*command.removeprefix("$ pilotage ").split())
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def send(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        answer = requests.request(method, self.url + path, data=body, headers=dict(headers), timeout=30)
        return answer.status_code, answer.content


def files(folder: Path) -> list[dict[str, Any]]:
    """Input where such a pilot looks for it; one of the files makes the payload fail."""
    found = []
    for number in range(COUNT):
        name, content = f"f{number}.txt", f"{'bad' if number == 2 else 'good'} {number}\n".encode()
        path = folder / hashed("data", name)
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        replica = {"storage": "disk", "path": hashed("data", name)}
        checksum = f"adler32:{adler32(content)}"
        found.append({"did": f"data:{name}", "size": len(content), "checksum": checksum, "replicas": [replica]})
    return found


def fetched(url: str) -> bytes:
    """What a URL of the server's gives to whoever has it, as the pilot's curl does."""
    answer = requests.get(url, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.content


def asked(system: System, pilot: PandaPilot) -> dict[str, str]:
    """The next job. A pilot asks again if there is none: what the server gives is chosen by what was so a second ago."""
    return system.wait(pilot.job_if_any, lambda: pilot.transcript[-1])


@pytest.mark.parametrize("database", DATABASES)
def test_pilots_and_a_harvester_of_panda_work_for_a_real_server(tmp_path: Path, database_url: Optional[str]) -> None:
    with Configured(tmp_path, database_url, harvester=False) as system:
        disk = system.storage("disk")
        for_pilots, for_harvester = (
            line for block in shown("console") for line in block.splitlines() if "server token" in line
        )
        queue = "EXPERIMENT_SITE_PROD"
        one = PandaPilot(system.send, system.token(for_pilots), queue, vo="experiment")
        told = fetched(f"{system.url}/cache/schedconfig/{queue}.all.json")
        assert f'"nickname":"{queue}"'.encode() in told and b'"atlas_site":"here"' in told
        storages = requests.get(f"{system.url}/cache/ddmendpoints.json", timeout=30).json()
        node = Node(one, tmp_path / "node", fetched, storages)
        task = system.task(
            input={"kind": "files", "files": files(disk)}, jobscript=SCRIPT, outputs=[{"pattern": "out.txt"}],
            environment={"GREETING": "it's me"}, scouts=False, max_attempts=1, files_per_job=1,
        )  # fmt: skip
        system.wait_task(task, ["ready", "running"])
        for _ in range(COUNT - 1):
            job = asked(system, one)
            code, uploaded, work = node.run(job)
            if code == 0:
                assert one.finish(job, uploaded)["StatusCode"] == 0
            else:
                assert listed(job, "inFiles") == ["f2.txt"] and code == 3
                assert set(uploaded) == {job["logFile"]}
                answer = one.fail(job, 1305, transExitCode=3, xml=json.dumps(uploaded))
                assert answer["StatusCode"] == 0
            assert b"it's me" in (work / "payload.stdout").read_bytes()

        # Push mode: the Harvester fetches, its pilot, of the same identity, runs and reports.
        harvester = PandaHarvester(system.send, system.token(for_harvester), "cern-cloud", vo="experiment")
        assert harvester.well("harvester/update_workers", {"workers": [harvester.worker(1, computingSite=queue)]}) == [
            True
        ]
        (pushed,) = system.wait(lambda: harvester.jobs_if_any(site_name=queue, worker_id=1), "a job for the worker")
        assert harvester.report(said(pushed, "starting"))[0]["success"] is True
        same = "$ pilotage server token --role foreign_pilot --subject cern-cloud --ttl 1d"
        its_pilot = PandaPilot(system.send, system.token(same), queue, pilot_id="pilot", vo="experiment")
        job = {name: str(value) for name, value in pushed.items()}
        code, uploaded, _ = Node(its_pilot, tmp_path / "pushed", fetched, storages).run(job)
        assert code == 0 and its_pilot.finish(job, uploaded)["StatusCode"] == 0
        assert harvester.well("pilot/get_job_status", {"job_ids": [pushed["PandaID"]]})[0]["status"] == "finished"
        assert one.get_job()["StatusCode"] == 20

        system.wait_task(task, "finished")
        system.assert_sums(task, COUNT)
        outputs = system.outputs(task)
        assert sorted(Path(each.url.removeprefix("file://")).read_text() for each in outputs) == [
            "GOOD 0\n", "GOOD 1\n", "GOOD 3\n",
        ]  # fmt: skip
        assert len(system.outputs(task, "log")) == COUNT
        (failed,) = [each for each in system.jobs(task) if each.state == "failed"]
        assert (failed.error_code, failed.exit_code) == (1305, 3) and failed.log_did is not None
        keep("panda-pilot", "\n".join(one.transcript + its_pilot.transcript))
        keep("panda-harvester", "\n".join(harvester.transcript))
