"""``pilotage pilot remove``: what the server's sweep calls, since it has no copytools itself."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from pilot.cli import pilot


def removed(*urls: str) -> list[dict[str, object]]:
    given = "\n".join(json.dumps(url) for url in urls)
    result = CliRunner().invoke(pilot, ["remove"], input=given, catch_exceptions=False)
    assert result.exit_code == 0
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def test_an_answer_for_each_url_in_order(tmp_path: Path) -> None:
    there, folder = tmp_path / "there is", tmp_path / "folder"
    there.write_text("x")
    (folder / "kept").mkdir(parents=True)
    urls = [there.as_uri(), (tmp_path / "absent").as_uri(), "odd://host/file", folder.as_uri()]
    answers = removed(*urls)
    assert [answer["url"] for answer in answers] == urls
    assert [answer["ok"] for answer in answers] == [True, True, False, False]
    assert "NO_STORAGE_PROTOCOL" in str(answers[2]["error"]) and answers[0]["error"] == ""
    assert not there.exists() and (folder / "kept").exists()


def test_nothing_asked_nothing_answered() -> None:
    assert removed() == []


def test_a_name_that_ends_in_a_space_is_not_another_file(tmp_path: Path) -> None:
    """Lines were once stripped, and the confirmed file of the name without the space was removed."""
    (tmp_path / "z.txt").write_text("confirmed")
    assert removed(f"{tmp_path.as_uri()}/z.txt ")[0]["ok"]
    assert (tmp_path / "z.txt").exists()


def test_a_line_that_is_no_json_string_removes_nothing_and_is_told(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("x")
    given = f'{path.as_uri()}\n\n"{path.as_uri()}2"\n'
    result = CliRunner().invoke(pilot, ["remove"], input=given, catch_exceptions=False)
    bare, good = (json.loads(line) for line in result.stdout.splitlines() if line.startswith("{"))
    assert (bare["url"], bare["ok"], good["ok"]) == (path.as_uri(), False, True)
    assert "JSON string" in bare["error"]
    assert path.exists()


def test_the_sweep_reads_what_the_remover_writes() -> None:
    """Two programs, one format: neither may import the other."""
    import msgspec

    from pilot import remove
    from server.agents import sweep

    said = msgspec.json.encode(remove.Removal("file:///x", False, "why"))
    read = msgspec.json.decode(said, type=sweep.Removal)
    assert (read.url, read.ok, read.error) == ("file:///x", False, "why")
