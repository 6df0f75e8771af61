"""Rucio as the catalogue of outputs, against a real Rucio server: what it knows afterwards, twice over, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.config import ConfigError
from common.plugins import PluginError
from common.tokens import write_secret_file
from common.wire import OutputNaming
from server.catalogs import rucio_books
from server.catalogs.registration import Answer, Outcome, OutputFile, Place, Unavailable, load_registrar
from server.catalogs.rucio_books import RucioBooks
from server.catalogs.rucio_client import RucioDenied, RucioDown
from server.catalogs.rucio_registrar import RucioRegistrar, RucioRegistrarOptions
from server.config import ServerConfig
from server.engine.naming import fixed_path
from server.plugins import Plugins
from tests.services.base import free_port, wait_until
from tests.services.rucio import SCOPE, RucioServer

HASHED, ANY = "OUT_XRD", "OUT_DAV"
DONE = Answer(Outcome.DONE)


@pytest.fixture(scope="module")
def rses(rucio: RucioServer) -> RucioServer:
    """The server with an RSE that makes paths of names, and one that takes any."""
    rucio.add_rse(HASHED, "root", "localhost", 11097, "//rucio/", "rucio.rse.protocols.xrootd.Default")
    rucio.add_rse(
        ANY, "davs", "localhost", 12444, "/dav/rucio/", "rucio.rse.protocols.webdav.Default", deterministic=False
    )
    return rucio


@pytest.fixture
def options(rses: RucioServer, tmp_path: Path) -> dict[str, Any]:
    return rses.access(tmp_path)


@pytest.fixture
def registrar(options: dict[str, Any]) -> RucioRegistrar:
    return RucioRegistrar(RucioRegistrarOptions(**options))


def output(dataset: str, storage: str = HASHED, name: str = "", **more: Any) -> OutputFile:
    """An output as a job has left it: in its dataset for all, and in that of its storage, which has the rule."""
    name = name or f"17.{uuid.uuid4().int % 10**9}.out.root"
    path = fixed_path(OutputNaming.RUCIO_HASH, SCOPE, name) if storage == HASHED else f"{SCOPE}/17/4/{name}"
    places = (Place(dataset), Place(f"{dataset}-{storage}", storage, 30, time.time() + 30 * 86400.0))
    file = OutputFile(f"{SCOPE}:{name}", storage, path, "", 4096, "adler32:0cc737eb", 12, {}, places)
    return replace(file, **more)


def dataset() -> str:
    return f"{SCOPE}:w1.reco.{uuid.uuid4().hex[:8]}"


def content(rucio: RucioServer, did: str) -> set[str]:
    scope, _, name = did.partition(":")
    lines = rucio.call("GET", f"/dids/{scope}/{name}/files").splitlines()
    return {f"{each['scope']}:{each['name']}" for each in map(json.loads, filter(None, lines))}


def rules(rucio: RucioServer, did: str) -> list[dict[str, Any]]:
    scope, _, name = did.partition(":")
    return [json.loads(line) for line in rucio.call("GET", f"/dids/{scope}/{name}/rules").splitlines() if line]


def test_files_datasets_and_rules_are_there_afterwards(rses: RucioServer, registrar: RucioRegistrar) -> None:
    where = dataset()
    files = [output(where), output(where), output(where, ANY)]
    assert registrar.register(files) == [DONE] * 3
    assert content(rses, where) == {file.did for file in files}
    assert content(rses, f"{where}-{HASHED}") == {file.did for file in files[:2]}
    for file in files:
        known = rses.replicas(file.did)[0]
        assert (known["bytes"], known["adler32"], known["states"]) == (4096, "0cc737eb", {file.storage: "AVAILABLE"})
    there = next(iter(rses.replicas(files[2].did)[0]["rses"][ANY]))
    assert there == f"davs://localhost:12444/dav/rucio/{files[2].path}"
    assert rules(rses, where) == []
    rule = rules(rses, f"{where}-{HASHED}")[0]
    assert (rule["rse_expression"], rule["account"]) == (HASHED, "root")
    assert 29.9 < days_from_now(rule["expires_at"]) < 30.1


def days_from_now(when: str) -> float:
    moment = time.mktime(time.strptime(when, "%a, %d %b %Y %H:%M:%S %Z")) - time.timezone
    return (moment - time.time()) / 86400.0


def test_the_same_call_again_changes_nothing(rses: RucioServer, options: dict[str, Any]) -> None:
    where = dataset()
    files = [output(where), output(where, ANY)]
    for _ in range(3):
        # A new one each time: the server that called before has crashed, and remembers nothing.
        assert RucioRegistrar(RucioRegistrarOptions(**options)).register(files) == [DONE] * 2
    assert content(rses, where) == {file.did for file in files}
    assert len(rules(rses, f"{where}-{HASHED}")) == 1


@pytest.mark.parametrize("call", ["add_replicas", "add_datasets", "attach", "add_rule", "replicas", "not_listed"])
@pytest.mark.parametrize("served", [False, True])
def test_a_crash_between_any_two_calls_is_made_up_for(
    rses: RucioServer, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, call: str, served: bool
) -> None:
    where = dataset()
    files = [output(where), output(where, ANY)]
    real = getattr(RucioBooks, call)

    def dies(self: RucioBooks, *arguments: Any) -> Any:
        if served:
            real(self, *arguments)
        raise RucioDown("the line was cut")

    with monkeypatch.context() as patch:
        patch.setattr(RucioBooks, call, dies)
        with pytest.raises(Unavailable):
            RucioRegistrar(RucioRegistrarOptions(**options)).register(files)
    assert RucioRegistrar(RucioRegistrarOptions(**options)).register(files) == [DONE] * 2
    assert content(rses, where) == {file.did for file in files}
    assert [len(rules(rses, f"{where}-{storage}")) for storage in (HASHED, ANY)] == [1, 1]


def test_another_file_of_the_name_is_refused_and_the_others_go_on(rses: RucioServer, registrar: RucioRegistrar) -> None:
    where = dataset()
    taken, free = output(where), output(where)
    assert registrar.register([taken]) == [DONE]
    answers = registrar.register([replace(taken, checksum="adler32:00000007"), free, replace(taken, size=1)])
    assert [each.outcome for each in answers] == [Outcome.REFUSED, Outcome.DONE, Outcome.REFUSED]
    assert "another file of the name" in answers[0].words
    assert rses.replicas(taken.did)[0]["bytes"] == 4096


def test_a_bad_name_among_many_is_found_and_the_others_are_registered(
    rses: RucioServer, registrar: RucioRegistrar
) -> None:
    where = dataset()
    good = [output(where) for _ in range(4)]
    bad = output(where, name=f"17.{uuid.uuid4().int % 10**9}.out put!.root")
    answers = registrar.register([good[0], good[1], bad, good[2], good[3]])
    assert [each.outcome for each in answers] == [Outcome.DONE, Outcome.DONE, Outcome.REFUSED, *[Outcome.DONE] * 2]
    assert content(rses, where) == {file.did for file in good}


def test_a_scope_that_is_not_there_is_refused(registrar: RucioRegistrar) -> None:
    name = "17.4.out.root"
    path = fixed_path(OutputNaming.RUCIO_HASH, "nowhere", name)
    answer = registrar.register([output(dataset(), did=f"nowhere:{name}", path=path)])[0]
    assert answer.outcome == Outcome.REFUSED
    assert "no scope nowhere" in answer.words


def test_a_file_where_rucio_does_not_look_is_refused(registrar: RucioRegistrar) -> None:
    answer = registrar.register([output(dataset(), path=f"{SCOPE}/17/4/elsewhere")])[0]
    assert answer.outcome == Outcome.REFUSED
    assert "where Rucio does not look" in answer.words


def test_a_storage_that_is_no_rse_waits_for_the_admin(registrar: RucioRegistrar) -> None:
    answer = registrar.register([output(dataset(), storage="UNKNOWN")])[0]
    assert (answer.outcome, "no RSE UNKNOWN" in answer.words) == (Outcome.AGAIN, True)


def test_one_scope_where_we_may_not_write_holds_up_its_own_files_only(
    rses: RucioServer, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a single workflow in a scope of somebody else's would keep everybody's jobs waiting."""
    real = RucioBooks.add_replicas

    def only_test(self: RucioBooks, rse: str, documents: Any) -> None:
        if any(each["scope"] != SCOPE for each in documents):
            raise RucioDenied("AccessDenied: not in this scope")
        real(self, rse, documents)

    rses.call("POST", f"/scopes/root/{(theirs := 'theirs' + uuid.uuid4().hex[:6])}")
    monkeypatch.setattr(RucioBooks, "add_replicas", only_test)
    file, name = output(dataset()), f"17.{uuid.uuid4().int % 10**9}.out.root"
    other = replace(output(dataset()), did=f"{theirs}:{name}", path=fixed_path(OutputNaming.RUCIO_HASH, theirs, name))
    answers = RucioRegistrar(RucioRegistrarOptions(**options)).register([other, file])
    assert [each.outcome for each in answers] == [Outcome.AGAIN, Outcome.DONE]


def test_an_account_that_may_not_write_waits_and_says_so(
    rses: RucioServer, options: dict[str, Any], tmp_path: Path
) -> None:
    name = "reader" + uuid.uuid4().hex[:6]
    rses.call("POST", f"/accounts/{name}", {"type": "SERVICE", "email": "r@example.org"})
    identity = {"authtype": "USERPASS", "email": "r@example.org", "password": "weak", "default": True}
    rses.call("POST", f"/accounts/{name}/identities", {"identity": name, **identity})
    write_secret_file(tmp_path / "weak", "weak")
    who = {"account": name, "username": name, "password_file": str(tmp_path / "weak")}
    answer = RucioRegistrar(RucioRegistrarOptions(**{**options, **who})).register([output(dataset())])[0]
    assert answer.outcome == Outcome.AGAIN
    assert f"does not let account {name}" in answer.words


def test_a_storage_may_be_called_otherwise(rses: RucioServer, options: dict[str, Any]) -> None:
    registrar = RucioRegistrar(RucioRegistrarOptions(**options, storages={HASHED: "OURS"}))
    where = dataset()
    file = output(where)
    places = (Place(where), Place(f"{where}-OURS", "OURS"))
    assert registrar.register([replace(file, storage="OURS", datasets=places)]) == [DONE]
    rule = rules(rses, f"{where}-OURS")[0]
    assert (rule["rse_expression"], rule["expires_at"]) == (HASHED, None)


def test_a_dataset_that_is_closed_refuses_its_files_only(rses: RucioServer, registrar: RucioRegistrar) -> None:
    closed, other = dataset(), dataset()
    assert registrar.register([output(closed)]) == [DONE]
    rses.call("PUT", f"/dids/{SCOPE}/{closed.partition(':')[2]}/status", {"open": False})
    answers = registrar.register([output(closed), output(other)])
    assert [each.outcome for each in answers] == [Outcome.REFUSED, Outcome.DONE]
    assert "is closed" in answers[0].words


def test_a_container_of_the_name_refuses_its_files(rses: RucioServer, registrar: RucioRegistrar) -> None:
    name = f"cont.{uuid.uuid4().hex[:6]}"
    rses.add_dataset(name, [], kind="CONTAINER")
    answer = registrar.register([output(f"{SCOPE}:{name}")])[0]
    assert (answer.outcome, "is no dataset" in answer.words) == (Outcome.REFUSED, True)


def test_a_full_account_waits_with_its_rule(rses: RucioServer, registrar: RucioRegistrar) -> None:
    rse = "FULL_" + uuid.uuid4().hex[:6].upper()
    rses.add_rse(rse, "root", "localhost", 11098, "//full/", "rucio.rse.protocols.xrootd.Default")
    rses.call("POST", f"/accountlimits/local/root/{rse}", {"bytes": 0})
    where = dataset()
    file = output(where)
    full = replace(file, storage=rse, datasets=(Place(where), Place(f"{where}-{rse}", rse)))
    answers = registrar.register([full, output(dataset())])
    assert answers[1] == DONE
    # The quota of an empty dataset is not exceeded: Rucio of this version takes the rule, or says that there is no room.
    assert answers[0] == DONE or (answers[0].outcome, "Insufficient" in answers[0].words) == (Outcome.AGAIN, True)


def test_a_rule_whose_time_is_over_is_not_made(rses: RucioServer, registrar: RucioRegistrar) -> None:
    where = dataset()
    file = output(where)
    over = Place(f"{where}-{HASHED}", HASHED, 1, time.time() - 5)
    assert registrar.register([replace(file, datasets=(Place(where), over))]) == [DONE]
    assert rules(rses, over.did) == []


def test_in_a_large_dataset_each_file_is_asked_for_its_datasets(
    rses: RucioServer, registrar: RucioRegistrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rucio_books, "MOST_LINES", 2)
    where = dataset()
    assert registrar.register([output(where) for _ in range(5)]) == [DONE] * 5
    missing = registrar.books.not_listed({(where, f"{SCOPE}:not.there")})
    assert missing == {(where, f"{SCOPE}:not.there")}


def test_what_rucio_does_not_list_comes_again(
    rses: RucioServer, registrar: RucioRegistrar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that says it is done is not believed."""
    monkeypatch.setattr(RucioBooks, "attach", lambda *_: None)
    where = dataset()
    answer = registrar.register([output(where)])[0]
    assert (answer.outcome, "does not list it in" in answer.words) == (Outcome.AGAIN, True)


def test_withdrawn_files_are_unknown_and_those_of_others_stay(rses: RucioServer, registrar: RucioRegistrar) -> None:
    where = dataset()
    mine, kept, theirs = output(where), output(where), output(where)
    assert registrar.register([mine, kept, theirs]) == [DONE] * 3
    other = replace(theirs, checksum="adler32:00000009")
    never = output(where)
    assert [each.outcome for each in registrar.withdraw([mine, other, never])] == [Outcome.DONE] * 3
    assert content(rses, where) == {kept.did, theirs.did}
    # Nobody may delete replicas by Rucio's own permissions, so they are called bad, and given out no more.
    assert "AVAILABLE" not in [state for each in rses.replicas(mine.did) for state in each["states"].values()]
    assert registrar.withdraw([mine]) == [DONE]


def test_rucio_that_is_away_is_unavailable(options: dict[str, Any]) -> None:
    away = RucioRegistrar(RucioRegistrarOptions(**{**options, "rucio_host": f"http://127.0.0.1:{free_port()}"}))
    for call in (away.register, away.withdraw):
        with pytest.raises(Unavailable, match="does not answer"):
            call([output(dataset())])


def test_sections_of_the_configuration(options: dict[str, Any]) -> None:
    made = Plugins(ServerConfig(registrars={"r": {"plugin": "rucio", **options}, "f": {"plugin": "fake"}})).registrars
    assert isinstance(made["r"], RucioRegistrar)
    with pytest.raises(ConfigError, match=r"\[server.registrars.f\].*colour"):
        Plugins(ServerConfig(registrars={"f": {"plugin": "fake", "colour": "red"}}))
    with pytest.raises(ConfigError, match=r"\[server.registrars.r\].*rucio_host"):
        Plugins(ServerConfig(registrars={"r": {"plugin": "rucio", "auth_type": "oidc"}}))
    with pytest.raises(PluginError, match=r"write a section \[server.registrars.rucio\]"):
        load_registrar("rucio")


def test_paths_are_those_of_rucio_itself(rses: RucioServer) -> None:
    """Scopes of users are split at their dots; the others are not."""
    for scope in ("user.alice", "group.higgs", "mc26.x"):
        path = fixed_path(OutputNaming.RUCIO_HASH, scope, "17.4.out.root")
        digits = hashlib.md5(f"{scope}:17.4.out.root".encode()).hexdigest()
        folder = scope if scope.startswith("mc") else scope.replace(".", "/")
        assert path == f"{folder}/{digits[:2]}/{digits[2:4]}/17.4.out.root"
    answer = rses.call("GET", f"/rses/{HASHED}/lfns2pfns?lfn=user.alice:17.4.out.root")
    assert fixed_path(OutputNaming.RUCIO_HASH, "user.alice", "17.4.out.root") in answer


def test_a_hundred_files_cost_five_calls(rses: RucioServer, registrar: RucioRegistrar) -> None:
    where = dataset()
    assert registrar.register([output(where)]) == [DONE]  # what is asked once: login, scopes, the RSE, dataset and rule
    wait_until(lambda: rses.requests()[-1].startswith("POST /dids/bulkfiles"), "the server has written its log")
    before = len(rses.requests())
    assert registrar.register([output(where) for _ in range(100)]) == [DONE] * 100
    wait_until(lambda: len(rses.requests()) >= before + 5, "the server has written its log")
    made = [line.split()[1] for line in rses.requests()[before:]]
    assert made == ["/dids/bulkmeta", "/replicas", "/dids/attachments", "/replicas/list", "/dids/bulkfiles"]
