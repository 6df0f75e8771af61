"""The real ``ddisp`` 2.0.3 works against a real server: every command of its users' guide, and what it says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import requests
import tomllib

from server.config import ServerConfig
from tests.e2e.program import wait_for
from tests.integration.server.ddisp_world import STORAGES, Ddisp, World, make, settled
from tests.services.base import require_module
from tests.transcripts import keep

DIDS = [f"protodune-sp:np04_raw_{number:02d}.root" for number in range(12)]
NONE_YET = "initial"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    require_module("data_dispatcher")
    made = World(tmp_path_factory.mktemp("ddisp"))
    made.folder.chmod(0o755)
    try:
        made.start()
        yield made
        keep("ddisp", "\n".join(f"### {each.folder.name}\n\n{each.transcript()}" for each in made.clients))
    finally:
        made.stop()


@pytest.fixture(scope="module")
def alice(world: World) -> Ddisp:
    client = Ddisp(world, "alice")
    client.log_in("alice")
    return client


@pytest.fixture(scope="module")
def bob(world: World) -> Ddisp:
    client = Ddisp(world, "bob")
    client.log_in("bob")
    return client


def table(said: str) -> list[list[str]]:
    """The rows of a table that the client prints, without its head."""
    lines = said.splitlines()
    rule = next(number for number, line in enumerate(lines) if set(line) == {"-", " "})
    return [line.split() for line in lines[rule + 1 :] if line.strip("- ")]


# ---------------------------------------------------------------- logging in


def test_version(alice: Ddisp) -> None:
    said = dict(line.split(":", 1) for line in alice("version").splitlines())
    assert said["Server URL"].strip() == alice.world.data_url
    assert re.fullmatch(r"\d+\.\d+.*", said["Server version"].strip()) and said["Client version"].strip() == "2.0.3"


def test_login_with_a_certificate_at_a_real_web_server(world: World) -> None:
    client = Ddisp(world, "with-certificate")
    one = world.authority.person("Alice")
    one.write(client.folder / "cert.pem", client.folder / "key.pem")
    both = client.folder / "both.pem"
    both.touch(0o600)
    both.write_bytes(one.certificate_pem + one.key_pem)
    assert "User:    alice" in client("login", "-m", "x509", "alice", "cert.pem", "key.pem")
    assert "User:    alice" in client("login", "-m", "x509", "alice", "both.pem", "both.pem")
    assert client("project", "list").startswith("Project id")
    script = (
        "from data_dispatcher.api import DataDispatcherClient as C\n"
        "c = C(); print(c.auth_info()[0], c.my_x509_dn('cert.pem', 'key.pem')['subject'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=client.environment,
        cwd=client.folder,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.stdout == "alice CN=Alice,DC=pilotage\n", done.stderr
    code, _, err = client.ask("login", "-m", "x509", "root", "cert.pem", "key.pem")
    assert code and "this proves alice, and not root" in err
    stranger = world.authority.person("Mallory")
    stranger.write(client.folder / "other.pem", client.folder / "other.key")
    code, _, err = client.ask("login", "-m", "x509", "mallory", "other.pem", "other.key")
    assert code and "x509:CN=Mallory,DC=pilotage has no role here" in err


@pytest.mark.parametrize("how", ["option", "file", "variable", "variable of a file", "runtime"])
def test_login_with_a_token_of_an_issuer(world: World, how: str, tmp_path: Path) -> None:
    client = Ddisp(world, f"with-token-{how.replace(' ', '-')}")
    token = world.provider.token("carol-at-iam")
    file = client.folder / "bt_u77"
    file.write_text(token)
    words = {"option": ("-t", token), "file": ("-t", str(file))}.get(how, ())
    more = {
        "variable": {"BEARER_TOKEN": token},
        "variable of a file": {"BEARER_TOKEN_FILE": str(file)},
        "runtime": {"XDG_RUNTIME_DIR": str(client.folder), "ID": "77"},
    }.get(how, {})
    assert "User:    carol" in client("login", "-m", "token", *words, "carol", **more)


def test_login_that_fails(world: World) -> None:
    client = Ddisp(world, "stranger")
    code, _, err = client.ask("login", "-m", "password", "alice", stdin="wrong\n")
    assert code and "the name or the password is wrong" in err
    code, _, err = client.ask("login", "-m", "token", "-t", world.provider.token("nobody-we-know"), "eve")
    assert code and "has no role" in err
    code, _, err = client.ask("project", "list")
    assert code and "send a token" in err
    code, out, _ = client.ask("worker", "next", "-t", "1", "1")
    assert (code, out) == (1, "done\n")


# ---------------------------------------------------------------- making projects


def test_projects_are_made_of_lists_and_queries(alice: Ddisp) -> None:
    (alice.folder / "file_list").write_text("".join(f"{did}\n" for did in DIDS[:3]))
    listed = [
        DIDS[0],
        {"namespace": "protodune-sp", "name": DIDS[1].partition(":")[2]},
        {"namespace": "protodune-sp", "name": DIDS[2].partition(":")[2], "attributes": {"debug": True}},
    ]
    (alice.folder / "file_list.json").write_text(json.dumps(listed))
    assert int(alice("project", "create", "-l", "file_list"))
    assert int(alice("project", "create", "-l", "-", stdin=f"{DIDS[3]} skip=1\n{DIDS[4]}\n"))
    made = alice.json("project", "create", "-j", "file_list.json", "-p", "json")
    assert [(each["namespace"], each["state"], each["attributes"]) for each in made["file_handles"]] == [
        ("protodune-sp", NONE_YET, {}),
        ("protodune-sp", NONE_YET, {}),
        ("protodune-sp", NONE_YET, {"debug": True}),
    ]
    assert (made["owner"], made["state"], made["active"], made["query"]) == ("alice", "active", True, None)
    shown = alice("project", "create", "-j", "-", "-p", "pprint", stdin=json.dumps(listed))
    assert "'project_id': " in shown and "'file_handles': [" in shown
    queried = alice.json("project", "create", "-c", "core.runs,size", "-p", "json", "all.json")
    assert queried["query"] == "all.json" and len(queried["file_handles"]) == len(DIDS)
    assert queried["file_handles"][1]["attributes"] == {"core.runs": [6833, 1], "size": 1001}


def test_a_query_in_a_file_fails_in_the_client_itself(alice: Ddisp) -> None:
    (alice.folder / "query").write_text("all.json")
    code, _, err = alice.ask("project", "create", "-q", "query")
    assert code and "UnboundLocalError" in err


def test_lists_that_are_no_good_make_no_project(alice: Ddisp) -> None:
    before = [row[0] for row in table(alice("project", "list"))]
    for line, words in (
        ("protodune-sp:unknown.root", "the catalogue knows no replicas of 1 of the files: protodune-sp:unknown.root"),
        ("a:b/c", "files[0]"),
        ("no-such-list.json", "there is no such list"),
    ):
        if ":" in line:
            code, _, err = alice.ask("project", "create", "-l", "-", stdin=f"{line}\n")
        else:
            code, _, err = alice.ask("project", "create", line)
        assert code and words in err, err
    assert [row[0] for row in table(alice("project", "list"))] == before


def test_attributes_time_outs_users_and_roles(alice: Ddisp) -> None:
    (alice.folder / "project_attrs.json").write_text('{"email_errors": "user@fnal.gov", "step": "postprocess"}')
    (alice.folder / "common.json").write_text('{"pi": 3.14, "debug": false}')
    words = ("-w", "2h", "-t", "none", "-u", "alice,bob,charlie", "-r", "my_group", "-A", "@project_attrs.json")
    first = make(alice, DIDS[:2], *words, "-a", "@common.json")
    shown = alice("project", "show", str(first))
    for line in (
        "Worker timeout:      7200.0",
        "Idle timeout:        None",
        "Authorized users:    alice, bob, charlie",
        "           roles:    my_group",
        "  step            = postprocess",
        "Owner:               alice",
        "Status:              active",
    ):
        assert line in shown, shown
    assert alice("project", "show", "-a", str(first)) == "email_errors user@fnal.gov\nstep postprocess\n"
    assert alice.json("project", "show", "-a", "-j", str(first)) == {
        "email_errors": "user@fnal.gov",
        "step": "postprocess",
    }
    (one, _) = alice.json("project", "show", "-j", str(first))["file_handles"]
    assert one["attributes"] == {"pi": 3.14, "debug": False}
    second = make(alice, DIDS[:1], "-A", "email_errors=user@fnal.gov version=3", "-w", "none", "-a", "name1=value1")
    info = alice.json("project", "show", "-j", str(second))
    assert (info["worker_timeout"], info["idle_timeout"]) == (None, 72 * 3600)
    assert info["attributes"] == {"email_errors": "user@fnal.gov", "version": 3}


def test_a_virtual_project_asks_nobody_where_its_files_lie(alice: Ddisp) -> None:
    project = make(alice, ["example:a.fcl"], "-A", "virtual=True")
    info = alice.json("worker", "next", "-j", "-w", "me", str(project))
    assert (info["name"], info["replicas"], info["project_attributes"]) == ("a.fcl", [], {"virtual": "True"})


# ---------------------------------------------------------------- looking


def test_projects_are_listed(alice: Ddisp, bob: Ddisp) -> None:
    mine = make(alice, DIDS[:2], "-A", "step=listed version=7")
    theirs = make(bob, DIDS[:1], "-A", "step=listed")
    rows = {row[0]: row[1:] for row in table(alice("project", "list"))}
    assert rows[str(mine)][0] == "alice" and rows[str(mine)][-2:] == ["active", "0/0/2"] and str(theirs) not in rows
    assert str(theirs) in {row[0] for row in table(alice("project", "list", "-u", "all"))}
    assert {row[1] for row in table(alice("project", "list", "-u", "bob"))} == {"bob"}
    found = alice.json("project", "list", "-j", "-u", "all", "-a", "step=listed")
    assert [each["project_id"] for each in found] == [mine, theirs]
    assert [each["project_id"] for each in alice.json("project", "list", "-j", "-a", "step=listed version=7")] == [mine]
    assert alice.json("project", "list", "-j", "-s", "done", "-a", "step=listed") == []
    assert alice.json("project", "list", "-j", "-n", "active", "-a", "step=listed") == []
    assert {each["state"] for each in alice.json("project", "list", "-j", "-s", "all", "-a", "step=listed")} == {
        "active"
    }


def test_projects_are_searched(alice: Ddisp) -> None:
    """The command is hidden in this client, its call is not."""
    one = make(alice, DIDS[:1], "-A", "step=searched version=3")
    two = make(alice, DIDS[:1], "-A", "step=searched version=5")
    script = (
        "import json, sys; from data_dispatcher.api import DataDispatcherClient as C\n"
        "print(json.dumps([p['project_id'] for p in C().search_projects(sys.argv[1], state=sys.argv[2])]))"
    )

    def search(query: str, state: str = "active") -> Any:
        done = subprocess.run(
            [sys.executable, "-c", script, query, state],
            env=alice.environment,
            cwd=alice.folder,
            capture_output=True,
            text=True,
            timeout=180,
        )
        alice.said.append(f"$ ddisp project search -s {state} '{query}'\n{done.stdout}{done.stderr}")
        return json.loads(done.stdout) if done.returncode == 0 else done.stderr

    assert search("step = searched and version > 3") == [two]
    assert search('version in 3:4 and (step = searched or step = "x y")', "all") == [one]
    assert search(f"id in ({one}, {two}) and owner = alice") == [one, two]
    assert "'!' is not understood here" in search("!version = 3")


def test_one_project_in_all_ways(alice: Ddisp) -> None:
    project = make(alice, DIDS[:4])
    did = alice("worker", "next", "-w", "w1", str(project)).strip()
    assert did == DIDS[0]
    assert alice("worker", "done", "-w", "w1", str(project), did) == ""
    shown = table(alice("project", "show", str(project)))
    assert shown == [
        ["initial", "yes", "1/1", "0", "0", "-", DIDS[1]],
        ["initial", "yes", "1/1", "0", "0", "-", DIDS[2]],
        ["initial", "yes", "2/2", "0", "0", "-", DIDS[3]],
        ["done", "yes", "2/2", "1", "0", "w1", DIDS[0]],
    ]
    code, out, err = alice.ask("project", "show", "-r", str(project))
    assert code and "Status:              active" in out and "tabular.py" in err  # its own table is too wide for it
    for state, dids in (
        ("all", DIDS[:4]),
        ("initial", DIDS[1:4]),
        ("done", DIDS[:1]),
        ("failed", []),
        ("reserved", []),
    ):
        found = alice.json("project", "show", "-j", "-f", state, str(project))["file_handles"]
        assert [f"{each['namespace']}:{each['name']}" for each in found] == dids
    assert alice.ask("project", "show", "999999")[:2] == (1, "Project 999999 not found\n")
    assert table(alice("file", "list", str(project))) == shown
    assert [row[0] for row in table(alice("file", "list", "-s", "done", str(project)))] == ["done"]
    assert len(table(alice("file", "list", "-r", STORAGES[1], str(project)))) == 3
    info = alice.json("file", "show", "-j", str(project), DIDS[0])
    assert (info["state"], info["worker_id"], info["attempts"]) == ("done", "w1", 1)
    assert set(info["replicas"]) == set(STORAGES)
    assert info["replicas"]["LANCASTER"] == {
        "name": "np04_raw_00.root",
        "namespace": "protodune-sp",
        "path": "fnal.gov/usr/dune/np04_raw_00.root",
        "rse": "LANCASTER",
        "url": "root://lancaster.example.org:1094//pnfs/fnal.gov/usr/dune/np04_raw_00.root",
        "urls": ["root://lancaster.example.org:1094//pnfs/fnal.gov/usr/dune/np04_raw_00.root"],
        "preference": 100,
        "proximity": 100,
        "available": True,
        "rse_available": True,
    }
    assert "  RSE:         FNAL_DCACHE\n" in alice("file", "show", str(project), DIDS[0])


# ---------------------------------------------------------------- commands


def states(ddisp: Ddisp, project: int) -> dict[str, str]:
    found = ddisp.json("file", "list", "-j", str(project))
    return {each["name"][9:11]: each["state"] for each in found}


def test_files_are_restarted_in_all_ways(alice: Ddisp) -> None:
    project = make(alice, DIDS[:4])
    for number, word in enumerate(("done", "failed", "")):
        assert alice("worker", "next", "-w", "w", str(project)).strip() == DIDS[number]
        if word:
            alice("worker", word, *(["-f"] if word == "failed" else []), "-w", "w", str(project), DIDS[number])
    over = {"00": "done", "01": "failed", "02": "reserved", "03": "initial"}
    assert states(alice, project) == over
    for option, number in (("-f", "01"), ("-d", "00"), ("-r", "02")):
        alice("project", "restart", option, str(project))
        over[number] = "initial"
        assert states(alice, project) == over
    alice("worker", "next", "-w", "w", str(project))
    alice("project", "restart", str(project), DIDS[0], DIDS[3])
    assert states(alice, project) == over
    code, _, err = alice.ask("worker", "done", "-w", "w", str(project), DIDS[0])
    assert code and "it was restarted or cancelled" in err
    for _ in range(2):
        alice("worker", "next", "-w", "w", str(project))
    alice("project", "restart", "-a", str(project))
    assert states(alice, project) == over
    code, _, err = alice.ask("project", "restart", str(project), "a:unknown")
    assert code and "has no file a:unknown" in err


def test_copy_cancel_activate_delete(alice: Ddisp, bob: Ddisp) -> None:
    project = make(alice, DIDS[:2], "-A", "step=one kept=yes", "-w", "1h")
    words = ("-A", "step=two", "-a", "again=1", "-w", "none", "-p", "json", str(project))
    made = alice.json("project", "copy", *words)
    again = made["project_id"]
    assert made["attributes"] == {"step": "two", "kept": "yes"}
    assert (made["worker_timeout"], made["idle_timeout"]) == (None, 72 * 3600)
    code, _, err = alice.ask("project", "copy", "-t", "2d", str(project))
    assert code and "TypeError: 'float' object is not subscriptable" in err  # the client itself, for every number
    settled(alice, again, 2)
    assert [each["attributes"] for each in alice.json("file", "list", "-j", str(again))] == [{"again": 1}] * 2
    assert int(alice("project", "copy", str(project))) > again
    assert alice("project", "activate", str(project)) == ""
    assert alice.json("project", "activate", "-j", str(project))["state"] == "active"
    code, _, err = bob.ask("project", "cancel", str(project))
    assert code and "belongs to alice" in err
    cancelled = alice.json("project", "cancel", "-j", str(project))
    assert (cancelled["state"], cancelled["active"]) == ("cancelled", False)
    assert {each["state"] for each in cancelled["file_handles"]} == {"initial"}
    assert alice.ask("worker", "next", "-w", "w", str(project))[:2] == (1, "done\n")
    code, _, err = alice.ask("project", "activate", str(project))
    assert code and "is cancelled" in err
    assert alice("project", "cancel", str(again)) == ""
    assert alice("project", "delete", str(again)) == ""
    gone = lambda: alice.ask("project", "show", str(again))[:2] == (1, f"Project {again} not found\n")  # noqa: E731
    assert wait_for(gone, "it is gone", 180)


# ---------------------------------------------------------------- workers


def test_worker_ids(alice: Ddisp, tmp_path: Path) -> None:
    first = alice("worker", "id", "-n", cwd=tmp_path)
    assert re.fullmatch(r"[0-9a-f]{8}\n", first)
    assert alice("worker", "id", cwd=tmp_path) == first
    assert alice("worker", "id", "fnpc123_1645849756", cwd=tmp_path) == "fnpc123_1645849756\n"
    assert (tmp_path / ".data_dispatcher_worker_id").read_text() == "fnpc123_1645849756"


def test_what_a_worker_gets_and_says(alice: Ddisp, bob: Ddisp, tmp_path: Path) -> None:
    project = make(alice, DIDS[:4], "-A", "pi=3.14 x=y", "-a", "skip=2", "-u", "bob")
    bob("worker", "id", "worker_123", cwd=tmp_path)
    info = bob.json("worker", "next", "-j", "-c", "site1", str(project), cwd=tmp_path)
    since = info.pop("reserved_since")
    assert since > 1.7e9
    path = "fnal.gov/usr/dune/np04_raw_00.root"
    assert info == {
        "attempts": 1,
        "attributes": {"skip": 2},
        "name": "np04_raw_00.root",
        "namespace": "protodune-sp",
        "project_attributes": {"pi": 3.14, "x": "y"},
        "project_id": project,
        "replicas": [
            {
                "available": True,
                "name": "np04_raw_00.root",
                "namespace": "protodune-sp",
                "path": path,
                "preference": distance,
                "proximity": distance,
                "rse": rse,
                "rse_available": True,
                "url": f"root://{rse.lower()}.example.org:1094//pnfs/{path}",
                "urls": [f"root://{rse.lower()}.example.org:1094//pnfs/{path}"],
            }
            for distance, rse in ((0, "LANCASTER"), (30, "FNAL_DCACHE"))
        ],
        "state": "reserved",
        "worker_id": "worker_123",
    }
    assert bob("worker", "next", "-c", "site1", str(project), cwd=tmp_path).strip() == DIDS[1]
    held = bob.json("worker", "list", "-j", str(project), cwd=tmp_path)
    assert [each["name"] for each in held] == ["np04_raw_00.root", "np04_raw_01.root"]
    assert "worker_id : worker_123" in bob("worker", "list", "-w", "worker_123", str(project), cwd=tmp_path)
    code, _, err = bob.ask("worker", "done", "-w", "another", str(project), DIDS[0])
    assert code and "wrong worker_id" in err
    assert bob("worker", "done", str(project), "all", cwd=tmp_path) == ""
    assert bob.ask("worker", "done", str(project), DIDS[0], cwd=tmp_path)[0] == 0  # said again
    for _ in range(2):
        bob("worker", "next", str(project), cwd=tmp_path)
    assert bob.ask("worker", "next", "-t", "1", str(project), cwd=tmp_path)[:2] == (1, "timeout\n")
    assert json.loads(bob.ask("worker", "next", "-j", "-t", "1", str(project), cwd=tmp_path)[1]) == {"state": "timeout"}
    bob("worker", "failed", str(project), DIDS[2], cwd=tmp_path)
    assert states(alice, project) == {"00": "done", "01": "done", "02": "initial", "03": "reserved"}
    assert bob("worker", "next", str(project), cwd=tmp_path).strip() == DIDS[2]
    assert bob("worker", "failed", "-f", str(project), "all", cwd=tmp_path) == ""
    assert states(alice, project) == {"00": "done", "01": "done", "02": "failed", "03": "failed"}
    assert bob.ask("worker", "next", str(project), cwd=tmp_path)[:2] == (1, "done\n")
    over = alice.json("project", "show", "-j", str(project))
    assert (over["state"], over["active"]) == ("failed", False) and over["ended_timestamp"] > since


RUN = """
while out=$(ddisp worker next -t 3 "$1"); do ddisp worker done "$1" "$out" && echo "$out"; done
"""


def test_several_workers_at_once_get_each_file_once(alice: Ddisp, tmp_path: Path) -> None:
    dids = DIDS[:6]
    project = make(alice, dids)
    bin_ = tmp_path / "ddisp"
    bin_.write_text(f'#!/bin/sh\nexec {sys.executable} -m data_dispatcher.ui.ui_main "$@"\n')
    bin_.chmod(0o755)

    def work(number: int) -> list[str]:
        folder = tmp_path / str(number)
        folder.mkdir()
        environment = {**alice.environment, "PATH": f"{tmp_path}:{alice.environment['PATH']}"}
        done = subprocess.run(
            ["sh", "-c", RUN, "run", str(project)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    with ThreadPoolExecutor(3) as pool:
        taken = list(pool.map(work, range(3)))
    assert sorted(sum(taken, [])) == dids and sum(map(bool, taken)) > 1
    assert alice.json("project", "show", "-j", str(project))["state"] == "done"


def test_sixteen_connections_get_each_file_once_though_the_server_is_killed(alice: Ddisp) -> None:
    """Whoever loses an answer in that looks for what it holds, and gives it back."""
    world, workers, files = alice.world, 16, 400
    project = make(
        alice, [f"many:{number:04d}" for number in range(files)], "-A", "virtual=True", "-r", "outside_worker"
    )
    token = {"X-Authentication-Token": world.token("farm", "outside_worker")}
    address = f"http://127.0.0.1:{world.port}/compat/data-dispatcher/data"
    taken, done = Counter[str](), Counter[str]()
    half = threading.Event()

    def ask(session: requests.Session, path: str, **query: Any) -> Any:
        """The answer, or None where it was lost or was not to be had now."""
        try:
            answer = session.get(f"{address}/{path}", params=query, headers=token, timeout=30)
        except requests.ConnectionError:
            answer = None
        if answer is None or answer.status_code == 503:
            threading.Event().wait(0.1)
            return None
        assert answer.status_code == 200, answer.text
        return answer.json()

    def give_back(session: requests.Session, worker: str) -> None:
        for held in ask(session, "handles", project_id=project, state="reserved") or []:
            if held["worker_id"] == worker:
                ask(session, "release", handle_id=f"{project}:many:{held['name']}", failed="yes", worker_id=worker)

    def work(number: int) -> None:
        worker = f"w{number}"
        with requests.Session() as session:
            while True:
                said = ask(session, "next_file", project_id=project, worker_id=worker)
                if said is None or said["retry"]:
                    give_back(session, worker)
                    continue
                if said["handle"] is None:
                    return
                name = said["handle"]["name"]
                taken[name] += 1
                query = {"handle_id": f"{project}:many:{name}", "failed": "no", "worker_id": worker}
                while ask(session, "release", **query) is None:
                    pass
                done[name] += 1
                if len(done) >= files // 4:
                    half.set()

    with ThreadPoolExecutor(workers) as pool:
        all_ = [pool.submit(work, number) for number in range(workers)]
        assert half.wait(120)
        world.server.kill9()
        world.server.start()
        for each in all_:
            each.result(timeout=300)
    assert len(done) == files and set(done.values()) == {1} and set(taken.values()) == {1}
    assert alice.json("project", "show", "-j", str(project))["state"] == "done"


def test_a_worker_outlives_a_restart_of_the_server_behind_a_web_server(alice: Ddisp) -> None:
    """The client takes 502, which web servers say meanwhile, for the end of the project; 503 makes it ask again."""
    project = make(alice, DIDS[:1])
    alice.world.server.stop()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(alice, "worker", "next", "-w", "patient", str(project))
        wait_for(lambda: "/next_file" in alice.world.front_end.access(), "it asked", 30)
        assert not asked.done()
        alice.world.server.start()
        assert asked.result(timeout=60).strip() == DIDS[0]


# ---------------------------------------------------------------- RSEs


def test_rses(alice: Ddisp, world: World) -> None:
    rows = table(alice("rse", "list"))
    assert [row[:2] for row in rows][:2] == [["FNAL_DCACHE", "up"], ["LANCASTER", "up"]]
    (first, *_) = alice.json("rse", "list", "-j")
    assert first["add_prefix"] == "root://fnal_dcache.example.org:1094//pnfs" and first["is_available"]
    assert alice("rse", "show", "FNAL_DCACHE").startswith(
        "RSE:            FNAL_DCACHE\nPreference:     0\nTape:           no\n"
    )
    assert alice.json("rse", "show", "-j", "FNAL_DCACHE") == first
    assert alice.ask("rse", "show", "NOWHERE")[:2] == (1, "RSE NOWHERE not found\n")
    code, _, err = alice.ask("rse", "set", "down", "LANCASTER")
    assert code and "this needs the role admin" in err
    admin = Ddisp(world, "admin")
    admin("login", "-m", "token", "-t", world.token("boss", "admin"), "boss")
    project = make(admin, DIDS[:2])
    admin("rse", "set", "down", "LANCASTER")
    assert [row[:2] for row in table(admin("rse", "list"))][1] == ["LANCASTER", "down"]
    assert [row[1:3] for row in table(admin("file", "list", str(project)))] == [["yes", "1/2"], ["no", "0/1"]]
    admin("rse", "set", "up", "LANCASTER")
    assert [row[1:3] for row in table(admin("file", "list", str(project)))] == [["yes", "2/2"], ["yes", "1/1"]]


# ---------------------------------------------------------------- the page for those who move over

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "migrate-from-data-dispatcher.md"


def test_the_commands_of_the_page_do_what_it_shows(world: World) -> None:
    client = Ddisp(world, "reader")
    client.log_in("alice")
    (client.folder / "file_list").write_text("".join(f"{did}\n" for did in DIDS[:3]))
    (block,) = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    shown = re.findall(r"^\$ ddisp (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    assert len(shown) > 15
    numbers: dict[str, str] = {}
    for command, expected in shown:
        words = [numbers.get(word, word) for word in shlex.split(command)]
        said = client(*words)
        if words[:2] in (["project", "create"], ["project", "copy"]):
            numbers[expected.strip()] = said.strip()
            settled(client, int(said), 3)
        elif expected:
            assert said == expected, command


def test_the_settings_of_the_page_are_good() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    config = msgspec.convert(tomllib.loads(block)["server"], ServerConfig)
    assert config.compat.data_dispatcher.on and config.compat.data_dispatcher.catalog in config.catalogs
