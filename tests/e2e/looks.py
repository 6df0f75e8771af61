"""What the tests of failures and interruptions look at and submit."""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path
from typing import Any, Optional
from urllib.parse import unquote, urlsplit

from common.wire import JobView, OutputView, UnitView
from tests.e2e.system import System

NOTHING = "#!/bin/sh\n"
LONG_S = 600
QUICK_S = 120.0
"""The deadline of what takes a second or two on a quiet machine."""


def alive(system: System, task_id: int) -> list[JobView]:
    return [job for job in system.jobs(task_id) if job.ended is None]


def adler32(content: bytes) -> str:
    return f"adler32:{zlib.adler32(content):08x}"


def file_input(*files: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "files", "files": list(files)}


def described(name: str, content: bytes, *storages: str) -> dict[str, Any]:
    """A file of a task's input with replicas of its name on ``storages``."""
    replicas = [{"storage": storage, "path": name} for storage in storages]
    return {"did": f"test:{name}", "size": len(content), "checksum": adler32(content), "replicas": replicas}


def keep_and_wait(gate: Path) -> str:
    """A jobscript that says ``started``, waits for the gate, and writes ``out.txt``."""
    return f"#!/bin/sh\necho started\nwhile [ ! -e {gate} ]; do sleep 0.05; done\necho result > out.txt\n"


def only_unit(system: System, task_id: int) -> UnitView:
    (unit,) = system.units(task_id)
    return unit


def only_job(system: System, task_id: int) -> JobView:
    (job,) = system.jobs(task_id)
    return job


def path_of(output: OutputView) -> Path:
    return Path(unquote(urlsplit(output.url).path))


def log_text(system: System, task_id: int, job_id: Optional[int] = None) -> str:
    """All text in the log archives of a task's jobs, as they lie on the storage."""
    text = ""
    for output in system.outputs(task_id, "log"):
        if job_id in (None, output.job_id):
            with tarfile.open(fileobj=io.BytesIO(path_of(output).read_bytes())) as archive:
                for file in filter(None, map(archive.extractfile, archive.getmembers())):
                    text += file.read().decode()
    return text


def bad_replicas(system: System, task_id: int) -> list[tuple[str, str, int]]:
    found = [event for event in system.events(task=task_id) if event.kind == "REPLICA_BAD"]
    return [(event.subject_id, event.detail["storage"], event.detail["error_code"]) for event in found]
