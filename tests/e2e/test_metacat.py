"""The whole way with MetaCat: a query of a user of justIN finds the files, a pilot runs a jobscript on each, and its outputs are
declared with their parents, their status up to confirmed; counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.tokens import write_secret_file
from tests.e2e.looks import adler32
from tests.e2e.system import System
from tests.services.metacat import MetaCatWorld, metacat_server
from tests.transcripts import keep

TOKEN = "eyJhbGciOiJIUzI1NiJ9.stand.in"
FILES = 6
JOBSCRIPT = """#!/bin/sh
did_pfn_rse=`$JUSTIN_PATH/justin-get-file`
[ "$did_pfn_rse" = "" ] && exit 0
did=`echo $did_pfn_rse | cut -f1 -d' '`
pfn=`echo $did_pfn_rse | cut -f2 -d' '`
out=reco_${JUSTIN_JOBSUB_ID}.root
echo "$JUSTIN_MQL" | cat - "$pfn" >$out || exit 1
printf '{"metadata": {"core.run_type": "reco", "core.event_count": 10}, "parents": [{"did": "%s"}]}' $did >$out.json
echo "$pfn" >justin-processed-pfns.txt
"""


class WithMetaCat(System):
    """A system whose server has MetaCat for input and for outputs."""

    def __init__(self, folder: Path, url: str) -> None:
        write_secret_file(folder / "metacat.token", TOKEN)
        access = f'plugin = "metacat"\nserver_url = "{url}"\ntoken_file = "{folder / "metacat.token"}"\n'
        self._more = (
            f'\n[server.catalogs.metacat]\n{access}storage = "raw"\npath = "{{name}}"\n'
            f"\n[server.registrars.metacat]\n{access}"
        )
        super().__init__(folder, queue={"wall_s": 3600})

    def _write_config(self) -> None:
        super()._write_config()
        text = self._config.read_text("utf-8").replace("[server]\n", '[server]\nregistrar = "metacat"\n', 1)
        self._config.write_text(text + self._more, "utf-8")


@pytest.fixture
def world() -> MetaCatWorld:
    return MetaCatWorld(token=TOKEN)


@pytest.fixture
def system(world: MetaCatWorld, tmp_path: Path) -> Iterator[System]:
    with metacat_server(world) as url, WithMetaCat(tmp_path, url) as made:
        yield made


def test_from_a_query_to_confirmed_outputs(system: System, world: MetaCatWorld, tmp_path: Path) -> None:
    raw = system.storage("raw")
    for number in range(FILES):
        content = f"event {number}\n".encode()
        (raw / f"e{number}").write_bytes(content)
        checksum = adler32(content).partition(":")[2]
        world.add("data:raw", f"data:e{number}", len(content), {"core.event_count": 10}, adler32=checksum)
    disk = system.storage("disk")
    assert disk
    spec = system.api.call("GET", "/v1/storages/disk", None, dict)
    system.put("/v1/storages/disk", {**spec, "registration": "server"})
    script = tmp_path / "reco.jobscript"
    script.write_text(JOBSCRIPT)
    words = ["--mql", "files from data:raw limit 100", "--jobscript", str(script), "--scope", "usertests"]
    words += ["--output-pattern", "reco_*.root:reco-w$JUSTIN_WORKFLOW_ID", "--output-rse", "disk", "--rss-mib", "100"]
    done = system.cli("justin", "simple-workflow", *words, "--wall-seconds", "600", "--max-distance", "100")
    assert done.returncode == 0, done.stderr
    workflow = int(done.stdout.split(": ")[1])
    task = system.calls.workflow(workflow).tasks[0].id
    system.wait_task(task, "done")

    def confirmed() -> bool:
        ours = [each for did, each in world.files.items() if did.startswith("usertests:")]
        return len(ours) == FILES and all(each["metadata"]["dune.output_status"] == "confirmed" for each in ours)

    system.wait(confirmed, "all outputs are confirmed")
    dids = {did for did in world.files if did.startswith("usertests:")}
    assert {output.did for output in system.outputs(task)} == dids
    fids = {each["fid"]: did for did, each in world.files.items()}
    parents = sorted(fids[parent] for did in dids for parent in world.files[did]["parents"])
    assert parents == [f"data:e{number}" for number in range(FILES)], "each output has the file that its job took"
    assert all(world.files[did]["metadata"]["core.run_type"] == "reco" for did in dids)
    assert set(world.datasets[f"usertests:reco-w{workflow}"]) == dids
    for did in dids:
        assert [status for one, status in world.history if one == did] == ["recorded", "uploaded", "confirmed"]
    made = [call for call in world.calls if call not in ("dataset", "create_dataset")]
    table = {name: made.count(name) for name in sorted(set(made))}
    keep("metacat-calls-per-file", json.dumps({"files": FILES, "calls": table, "a file": len(made) / FILES}, indent=2))
    assert len(made) <= 8 * FILES, table
