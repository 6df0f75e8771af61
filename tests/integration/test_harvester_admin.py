"""What admins see and touch of a running harvester: logs, changed configurations, checks, figures, what is left over."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.clock import SystemClock
from common.config import load_config
from common.states import WorkerState
from harvester.config import SECTION, HarvesterSection, resolve
from harvester.credentials.keeper import Keeper
from harvester.service import last_cycle
from tests.harvester_world import QUEUE, end_local_workers
from tests.integration.test_harvester_crash import DEADLINE_S, PILOTS, Program, _wait_for
from tests.services.base import free_port


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path)
    yield made
    made.close()


@contextmanager
def running(program: Program) -> Iterator[subprocess.Popen[str]]:
    """A harvester that runs; what it wrote is in ``run.log``, and shown where a test fails."""
    log = program.folder / "run.log"
    # A file, not a pipe: nobody reads it meanwhile, and a pipe that is full would hold it up.
    with log.open("w") as output:
        process = program.popen("run", output=output)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
        print(log.read_text(), program.states())
    assert process.returncode == 0, log.read_text()
    assert "Traceback" not in log.read_text()


def config_of(program: Program) -> Path:
    return program.folder / "harvester.toml"


def edit(program: Program, change: Callable[[str], str]) -> None:
    path = config_of(program)
    temporary = path.with_suffix(".new")
    temporary.write_text(change(path.read_text()))
    temporary.replace(path)


def problems(program: Program, word: str = "") -> list[str]:
    """Those of the last cycle that hold a word."""
    last = last_cycle(program.folder / "state")
    assert last is not None
    return [problem for problem in last.problems if word in problem]


def running_in(program: Program, queue: str) -> int:
    with sqlite3.connect(f"{program.folder}/state/harvester.db") as connection:
        query = "SELECT count(*) FROM worker WHERE state = 'running' AND queue = ?"
        return int(connection.execute(query, [queue]).fetchone()[0])


def test_a_queue_that_is_added_gets_workers_and_one_that_is_removed_keeps_its_own(program: Program) -> None:
    script = json.dumps(program.world.queue.command)
    with running(program) as process:
        _wait_for(lambda: program.running(PILOTS))
        edit(
            program,
            lambda text: (
                text
                + f'\n[harvester.templates.small]\nbackend = "local"\ncommand = {script}\n'
                + f'[harvester.templates.small.options]\nworkers_dir = "{program.folder}/workers2"\n'
                + '[harvester.queues.q2]\ntemplate = "small"\nmax_workers = 2\n'
            ),
        )
        _wait_for(lambda: running_in(program, "q2") == 2)
        assert running_in(program, QUEUE) == PILOTS
        before = sorted(program.world.starts())

        edit(program, lambda text: text.replace(f"[harvester.queues.{QUEUE}", "[harvester.queues.other"))
        process.send_signal(signal.SIGHUP)
        _wait_for(lambda: running_in(program, "other") == PILOTS)
        assert running_in(program, QUEUE) == PILOTS, "they are looked after until they end"
        assert "not configured" in program.call("status")
        assert (program.folder / "state" / "leaving.json").exists()
    assert set(before) <= set(program.world.starts())
    with running(program):
        program.call("kill-workers", "other")
        end_local_workers(program.folder / "workers2")
        end_local_workers(program.folder / "workers")
        _wait_for(lambda: running_in(program, QUEUE) == 0)
    end_local_workers(program.folder / "workers2")  # those that took their place


def test_a_file_that_cannot_be_used_changes_nothing_and_is_told(program: Program) -> None:
    good = config_of(program).read_text()
    with running(program):
        _wait_for(lambda: program.running(PILOTS))
        edit(program, lambda text: text + "\n[harvester.queues.q2]\nmax_wokers = 3\n")
        problem = _wait_for(lambda: problems(program, "max_wokers"))
        assert "the configuration can't be used: [harvester.queues.q2]" in program.call("status")
        assert "the old one stays in force" in problem[0]
        edit(program, lambda _: good + "\n[harvester.queues.q2]\noptions = {kil_grace_s = 1}\n")
        _wait_for(lambda: problems(program, "kil_grace_s"))
        edit(
            program,
            lambda _: good.replace("cycle_s = 0.1", 'cycle_s = 0.1\nname = "other"').replace('name = "h1"\n', ""),
        )
        _wait_for(lambda: problems(program, "restart it"))
        assert program.states() == {"running": PILOTS}
        edit(program, lambda _: good)
        _wait_for(lambda: problems(program) == [])


FAILS = 'echo "starting on $(hostname)"; echo "no python here; token pls_abcdefghijklmnop" >&2; exit 7'


def test_the_output_of_a_worker_that_fails_comes_home_and_its_end_reaches_the_server(program: Program) -> None:
    program.server.world.pilots = 1
    command = json.dumps(["/bin/sh", "-c", FAILS, "{secret_file}"])
    edit(program, lambda text: text.replace(json.dumps(program.world.queue.command), command))
    edit(
        program,
        lambda text: text.replace(
            "cycle_s = 0.1\n", 'cycle_s = 0.1\n[harvester.logs]\nurl = "https://h.example.org/logs/"\n'
        ),
    )
    begun = time.strftime("%Y-%m-%d", time.gmtime())
    with running(program):
        told = _wait_for(lambda: [one for one in program.server.world.reports() if one.log_url])[0]
    assert told.state is WorkerState.FAILED
    url = re.fullmatch(rf"https://h\.example\.org/logs/{QUEUE}/([\d-]+)/{told.mark}/", told.log_url)
    assert url, told.log_url
    day = url[1]
    assert day in (begun, time.strftime("%Y-%m-%d", time.gmtime())), "midnight may have come in between"
    assert "no python here; token ***" in told.log_tail
    assert "starting on" in told.log_tail
    home = program.folder / "state" / "logs" / QUEUE / day / told.mark
    assert gzip.decompress((home / "stderr.gz").read_bytes()).startswith(b"no python here")
    assert {path.name for path in home.iterdir()} >= {"stdout.gz", "stderr.gz"}
    assert not (home / "stderr").exists()


def test_figures_for_prometheus(program: Program) -> None:
    port = free_port()
    edit(program, lambda text: text + f'\n[harvester.metrics]\nlisten = "127.0.0.1:{port}"\n')
    edit(program, lambda text: text + f'[harvester.credentials.t]\nkind = "file"\nfile = "{program.folder}/token"\n')
    with running(program):
        _wait_for(lambda: program.running(PILOTS))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
    assert f'pilotage_harvester_workers{{queue="{QUEUE}",state="running"}} {PILOTS}.0' in lines
    assert f'pilotage_harvester_submissions_total{{outcome="accepted"}} {PILOTS}.0' in lines
    assert 'pilotage_harvester_credential_failures{credential="t"} 0.0' in lines
    assert "pilotage_harvester_problems 0.0" in lines
    assert any(line.startswith('pilotage_harvester_cycle_seconds{part="server"}') for line in lines)


def test_check_says_what_is_wrong_and_what_to_do(program: Program) -> None:
    config = config_of(program)
    config.write_text(
        config.read_text().replace('token_file = "', 'token_file = "credential:ours"\n# "')
        + '\n[harvester.credentials.ours]\nkind = "command"\ncommand = ["/bin/sh", "-c", "echo lost >&2; exit 3"]\n'
    )
    process = program.popen("check")
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert "failed  credential ours: command: not to be had; /bin/sh ended with exit code 3: lost" in output
    assert "-> correct [harvester.credentials.ours]" in output
    assert "2 of the checks failed" in output, "without a token the server is not asked"
    config.write_text(config.read_text().replace("echo lost >&2; exit 3", "echo a-token"))
    output = program.call("check")
    assert "credential ours: command, its end is not known" in output
    file = program.folder / "state" / "credentials" / "ours"
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("a-token\n", 0o600)


def test_sweep_finds_what_nobody_remembers_and_removes_it_only_when_told(program: Program) -> None:
    with running(program):
        _wait_for(lambda: program.running(PILOTS))
    assert program.call("sweep") == "nothing is left over\n"
    state = program.folder / "state"
    for part in state.glob("harvester.db*"):
        part.unlink()
    stray = state / "secrets" / "stray"
    stray.write_text("pls_x")
    os.utime(stray, (1, 1))
    (state / "credentials").mkdir()
    (state / "credentials" / "gone").write_text("x")
    said = program.call("sweep")
    assert said.count("would be ended") == PILOTS
    assert f"{stray}: would be removed" in said
    assert "gone: would be removed" in said
    assert stray.exists()
    said = program.call("sweep", "--yes")
    assert said.count(": ended") == PILOTS
    assert not stray.exists()
    _wait_for(lambda: program.call("sweep") == "nothing is left over\n")


def test_drain_and_undrain_and_workers_by_state(program: Program) -> None:
    assert program.call("workers") == "no workers\n"
    program.call("drain", QUEUE)
    assert "drained" in program.call("status")
    assert program.call("undrain") == f"{QUEUE}: workers are submitted again\n"
    with running(program):
        _wait_for(lambda: program.running(PILOTS))
    assert len(json.loads(program.call("workers", "--json", "--state", "running"))) == PILOTS
    assert json.loads(program.call("workers", "--json", "--state", "held")) == []
    assert json.loads(program.call("workers", "--json", "--queue", "nowhere")) == []


PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "harvester.md"


def test_the_worked_configuration_of_the_how_to_runs(program: Program) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    command = json.dumps(program.world.queue.command)
    text = (
        blocks[0]
        .replace("https://pilotage.example.org:8443", f"http://127.0.0.1:{program.server.server_port}")
        .replace("/etc/pilotage/harvester.token", str(program.folder / "token"))
        .replace("/var/lib/pilotage", str(program.folder / "state"))
        .replace("max_workers = 4", f"max_workers = 4\ncommand = {command}")
    )
    config_of(program).write_text(
        text + f'[harvester.queues.local.options]\nworkers_dir = "{program.folder}/workers"\n'
    )
    assert "failed" not in program.call("check")
    with running(program):
        _wait_for(lambda: program.running(PILOTS))


def test_the_other_tables_of_the_how_to_are_ones_that_harvester_takes(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    for block in blocks[1:]:
        head = f'[harvester]\nserver_url = "s"\ntoken_file = "t"\nstate_dir = "{tmp_path}"\n'
        bundle = tmp_path / "bundle"
        bundle.touch()
        path = tmp_path / "h.toml"
        text = head + block.replace("/var/lib/pilotage/pilotage-pilot.run", str(bundle))
        path.write_text(text if "queues" in text else f"{text}\n[harvester.queues.q]\n")
        config = resolve(load_config(HarvesterSection, SECTION, [path], {}).value)
        Keeper(config.credentials, tmp_path, SystemClock())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this machine has no systemd")
def test_the_unit_is_one_that_systemd_takes(program: Program) -> None:
    said = program.call("systemd-unit", "--user", "root", "--config", str(config_of(program)))
    path = program.folder / "pilotage-harvester.service"
    path.write_text(said)
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if path.name in line] == []


def test_the_unit_names_this_installation(program: Program) -> None:
    said = program.call("systemd-unit", "--state-dir", "/var/lib/ours")
    assert "ReadWritePaths=/var/lib/ours" in said
    assert "@" not in said
    process = program.popen("systemd-unit", "--user", "a b")
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, "can't stand in a unit" in output) == (2, True)
