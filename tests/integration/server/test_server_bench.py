"""``pilotage bench dispatch``, tiny: each profile runs end to end on either database, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from server.store import places
from tests.services.base import wait_until

if TYPE_CHECKING:
    from tests.services.postgres import PostgresServer

TINY = ("--tasks", "10", "--buckets", "40", "--units", "4000")
MANY = ("--tasks", "10", "--buckets", "40", "--units", "40000")
"""More than are claimed in the seconds that a test lasts, however fast the machine is."""


def environment(folder: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PILOTAGE_")}
    return {**own, "TMPDIR": str(folder), "XDG_CONFIG_HOME": str(folder / "config")}


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "common.cli.main", "bench", "dispatch", "--json", *arguments],
        env=environment(folder),
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


@pytest.fixture
def place(kind: str, request: pytest.FixtureRequest) -> list[str]:
    """The options that choose the database."""
    if kind == "sqlite":
        return []
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return ["--database", postgres.create_database()]


def run(folder: Path, place: list[str], *arguments: str) -> dict[str, Any]:
    """The benchmark's JSON; it must leave nothing."""
    done = bench(folder, *place, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(folder.glob("pilotage-bench-*"))
    on_postgres = place[-1:] != [] and place[-1].startswith("postgresql")
    if on_postgres:  # refused if anything but an own place were left
        places.own_place(place[1], "another", beside_others=False)
    found: dict[str, Any] = json.loads(done.stdout)
    for key in (
        *("heartbeats_per_s", "jobs_per_s", "claims_per_s", "claim_p50_ms", "claim_p99_ms", "p99_ms", "p50_ratio"),
        *("errors", "duplicates"),
    ):
        assert key in found
    assert (found["errors"], found["duplicates"], found["wrong_in_database"], found["empty"]) == (0, 0, 0, 0), found
    assert found["cpu"]["server"]["cpu_s"] > 0.0
    assert found["us_per_request"] > 0.0
    assert ("database" in found["cpu"]) == on_postgres
    return found


def test_claim(tmp_path: Path, place: list[str]) -> None:
    found = run(tmp_path, place, "--profile", "claim", "--seconds", "1.5", "--warm-up", "0.5", *MANY)
    assert found["claims_per_s"] > 0.0
    assert found["jobs_per_s"] > 0.0
    assert 0.0 < found["claim_p50_ms"] <= found["claim_p99_ms"] <= found["claim_max_ms"]


def test_world(tmp_path: Path, place: list[str]) -> None:
    found = run(
        *(tmp_path, place, "--profile", "world", "--scale", "0.05", "--seconds", "4", "--warm-up", "1"),
        *("--load-processes", "2", "--history", "100", *TINY),
    )
    assert 0.0 < found["heartbeats_per_s"] < 22.0, "it asks no more than it was told to"
    assert found["backlog_grows"] in (False, True)
    assert found["conditions"]["live_jobs"] == 30_000
    assert found["conditions"]["history"] == 100
    assert found["conditions"]["warmed"] is bool(place), "only PostgreSQL reads rows in for it"


def test_world_over_tls(tmp_path: Path) -> None:
    found = run(
        *(tmp_path, [], "--profile", "world", "--scale", "0.02", "--seconds", "2", "--warm-up", "1", "--tls"),
        *("--history", "0", *TINY),
    )
    assert found["conditions"]["tls"] is True
    assert found["heartbeats_per_s"] > 0.0


def test_flat(tmp_path: Path, place: list[str]) -> None:
    found = run(tmp_path, place, "--profile", "flat", "--scale", "0.001", *TINY[:-1], "800")
    assert found["conditions"]["large_units"] == 10_000
    assert found["p50_ratio"] > 0.0
    assert found["drain_ratio"] > 0.0
    assert (found["drain_ratio_snapshot"] is not None) == bool(place)


def test_what_was_kept_is_used_again(tmp_path: Path, place: list[str]) -> None:
    """Its requests must not be taken for repeats of the last run's."""
    place = place or ["--database", f"sqlite:///{tmp_path / 'kept.db'}"]
    options = ("--profile", "claim", "--seconds", "0.5", "--warm-up", "0", *TINY)
    first = run(tmp_path, place, *options, "--keep")
    other = bench(tmp_path, *place, *options[:-1], "100", "--reuse")
    assert other.returncode == 1
    assert "--reuse" in other.stderr
    again = run(tmp_path, place, *options, "--reuse")
    assert again["conditions"]["ready_units"] == first["conditions"]["ready_units"]
    assert not list(tmp_path.glob("kept*"))


def test_a_database_with_other_tables_is_refused(tmp_path: Path, postgres: PostgresServer) -> None:
    import psycopg

    url = postgres.create_database()
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute("CREATE TABLE precious (n int)")
    done = bench(tmp_path, "--database", url, "--profile", "claim")
    assert done.returncode == 1
    assert "public" in done.stderr
    assert "--beside-other-data" in done.stderr


def test_a_file_is_not_overwritten(tmp_path: Path) -> None:
    """The tables go into a file beside the one that is named."""
    precious = tmp_path / "precious.db"
    precious.write_text("not a database")
    run(tmp_path, [], "--profile", "claim", "--seconds", "0.5", "--warm-up", "0", "--database", f"sqlite:///{precious}", *TINY)  # fmt: skip
    assert precious.read_text() == "not a database"
    assert [path.name for path in tmp_path.glob("precious*")] == ["precious.db"]


def test_one_that_is_ended_leaves_no_program_behind(tmp_path: Path) -> None:
    options = ("--profile", "claim", "--seconds", "100", "--warm-up", "0.5", *TINY)
    process = subprocess.Popen(
        [sys.executable, "-m", "common.cli.main", "bench", "dispatch", "--json", *options],
        env=environment(tmp_path),
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    wait_until(lambda: b"listening" in b"".join(log.read_bytes() for log in tmp_path.rglob("*.log")), "a server")
    started = psutil.Process(process.pid).children(recursive=True)
    assert started
    process.terminate()
    said, _ = process.communicate(timeout=180)
    assert b"interrupted" in said and process.returncode != 0
    assert [each for each in started if each.is_running()] == []
    assert not list(tmp_path.glob("pilotage-bench-*"))
