"""Catalogues: what the plug-ins of the server answer, and what they never fetch."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import pytest

from common.config import ConfigError
from server.catalogs import file_list, rucio_listing
from server.catalogs.base import Catalog, CatalogUnavailable, UnknownDataset
from server.catalogs.file_list import FileListCatalog, FileListOptions
from server.catalogs.rucio_listing import Entry, Listing, Listings, TooMany
from server.catalogs.rucio_places import read_rse
from server.config import ServerConfig
from server.plugins import Plugins

LIST = "\n".join(f"s:f{n} disk:d/f{n} size={n}" for n in range(7))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lists" / "2026").mkdir(parents=True)
    (tmp_path / "lists" / "2026" / "mu.txt").write_text(LIST)
    (tmp_path / "lists" / "bad.txt").write_text("s:a\n")
    (tmp_path / "lists" / "el.json").write_text(
        json.dumps([{"did": "s:e", "replicas": [{"storage": "disk", "path": "e"}], "attributes": {"run": 1}}])
    )
    (tmp_path / "secret.txt").write_text("s:secret disk:x")
    (tmp_path / "lists" / "link.txt").symlink_to(tmp_path / "secret.txt")
    return tmp_path / "lists"


def everything(catalog: Catalog, query: str) -> list[str]:
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = catalog.files(query, after)
        found += [file.did for file in page.files]
        after = page.after
    return found


def test_a_list_comes_page_by_page_and_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_list, "PAGE", 3)
    catalog = FileListCatalog(FileListOptions(folder=str(folder)))
    reads = []
    real = FileListCatalog._read
    monkeypatch.setattr(FileListCatalog, "_read", lambda self, query: reads.append(query) or real(self, query))
    assert everything(catalog, "2026/mu.txt") == [f"s:f{n}" for n in range(7)]
    assert reads == ["2026/mu.txt"]
    assert everything(catalog, "2026/mu.txt") == [f"s:f{n}" for n in range(7)]
    assert len(reads) == 2  # from the beginning it is read anew: it may have grown
    assert catalog.files("2026/mu.txt", "6").files[0].did == "s:f6"  # another process goes on where one ended


def test_json_lists_keep_attributes(folder: Path) -> None:
    page = FileListCatalog(FileListOptions(folder=str(folder))).files("el.json", "")
    assert page.files[0].attributes == {"run": 1} and page.after is None


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("nope.txt", "no such list"),
        ("../secret.txt", "below the catalogue's folder"),
        ("2026/../../secret.txt", "below the catalogue's folder"),
        ("/etc/passwd", "below the catalogue's folder"),
        ("link.txt", "no such list"),
        ("2026", "no such list"),
        ("bad.txt", "has no replica"),
        ("2026/mu.txt\0", "below the catalogue's folder"),
        ("http://127.0.0.1:9/x.txt", "only below the addresses"),
    ],
)
def test_what_will_never_be_found_is_told_so(folder: Path, query: str, words: str) -> None:
    with pytest.raises(UnknownDataset, match=words):
        FileListCatalog(FileListOptions(folder=str(folder))).files(query, "")


@pytest.fixture
def web() -> Iterator[tuple[str, dict[str, tuple[int, bytes]]]]:
    """A server of lists, and what it answers to which path."""
    answers: dict[str, tuple[int, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path, (404, b""))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", body.decode())
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/lists/", answers
    server.shutdown()
    server.server_close()


def test_a_list_behind_an_address_that_is_allowed(web: tuple[str, dict[str, tuple[int, bytes]]]) -> None:
    base, answers = web
    catalog = FileListCatalog(FileListOptions(urls=[base]))
    answers["/lists/mu.txt?v=2"] = (200, LIST.encode())
    assert len(everything(catalog, f"{base}mu.txt?v=2")) == 7


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, UnknownDataset),
        (403, UnknownDataset),
        (302, UnknownDataset),
        (500, CatalogUnavailable),
        (429, CatalogUnavailable),
    ],
)
def test_a_status_says_whether_asking_again_helps(
    web: tuple[str, dict[str, tuple[int, bytes]]], status: int, kind: type[Exception]
) -> None:
    base, answers = web
    answers["/lists/x.txt"] = (status, b"http://127.0.0.1:9/elsewhere.txt")
    answers["/elsewhere.txt"] = (200, b"s:a disk:a")
    with pytest.raises(kind, match=str(status)):
        FileListCatalog(FileListOptions(urls=[base])).files(f"{base}x.txt", "")


@pytest.mark.parametrize("path", ["../secret.txt", "%2e%2e/secret.txt", "a/%2E./../x.txt", "..\\x.txt"])
def test_no_way_leads_out_of_an_address_that_is_allowed(
    web: tuple[str, dict[str, tuple[int, bytes]]], path: str
) -> None:
    base, _ = web
    with pytest.raises(UnknownDataset, match="only below"):
        FileListCatalog(FileListOptions(urls=[base])).files(base + path, "")


def test_a_huge_list_is_not_read_to_its_end(
    web: tuple[str, dict[str, tuple[int, bytes]]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, answers = web
    monkeypatch.setattr(file_list, "MAX_BYTES", 20)
    answers["/lists/mu.txt"] = (200, LIST.encode())
    for options, query in (({"urls": [base]}, f"{base}mu.txt"), ({"folder": str(folder)}, "2026/mu.txt")):
        with pytest.raises(UnknownDataset, match="larger than 20 bytes"):
            FileListCatalog(msgspec.convert(options, FileListOptions)).files(query, "")


def test_a_server_that_does_not_answer_may_answer_later() -> None:
    catalog = FileListCatalog(FileListOptions(urls=["http://127.0.0.1:9/"]))
    with pytest.raises(CatalogUnavailable, match="127.0.0.1:9/x.txt"):
        catalog.files("http://127.0.0.1:9/x.txt", "")


@pytest.mark.parametrize(
    ("section", "table", "words"),
    [
        ("catalogs", {"plugin": "nope"}, r"\[server.catalogs.x\] plugin: there is no 'nope'; known: .*file-list"),
        ("catalogs", {}, r"\[server.catalogs.x\] plugin: there is no None"),
        ("catalogs", {"plugin": "fake", "pages": 1}, r"\[server.catalogs.x\] .*unknown field `pages`"),
        ("catalogs", {"plugin": "file-list", "urls": ["ftp://x/"]}, r"\[server.catalogs.x\]"),
        ("stagers", {"plugin": "wlcg-tape-rest"}, r"\[server.stagers.x\] .*`url`"),
        ("stagers", {"plugin": "file-list"}, r"\[server.stagers.x\] plugin: there is no 'file-list'"),
    ],
)
def test_a_wrong_section_is_told_at_the_start(section: str, table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Plugins(msgspec.convert({section: {"x": table}}, ServerConfig))


def test_a_list_of_rucio_is_paged_from_a_file_and_eats_no_memory() -> None:
    entries = (Entry("test", f"file.{number:08}", 1000, "0cc737eb", 10) for number in range(200_000))
    tracemalloc.start()
    listing = Listing("test:ds", frozenset())
    listing.fill(entries)
    first, there = listing.page(0, 1000)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2_000_000
    assert (len(first), first[-1].name, there is not None) == (1000, "file.00000999", True)
    last, end = listing.page(there or 0, 200_000)
    assert (len(last), end) == (199_000, None)


def test_lists_that_nobody_asks_for_any_more_are_let_go_and_others_wait_for_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rucio_listing, "MOST", 1)
    listings = Listings()
    name = listings.begin(lambda: Listing("a", frozenset()))
    assert listings.get(name, "another query") is None
    with pytest.raises(TooMany, match="this one waits"):
        listings.begin(lambda: Listing("b", frozenset()))
    held = listings.get(name, "a")
    assert held is not None
    held.touched -= rucio_listing.FORSAKEN_S + 1
    assert listings.begin(lambda: Listing("b", frozenset()))
    assert held.file.closed


@pytest.mark.parametrize(
    ("prefix", "url", "path"),
    [
        ("//rucio/", "root://host:1094//rucio/test/aa/bb/f", "test/aa/bb/f"),
        ("/", "root://host:1094//test/f", "test/f"),
        ("/dav/x", "davs://host/dav/x/f?authz=secret", "f"),
        ("/pnfs/d/", "srm://host:8443/srm/managerv2?SFN=/pnfs/d/f", "f"),
        ("/rucio/", "root://host//elsewhere/f", None),
        ("/rucio/", "root://host//rucio/../etc/passwd", None),
        ("/rucio/", "root://host//rucio/%2e%2e/f", None),
        ("/rucio/", "root://host//rucio/", None),
        ("/rucio/", "root://host//rucioother/f", None),
    ],
)
def test_the_path_of_a_replica_is_what_its_url_has_below_the_prefix(prefix: str, url: str, path: str | None) -> None:
    protocols = [{"scheme": url.partition(":")[0], "hostname": "host", "port": 1, "prefix": prefix, "domains": {}}]
    assert read_rse({"rse": "X", "protocols": protocols}, {}).path(url) == path
