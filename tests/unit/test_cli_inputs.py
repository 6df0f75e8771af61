"""``pilotage inputs``: files that come after their workflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import msgspec
import pytest
import responses
from click.testing import CliRunner, Result

from common.cli import Frame
from common.cli import inputs as command
from common.cli.inputs import inputs
from common.states import TaskState
from common.wire import TaskView

URL = "http://server.test"
VIEW = TaskView(11, 7, "analyse", TaskState.PENDING, units={"ready": 3})


@pytest.fixture
def server() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    token = tmp_path / "token"
    token.write_text("some-token")
    token.chmod(0o600)
    main: click.Command = inputs
    return lambda *words: CliRunner().invoke(
        main, [*words, "--server", URL, "--token-file", str(token)], obj=Frame(config_file=None)
    )


def answer(server: responses.RequestsMock, path: str) -> None:
    server.add("POST", URL + path, body=msgspec.json.encode(VIEW), content_type="application/json")


def test_files_of_several_lists_are_added_in_slices(
    server: responses.RequestsMock, run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "SLICE", 2)
    (tmp_path / "a.txt").write_text("s:a disk:a\ns:b disk:b\n")
    (tmp_path / "b.json").write_text('[{"did": "s:c", "replicas": [{"storage": "disk", "path": "c"}]}]')
    answer(server, "/v1/tasks/11/inputs")
    result = run("add", "11", str(tmp_path / "a.txt"), str(tmp_path / "b.json"))
    assert result.exit_code == 0, result.output
    bodies = [json.loads(call.request.body or b"") for call in server.calls]
    assert [[file["did"] for file in body["files"]] for body in bodies] == [["s:a", "s:b"], ["s:c"]]
    assert "analyse" in result.output and "pending" in result.output


def test_a_wrong_list_sends_nothing(server: responses.RequestsMock, run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("s:a disk\n")
    result = run("add", "11", str(tmp_path / "a.txt"))
    assert result.exit_code == 2 and "'disk' is no replica" in result.output
    assert not server.calls


def test_an_input_is_closed(server: responses.RequestsMock, run: Callable[..., Result]) -> None:
    answer(server, "/v1/tasks/11/inputs:close")
    result = run("close", "11", "--json")
    assert result.exit_code == 0 and json.loads(result.output)["stage"] == "analyse"
