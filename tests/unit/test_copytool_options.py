"""Options of copytools from a node's configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config import load_config
from common.errors import ErrorCode, PilotageError
from pilot.config import PilotConfig
from pilot.workshop import load_tools


def config(tmp_path: Path, text: str) -> PilotConfig:
    path = tmp_path / "pilot.toml"
    path.write_text(text)
    return load_config(PilotConfig, "pilot", [path], {}).value


def site_command(folder: Path) -> str:
    path = folder / "copy"
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(0o755)
    return str(path)


def test_a_sites_own_commands_are_taken_from_its_configuration(tmp_path: Path) -> None:
    command = site_command(tmp_path)
    said = config(
        tmp_path, f'[pilot.copytools.lsm]\nget = ["{command}", "--in"]\nput = "{command}"\nread_back = true\n'
    )
    assert [tool.name for tool in load_tools(["lsm"], options=said.copytools)] == ["lsm"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[pilot.copytools.file]\ncolour = 'red'\n", "copytools.file: copytool 'file' has no option colour"),
        ("[pilot.copytools.lsm]\nget = 7\n", "copytools.lsm: "),
    ],
)
def test_a_wrong_option_is_named_and_the_tool_is_not_just_left_out(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(PilotageError, match=words) as caught:
        load_tools(["file", "lsm"], options=config(tmp_path, text).copytools)
    assert caught.value.code is ErrorCode.BAD_CONFIGURATION
