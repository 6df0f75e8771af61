"""A Harvester of PanDA, as far as its server sees one (0.7): GET with a query, or POST with gzipped JSON."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from tests.panda_pilot import NO_JOB, Send, delivered

TIME = "datetime/2026-11-22 03:02:07.000001"


@dataclass
class PandaHarvester:
    """One Harvester; its token's subject is its id."""

    send: Send
    token: str
    harvester_id: str = "cern-cloud"
    compress: bool = True
    vo: str = "atlas"
    transcript: list[str] = field(default_factory=list)

    def call(self, path: str, data: Any = None, method: str = "POST", **query: Any) -> dict[str, Any]:
        """One verb; the answer, which is always 200."""
        headers = {"Authorization": f"Bearer {self.token}", "Origin": self.vo, "Accept": "application/json"}
        body, address = b"", f"/api/v1/{path}"
        if method == "GET":
            address += f"?{urlencode({'harvester_id': self.harvester_id, **query}, doseq=True)}"
        else:
            text = json.dumps({"harvester_id": self.harvester_id, **(data or {}), **query}).encode()
            body = gzip.compress(text) if self.compress else text
            headers["Content-Type"] = "application/json"
            if self.compress:
                headers["Content-Encoding"] = "gzip"
        status, answer = self.send(method, address, body, headers)
        assert status == 200, (status, answer)
        found: dict[str, Any] = json.loads(answer)
        assert set(found) == {"success", "message", "data"}, found
        told = json.dumps({**(data or {}), **query}, sort_keys=True)
        self.transcript.append(f"> {method} {path} {told}\n< {json.dumps(found, sort_keys=True)}")
        return found

    def well(self, path: str, data: Any = None, method: str = "POST", **query: Any) -> Any:
        """The data of an answer, which must have gone well."""
        found = self.call(path, data, method, **query)
        assert found["success"] is True, found
        return found["data"]

    def jobs(self, n: int = 1, **more: Any) -> list[dict[str, Any]]:
        """Jobs for a worker, which must be there."""
        found = self.jobs_if_any(n, **more)
        assert found, self.transcript[-1]
        return found

    def jobs_if_any(self, n: int = 1, **more: Any) -> list[dict[str, Any]]:
        """Jobs for a worker, none where the server has none."""
        data = {
            "site_name": "PANDA_Q",
            "prod_source_label": "managed",
            "n_jobs": n,
            "node": "harvester.example.org",
            "computing_element": "ce",
            "scheduler_id": f"harvester-{self.harvester_id}",
            "memory": 16_000,
            "disk_space": 20_000,
            "resource_type": "SCORE",
            "remaining_time": 86_400,
            **more,
        }
        found = self.well("pilot/acquire_jobs", data)
        assert found["StatusCode"] in (0, NO_JOB)
        return list(found["jobs"])

    def worker(self, number: int, status: str = "submitted", **more: Any) -> dict[str, Any]:
        """A worker as it is told of."""
        return {
            "workerID": number,
            "batchID": f"{number}.0#schedd",
            "queueName": "grid",
            "status": status,
            "computingSite": "PANDA_Q",
            "nCore": 1,
            "submitTime": TIME,
            "startTime": None,
            "endTime": None,
            "jobType": "managed",
            "resourceType": "SCORE",
            "pandaid_list": [],
            "stdOut": f"https://logs.example.org/{number}.out",
            "stdErr": f"https://logs.example.org/{number}.err",
            "batchLog": f"https://logs.example.org/{number}.log",
            **more,
        }

    def report(self, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
        """Reports of jobs in bulk."""
        return list(self.well("pilot/update_jobs_bulk", {"job_list": list(jobs)}))


def said(job: dict[str, Any], status: str, **more: Any) -> dict[str, Any]:
    """A report of a job; one that has finished names the files that it left."""
    found = {
        "job_id": job["PandaID"],
        "job_status": status,
        "job_sub_status": "",
        "attempt_nr": 0,
        "site_name": "PANDA_Q",
        "scheduler_id": "harvester",
        "pilot_id": "pilot",
        "batch_id": "1.0",
        "core_count": 1,
    }
    if status == "finished":
        found["job_output_report"] = json.dumps(delivered({name: str(value) for name, value in job.items()}))
    return {**found, **more}
