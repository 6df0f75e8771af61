"""Storages, sites and distances from a real Rucio server, into a dispatcher on both databases."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.clock import FrozenClock
from common.states import ResourceState, UnitState
from common.tokens import write_secret_file
from common.wire import (
    Activity,
    DatasetInput,
    Endpoint,
    EventPage,
    ImportReport,
    ImportReports,
    ImportRequest,
    ImportStep,
    OutputNaming,
    Registration,
    SiteSpec,
    StorageSpec,
)
from server.agents.import_world import import_world
from server.agents.stage_tape import stage_tape
from server.config import ServerConfig
from server.engine.naming import fixed_path
from server.stagers.fake import FakeStager
from server.store import world
from tests.integration.server.harness import Refused, Site, stage, states
from tests.services.rucio import RucioServer

A_XRD, A_DAV, B_TAPE, B_ODD, C_READ = "IMPA_XRD", "IMPA_DAV", "IMPB_TAPE", "IMPB_ODD", "IMPC_READ"
EXPRESSION = "import_test=yes"


@pytest.fixture(scope="module")
def rses(rucio: RucioServer) -> RucioServer:
    """The server with five RSEs at three sites, and distances between most of them."""
    xrootd, webdav = "rucio.rse.protocols.xrootd.Default", "rucio.rse.protocols.webdav.Default"
    rucio.add_rse(A_XRD, "root", "xrd.a.example", 1094, "//rucio/", xrootd)
    may = {"read": 2, "write": 2, "delete": 2}
    second = {"hostname": "dav.a.example", "port": 443, "prefix": "/rucio/", "impl": webdav}
    domains = {"wan": may, "lan": {"read": 0, "write": 0, "delete": 0}}
    rucio.call("POST", f"/rses/{A_XRD}/protocols/davs", {**second, "domains": domains})
    rucio.add_rse(A_DAV, "davs", "dav.a.example", 443, "/any/", webdav, deterministic=False)
    rucio.add_rse(B_TAPE, "root", "tape.b.example", 1094, "//tape/", xrootd, rse_type="TAPE")
    rucio.add_rse(B_ODD, "root", "odd.b.example", 1094, "//odd/", xrootd)
    rucio.add_rse(C_READ, "root", "read.c.example", 1094, "//read/", xrootd)
    rucio.call("PUT", f"/rses/{C_READ}", {"availability_write": False})
    rucio.call("POST", f"/rses/{B_ODD}/attr/lfn2pfn_algorithm", {"value": "belleii"})
    for rse, site in ((A_XRD, "SITE-A"), (A_DAV, "SITE-A"), (B_TAPE, "SITE-B"), (B_ODD, "SITE-B")):
        rucio.call("POST", f"/rses/{rse}/attr/site", {"value": site})
    for rse in (A_XRD, A_DAV, B_TAPE, B_ODD, C_READ):
        rucio.call("POST", f"/rses/{rse}/attr/import_test", {"value": "yes"})
    for source, destination, distance in ((A_XRD, B_ODD, 3), (A_XRD, B_TAPE, 5), (B_ODD, A_DAV, 30), (A_XRD, A_DAV, 1)):
        rucio.call("POST", f"/rses/{source}/distances/{destination}", {"distance": distance})
    rucio.call("POST", "/accounts/robot", {"type": "SERVICE", "email": "robot@example.org"})
    identity = {"authtype": "USERPASS", "email": "robot@example.org", "password": "weak", "default": True}
    rucio.call("POST", "/accounts/robot/identities", {"identity": "robot", **identity})
    return rucio


@pytest.fixture
def section(rses: RucioServer, tmp_path: Path) -> dict[str, Any]:
    imports = {"registration": "server", "stager": "robot"}
    return {"plugin": "rucio", **rses.access(tmp_path), "rse_expression": EXPRESSION, "imports": imports}


@pytest.fixture
def importing(site: Site, section: dict[str, Any]) -> Iterator[Site]:
    """The dispatcher, with the catalogue."""
    made = with_catalogue(site, section)
    yield made
    made.database.close()


def with_catalogue(site: Site, section: dict[str, Any]) -> Site:
    return Site(site.database.url, FrozenClock(), ServerConfig(catalogs={"experiment": section}))


def run(site: Site, **options: Any) -> ImportReport:
    """A look, now."""
    site.clock.advance(1)  # type: ignore[attr-defined]
    return site.admin("POST", "/v1/imports/experiment", ImportRequest(**options), ImportReport)


def changes(report: ImportReport) -> list[tuple[str, str, str]]:
    """What a look changed."""
    assert not any(each.problem for each in report.documents), report.documents
    new = report.changes if report.changed == report.time else []
    return [(each.kind, each.name, each.step.value) for each in new]


def loaded(site: Site) -> world.World:
    with site.database.read() as connection:
        return world.load(connection)


def test_rses_become_storages_with_sites_protocols_and_distances(importing: Site) -> None:
    found = run(importing)
    assert {kind: step for kind, _, step in changes(found)} == {
        "site": "created", "storage": "created", "distances": "changed",
    }  # fmt: skip
    assert [(each.name, each.entries) for each in found.documents] == [("rses", 5)]
    there = loaded(importing)
    assert {"SITE-A", "SITE-B", C_READ} <= set(there.sites)
    disk = there.storages[A_XRD]
    assert (disk.site, disk.tape, disk.naming, disk.status) == ("SITE-A", False, OutputNaming.RUCIO_HASH, "online")
    assert disk.registration == Registration.SERVER
    assert disk.endpoints == [
        Endpoint("root://xrd.a.example:1094//rucio"),
        Endpoint("davs://dav.a.example:443/rucio", [Activity.READ_WAN, Activity.WRITE_WAN]),
    ]
    assert there.storages[A_DAV].naming == OutputNaming.JOB
    tape = there.storages[B_TAPE]
    assert (tape.tape, tape.stager) == (True, "robot")
    # Nobody here knows where an RSE with an algorithm of its own puts its files: it is read only.
    assert there.storages[B_ODD].endpoints[0].activities == [Activity.READ_LAN, Activity.READ_WAN]
    assert there.storages[C_READ].status == ResourceState.PAUSED
    assert there.sites["SITE-B"].distances == {A_XRD: 30}  # the nearest of 3 and 5, times ten
    assert there.sites["SITE-A"].distances == {B_ODD: 100}  # thirty times ten, and no farther than can be
    assert there.distance("SITE-A", A_DAV) == 0
    again = run(importing)
    assert changes(again) == [] and again.left == []


def test_a_dry_run_says_the_same_and_changes_nothing(importing: Site) -> None:
    before = importing.row_counts()
    dry = run(importing, dry_run=True)
    assert {**importing.row_counts(), "event": before["event"]} == before
    assert changes(dry) and dry.changes == run(importing).changes


def test_what_an_admin_made_or_changed_stays(importing: Site, rses: RucioServer) -> None:
    importing.admin("PUT", "/v1/sites/SITE-A", SiteSpec("SITE-A", distances={B_ODD: 7}, description="ours"))
    own = StorageSpec(name=A_DAV, site="SITE-A", endpoints=[Endpoint("https://own.example/data")])
    importing.admin("PUT", f"/v1/storages/{A_DAV}", own)
    run(importing)
    assert loaded(importing).storages[A_DAV] == own
    assert loaded(importing).sites["SITE-A"] == SiteSpec("SITE-A", distances={B_ODD: 7}, description="ours")
    changed = importing.admin("GET", f"/v1/storages/{A_XRD}", reply=StorageSpec)
    changed.status = ResourceState.DRAINING
    importing.admin("PUT", f"/v1/storages/{A_XRD}", changed)
    rses.call("PUT", f"/rses/{A_XRD}", {"availability_read": False})
    try:
        found = run(importing)
    finally:
        rses.call("PUT", f"/rses/{A_XRD}", {"availability_read": True})
    assert [(each.step, each.why) for each in found.left if each.name == A_XRD] == [
        (ImportStep.KEPT, "status changed by hand")
    ]
    assert loaded(importing).storages[A_XRD].status == ResourceState.DRAINING


def test_what_rucio_changes_follows_and_what_it_loses_is_drained(
    importing: Site, site: Site, section: dict[str, Any], rses: RucioServer
) -> None:
    run(importing)
    fewer = with_catalogue(site, {**section, "rse_expression": f"{EXPRESSION}\\{A_XRD}"})
    assert changes(run(fewer)) == [("storage", A_XRD, "drained"), ("distances", "SITE-B", "changed")]
    assert loaded(importing).storages[A_XRD].status == ResourceState.DRAINING
    assert loaded(importing).sites["SITE-B"].distances == {}
    assert changes(run(importing)) == [("storage", A_XRD, "back"), ("distances", "SITE-B", "changed")]
    assert loaded(importing).storages[A_XRD].status == ResourceState.ONLINE


def test_an_answer_in_which_too_many_rses_are_missing_is_not_believed(
    importing: Site, site: Site, section: dict[str, Any], rses: RucioServer
) -> None:
    run(importing)
    before = loaded(importing)
    few = with_catalogue(site, {**section, "rse_expression": f"{EXPRESSION}&({A_XRD}|{B_ODD})"})
    (document,) = run(few).documents
    assert "3 of 5 entries have vanished" in document.problem and loaded(importing) == before
    assert len(changes(run(few, believe=True))) >= 3
    assert changes(run(few)) == []


def test_an_account_that_may_not_export_asks_for_each_rse(
    site: Site, section: dict[str, Any], rses: RucioServer, tmp_path: Path
) -> None:
    write_secret_file(tmp_path / "robot.password", "weak")
    who = {"account": "robot", "username": "robot", "password_file": str(tmp_path / "robot.password")}
    root = run(with_catalogue(site, section), dry_run=True)
    robot = run(with_catalogue(site, {**section, **who}), dry_run=True)
    assert changes(root) and robot.changes == root.changes


def test_rucio_that_is_away_changes_nothing_and_the_agent_says_so(importing: Site, rses: RucioServer) -> None:
    run(importing)
    before = loaded(importing)
    importing.dispatcher.plugins.catalogs["experiment"]._client._answered = 0.0  # type: ignore[attr-defined]
    with rses.outage():
        import_world(importing.dispatcher)
    assert loaded(importing) == before
    (report,) = importing.admin("GET", "/v1/imports", reply=ImportReports).items
    assert [each.name for each in report.documents] == ["rses"]
    assert re.search("Rucio at .* does not answer", report.documents[0].problem)
    (told,) = importing.user_page("/v1/events?kind=IMPORT_FAILED", EventPage).items
    assert (told.subject_id, told.detail["document"]) == ("experiment", "rses")
    importing.clock.advance(3599)  # type: ignore[attr-defined]
    import_world(importing.dispatcher)
    (again,) = importing.admin("GET", "/v1/imports", reply=ImportReports).items
    assert again == report, "an hour is not over"
    importing.clock.advance(1)  # type: ignore[attr-defined]
    import_world(importing.dispatcher)
    (again,) = importing.admin("GET", "/v1/imports", reply=ImportReports).items
    assert again.time > report.time and not again.documents[0].problem


def test_what_lies_on_tape_is_recalled_and_what_lies_nowhere_is_lost(
    site: Site, section: dict[str, Any], rses: RucioServer
) -> None:
    stagers = {"robot": {"plugin": "fake"}}
    tape = Site(site.database.url, FrozenClock(), ServerConfig(catalogs={"experiment": section}, stagers=stagers))
    run(tape)
    name = uuid.uuid4().hex[:8]
    rses.add_files(B_TAPE, [f"{name}.tape"])
    rses.add_files(A_XRD, [f"{name}.disk"])
    rses.add_files(A_XRD, [f"{name}.gone"], state="U")
    did = rses.add_dataset(f"{name}.ds", [f"{name}.{kind}" for kind in ("tape", "disk", "gone")])
    given = DatasetInput(catalog="experiment", query=did)
    (task,) = tape.submit_only(stage(given=given))
    tape.agents()
    told = {str(unit.did).rpartition(".")[2]: unit.state for unit in tape.units(task)}
    assert told == {"tape": UnitState.PENDING, "disk": UnitState.READY, "gone": UnitState.LOST}
    stage_tape(tape.dispatcher)
    tape.tick(61.0)
    stage_tape(tape.dispatcher)
    robot = tape.dispatcher.plugins.stagers["robot"]
    assert isinstance(robot, FakeStager)
    assert robot.requested == [[fixed_path(OutputNaming.RUCIO_HASH, "test", f"{name}.tape")]]
    assert states(tape.units(task)) == {"ready": 2, "lost": 1}
    tape.database.close()


def test_a_catalogue_that_imports_nothing_is_told_as_such(site: Site, section: dict[str, Any]) -> None:
    del section["imports"]
    with pytest.raises(Refused, match="nothing is imported from 'experiment'"):
        run(with_catalogue(site, section))
    assert import_world(with_catalogue(site, section).dispatcher) == 0
