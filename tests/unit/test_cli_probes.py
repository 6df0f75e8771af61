"""``pilotage probes``: the table for people and for programs, and the storage that the how-to describes."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import responses
from click.testing import CliRunner, Result

from common.cli import Frame
from common.cli.probes import probes
from common.wire import (
    ProbeFinding,
    ProbeLevel,
    ProbeOperation,
    ProbePlace,
    ProbeResult,
    ProbeState,
    ProbeTable,
    ProbeUse,
    StorageSpec,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

URL = "https://server.test"
NOW = time.time()
READ, WRITE = ProbeOperation.READ, ProbeOperation.WRITE


def result(storage: str, operation: ProbeOperation, ok: bool = True, site: str = "A", gpu: bool = False) -> ProbeResult:
    error: dict[str, Any] = {} if ok else {"error_code": 1152, "error_detail": "too [slow]"}
    return ProbeResult(
        site=site, gpu=gpu, storage=storage, operation=operation, ok=ok, time=NOW, since=NOW - 60, **error
    )


TABLE = ProbeTable(
    interval_s=21600.0,
    use=ProbeUse.WARN,
    places=[
        ProbePlace(site="A", state=ProbeState.DONE, ended=NOW - 600, environment_ok=True, host="n1"),
        ProbePlace(site="A", gpu=True, state=ProbeState.MISSED, missed=3, reason="no slot took it"),
        ProbePlace(
            site="B",
            state=ProbeState.ASKED,
            asked=NOW - 60,
            environment_ok=False,
            host="n2",
            environment=[
                ProbeFinding("cvmfs x.ch", ProbeLevel.ERROR, "is empty", "cvmfs_config probe"),
                ProbeFinding("scratch", ProbeLevel.OK, "can be written"),
            ],
        ),
        ProbePlace(site="C", due=NOW + 7200),
    ],
    results=[
        result("disk", READ), result("disk", WRITE), result("tape", READ), result("tape", WRITE, False),
        result("disk", READ, False, "B"),
    ],
)  # fmt: skip


@pytest.fixture
def server() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    token = tmp_path / "token"
    token.write_text("some-token\n")
    token.chmod(0o600)

    def command(*words: str) -> Result:
        options = ["--server", URL, "--token-file", str(token)]
        group: click.Command = probes
        return CliRunner().invoke(group, [*words, *options], obj=Frame(), standalone_mode=True)

    return command


def rows(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines() if line.strip()]


def test_the_table_shows_who_can_use_what(server: responses.RequestsMock, run: Any) -> None:
    server.get(f"{URL}/v1/probes", body=msgspec.json.encode(TABLE))
    output = run().output
    first = {tuple(row[:2]): row for row in rows(output)[:7]}
    assert rows(output)[0] == ["site", "software", "probed", "disk", "tape"]
    assert first["A", "ok"][-2:] == ["rw", "rW"]
    assert first["B", "FAILED"][-2:] == ["R-", "--"]
    assert "not run, 3 in a row: no slot took it" in output
    assert re.search(r"C +\? +first in ", output)
    assert "1152 STAGE_OUT_TIMEOUT: too [slow]" in output
    assert "cvmfs_config probe" in output and "can be written" not in output
    assert "each is probed every 6h; what fails is told, and used all the same" in output


def test_one_site_only(server: responses.RequestsMock, run: Any) -> None:
    server.get(f"{URL}/v1/probes", body=msgspec.json.encode(TABLE))
    output = run("--site", "B").output
    assert "tape" not in output and "not run" not in output


def test_programs_get_everything(server: responses.RequestsMock, run: Any) -> None:
    server.get(f"{URL}/v1/probes", body=msgspec.json.encode(TABLE))
    told = json.loads(run("--json").output)
    assert len(told["results"]) == 5 and len(told["places"]) == 4
    assert told["use"] == "warn" and told["results"][0]["mb_s"] == 0.0


def test_a_site_is_probed_on_demand(server: responses.RequestsMock, run: Any) -> None:
    server.post(f"{URL}/v1/probes", body=msgspec.json.encode(TABLE), status=202)
    assert run("--now", "A").exit_code == 0
    assert json.loads(server.calls[-1].request.body or "") == {"site": "A"}


def test_nothing_is_known_yet(server: responses.RequestsMock, run: Any) -> None:
    empty = ProbeTable(interval_s=0.0, use=ProbeUse.AVOID)
    server.get(f"{URL}/v1/probes", body=msgspec.json.encode(empty))
    output = run().output
    assert "nothing found" in output and "no site is probed; what fails is not used" in output


def test_the_storage_of_the_how_to_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "probe-jobs.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 1
    spec = msgspec.convert(tomllib.loads(blocks[0]), StorageSpec)
    assert spec.probe_file is not None and spec.probe_file.size == 17
