"""The main job on real data: files on a real XRootD server, payload in a real Apptainer image, results back on the server."""

from __future__ import annotations

import io
import json
import tarfile
import uuid
import zlib
from pathlib import Path
from typing import Any, Optional

import pytest

from tests.e2e.conftest import DATABASES
from tests.e2e.system import System
from tests.services.base import require_module
from tests.services.xrootd import XrootdServer

DIMUON = "uproot-Zmumu"
DIMUON_FILES = 5
DIMUON_EVENTS, IN_Z_WINDOW = 2304, 1784
"""Of every dimuon file: its events, and those with 80 < M < 100 GeV."""
NANOAOD_EVENTS = 200

COUNT = """#!/usr/bin/env python3
import json, os
import uproot

for path in open(os.environ["PILOTAGE_INPUT_FILES"]).read().split():
    with uproot.open(path) as file:
        tree = file["events"] if "events" in file else file["Events"]
        counted = {"file": os.path.basename(path), "tree": tree.name, "events": tree.num_entries}
        if "M" in tree.keys():
            masses = tree["M"].array(library="np")
            counted["in_window"] = int(((80 < masses) & (masses < 100)).sum())
    with open("count-" + os.path.basename(path) + ".result", "w") as out:
        json.dump(counted, out)
    print("counted", json.dumps(counted), "in", "container" if "APPTAINER_NAME" in os.environ else "the open")
"""


def adler32(path: Path) -> str:
    return f"adler32:{zlib.adler32(path.read_bytes()):08x}"


def served_input(data: Path, xrootd: XrootdServer, folder: str) -> list[dict[str, Any]]:
    """Put the real files on the server; them as a task's input."""
    files = []
    for path in sorted(data.glob("*.root")):
        xrootd.put(path, f"{folder}/in/{path.name}")
        replica = {"storage": "xrd", "path": f"in/{path.name}"}
        size = path.stat().st_size
        files.append({"did": f"real:{path.name}", "size": size, "checksum": adler32(path), "replicas": [replica]})
    return files


def served_checksum(xrootd: XrootdServer, url: str) -> str:
    """What the server itself says of a file."""
    client = require_module("XRootD.client")
    query = require_module("XRootD.client.flags").QueryCode.CHECKSUM
    path = "/" + url.removeprefix(xrootd.url).lstrip("/")
    status, answer = client.FileSystem(xrootd.url).query(query, path)
    assert status.ok, f"{url}: {status.message}"
    name, value = answer.rstrip(b"\0").decode().split()
    return f"{name}:{value}"


def local(xrootd: XrootdServer, url: str) -> Path:
    return xrootd.local_path("/" + url.removeprefix(xrootd.url).lstrip("/"))


@pytest.mark.parametrize("database", DATABASES)
def test_real_xrootd_real_apptainer_every_dimuon_file_yields_its_z_bosons(
    shared_data: Path, xrootd: XrootdServer, python_image: Path, database_url: Optional[str], tmp_path: Path
) -> None:
    require_module("XRootD.client")
    folder = f"/real-{uuid.uuid4().hex[:8]}"
    files = served_input(shared_data, xrootd, folder)
    with System(tmp_path, database_url) as system:
        system.storage("xrd", f"{xrootd.url}{folder}")
        task = system.task(
            input={"kind": "files", "files": files},
            jobscript=COUNT,
            image=str(python_image),
            outputs=[{"pattern": "count-*.result", "storage": "xrd"}],
            requirements={"cores": 1, "memory_mb": 700, "disk_mb": 100},
            files_per_job=2,
        )
        system.wait_task(task, "done")
        check_results(system, task, xrootd, len(files))
        check_storage(system, task, xrootd, folder, len(files))


def check_results(system: System, task: int, xrootd: XrootdServer, total: int) -> None:
    system.assert_sums(task, total)
    assert {unit.state for unit in system.units(task)} == {"done"}
    jobs = system.jobs(task)
    assert all(job.state == "finished" for job in jobs), system.describe(task)
    assert sum(job.n_units for job in jobs) == total
    counts = [json.loads(local(xrootd, output.url).read_text()) for output in system.outputs(task)]
    dimuon = [count for count in counts if count["file"].startswith(DIMUON)]
    assert len(dimuon) == DIMUON_FILES
    assert {(count["events"], count["in_window"]) for count in dimuon} == {(DIMUON_EVENTS, IN_Z_WINDOW)}
    (nano,) = [count for count in counts if count not in dimuon]
    assert (nano["tree"], nano["events"]) == ("Events", NANOAOD_EVENTS)
    assert sum(job.metrics["stage_in_bytes"] for job in jobs) == sum(unit.size or 0 for unit in system.units(task))


def check_storage(system: System, task: int, xrootd: XrootdServer, folder: str, total: int) -> None:
    outputs, logs = system.outputs(task), system.outputs(task, "log")
    assert len(outputs) == total
    assert {log.job_id for log in logs} == {job.id for job in system.jobs(task)}
    for output in [*outputs, *logs]:
        path = local(xrootd, output.url)
        assert path.stat().st_size == output.size
        assert output.checksum == adler32(path) == served_checksum(xrootd, output.url)
    for log in logs:
        with tarfile.open(fileobj=io.BytesIO(local(xrootd, log.url).read_bytes())) as archive:
            texts = [file.read().decode() for file in map(archive.extractfile, archive.getmembers()) if file]
        assert any("counted" in text and "in container" in text for text in texts)
    # Nothing else was left: no half-written file, no output of a job that did not count.
    found = {path for path in xrootd.local_path(folder).rglob("*") if path.is_file()}
    inputs = {path for path in found if path.parent.name == "in"}
    assert found - inputs == {local(xrootd, output.url) for output in [*outputs, *logs]}
    assert len(inputs) == total
