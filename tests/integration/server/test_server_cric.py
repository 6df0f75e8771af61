"""CRIC, followed by the agent: over HTTP and from files, with everything that a source may do wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from common.config import ConfigError
from common.errors import PilotageError
from common.wire import (
    EventPage,
    ImportChange,
    ImportReport,
    ImportReports,
    ImportRequest,
    QueueList,
    QueueSpec,
    SiteList,
    SiteSpec,
    StorageList,
    StorageSpec,
)
from server.agents.import_world import import_world
from server.catalogs.cric import CricConfig
from server.config import ServerConfig
from server.engine.imports import Document
from server.engine.world import World
from server.plugins import Plugins
from tests.integration.server.described import Described
from tests.integration.server.harness import Refused, Site

SITES = {name: {"state": "ACTIVE", "rc_site": f"{name}-RC"} for name in ("RAL", "CERN", "DESY")}
QUEUES = {
    f"Q{n}": {"atlas_site": ("RAL", "CERN", "DESY")[n % 3], "status": "online", "state": "ACTIVE", "corecount": 8, "maxrss": 16000}
    for n in range(10)
}  # fmt: skip
STORAGES = {
    f"{name}_DATADISK": {
        "site": name, "state": "ACTIVE", "is_tape": False,
        "arprotocols": {each: [{"endpoint": f"davs://{name.lower()}:443", "path": "/data"}] for each in ("read_lan", "read_wan", "write_lan")},
    }
    for name in SITES
}  # fmt: skip
CLOSENESS = [{"src": "RAL", "dst": "CERN", "closeness": 2}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, sites=SITES, storages=STORAGES, blacklist={}, closeness=CLOSENESS, queues=QUEUES)
    return tmp_path


def write(folder: Path, **documents: Any) -> None:
    for name, document in documents.items():
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        (folder / f"{name}.json").write_bytes(content)


def follow(site: Site, folder: Path, **more: Any) -> None:
    names = ("sites", "storages", "blacklist", "closeness", "queues")
    sources = {name: str(folder / f"{name}.json") for name in names}
    site.dispatcher.plugins = Plugins(ServerConfig(cric=CricConfig(**{**sources, **more})))


def look(site: Site) -> ImportReport:
    """The next look at all documents, and what it brought."""
    site.clock.advance(600)
    import_world(site.dispatcher)
    return reported(site)


def reported(site: Site) -> ImportReport:
    (report,) = site.admin("GET", "/v1/imports", reply=ImportReports).items
    return report


def problems(report: ImportReport) -> dict[str, str]:
    return {each.name: each.problem for each in report.documents if each.problem}


def changes(report: ImportReport) -> dict[str, str]:
    """Those of this look."""
    return {each.name: each.step.value for each in report.changes} if report.changed == report.time else {}


def left(report: ImportReport) -> dict[str, str]:
    return {each.name: each.why for each in report.left}


def queues(site: Site) -> dict[str, QueueSpec]:
    return {each.name: each for each in site.admin("GET", "/v1/queues", reply=QueueList).items}


def test_the_whole_world_comes_from_files(site: Site, folder: Path) -> None:
    follow(site, folder)
    report = look(site)
    assert problems(report) == {}
    assert {each.name: each.entries for each in report.documents} == {
        "sites": 3, "storages": 3, "blacklist": 0, "closeness": 1, "queues": 10,
    }  # fmt: skip
    sites = {each.name: each for each in site.admin("GET", "/v1/sites", reply=SiteList).items}
    assert set(sites) == set(SITES) and sites["RAL"].distances == {"CERN_DATADISK": 19}
    storages = {each.name: each for each in site.admin("GET", "/v1/storages", reply=StorageList).items}
    assert storages["RAL_DATADISK"].endpoints[0].url == "davs://ral:443/data"
    assert queues(site)["Q0"].memory_mb == 16000
    told = site.user_page("/v1/events?kind=IMPORT_CHANGED&limit=100", EventPage).items
    assert {each.subject for each in told} == {"site", "storage", "queue"} and len(told) >= 16
    again = look(site)
    assert changes(again) == {} and again.changes == report.changes


def test_what_vanishes_is_drained_and_comes_back(site: Site, folder: Path) -> None:
    follow(site, folder)
    look(site)
    write(folder, queues={name: each for name, each in QUEUES.items() if name not in ("Q3", "Q4")})
    assert changes(look(site)) == {"Q3": "drained", "Q4": "drained"}
    assert queues(site)["Q3"].status.value == "draining" and len(queues(site)) == 10
    assert changes(look(site)) == {}
    write(folder, queues=QUEUES)
    assert changes(look(site)) == {"Q3": "back", "Q4": "back"}
    assert queues(site)["Q3"].status.value == "online"


def test_what_an_admin_made_or_changed_by_hand_is_never_overwritten(site: Site, folder: Path) -> None:
    site.world(storages=())
    mine = QueueSpec(name="Q1", site="s", memory_mb=1)
    site.admin("PUT", "/v1/queues/Q1", mine)
    follow(site, folder)
    report = look(site)
    assert queues(site)["Q1"] == mine
    assert left(report) == {"Q1": "it was made by hand"}
    changed = queues(site)["Q2"]
    changed.wall_s = 3600
    site.admin("PUT", "/v1/queues/Q2", changed)
    write(folder, queues={**QUEUES, "Q2": {**QUEUES["Q2"], "maxrss": 32000, "maxtime": 7200}})
    assert changes(look(site)) == {"Q2": "changed"}
    assert (queues(site)["Q2"].memory_mb, queues(site)["Q2"].wall_s) == (32000, 3600)
    assert left(reported(site)) == {"Q1": "it was made by hand", "Q2": "wall_s changed by hand"}
    write(folder, queues={name: each for name, each in QUEUES.items() if name not in ("Q1", "Q2")})
    look(site)
    assert queues(site)["Q1"].status.value == "online", "what was never imported does not vanish"


@pytest.mark.parametrize(
    "content",
    [b"", json.dumps(QUEUES).encode()[:-40], b"{}", b"[]", b"null", b"\xff", json.dumps(dict(list(QUEUES.items())[:7])).encode()],
    ids=["empty", "cut", "no entry", "no entry in a list", "null", "no text", "three of ten gone"],
)  # fmt: skip
def test_a_document_that_cannot_be_believed_changes_nothing_and_says_so(
    site: Site, folder: Path, content: bytes
) -> None:
    follow(site, folder)
    look(site)
    before, rows = queues(site), site.row_counts()
    write(folder, queues=content)
    for _ in range(2):
        report = look(site)
        assert list(problems(report)) == ["queues"] and changes(report) == {}
    assert queues(site) == before
    told = site.user_page("/v1/events?kind=IMPORT_FAILED", EventPage).items
    assert [(each.subject_id, each.detail["document"]) for each in told] == [("cric", "queues")], "told once"
    assert {**site.row_counts(), "event": 0} == {**rows, "event": 0}
    write(folder, queues=QUEUES)
    assert problems(look(site)) == {}


def test_more_may_vanish_where_the_admin_says_so(site: Site, folder: Path) -> None:
    follow(site, folder)
    look(site)
    write(folder, queues={"Q0": QUEUES["Q0"]})
    assert "9 of 10 entries have vanished" in problems(look(site))["queues"]
    follow(site, folder, removed_percent=100)
    assert len(changes(look(site))) == 9


def test_an_entry_of_wrong_types_is_left_out_and_stays_as_it_was(site: Site, folder: Path) -> None:
    follow(site, folder)
    look(site)
    write(folder, queues={**QUEUES, "Q5": {**QUEUES["Q5"], "maxrss": "much"}, "Q6": {**QUEUES["Q6"], "maxrss": 1}})
    report = look(site)
    assert list(left(report)) == ["Q5"] and "maxrss" in left(report)["Q5"]
    assert changes(report) == {"Q6": "changed"} and queues(site)["Q5"].memory_mb == 16000


def test_the_blacklist_closes_and_opens_and_without_it_storages_stay(site: Site, folder: Path) -> None:
    follow(site, folder)
    look(site)
    write(folder, blacklist={"RAL_DATADISK": {"write_wan": {"status": {"value": "OFF"}}}})
    assert changes(look(site)) == {"RAL_DATADISK": "changed"}
    write(folder, blacklist=b"{", closeness=b"[")
    report = look(site)
    assert set(problems(report)) == {"blacklist", "closeness", "storages"} and changes(report) == {}
    storages = {each.name: each for each in site.admin("GET", "/v1/storages", reply=StorageList).items}
    assert storages["RAL_DATADISK"].status.value == "paused"
    write(folder, blacklist={}, closeness=CLOSENESS)
    assert changes(look(site)) == {"RAL_DATADISK": "changed"}


def test_what_an_admin_deleted_stays_away_until_it_is_asked_for(site: Site, folder: Path) -> None:
    follow(site, folder)
    look(site)
    site.admin("DELETE", "/v1/queues/Q1")
    changed = queues(site)["Q2"]
    changed.memory_mb, changed.gpus = 1, 2
    site.admin("PUT", "/v1/queues/Q2", changed)
    report = look(site)
    assert left(report) == {"Q1": "it was deleted by hand", "Q2": "memory_mb changed by hand"} and changes(report) == {}
    asked = ImportRequest(take=["Q1", "Q2"])
    assert changes(site.admin("POST", "/v1/imports/cric", asked, ImportReport)) == {"Q1": "created", "Q2": "changed"}
    assert (queues(site)["Q2"].memory_mb, queues(site)["Q2"].gpus) == (16000, 2), "of GPUs CRIC says nothing"
    assert left(look(site)) == {}


def test_an_admin_can_look_at_once_and_only_see_what_would_be(site: Site, folder: Path) -> None:
    follow(site, folder)
    rows = site.row_counts()
    told = site.admin("POST", "/v1/imports/cric", ImportRequest(dry_run=True), ImportReport)
    assert len(changes(told)) == 16 and {**site.row_counts(), "event": 0} == {**rows, "event": 0}
    assert site.admin("POST", "/v1/imports/cric", ImportRequest(), ImportReport).changes == told.changes
    write(folder, queues={"Q0": QUEUES["Q0"]})
    site.clock.advance(1)
    told = site.admin("POST", "/v1/imports/cric", ImportRequest(), ImportReport)
    assert list(problems(told)) == ["queues"] and changes(told) == {}
    told = site.admin("POST", "/v1/imports/cric", ImportRequest(believe=True), ImportReport)
    assert len(changes(told)) == 9 and problems(told) == {}
    with pytest.raises(Refused, match="what is: cric") as refused:
        site.admin("POST", "/v1/imports/elsewhere", ImportRequest(), ImportReport)
    assert refused.value.status == 404


def test_distances_are_kept_to_storages_of_any_making(site: Site, folder: Path) -> None:
    site.put_site("RAL")
    site.put_storage("OURS", "RAL")
    follow(site, folder, sites="", storages="", queues="", blacklist="")
    site.put_site("CERN", distances={"ELSE": 5})
    write(
        folder, closeness=[{"src": "CERN", "dst": "RAL", "closeness": 11}, {"src": "X", "dst": "RAL", "closeness": 1}]
    )
    assert changes(look(site)) == {"CERN": "changed"}
    sites = {each.name: each for each in site.admin("GET", "/v1/sites", reply=SiteList).items}
    assert sites["CERN"].distances == {"ELSE": 5, "OURS": 100}
    write(folder, closeness=[])
    look(site)
    sites = {each.name: each for each in site.admin("GET", "/v1/sites", reply=SiteList).items}
    assert sites["CERN"].distances == {"ELSE": 5}


@pytest.mark.parametrize("first", ["cric", "other"])
def test_of_two_sources_of_a_storage_each_has_its_fields_whichever_is_first(
    site: Site, folder: Path, first: str
) -> None:
    follow(site, folder)
    plugins, other = site.dispatcher.plugins, Described()
    plugins.world_sources["other"] = other
    second = "other" if first == "cric" else "cric"
    for name in (first, second, first, second):
        site.clock.advance(1)
        site.admin("POST", f"/v1/imports/{name}", ImportRequest(), ImportReport)

    def storage() -> StorageSpec:
        return site.admin("GET", "/v1/storages/RAL_DATADISK", reply=StorageSpec)

    # CRIC is first in order: what it says is its; the name of files only the other says.
    assert (storage().endpoints[0].url, storage().tape, storage().naming.value) == (
        "davs://ral:443/data",
        False,
        "rucio-hash",
    )
    other.fields |= {"status": "offline", "naming": "rucio-identity"}
    site.admin("POST", "/v1/imports/other", ImportRequest(), ImportReport)
    assert (storage().status.value, storage().naming.value) == ("online", "rucio-identity")
    # CRIC has it no more: the other still has, and now all of it is the other's.
    write(folder, storages={name: each for name, each in STORAGES.items() if name != "RAL_DATADISK"})
    site.admin("POST", "/v1/imports/cric", ImportRequest(believe=True), ImportReport)
    assert (storage().status.value, storage().tape, storage().endpoints[0].url) == ("offline", True, "root://ral//x")
    sources = site.admin("GET", "/v1/imports", reply=ImportReports).items
    assert [each.source for each in sources] == ["cric", "other"]


def test_two_looks_at_once_and_an_admin_between_them_lose_nothing(site: Site) -> None:
    """Both had read the world before either wrote: the second failed, and wrote over what the admin had changed."""
    meeting = threading.Barrier(3, timeout=60)

    class Slow(Described):
        def described(self, world: World) -> list[Document]:
            meeting.wait()
            return super().described(world)

    site.dispatcher.plugins.world_sources["other"] = Slow()
    site.put_site("RAL")

    def ask() -> list[ImportChange]:
        return site.admin("POST", "/v1/imports/other", ImportRequest(), ImportReport).changes

    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask) for _ in range(2)]
        meeting.wait()
        mine = SiteSpec("RAL", description="ours")
        site.admin("PUT", "/v1/sites/RAL", mine)
        assert all([change.name for change in each.result()] == ["RAL_DATADISK"] for each in asked)
    assert site.admin("GET", "/v1/sites/RAL", reply=SiteSpec) == mine
    told = site.user_page("/v1/events?kind=IMPORT_CHANGED", EventPage).items
    assert [each.subject_id for each in told] == ["RAL_DATADISK"]


def test_two_sources_of_one_name_are_refused(folder: Path) -> None:
    catalog = {
        "plugin": "rucio",
        "rucio_host": "https://rucio.example",
        "account": "a",
        "auth_type": "oidc",
        "token_file": "/t",
    }
    config = ServerConfig(
        cric=CricConfig(sites=str(folder / "sites.json")), catalogs={"cric": {**catalog, "imports": {}}}
    )
    with pytest.raises(ConfigError, match=r"\[server.catalogs.cric\].*call it otherwise"):
        Plugins(config)


def test_it_is_looked_at_when_it_is_time_only(site: Site, folder: Path) -> None:
    follow(site, folder, period_s=100)
    report = look(site)
    site.clock.advance(99)
    import_world(site.dispatcher)
    assert reported(site).time == report.time
    site.clock.advance(1)
    import_world(site.dispatcher)
    assert reported(site).time > report.time
    site.dispatcher.plugins = Plugins(ServerConfig())
    assert import_world(site.dispatcher) == 0 and site.admin("GET", "/v1/imports", reply=ImportReports).items == []


# ---------------------------------------------------------------- over HTTP


class Web:
    """A server of one document, that counts what it was asked."""

    def __init__(self) -> None:
        self.content = json.dumps(SITES).encode()
        self.status = 200
        self.mark = {"ETag": '"1"'}
        self.seen: list[dict[str, str]] = []


@pytest.fixture
def web() -> Iterator[tuple[Web, str]]:
    made = Web()

    class Handler(BaseHTTPRequestHandler):
        wbufsize = 65536

        def do_GET(self) -> None:
            made.seen.append(dict(self.headers.items()))
            asked = {"ETag": self.headers.get("If-None-Match"), "Last-Modified": self.headers.get("If-Modified-Since")}
            known = made.mark and all(asked[name] == value for name, value in made.mark.items())
            status, content = (304, b"") if known and made.status == 200 else (made.status, made.content)
            self.send_response(status)
            for name, value in made.mark.items():
                self.send_header(name, value)
            self.send_header(
                "Content-Length",
                str(len(content) + (5 if made.status == 200 and not known and made.content.endswith(b"cut") else 0)),
            )
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield made, f"http://127.0.0.1:{server.server_port}/api/atlas/site/query/?json"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    "mark", [{"ETag": '"1"'}, {"Last-Modified": "Sun, 22 Nov 2026 00:00:00 GMT"}], ids=["etag", "date"]
)
def test_what_has_not_changed_is_not_sent_again(site: Site, web: tuple[Web, str], mark: dict[str, str]) -> None:
    server, url = web
    server.mark = mark
    site.dispatcher.plugins = Plugins(ServerConfig(cric=CricConfig(sites=url)))
    assert len(changes(look(site))) == 3
    report = look(site)
    assert problems(report) == {} and report.documents[0].entries == 3
    header = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}[next(iter(mark))]
    assert header not in server.seen[0] and header in server.seen[1]
    server.mark = {name: f"{value}x" for name, value in mark.items()}
    server.content = json.dumps({**SITES, "NEW": SITES["RAL"]}).encode()
    assert changes(look(site)) == {"NEW": "created"}


@pytest.mark.parametrize(
    "status, content", [(500, b"oops"), (404, b""), (302, b""), (304, b""), (200, b"cut"), (200, b"<html>")]
)
def test_a_source_that_fails_is_told_and_changes_nothing(
    site: Site, web: tuple[Web, str], status: int, content: bytes
) -> None:
    server, url = web
    server.status, server.content = status, content
    site.dispatcher.plugins = Plugins(ServerConfig(cric=CricConfig(sites=url, timeout_s=5)))
    report = look(site)
    assert list(problems(report)) == ["sites"]
    server.status, server.content = 200, json.dumps(SITES).encode()
    assert problems(look(site)) == {}


def test_a_source_that_is_not_there(site: Site, folder: Path) -> None:
    follow(site, folder, sites="http://127.0.0.1:9/x", queues=str(folder / "none.json"))
    assert {"sites", "queues"} <= set(problems(look(site)))
    with pytest.raises(PilotageError, match="ca_file"):
        Plugins(ServerConfig(cric=CricConfig(ca_file="/nowhere.pem")))
