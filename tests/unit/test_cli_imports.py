"""The command that shows what was imported from other descriptions of the world, and has the server look now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import responses
from click.testing import CliRunner, Result

from common.cli import Frame
from common.cli.main import main
from common.wire import ImportChange, ImportDocument, ImportReport, ImportReports, ImportRequest, ImportStep

CRIC = ImportReport(
    source="cric", time=5.0, changed=5.0,
    documents=[ImportDocument("queues", "/q.json", 2), ImportDocument("sites", problem="cut short")],
    changes=[
        ImportChange("queue", "Q2", ImportStep.CHANGED, {"memory_mb": 9}),
        ImportChange("storage", "DISK", ImportStep.CREATED, {"endpoints": [{"url": "root://a//b"}], "site": "CERN"}),
    ],
    left=[
        ImportChange("queue", "BAD", ImportStep.LEFT_OUT, {}, "maxrss: a number"),
        ImportChange("queue", "Q2", ImportStep.KEPT, {"wall_s": 60}, "wall_s changed by hand"),
        ImportChange("distances", "CERN", ImportStep.KEPT, {"DISK": None}, "DISK changed by hand"),
    ],
)  # fmt: skip
RUCIO = ImportReport(source="experiment")
URL = "http://server.test/v1/imports"


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o600)
    options = ["--server", "http://server.test", "--token-file", str(tmp_path / "token")]
    return lambda *words: CliRunner().invoke(main, ["admin", "imports", *words, *options], obj=Frame(config_file=None))


@responses.activate
def test_the_command_shows_all_sources_with_what_is_other_and_why(run: Callable[..., Result]) -> None:
    responses.add("GET", URL, msgspec.json.encode(ImportReports([CRIC, RUCIO])))
    told = " ".join(run().output.split())
    for words in (
        "experiment looked at not yet", "cut short", "memory_mb=9", "endpoints=[root://a//b], site=CERN",
        "BAD left out maxrss: a number", "Q2 kept wall_s=60 wall_s changed by hand", "DISK=-",
    ):  # fmt: skip
        assert words in told, told
    assert "experiment" not in run("cric").output
    assert msgspec.json.decode(run("--json", "cric").output, type=ImportReports).items == [CRIC]
    result = run("elsewhere")
    assert result.exit_code == 1 and "what is: cric, experiment" in result.output


@responses.activate
def test_the_command_says_when_nothing_is_imported(run: Callable[..., Result]) -> None:
    responses.add("GET", URL, msgspec.json.encode(ImportReports()))
    result = run()
    assert result.exit_code == 1 and "[server.cric]" in result.output


@responses.activate
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--now"], ImportRequest()),
        (["--dry-run"], ImportRequest(dry_run=True)),
        (["--take", "Q1", "--take", "Q2"], ImportRequest(take=["Q1", "Q2"])),
        (["--believe"], ImportRequest(believe=True)),
    ],
    ids=["now", "dry-run", "take", "believe"],
)
def test_the_command_has_the_server_look_now(
    run: Callable[..., Result], words: list[str], wanted: ImportRequest
) -> None:
    good = msgspec.structs.replace(CRIC, documents=CRIC.documents[:1])
    responses.add("POST", f"{URL}/cric", msgspec.json.encode(good))
    result = run("cric", *words)
    done = "would be changed" if wanted.dry_run else "changed"
    assert result.exit_code == 0 and f"2 {done}, 3 left as they are" in result.output
    assert msgspec.json.decode(responses.calls[0].request.body or b"", type=ImportRequest) == wanted
    assert run(*words).exit_code == 2, "of which source?"


@responses.activate
def test_a_look_with_a_problem_fails_and_old_changes_are_none_of_its(run: Callable[..., Result]) -> None:
    responses.add("POST", f"{URL}/cric", msgspec.json.encode(msgspec.structs.replace(CRIC, time=9.0)))
    result = run("cric", "--now")
    assert result.exit_code == 1 and "sites: cut short" in result.output
    assert "0 changed, 3 left as they are" in result.output and "memory_mb" not in result.output
