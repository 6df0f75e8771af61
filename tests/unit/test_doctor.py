"""``pilotage pilot doctor``: what it says to people and to programs, and when it says no."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from common.cli import Frame
from common.config import load_config
from pilot.cli import pilot
from pilot.config import PilotConfig
from pilot.container.host import Finding, Level
from pilot.doctor import Patient, examine, read_queue
from tests.unit.test_node_checks import Answering


@pytest.fixture(autouse=True)
def no_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apptainer has tests of its own; here it is missing, which is the more telling case."""
    missing = Finding("apptainer", Level.ERROR, "no apptainer on PATH", "install Apptainer")
    monkeypatch.setattr("pilot.doctor.check_host", lambda *_a, **_k: [missing])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))

    def invoke(*arguments: str) -> Result:
        words = ["doctor", "--work-dir", str(tmp_path / "work"), *arguments]
        return CliRunner().invoke(pilot, words, obj=Frame(config_file=None))

    return invoke


def queue_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "QUEUE.toml"
    path.write_text(text)
    return str(path)


def test_a_sound_node_without_any_server(run: Any, tmp_path: Path) -> None:
    result = run()
    assert result.exit_code == 0, result.output
    assert "Pilots can work here, " in result.output
    assert f"{tmp_path} can be written, synced and executed from" in result.output
    assert "cores" in result.output and "(CPU affinity)" in result.output
    assert "! " in result.output and "→ install Apptainer" in result.output
    assert not (tmp_path / "work").exists()


def test_what_the_queue_needs_is_essential(run: Any, tmp_path: Path) -> None:
    file = queue_file(
        tmp_path,
        'cores = 1\ncopytools = ["file", "carrier-pigeon"]\n'
        '[node_checks]\ncontainer = true\ngpus = 9\ncvmfs = ["no-such.example.org"]\nreachable = ["127.0.0.1:1"]\n',
    )
    result = run("--queue-file", file)
    assert result.exit_code == 1
    assert "Not fit: 5 to be mended" in result.output
    for words in (
        "no apptainer on PATH",
        "carrier-pigeon",
        "9 wanted",
        "/cvmfs/no-such.example.org",
        "Connection refused",
    ):
        assert words in result.output


def test_for_programs(run: Any) -> None:
    result = run("--json", "--cvmfs", "no-such.example.org")
    assert result.exit_code == 1
    table = json.loads(result.stdout)
    assert table["fit"] is False and table["slot"]["cores"] >= 1 and table["node"]["threads"] >= 1
    assert {"resource", "source", "value"} == set(table["slot"]["figures"][0])
    bad = [each for each in table["findings"] if each["level"] == "error"]
    assert [each["name"] for each in bad] == ["cvmfs no-such.example.org"] and bad[0]["remedy"]


def test_a_server_that_answers_and_one_that_does_not(run: Any) -> None:
    server = Answering(0.0)
    try:
        result = run("--server", server.url)
    finally:
        server.stop()
    assert result.exit_code == 0, result.output
    for words in (f"{server.url} answers", "server by IPv4", "0 s", "server by IPv6"):
        assert words in result.output
    result = run("--server", server.url)
    assert result.exit_code == 1 and "Connection refused" in result.output


def test_a_clock_that_is_an_hour_off(run: Any) -> None:
    server = Answering(-3600.0)
    try:
        result = run("--server", server.url)
    finally:
        server.stop()
    assert result.exit_code == 1 and "s ahead of the server's" in result.output and "chronyd" in result.output


def test_a_queue_that_is_described_wrongly_is_refused_with_the_field(run: Any, tmp_path: Path) -> None:
    result = run("--queue-file", queue_file(tmp_path, '[node_checks]\ncvmsf = ["x"]\n'))
    assert result.exit_code != 0 and "cvmsf" in f"{result.output}{result.exception}"


def test_a_queues_file_needs_no_more_than_what_it_says(tmp_path: Path) -> None:
    queue = read_queue(Path(queue_file(tmp_path, "cores = 4\n")))
    assert (queue.name, queue.cores, queue.node_checks) == ("QUEUE", 4, None)


def test_the_folder_that_is_not_there_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    patient = Patient(PilotConfig(work_dir=str(tmp_path / "a/b/c")), {"PATH": "/nowhere"})
    assert patient.scratch == tmp_path
    assert examine(patient).fit


def test_the_examples_of_the_page_on_worker_nodes_can_be_used(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs/how-to/worker-nodes.md"
    described, configured = re.findall(r"```toml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    queue = read_queue(Path(queue_file(tmp_path, described)))
    assert queue.node_checks is not None and queue.node_checks.cvmfs == ["atlas.cern.ch", "sft.cern.ch/lcg"]
    config = tmp_path / "pilot.toml"
    config.write_text(configured)
    assert load_config(PilotConfig, "pilot", [config], {}, {}).value.benchmark_s == 120
