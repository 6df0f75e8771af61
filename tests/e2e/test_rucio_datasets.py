"""A dataset in, a dataset out: a real Rucio server, real XRootD and WebDAV storages, and server, harvester and pilots as
programs. What came of it is looked at with the real ``rucio`` command."""

from __future__ import annotations

import json
import re
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomllib

from common.errors import ErrorCode
from common.wire import OutputNaming
from server.engine.naming import fixed_path
from tests.e2e.system import SITE_NAME, System
from tests.services.base import require_module, wait_until
from tests.services.certificates import Authority
from tests.services.rucio import SCOPE, RucioServer
from tests.services.webdav import WebdavServer
from tests.services.xrootd import XrootdServer
from tests.transcripts import keep

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "rucio.md"
XRD, DAV = "E2E_XRD", "E2E_DAV"
FILES = 100
PER_JOB = 25
JUSTIN = 4
"""What justIN asks of Rucio for a file: two calls for its upload, two to attach it."""
COPY = """#!/bin/sh
set -e
for path in $(cat "$PILOTAGE_INPUT_FILES"); do
    case "$path" in
    *even*) cp "$path" "out-$(basename "$path").xrd" ;;
    *) cp "$path" "out-$(basename "$path").dav" ;;
    esac
done
"""
OUTPUTS = [
    {"pattern": "*.xrd", "optional": True, "storage": XRD, "dataset": "copies.{workflow}", "lifetime_days": 7},
    {"pattern": "*.dav", "optional": True, "storage": DAV, "dataset": "copies.{workflow}", "lifetime_days": 7},
]
NEEDS = {"cores": 1, "memory_mb": 500, "disk_mb": 50}


class Lab:
    """The storages, the Rucio server that knows them, and the system that knows that."""

    def __init__(self, system: System, rucio: RucioServer, xrootd: XrootdServer, webdav: WebdavServer) -> None:
        self.system = system
        self.rucio = rucio
        self.xrootd = xrootd
        self.webdav = webdav

    def dataset(self, count: int) -> str:
        """A dataset of real files, every other one on each storage; its DID."""
        name = f"in.{uuid.uuid4().hex[:8]}"
        made: dict[str, list[dict[str, Any]]] = {XRD: [], DAV: []}
        source = self.system.folder / "source"
        for number in range(count):
            data = f"{name} {number}\n".encode() * 50
            about = {"scope": SCOPE, "bytes": len(data), "adler32": f"{zlib.adler32(data):08x}", "meta": {"events": 10}}
            source.write_bytes(data)
            if number % 2:
                file = f"{name}.odd.{number}"
                path = self.webdav.data / "rucio" / "in" / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                made[DAV].append({**about, "name": file, "pfn": f"{self.dav_url}/in/{file}"})
            else:
                file = f"{name}.even.{number}"
                self.xrootd.put(source, f"/rucio/{fixed_path(OutputNaming.RUCIO_HASH, SCOPE, file)}")
                made[XRD].append({**about, "name": file})
        for rse, files in made.items():
            self.rucio.call("POST", "/replicas", {"rse": rse, "files": files, "ignore_availability": True})
        return self.rucio.add_dataset(name, [file["name"] for files in made.values() for file in files])

    @property
    def dav_url(self) -> str:
        return f"davs://localhost:{self.webdav.port}/rucio"

    def submit(self, dataset: str, **more: Any) -> int:
        """A task that copies each file of a dataset."""
        workflow = {key: more.pop(key) for key in ("scope",) if key in more}
        stage = {
            "name": "copy",
            "input": {"kind": "dataset", "catalog": "experiment", "query": dataset},
            "jobscript": COPY,
            "outputs": OUTPUTS,
            "requirements": NEEDS,
            "files_per_job": PER_JOB,
            **more,
        }
        return self.system.submit({**workflow, "stages": [stage]}).tasks[0].id


@pytest.fixture(scope="module")
def lab(
    rucio: RucioServer,
    xrootd: XrootdServer,
    authority: Authority,
    services_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lab]:
    """Everything, running."""
    require_module("XRootD.client")
    folder = tmp_path_factory.mktemp("rucio-lab")
    webdav = WebdavServer(services_folder / f"webdav-{uuid.uuid4().hex[:6]}", authority)
    (webdav.data / "rucio").mkdir()
    webdav.own(webdav.data / "rucio")
    webdav.start()
    try:
        xrootd_impl, webdav_impl = "rucio.rse.protocols.xrootd.Default", "rucio.rse.protocols.webdav.Default"
        rucio.add_rse(XRD, "root", "localhost", xrootd.port, "//rucio/", xrootd_impl)
        rucio.add_rse(DAV, "davs", "localhost", webdav.port, "/rucio/", webdav_impl, deterministic=False)
        for rse in (XRD, DAV):
            rucio.call("POST", f"/rses/{rse}/attr/site", {"value": SITE_NAME})
            rucio.call("POST", f"/rses/{rse}/attr/e2e", {"value": "yes"})
        configuration = documented(rucio.access(folder))
        with System(
            folder,
            None,
            {"registration_retry_s": 0.5, "registration_retry_max_s": 1.0},
            queue={"copytools": ["xrootd", "http"]},
            pilot_environment={"X509_CERT_DIR": str(authority.folder)},
            configuration=configuration,
        ) as system:
            lab = Lab(system, rucio, xrootd, webdav)
            system.wait(lambda: set(storages(system)) >= {XRD, DAV} or None, "the storages are imported")
            yield lab
    finally:
        webdav.stop()


def documented(access: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The configuration that the documentation shows, with the address and the account of the server here."""
    shown = tomllib.loads(re.findall(r"```toml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)[0])["server"]
    catalog, registrar = shown["catalogs"]["experiment"], shown["registrars"]["experiment"]
    catalog.update(access, rse_expression="e2e=yes")
    catalog["imports"]["credential"] = "none"
    registrar.update(access)
    return {
        "server": {"registrar": shown["registrar"]},
        "server.catalogs.experiment": catalog,
        "server.registrars.experiment": registrar,
    }


def test_the_commands_of_the_documentation_do_what_it_says(lab: Lab) -> None:
    shown = re.findall(r"^    pilotage (.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    said = {words: lab.system.cli(*words.split()) for words in shown}
    assert [done.returncode for done in said.values()] == [0, 0, 0], said
    # The agent was first: there is nothing left to be changed.
    assert "0 would be changed, 0 left as they are" in said["admin imports experiment --dry-run"].stdout
    refused = lab.system.cli("admin", "imports", "elsewhere", "--now")
    assert refused.returncode != 0 and "what is: experiment" in refused.stderr


def storages(system: System) -> dict[str, Any]:
    done = system.cli("admin", "storage", "list", "--json")
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    return {each["name"]: each for each in (listed["items"] if isinstance(listed, dict) else listed)}


def settled(rucio: RucioServer) -> list[str]:
    """All requests so far: the last ones may be written a moment after their answers."""
    counts: list[int] = []

    def still() -> bool:
        counts.append(len(rucio.requests()))
        return len(counts) > 5 and len(set(counts[-5:])) == 1

    wait_until(still, "Rucio's log comes to rest")
    return rucio.requests()


def table(made: list[str], files: int) -> tuple[str, float, float]:
    """How often each call was made, for the files of the input and for those of the output."""
    shown = [re.sub(r"/(dids|rses)/.+/(files|parents)$", r"/\1/SCOPE/NAME/\2", line.rsplit(" ", 1)[0]) for line in made]
    shown = [re.sub(r"/rses/[A-Z0-9_]+$", "/rses/RSE", line) for line in shown]
    ours_of_input = ("GET /replicas/suspicious", "GET /dids/SCOPE/NAME/files")
    counts = Counter(shown)
    lists = counts["POST /replicas/list"]
    rounds = counts["POST /dids/bulkfiles"]
    of_output = {"POST /dids/bulkmeta", "POST /replicas", "POST /dids", "POST /dids/attachments", "POST /rules/"}
    of_output |= {"POST /dids/bulkfiles", "GET /scopes/"}
    calls_in = sum(counts[each] for each in ours_of_input) + lists - rounds
    calls_out = sum(counts[each] for each in of_output) + rounds
    common = sum(counts.values()) - calls_in - calls_out
    lines = [f"{number:5}  {call}" for call, number in sorted(counts.items())]
    per_in, per_out = (calls_in + common) / files, (calls_out + common) / files
    lines += [
        "",
        f"{files} input files:  {calls_in} calls, and {common} for both: {per_in:.2f} a file",
        f"{files} output files: {calls_out} calls, and {common} for both: {per_out:.2f} a file",
        f"justIN: {JUSTIN} a file",
    ]
    return "\n".join(lines) + "\n", per_in, per_out


def test_a_dataset_in_and_a_dataset_out_with_few_calls(lab: Lab) -> None:
    system, rucio = lab.system, lab.rucio
    query = lab.dataset(FILES)
    before = len(settled(rucio))
    task = lab.submit(query)
    system.wait_task(task, "done")
    counted, per_in, per_out = table(settled(rucio)[before:], FILES)
    keep("rucio-calls", counted)
    system.assert_sums(task, FILES)
    made = {output.did: output for output in system.outputs(task)}
    assert len(made) == FILES
    workflow = system.view(task).workflow_id
    all_of_it = f"{SCOPE}:copies.{workflow}"

    # As a person sees it.
    listed = rucio.client("list-files", all_of_it)
    assert f"Total files : {FILES}" in listed
    on_xrd, on_dav = (next(did for did in sorted(made) if did.endswith(ending)) for ending in (".xrd", ".dav"))
    replicas = rucio.client("replica", "list", "file", on_xrd) + rucio.client("replica", "list", "file", on_dav)
    rules = rucio.client("rule", "list", "--did", f"{all_of_it}-{XRD}")
    keep("rucio-client", "\n".join((listed, replicas, rules)))
    assert all(did in listed for did in made)
    assert f"{XRD}: {made[on_xrd].url}" in replicas
    assert f"{DAV}: {made[on_dav].url}" in replicas
    assert XRD in rules and f"{all_of_it}-{XRD}" in rules

    # Where Rucio says that a file is, there it is, with the checksum that Rucio says.
    for did, output in list(made.items())[:10]:
        known = rucio.replicas(did)[0]
        path = fixed_path(OutputNaming.RUCIO_HASH, SCOPE, did.partition(":")[2])
        if output.storage == XRD:
            data = lab.xrootd.local_path(f"/rucio/{path}").read_bytes()
        else:
            data = (lab.webdav.data / "rucio" / output.url.removeprefix(lab.dav_url).lstrip("/")).read_bytes()
        assert (known["bytes"], known["adler32"]) == (len(data), f"{zlib.adler32(data):08x}")
    told = [float(each) for each in re.findall(r"^\| \w+ \| \d+ \| ([\d.]+) \|", PAGE.read_text("utf-8"), re.MULTILINE)]
    assert len(told) == 2 and max(told) < JUSTIN
    # The four jobs may end apart from each other: three rounds more of six calls each, and a ping now and then.
    assert per_in <= told[0] + 0.05 and per_out <= told[1] + 3 * 0.06 + 0.05, counted


def test_rucio_down_in_the_middle_loses_nothing(lab: Lab, gate: Path) -> None:
    system = lab.system
    waits = f"#!/bin/sh\nwhile [ ! -e {gate} ]; do sleep 0.05; done\n"
    task = lab.submit(lab.dataset(4), files_per_job=2, jobscript=waits + COPY.removeprefix("#!/bin/sh\n"))
    system.wait_jobs(task, ("starting", "running"), 1)
    with lab.rucio.outage():
        gate.touch()
        held = system.wait_jobs(task, "holding", 2)
        wait_for_words(system, "does not answer")
        assert {unit.state for unit in system.units(task)} == {"outputting"}
        assert system.outputs(task) == []
        assert {job.state for job in system.jobs(task)} == {"holding"}
    system.wait_task(task, "done")
    assert {job.id for job in system.jobs(task)} == {job.id for job in held}
    assert len(system.outputs(task)) == 4
    system.assert_sums(task, 4)


def wait_for_words(system: System, words: str) -> None:
    """Until somebody who asks what waits for its registration is told why."""
    system.wait(lambda: words in system.cli("datasets", "waiting").stdout or None, f"the reason holds {words!r}")


def test_a_dataset_asked_for_while_rucio_is_away_is_read_later(lab: Lab) -> None:
    system = lab.system
    query = lab.dataset(2)
    with lab.rucio.outage():
        task = lab.submit(query)
        system.wait(lambda: "does not answer" in system.view(task).state_reason or None, "the task says why it waits")
        assert system.units(task) == []
    system.wait_task(task, "done")


def test_outputs_that_rucio_never_takes_give_their_units_back(lab: Lab) -> None:
    """The scope of the workflow is none of Rucio's: each attempt ends so, and the files are removed again."""
    system = lab.system
    task = lab.submit(lab.dataset(2), scope="nowhere", max_attempts=2)
    system.wait_task(task, "failed")
    assert {job.error_code for job in system.jobs(task)} == {int(ErrorCode.OUTPUTS_NOT_REGISTERED)}
    assert all("Rucio has no scope nowhere" in (job.error_detail or "") for job in system.jobs(task))
    assert len(system.jobs(task)) == 4  # two units on two storages, twice
    assert system.outputs(task) == []


def test_a_dataset_that_is_not_there_breaks_the_task_in_words(lab: Lab) -> None:
    task = lab.submit(f"{SCOPE}:no.such")
    view = lab.system.wait_task(task, "broken")
    assert "Rucio has nothing of this name" in view.state_reason
