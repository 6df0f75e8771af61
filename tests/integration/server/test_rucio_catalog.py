"""Rucio as a catalogue of input, against a real Rucio server: what datasets hold, where it lies, and what goes wrong."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.config import ConfigError
from common.tokens import write_secret_file
from common.wire import FileSpec
from server.catalogs import rucio as rucio_module
from server.catalogs.base import CatalogUnavailable, UnknownDataset
from server.catalogs.rucio import RucioCatalog, RucioOptions
from server.config import ServerConfig
from server.plugins import Plugins
from tests.services.base import free_port, wait_until
from tests.services.rucio import SCOPE, RucioServer

XRD, DAV, TAPE = "SITEA_XRD", "SITEB_DAV", "SITEB_TAPE"
MAY = {"read": 1, "write": 1, "delete": 1}


def unique(prefix: str) -> str:
    return f"{prefix}.{uuid.uuid4().hex[:10]}"


@pytest.fixture(scope="module")
def rses(rucio: RucioServer) -> RucioServer:
    """The server, with three RSEs more: by XRootD, by WebDAV (takes any path), and a tape."""
    rucio.add_rse(XRD, "root", "localhost", 11094, "//rucio/data/", "rucio.rse.protocols.xrootd.Default")
    rucio.add_rse(
        DAV, "davs", "localhost", 12443, "/dav/rucio/", "rucio.rse.protocols.webdav.Default", deterministic=False
    )
    rucio.add_rse(TAPE, "root", "localhost", 11095, "//tape/", "rucio.rse.protocols.xrootd.Default", rse_type="TAPE")
    return rucio


@pytest.fixture
def options(rses: RucioServer, tmp_path: Path) -> dict[str, Any]:
    return rses.access(tmp_path)


@pytest.fixture
def catalog(options: dict[str, Any]) -> RucioCatalog:
    return RucioCatalog(RucioOptions(**options))


def everything(catalog: RucioCatalog, query: str) -> dict[str, FileSpec]:
    return {file.did: file for page in pages(catalog, query) for file in page}


def pages(catalog: RucioCatalog, query: str) -> Iterator[list[FileSpec]]:
    after: str | None = ""
    while after is not None:
        page = catalog.files(query, after)
        yield page.files
        after = page.after


def test_a_dataset_becomes_files_with_size_checksum_events_and_replicas(
    rses: RucioServer, catalog: RucioCatalog
) -> None:
    a, b = unique("a"), unique("b")
    rses.add_files(XRD, [a], meta={"events": 250, "guid": uuid.uuid4().hex})
    rses.add_files(XRD, [b])
    rses.add_files(DAV, [a], pfn=f"davs://localhost:12443/dav/rucio/some/where/{a}")
    did = rses.add_dataset(unique("ds"), [a, b])
    files = everything(catalog, did)
    assert set(files) == {f"{SCOPE}:{a}", f"{SCOPE}:{b}"}
    first = files[f"{SCOPE}:{a}"]
    assert (first.size, first.checksum, first.events) == (1000, "adler32:0cc737eb", 250)
    assert len(first.attributes["guid"]) == 32
    places = {replica.storage: replica.path for replica in first.replicas}
    assert set(places) == {XRD, DAV}
    assert places[DAV] == f"some/where/{a}"
    # The path of a deterministic RSE is a hash of the name: scope/xx/yy/name.
    assert places[XRD].split("/")[0] == SCOPE and places[XRD].endswith(f"/{a}") and places[XRD].count("/") == 3


def test_a_container_gives_the_files_of_its_datasets(rses: RucioServer, catalog: RucioCatalog) -> None:
    names = [unique("f") for _ in range(4)]
    rses.add_files(XRD, names)
    one, two = unique("one"), unique("two")
    rses.add_dataset(one, names[:2])
    rses.add_dataset(two, names[2:])
    did = rses.add_dataset(unique("all"), [one, two], kind="CONTAINER")
    assert set(everything(catalog, did)) == {f"{SCOPE}:{name}" for name in names}


def test_a_dataset_of_many_pages_costs_a_call_a_page(
    rses: RucioServer, catalog: RucioCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rucio_module, "PAGE", 100)
    names = [unique("many") for _ in range(250)]
    rses.add_files(XRD, names)
    did = rses.add_dataset(unique("big"), names)
    before = len(rses.requests())
    sizes = [len(page) for page in pages(catalog, did)]
    assert sizes == [100, 100, 50]
    wait_until(lambda: len(rses.requests()) >= before + 8, "the server has written its log")
    made = [line.rsplit(" ", 1)[0] for line in rses.requests()[before:]]
    # ping, login, suspicious replicas, the list, its RSE, and a call for the replicas of each page
    assert made.count("POST /replicas/list") == 3
    assert len(made) == 8, made


def test_a_list_that_was_lost_is_read_again_from_its_beginning(
    rses: RucioServer, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rucio_module, "PAGE", 2)
    names = [unique("lost") for _ in range(3)]
    rses.add_files(XRD, names)
    did = rses.add_dataset(unique("lost"), names)
    page = RucioCatalog(RucioOptions(**options)).files(did, "")
    assert page.after is not None
    again = RucioCatalog(RucioOptions(**options)).files(did, page.after)  # the server began anew meanwhile
    assert [file.did for file in again.files] == [file.did for file in page.files]
    assert again.after not in (None, page.after)


def test_replicas_that_are_bad_suspicious_or_not_available_are_left_out(
    rses: RucioServer, catalog: RucioCatalog
) -> None:
    good, bad, odd, coming = (unique(word) for word in ("good", "bad", "odd", "coming"))
    rses.add_files(XRD, [good, bad, odd])
    rses.add_files(XRD, [coming], state="C")
    rses.add_files(DAV, [odd], pfn=f"davs://localhost:12443/dav/rucio/{odd}")
    rses.call("POST", "/replicas/bad/dids", {"dids": [{"scope": SCOPE, "name": bad}], "reason": "torn", "rse": XRD})
    url = next(iter(rses.replicas(f"{SCOPE}:{odd}")[0]["rses"][XRD]))
    rses.call("POST", "/replicas/suspicious", {"pfns": [url], "reason": "slow"})
    did = rses.add_dataset(unique("ds"), [good, bad, odd, coming])
    files = everything(catalog, did)
    found = {name: [each.storage for each in files[f"{SCOPE}:{name}"].replicas] for name in (good, bad, odd, coming)}
    assert found == {good: [XRD], bad: [], odd: [DAV], coming: []}


def test_an_rse_that_is_closed_for_reading_counts_for_nothing(rses: RucioServer, options: dict[str, Any]) -> None:
    name, rse = unique("closed"), "CLOSED_" + uuid.uuid4().hex[:6].upper()
    rses.add_rse(rse, "root", "localhost", 11096, "//x/", "rucio.rse.protocols.xrootd.Default")
    rses.add_files(rse, [name])
    did = rses.add_dataset(unique("ds"), [name])
    catalog = RucioCatalog(RucioOptions(**options))
    assert everything(catalog, did)[f"{SCOPE}:{name}"].replicas
    rses.call("PUT", f"/rses/{rse}", {"availability_read": False})
    assert not everything(catalog, did)[f"{SCOPE}:{name}"].replicas


def test_an_rse_expression_chooses_and_names_are_translated(rses: RucioServer, options: dict[str, Any]) -> None:
    name = unique("both")
    rses.add_files(XRD, [name])
    rses.add_files(TAPE, [name])
    did = rses.add_dataset(unique("ds"), [name])
    chosen = RucioCatalog(RucioOptions(**options, rse_expression=f"*\\{TAPE}", storages={XRD: "OURS"}))
    assert [each.storage for each in everything(chosen, did)[f"{SCOPE}:{name}"].replicas] == ["OURS"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (f"{SCOPE}:no.such.dataset", "nothing of this name"),
        ("tets:dataset", "no scope 'tets'; near: test"),
        ("dataset", "as scope:name"),
        (f"{SCOPE}:", "as scope:name"),
        (f"{SCOPE}:two words", "as scope:name"),
    ],
)
def test_what_is_not_there_is_said_in_words(catalog: RucioCatalog, query: str, words: str) -> None:
    with pytest.raises(UnknownDataset, match=words):
        catalog.files(query, "")


def test_an_empty_dataset_has_no_files(rses: RucioServer, catalog: RucioCatalog) -> None:
    assert everything(catalog, rses.add_dataset(unique("empty"), [])) == {}


def test_an_expired_token_is_renewed(rses: RucioServer, catalog: RucioCatalog) -> None:
    name = unique("f")
    rses.add_files(XRD, [name])
    did = rses.add_dataset(unique("ds"), [name])
    expired = rses.token()
    rses.expire(expired)
    catalog._client._token = expired
    assert everything(catalog, did)
    assert catalog._client._token != expired


def test_a_wrong_password_waits_and_says_so(options: dict[str, Any], tmp_path: Path) -> None:
    write_secret_file(tmp_path / "rucio.password", "wrong")
    with pytest.raises(CatalogUnavailable, match="CannotAuthenticate"):
        RucioCatalog(RucioOptions(**options)).files(f"{SCOPE}:x", "")


def test_a_password_that_others_may_read_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rucio.password").chmod(0o644)
    with pytest.raises(CatalogUnavailable, match="chmod 600"):
        RucioCatalog(RucioOptions(**options)).files(f"{SCOPE}:x", "")


def test_rucio_that_does_not_answer_its_ping_is_asked_nothing_more(rses: RucioServer, options: dict[str, Any]) -> None:
    away = {**options, "rucio_host": f"http://127.0.0.1:{free_port()}"}
    with pytest.raises(CatalogUnavailable, match="does not answer"):
        RucioCatalog(RucioOptions(**away)).files(f"{SCOPE}:x", "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"auth_type": "x509_proxy"}, "needs client_proxy"),
        ({"auth_type": "oidc"}, "needs token_file"),
        ({"rucio_host": "http://rucio.example.org"}, "https only"),
        ({"rucio_host": "https://rucio.example.org", "ca_file": "/nonexistent/ca"}, "/nonexistent/ca"),
        ({"auth_type": "kerberos"}, "auth_type"),
    ],
)
def test_a_wrong_section_stops_the_server_at_its_start(
    options: dict[str, Any], change: dict[str, str], words: str
) -> None:
    section = {"plugin": "rucio", **options, **change}
    with pytest.raises(ConfigError if "/non" not in words else Exception, match=words):
        Plugins(ServerConfig(catalogs={"rucio": section}))


def test_it_finds_the_replicas_of_files_that_another_catalogue_has_found(
    rses: RucioServer, catalog: RucioCatalog
) -> None:
    a, b, gone = unique("a"), unique("b"), unique("gone")
    rses.add_files(XRD, [a])
    for name in (a, b):
        rses.add_files(DAV, [name], pfn=f"davs://localhost:12443/dav/rucio/{name}")
    found = catalog.locate([f"{SCOPE}:{name}" for name in (a, b, gone)])
    places = {each.did: [replica.storage for replica in each.replicas] for each in found}
    assert places == {f"{SCOPE}:{a}": [XRD, DAV], f"{SCOPE}:{b}": [DAV]}
    assert all(each.size is not None and each.checksum is not None for each in found)
