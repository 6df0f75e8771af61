"""A pilot of PanDA, as far as its server sees one: the wire of pilot3 3.11, and what it does with files, in plain Python.

Bodies are gzipped JSON without a header that says so; after a failure the same goes as a form. A reply that begins with
``{`` is JSON, any other a query string. Outputs are put at ``<endpoint><path>/<scope>/<md5>/<md5>/<lfn>``.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional
from urllib.parse import parse_qsl, urlencode

Send = Callable[[str, str, bytes, Mapping[str, str]], tuple[int, bytes]]
"""Method, path, body, headers: status and body of the answer."""

NO_JOB = 20
"""StatusCode of ``getJob`` when there is nothing to run."""
ALIGNED_IN = ("inFiles", "realDatasetsIn", "GUID", "fsize", "checksum", "scopeIn", "ddmEndPointIn", "prodDBlockToken")
ALIGNED_OUT = ("outFiles", "realDatasets", "ddmEndPointOut", "destinationDblock", "destinationDBlockToken")


def listed(job: Mapping[str, str], name: str) -> list[str]:
    """A list of a job."""
    value = job.get(name, "")
    return [] if value in ("", "NULL") else value.split(",")


def hashed(scope: str, lfn: str) -> str:
    """Where a file lies below an endpoint's path."""
    digest = hashlib.md5(f"{scope}:{lfn}".encode(), usedforsecurity=False).hexdigest()
    return f"{scope}/{digest[:2]}/{digest[2:4]}/{lfn}"


def adler32(content: bytes) -> str:
    return f"{zlib.adler32(content):08x}"


@dataclass
class PandaPilot:
    """One pilot of a site's queue, with the identity that all of them there share."""

    send: Send
    token: str
    queue: str = "PANDA_Q"
    pilot_id: str = "https://batch.example.org/grid.1.0.out|Unknown|1.0|PR|Y|3.11.1.1"
    vo: str = "atlas"
    node: str = "slot1@node7.example.org"
    fallback: bool = False
    """Whether it sends forms, as after a failure."""
    transcript: list[str] = field(default_factory=list)

    def post(self, verb: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """One verb; the answer."""
        if self.fallback:
            body = urlencode({name: value for name, value in data.items() if value is not None}).encode()
            kind = "application/x-www-form-urlencoded"
        else:
            body, kind = gzip.compress(json.dumps(data).encode()), "application/json"
        headers = {"Content-Type": kind, "Authorization": f"Bearer {self.token}", "Origin": self.vo}
        status, answer = self.send("POST", f"/server/panda/{verb}", body, headers)
        assert status == 200, (status, answer)
        text = answer.decode()
        found: dict[str, Any] = json.loads(text) if text.startswith("{") else dict(parse_qsl(text))
        self.transcript.append(f"> {verb} {json.dumps(data, sort_keys=True)}\n< {json.dumps(found, sort_keys=True)}")
        return found

    def get_job(self, **more: Any) -> dict[str, Any]:
        """``getJob`` as the pilot sends it; ``cpu`` is in MHz, and memory is the node's."""
        data = {
            "siteName": self.queue,
            "computingElement": self.queue,
            "prodSourceLabel": "managed",
            "diskSpace": 20_000,
            "workingGroup": "",
            "cpu": 2400.0,
            "mem": 16_000.0,
            "node": self.node,
            "allowOtherCountry": "False",
            "jobType": "managed",
            "resourceType": "SCORE",
        }
        return self.post("getJob", {**data, **more})

    def job(self, **more: Any) -> dict[str, str]:
        """A job, which must be there; its lists are looked at."""
        found = self.job_if_any(**more)
        assert found is not None, self.transcript[-1]
        return found

    def job_if_any(self, **more: Any) -> Optional[dict[str, str]]:
        """A job, or None where the server has none; its lists are looked at."""
        found = self.get_job(**more)
        code = found.pop("StatusCode")
        if code == NO_JOB:
            return None
        assert code == 0, found
        assert all(isinstance(value, str) for value in found.values()), found
        check_lists(found)
        return found

    def update(self, job: Mapping[str, str], state: str, **more: Any) -> dict[str, Any]:
        """``updateJob``."""
        data = {
            "jobId": job["PandaID"],
            "state": state,
            "attemptNr": job["attemptNr"],
            "node": self.node,
            "siteName": self.queue,
            "pilotID": self.pilot_id,
            "batchID": "1.0",
            "schedulerID": "harvester",
            "timestamp": "2026-11-22T03:02:07+00:00",
            "coreCount": 1,
        }
        return self.post("updateJob", {**data, **more})

    def finish(self, job: Mapping[str, str], files: Optional[Mapping[str, Any]] = None, **more: Any) -> dict[str, Any]:
        """The final report of a job that went well, with the files that it left."""
        told = delivered(job) if files is None else files
        return self.update(job, "finished", xml=json.dumps(told), **{"transExitCode": 0, **FIGURES, **more})

    def fail(self, job: Mapping[str, str], code: int, **more: Any) -> dict[str, Any]:
        return self.update(job, "failed", pilotErrorCode=code, pilotErrorDiag="as the test wants it", **more)


FIGURES = {
    "startTime": 1000.0,
    "endTime": 1060.5,
    "cpuConsumptionTime": 55,
    "cpuConsumptionUnit": "s",
    "maxRSS": 2048,
    "maxPSS": "1024",
    "totRBYTES": 10,
    "totWBYTES": 20,
    "pilotTiming": "1|2|60|3|4",
    "jobMetrics": "nEvents=100 coreCount=1 workDirSize=1048576",
}


def check_lists(job: Mapping[str, str]) -> None:
    """Lists that belong together are of one length."""
    for names in (ALIGNED_IN, ALIGNED_OUT):
        lengths = {len(job[name].split(",")) for name in names}
        assert len(lengths) == 1, {name: job[name] for name in names}
    outs = job["outFiles"].split(",")
    assert outs[-1] == job["logFile"]
    assert len(listed(job, "scopeOut")) == len(outs) - 1


def delivered(job: Mapping[str, str], *without: str) -> dict[str, dict[str, Any]]:
    """What the pilot would say of all outputs, made up, but for some."""
    scopes = [*listed(job, "scopeOut"), job["scopeLog"]]
    places = listed(job, "ddmEndPointOut")
    return {
        lfn: {
            "guid": f"guid-{lfn}",
            "fsize": 7,
            "adler32": "0A1B2C3D",
            "surl": f"file:///{place}/{hashed(scope, lfn)}",
            "endpoint": place,
        }
        for lfn, scope, place in zip(listed(job, "outFiles"), scopes, places)
        if lfn not in without
    }


@dataclass
class Node:
    """Where a pilot works: it knows the storages' endpoints, copies files as ``mv`` does, and runs programs."""

    pilot: PandaPilot
    folder: Path
    fetch: Callable[[str], bytes]
    storages: Mapping[str, Any]

    def place(self, storage: str, activity: str, scope: str, lfn: str) -> tuple[str, Path]:
        """The URL and the path of a file on a storage."""
        protocol = self.storages[storage]["arprotocols"][activity][0]
        url = f"{protocol['endpoint']}{protocol['path']}{hashed(scope, lfn)}"
        assert url.startswith("file://")
        return url, Path(url.removeprefix("file://"))

    def run(self, job: Mapping[str, str]) -> tuple[int, dict[str, Any], Path]:
        """Stage in, run, stage out; the exit code and what was uploaded."""
        work = self.folder / f"PanDA_Pilot-{job['PandaID']}"
        work.mkdir(parents=True)
        self.pilot.update(job, "starting")
        for lfn, scope, place, told in zip(
            *(listed(job, n) for n in ("inFiles", "scopeIn", "ddmEndPointIn", "checksum"))
        ):
            shutil.copy(self.place(place, "read_lan", scope, lfn)[1], work / lfn)
            assert told in ("NULL", f"ad:{adler32((work / lfn).read_bytes())}")
        name = job["transformation"].rpartition("/")[2]
        (work / name).write_bytes(self.fetch(job["transformation"]))
        (work / name).chmod(0o755)
        self.pilot.update(job, "running")
        command = f"./{name} {job['jobPars']} > payload.stdout 2> payload.stderr"
        environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        code = subprocess.run(["/bin/sh", "-c", command], cwd=work, env=environment, check=False, timeout=60).returncode
        self.pilot.update(job, "holding")
        return code, self.upload(job, work, code == 0), work

    def upload(self, job: Mapping[str, str], work: Path, all_: bool) -> dict[str, Any]:
        """Put the outputs, if they are wanted, and the log where they belong."""
        log = work / job["logFile"]
        subprocess.run(["tar", "-czf", str(log), "payload.stdout", "payload.stderr"], cwd=work, check=True)
        scopes = [*listed(job, "scopeOut"), job["scopeLog"]]
        uploaded = {}
        for lfn, scope, place in zip(listed(job, "outFiles"), scopes, listed(job, "ddmEndPointOut")):
            if (all_ or lfn == job["logFile"]) and (work / lfn).is_file():
                url, path = self.place(place, "write_lan", scope, lfn)
                path.parent.mkdir(parents=True, exist_ok=True)
                assert not path.exists(), "something lies there already"
                content = (work / lfn).read_bytes()
                path.write_bytes(content)
                uploaded[lfn] = {
                    "guid": "6E1F7C0C",
                    "fsize": len(content),
                    "adler32": adler32(content),
                    "surl": url,
                    "endpoint": place,
                }
        return uploaded


def words_of(job: Mapping[str, str]) -> list[str]:
    """The arguments of a job's program."""
    return shlex.split(job["jobPars"])
