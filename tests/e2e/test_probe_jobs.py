"""Probe jobs, whole: what is broken on purpose stands in the table, and nothing else; when it is mended, so is the table."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import pytest

from common.wire import ProbeState, ProbeTable
from tests.e2e.program import pilotage
from tests.e2e.system import SITE_NAME, System
from tests.services.base import free_port, require
from tests.services.xrootd import XrootdServer, install

for module in ("falcon", "granian", "XRootD"):
    pytest.importorskip(module)

Cells = dict[tuple[str, str], bool]
WORKS = {(name, operation): True for name in ("disk", "xroot", "frozen") for operation in ("read", "write")}


class Probed:
    """A system with a folder and a real XRootD server as storages; of the latter, all below ``/ro`` is read-only."""

    def __init__(self, system: System, xrootd: XrootdServer, folder: Path) -> None:
        self.system = system
        self.xrootd = xrootd
        (folder / "known").write_bytes(b"known to be there")
        xrootd.put(folder / "known", "/ro/known")
        xrootd.put(folder / "known", "/rw/known")
        system.storage("disk")
        system.storage("xroot", f"{xrootd.url}/rw/xroot")
        self.freeze(False)

    def freeze(self, frozen: bool) -> None:
        """Move the storage ``frozen`` to where nothing can be written, or back."""
        known = {"path": "known", "size": 17, "checksum": "adler32:39860650"}
        url = f"{self.xrootd.url}/{'ro' if frozen else 'rw'}"
        spec = {"name": "frozen", "site": SITE_NAME, "endpoints": [{"url": url}], "probe_file": known}
        self.system.put("/v1/storages/frozen", spec)

    def probe(self) -> ProbeTable:
        """A whole probe; the table after it."""
        before = self.table()
        ended = [each.ended for each in before.places]
        asked = self.system.api.call("POST", "/v1/probes", {"site": SITE_NAME}, ProbeTable)
        assert len(asked.places) == 1

        def done() -> Optional[ProbeTable]:
            table = self.table()
            place = table.places[0]
            return table if place.state is ProbeState.DONE and [place.ended] != ended else None

        return self.system.wait(done, lambda: f"a probe reports: {self.table()}\n{self.system.pilot_logs()[-3000:]}")

    def table(self) -> ProbeTable:
        return self.system.api.call("GET", "/v1/probes", None, ProbeTable)

    def told(self) -> list[tuple[str, str, str]]:
        """Events of storages, oldest first: kind, storage, operation."""
        found = sorted((each for each in self.system.events() if each.kind.startswith("PROBE_")), key=lambda e: e.id)
        return [
            (each.kind, each.detail["storage"], each.detail["operation"]) for each in found if "storage" in each.detail
        ]

    def printed(self, *words: str) -> str:
        """What the command shows."""
        options = ["--server", self.system.url, "--token-file", str(self.system.admin_token)]
        command = pilotage("probes", *words, *options)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=180).stdout


def cells(table: ProbeTable) -> Cells:
    return {(each.storage, each.operation.value): each.ok for each in table.results}


@pytest.fixture
def probed(tmp_path: Path, services_folder: Path) -> Iterator[Probed]:
    require(install)
    read_only = ["all.export /ro notwritable"]
    server = require(lambda: XrootdServer(services_folder / f"probed-{free_port()}", read_only))
    settings = {"probe_storage_s": 10.0, "probe_total_s": 100.0}
    try:
        server.start()
        with System(tmp_path, settings=settings, queue={"trusted": False}) as system:
            yield Probed(system, server, tmp_path)
    finally:
        server.stop()


def test_real_xrootd_what_is_broken_is_told_and_nothing_else(probed: Probed) -> None:
    table = probed.probe()
    assert cells(table) == WORKS, table.results
    assert probed.told() == []
    place = table.places[0]
    looks = {each.name: each.level.value for each in place.environment}
    assert {"python", "scratch", "space", "clock", "server"} <= looks.keys(), looks
    assert looks["clock"] == "ok" and looks["scratch"] in ("ok", "warning"), "a slow disk is no broken one"
    assert place.host and place.queue == "local"
    fast = {(each.storage, each.operation.value): each.mb_s for each in table.results}
    assert all(0 < rate < 1e5 for rate in fast.values()), fast
    left = [
        path
        for root in (probed.system.folder / "storages", probed.xrootd.data)
        for path in root.rglob("pilotage-probes/*/*")
    ]
    assert left == []

    probed.freeze(True)
    table = probed.probe()
    assert cells(table) == {**WORKS, ("frozen", "write"): False}, table.results
    assert probed.told() == [("PROBE_FAILED", "frozen", "write")]
    shown = probed.printed()
    row = next(line.split() for line in shown.splitlines() if line.split()[:1] == [SITE_NAME])
    assert row[-3:] == ["rw", "rW", "rw"], shown  # disk, frozen, xroot
    assert "cannot" in shown and "what fails is told" in shown

    probed.freeze(False)
    probed.xrootd.stop()
    table = probed.probe()
    dead = dict.fromkeys([("frozen", "read"), ("xroot", "read"), ("xroot", "write"), ("frozen", "write")], False)
    assert cells(table) == {**WORKS, **dead}, table.results
    assert all(each.error_code for each in table.results if not each.ok)

    probed.xrootd.start()
    table = probed.probe()
    assert cells(table) == WORKS, table.results
    mended = {told for told in probed.told() if told[0] == "PROBE_MENDED"}
    assert mended == {("PROBE_MENDED", storage, operation) for storage, operation in dead}
    assert json.loads(probed.printed("--json"))["places"][0]["missed"] == 0
