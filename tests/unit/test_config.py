"""The layers of the configuration, which one wins, and how mistakes in it are told."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, Optional

import msgspec
import pytest

from common import config
from common.config import ClientConfig, ConfigError, config_files, gather, load_config
from common.errors import ErrorCode


class Limits(msgspec.Struct, forbid_unknown_fields=True):
    cores: int
    memory_mb: int = 2000


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str = "none"
    heartbeat_s: float = 60.0
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 8443
    verbose: bool = False
    tags: list[str] = []
    limits: Optional[Limits] = None
    image: Optional[str] = None


class Needy(msgspec.Struct):
    site: str
    first: int = 1
    last: int = 9

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise ValueError("first must not be greater than last")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_defaults_stand_when_nobody_says_anything() -> None:
    loaded = load_config(Section, "pilot", [], {})
    assert loaded.value == Section()
    assert set(loaded.sources.values()) == {"default"}
    assert loaded.sources.keys() == {"name", "heartbeat_s", "port", "verbose", "tags", "limits", "image"}


def test_each_layer_overrides_the_one_below_and_is_named(tmp_path: Path) -> None:
    system = write(tmp_path / "etc/b.toml", '[pilot]\nname = "system"\nport = 1\nverbose = true\nheartbeat_s = 5\n')
    user = write(tmp_path / "home/.config/pilotage/a.toml", '[pilot]\nname = "user"\nport = 2\nverbose = false\n')
    explicit = write(tmp_path / "explicit.toml", '[pilot]\nname = "explicit"\nport = 3\n')
    environ = {"HOME": str(tmp_path / "home"), "PILOTAGE_PILOT_NAME": "environment", "PILOTAGE_PILOT_PORT": "4"}
    files = config_files(environ, explicit, tmp_path / "etc")
    loaded = load_config(Section, "pilot", files, environ, {"name": "argument", "port": None})
    assert loaded.value == Section(name="argument", port=4, verbose=False, heartbeat_s=5.0)
    assert loaded.sources == {
        "name": "command line",
        "port": "environment PILOTAGE_PILOT_PORT",
        "verbose": f"file {user}",
        "heartbeat_s": f"file {system}",
        "tags": "default",
        "limits": "default",
        "image": "default",
    }


def test_the_named_file_of_the_command_line_beats_that_of_the_environment(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.toml", ""), write(tmp_path / "2.toml", "")
    environ = {"PILOTAGE_CONFIG": str(two)}
    assert config_files(environ, one, tmp_path) == [one, two, one]
    assert config_files(environ, None, tmp_path / "none") == [two]
    assert config_files({"XDG_CONFIG_HOME": "/nowhere"}, None, tmp_path / "none") == []


@pytest.mark.parametrize("explicit", [True, False])
def test_a_named_file_that_is_not_there_is_an_error(tmp_path: Path, explicit: bool) -> None:
    path = str(tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match=f"{path}: there is no such file"):
        config_files({} if explicit else {"PILOTAGE_CONFIG": path}, path if explicit else None, tmp_path)


def test_a_system_file_for_others_is_left_out_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret, public = write(tmp_path / "server.toml", ""), write(tmp_path / "client.toml", "")
    real_access = os.access  # root may read everything, so that the refusal must be played
    monkeypatch.setattr(os, "access", lambda path, mode: path != secret and real_access(path, mode))
    assert config_files({}, None, tmp_path) == [public]
    assert str(secret) in caplog.text


def test_variables_take_the_type_of_their_key() -> None:
    environ = {
        "PILOTAGE_PILOT_HEARTBEAT_S": "2.5",
        "PILOTAGE_PILOT_PORT": "80",
        "PILOTAGE_PILOT_VERBOSE": "true",
        "PILOTAGE_PILOT_TAGS": '["a", "b"]',
        "PILOTAGE_PILOT_LIMITS": "{cores = 8}",
        "PILOTAGE_PILOT_NAME": "007",
        "PILOTAGE_PILOT_IMAGE": "",
    }
    loaded = load_config(Section, "pilot", [], environ)
    assert loaded.value == Section("007", 2.5, 80, True, ["a", "b"], Limits(8), None)
    assert loaded.sources["image"] == "default", "an empty variable counts as not set"


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PILOTAGE_PILOT_PORT", "tcp://10.0.0.1:80"),
        ("PILOTAGE_PILOT_PORT", "0"),
        ("PILOTAGE_PILOT_VERBOSE", "perhaps"),
        ("PILOTAGE_PILOT_TAGS", "a, b"),
        ("PILOTAGE_PILOT_TAGS", "[1]"),
        ("PILOTAGE_PILOT_LIMITS", "{cores = 8, disk = 1}"),
    ],
)
def test_a_variable_of_the_wrong_type_is_named(variable: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"environment {variable}: "):
        load_config(Section, "pilot", [], {variable: text})


def test_an_unknown_variable_is_only_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    # Kubernetes sets the first by itself for a service named pilotage-pilot.
    environ = {"PILOTAGE_PILOT_SERVICE_HOST": "10.0.0.1", "PILOTAGE_PILOT_HEARTBEAT": "5", "PILOTAGE_PILOTS_X": "1"}
    with caplog.at_level(logging.WARNING):
        assert load_config(Section, "pilot", [], environ).value == Section()
    assert "did you mean 'PILOTAGE_PILOT_HEARTBEAT_S'?" in caplog.text
    assert "PILOTS_X" not in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[pilot]\nheartbeats = 5\n", r"\[pilot\]: there is no key 'heartbeats'; did you mean 'heartbeat_s'\?"),
        ("[pilot]\nzzz = 5\n", "there is no key 'zzz'; known are heartbeat_s, image, limits"),
        ("[pilot]\nport = '80'\n", r"\[pilot\] port: Expected `int`, got `str`"),
        ("[pilot]\nport = 70000\n", r"\[pilot\] port: Expected `int` <= 65535"),
        ("[pilot]\nverbose = 1\n", r"\[pilot\] verbose: Expected `bool`"),
        ("[pilot]\ntags = 'a'\n", r"\[pilot\] tags: Expected `array`"),
        ("[pilot.limits]\ncore = 1\n", r"\[pilot\] limits: .*`core`"),
        ("[pilto]\n", r"there is no section \[pilto\]; did you mean 'pilot'\?"),
        ("pilot = 5\n", r"pilot must be a section: write \[pilot\]"),
        ("[pilot\n", "this is not TOML"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_file_key_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.setattr(config, "section_names", lambda: ["client", "pilot", "server"])
    path = write(tmp_path / "x.toml", text)
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(Section, "pilot", [path], {})
    assert caught.value.detail.startswith(f"{path}: ")
    assert caught.value.code is ErrorCode.BAD_CONFIGURATION


def test_sections_of_other_programs_are_left_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.toml", "[server]\nanything = 1\n[pilot]\nport = 9\n")
    monkeypatch.setattr(config, "section_names", lambda: ["pilot", "server"])
    assert load_config(Section, "pilot", [path], {}).value.port == 9
    monkeypatch.setattr(config, "section_names", list)  # as in a bundle, which is not installed
    assert load_config(Section, "pilot", [path], {}).value.port == 9


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    binary = tmp_path / "latin.toml"
    binary.write_bytes(b"[pilot]\nname = '\xe9'\n")
    for path in (binary, tmp_path / "gone.toml", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            load_config(Section, "pilot", [path], {})


def test_arguments_are_checked_too() -> None:
    with pytest.raises(ConfigError, match="command line: port: "):
        load_config(Section, "pilot", [], {}, {"port": "many"})
    with pytest.raises(ConfigError, match="command line: there is no key 'prot'; did you mean 'port'"):
        load_config(Section, "pilot", [], {}, {"prot": 1})
    assert load_config(Section, "pilot", [], {}, {"port": "81", "verbose": False}).value.port == 81


def test_a_key_without_a_default_must_be_set() -> None:
    with pytest.raises(ConfigError, match=r"\[pilot\] site is not set: .* PILOTAGE_PILOT_SITE"):
        load_config(Needy, "pilot", [], {})
    assert "site" not in gather(Needy, "pilot", [], {})
    assert load_config(Needy, "pilot", [], {"PILOTAGE_PILOT_SITE": "CERN"}).value.site == "CERN"


def test_values_that_contradict_each_other_are_told() -> None:
    with pytest.raises(ConfigError, match=r"\[pilot\] first must not be greater than last"):
        load_config(Needy, "pilot", [], {}, {"site": "x", "first": 10})


def test_defaults_that_are_lists_are_not_shared() -> None:
    load_config(Section, "pilot", [], {}).value.tags.append("mine")
    assert load_config(Section, "pilot", [], {}).value.tags == []


def test_the_section_of_the_client() -> None:
    loaded = load_config(ClientConfig, "client", [], {"PILOTAGE_CLIENT_SERVER_URL": "https://h"})
    assert loaded.value == ClientConfig(server_url="https://h")
