"""Which credential a pilot may have."""

from __future__ import annotations

import pytest

from common.wire import Activity, CredentialKind, Endpoint, ReplicaSpec, SiteSpec, StorageSpec
from server.engine.credentials import MOST_SCOPE_CHARS, File, Held, grant, scope_path
from server.engine.world import World, gives_direct

XROOTD = Endpoint("root://disk:1094//data", credential=CredentialKind.TOKEN, provider="wlcg", audience="https://disk")
WEB = Endpoint("https://disk/data", [Activity.READ_WAN], CredentialKind.TOKEN, "wlcg", audience="https://disk")
WORLD = World(
    sites={"s": SiteSpec("s"), "t": SiteSpec("t")},
    storages={
        "disk": StorageSpec(name="disk", site="s", endpoints=[XROOTD, WEB]),
        "other": StorageSpec(name="other", site="t", endpoints=[Endpoint("root://other//data")]),
    },
)
HELD = Held("s", [ReplicaSpec("disk", "d/a"), ReplicaSpec("disk", "d/b c"), ReplicaSpec("other", "d/a")])
A, B = "root://disk:1094//data/d/a", "root://disk:1094//data/d/b%20c"


def test_an_input_is_read_and_nothing_else() -> None:
    found = grant(WORLD, HELD, [A], write=False)
    assert found is not None
    assert (found.storage, found.scopes, found.covers) == ("disk", ("storage.read:/data/d/a",), (A,))
    assert grant(WORLD, HELD, [A], write=True) is None


@pytest.mark.parametrize(
    "url",
    [
        "root://disk:1094//data/d/z",
        "root://disk:1094//data/d/",
        "root://disk:1094//data/d",
        "root://disk:1094//data/d/x/../a",
        "root://disk:1094//data/d/a?authz=x",
        "root://elsewhere//data/d/a",
        "https://disk/data/d/a",  # for those who are far only
        "",
    ],
)
def test_what_the_server_did_not_name_gets_nothing(url: str) -> None:
    assert grant(WORLD, HELD, [url], write=False) is None
    assert grant(WORLD, HELD, [url, A], write=False) is None
    found = grant(WORLD, HELD, [A, url], write=False)
    assert found is not None and found.covers == (A,)


def test_one_token_covers_what_fits_on_the_same_endpoint() -> None:
    found = grant(WORLD, HELD, [B, A, "root://other//data/d/a"], write=False)
    assert found is not None
    assert found.scopes == ("storage.read:/data/d/b%20c", "storage.read:/data/d/a")
    many = Held("s", [ReplicaSpec("disk", f"d/{n:050}") for n in range(200)])
    urls = [f"root://disk:1094//data/d/{n:050}" for n in range(200)]
    found = grant(WORLD, many, urls[150:] + urls, write=False)
    assert found is not None and found.covers[0] == urls[150] and len(found.covers) == len(found.scopes) > 20
    assert len(" ".join(found.scopes)) <= MOST_SCOPE_CHARS


def test_outputs_go_to_the_jobs_own_folder() -> None:
    held = Held("s", outputs=[File("disk", "u/1/2/1.2.x"), File("disk", "u/1/2/1.2.y")])
    own = "root://disk:1094//data/u/1/2/"
    for name in ("1.2.x", ".pilotage-0-1.part"):
        found = grant(WORLD, held, [own + name], write=True)
        assert found is not None and found.covers == (own,)
        assert found.scopes == tuple(f"storage.{word}:/data/u/1/2" for word in ("read", "create", "modify"))
    for url in (own, own + "..", own + "%2e%2e", own + "deep/x", own + "..%2f3%2fx", "root://disk:1094//data/u/1/3/x"):
        assert grant(WORLD, held, [url], write=True) is None
    read = grant(WORLD, held, [own + "1.2.x"], write=False)
    assert read is not None and read.scopes == ("storage.read:/data/u/1/2",)


def test_what_a_lost_job_left_may_be_removed_file_by_file() -> None:
    held = Held("s", abandoned=[File("disk", "u/1/2/1.2.x")])
    found = grant(WORLD, held, ["root://disk:1094//data/u/1/2/1.2.x"], write=True)
    assert found is not None and "storage.modify:/data/u/1/2/1.2.x" in found.scopes
    assert grant(WORLD, held, ["root://disk:1094//data/u/1/2/1.2.log"], write=True) is None
    assert grant(WORLD, held, ["root://disk:1094//data/u/1/2/1.2.x"], write=False) is None


def test_scopes_leave_out_what_the_storage_puts_before_them() -> None:
    for prefix, path in (("", "/data/d/a"), ("/data", "/d/a"), ("/data/", "/d/a"), ("/da", "/data/d/a")):
        endpoint = Endpoint(XROOTD.url, credential=CredentialKind.TOKEN, token_prefix=prefix)
        assert scope_path(endpoint, A) == path


def test_a_proxy_of_the_whole_robot_is_not_a_payloads() -> None:
    endpoint = Endpoint("root://h//d", credential=CredentialKind.PROXY, provider="robot")
    assert not gives_direct(endpoint)
    reader = Endpoint("root://h//d", credential=CredentialKind.PROXY, provider="robot", payload_provider="reader")
    assert gives_direct(reader) and gives_direct(XROOTD)
    world = World(storages={"x": StorageSpec(name="x", site="s", endpoints=[endpoint])})
    assert world.direct("s") == frozenset()
