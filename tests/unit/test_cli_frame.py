"""The frame of the command: lazy sub-commands, one clear message for each failure, exit codes, config show."""

from __future__ import annotations

import configparser
import inspect
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import responses
from click.testing import CliRunner, Result

from common import config as configuration
from common import plugins
from common.cli import main as frame
from common.cli.client import Client, client_options
from common.errors import ErrorCode, PilotageError
from common.http import BadReply, Problem, ProblemError, Unreachable
from common.plugins import EntryPoint
from common.problem import FieldError
from common.tokens import write_secret_file

ROOT = Path(__file__).parents[2]
SERVER = "https://pilotage.example.org"
COMMANDS = "pilotage.commands"
SECTIONS = "pilotage.config"
# click 8.1, the last for Python 3.9, keeps standard error apart only when asked to; later ones always do.
RUNNER = CliRunner(**({"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}))


class PilotSection(msgspec.Struct):
    site: str
    database: str = "postgresql://me:hush@db/x"
    title: str = "[bold]a"


@click.command()
@client_options
@click.argument("name")
def look(client: Client, name: str) -> None:
    """Look at one thing. In depth."""
    click.echo(json.dumps([client.as_json, client.http.call("GET", f"/v1/{name}", None, dict[str, int])]))


class World:
    """A home without configuration, and a package ``outside`` whose modules are entry points."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.groups = {
            COMMANDS: {"config": "common.cli.config:config", "look": f"{__name__}:look"},
            SECTIONS: {"client": "common.config:ClientConfig", "pilot": f"{__name__}:PilotSection"},
        }

    def entries(self, group: str) -> dict[str, EntryPoint]:
        found = self.groups[group]
        return {name: EntryPoint(name, found[name], group) for name in sorted(found)}

    def add(self, name: str, source: str, attribute: str = "", group: str = COMMANDS) -> None:
        (self.folder / f"outside/{name}.py").write_text(source)
        self.groups[group][name] = f"outside.{name}:{attribute or name}"

    def run(self, *arguments: str) -> Result:
        return RUNNER.invoke(frame.main, list(arguments), prog_name="pilotage")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/__init__.py").touch()
    (tmp_path / "home").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in os.environ if re.match("PILOTAGE_|BEARER_|XDG_|REQUESTS_|SSL_|CURL_", name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(configuration.config_files, "__defaults__", (None, tmp_path / "etc"))
    world = World(tmp_path)
    for module in (frame, configuration):
        monkeypatch.setattr(module, "plugins", world.entries)
    yield world
    for module_name in [name for name in sys.modules if name.partition(".")[0] == "outside"]:
        del sys.modules[module_name]


# --- commands ---------------------------------------------------------------------------------------------------------


def test_help_lists_commands_without_importing_them(world: World) -> None:
    world.add("heavy", '@decorated\ndef heavy():\n    """Do heavy\n    work. And more."""\n1 / 0\n')
    world.add("bare", "import missing_module\n")
    world.groups[COMMANDS]["gone"] = "nowhere.cli:gone"
    result = world.run("--help")
    assert result.exit_code == 0
    assert re.search(r"^  config +Look at the configuration$", result.output, re.MULTILINE)
    assert re.search(r"^  heavy +Do heavy work$", result.output, re.MULTILINE)
    assert re.search(r"^  bare *$", result.output, re.MULTILINE)
    assert re.search(r"^  gone +\(not in this installation\)$", result.output, re.MULTILINE)
    assert "Exit codes: 0 done, 1 failure" in result.output


def test_a_command_that_lacks_its_extra_says_which_to_install(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["requests>=2.31", 'SQLAlchemy>=2.0.30; extra == "server"', 'pilotage[server]; extra == "all"']
    monkeypatch.setattr(plugins.metadata, "requires", lambda name: requirements)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    world.add("web", "import sqlalchemy\n")
    result = world.run("web", "--port", "80")
    assert result.exit_code == 2
    assert "pip install 'pilotage[server]'" in result.stderr
    assert "sqlalchemy" in result.stderr
    world.add("odd", "import unheard_of.part\n")
    assert "pip install 'unheard_of'" in world.run("odd").stderr


def test_a_command_whose_module_is_missing_or_wrong_is_told(world: World) -> None:
    world.add("empty", "")
    world.add("text", "text = 'no command'\n")
    world.groups[COMMANDS]["gone"] = "outside.gone:gone"
    for name, words in [("empty", "cannot be loaded"), ("text", "not a click command"), ("gone", "outside.gone")]:
        result = world.run(name)
        assert result.exit_code == 2
        assert words in result.stderr


def test_an_unknown_command_or_option_is_wrong_usage(world: World) -> None:
    for arguments in (["lok"], ["--nonsense"], ["look"], ["look", "a", "--nonsense"], ["--config", "/nowhere", "look"]):
        result = world.run(*arguments)
        assert result.exit_code == 2, arguments
        assert "Traceback" not in result.stderr


def test_the_version_is_printed(world: World) -> None:
    assert world.run("--version").output == f"pilotage, version {plugins.version()}\n"


def _installed_tree(folder: Path) -> dict[str, str]:
    """An environment in which this tree counts as installed, whether or not it is."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    groups = parser["options.entry_points"]
    info = folder / "pilotage-9.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("\n".join(f"[{group}]{groups[group]}\n" for group in groups))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pilotage\nVersion: 9\n")
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def test_the_real_help_is_quick_and_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom common.cli.main import main\n"
        "try: main(['--help'], prog_name='pilotage')\n"
        "finally: print('LOADED', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    environ = _installed_tree(tmp_path)
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        output = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert re.search(r"^  config +Look at the configuration$", output.stdout, re.MULTILINE)
    loaded = set(output.stdout.partition("LOADED")[2].split())
    assert not loaded & {"requests", "urllib3", "rich", "msgspec", "jwt", "falcon", "sqlalchemy", "psutil"}
    assert min(seconds) < 2.0, "CPU seconds of pilotage --help; some 0.1 on a quiet machine"


# --- failures ---------------------------------------------------------------------------------------------------------

PROBLEM = Problem("Bad request", 400, detail="not valid", errors=[FieldError("stages[1].name", "no such stage")])


@pytest.fixture
def failing(world: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make every call to the server raise an error."""

    def fail_with(error: BaseException) -> None:
        def call(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setenv("PILOTAGE_CLIENT_SERVER_URL", SERVER)
        monkeypatch.setattr("common.http.HttpClient.call", call)

    return fail_with


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ProblemError(400, PROBLEM), 1, "Bad request (400): not valid\n  stages[1].name: no such stage"),
        (ProblemError(404, Problem("Not Found", 404)), 1, "Not Found (404)"),
        (ProblemError(503, Problem("Service Unavailable", 503)), 3, "Service Unavailable (503)"),
        (Unreachable("GET https://h/v1: refused"), 3, "the server cannot be reached: GET https://h/v1: refused"),
        (BadReply("GET https://h/v1: odd"), 1, "GET https://h/v1: odd (1318 COMMUNICATION_FAILED)"),
        (PilotageError(ErrorCode.BAD_CONFIGURATION, "x is not set"), 2, "x is not set (1412 BAD_CONFIGURATION)"),
        (PilotageError(ErrorCode.NO_REMOTE_SPACE, "disk"), 1, "disk\nThe storage is full. (1333 NO_REMOTE_SPACE)"),
        (PilotageError(ErrorCode.NO_REMOTE_SPACE), 1, "The storage is full. (1333 NO_REMOTE_SPACE)"),
        (FileNotFoundError(2, "No such file or directory", "x.yml"), 1, "No such file or directory: 'x.yml'"),
        (KeyError("k"), 1, "internal error, please report it (KeyError: 'k'); --debug shows where"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.UsageError("not like this"), 2, "not like this"),
    ],
)
def test_a_failure_is_one_clear_message_and_an_exit_code(
    world: World, failing: Any, error: BaseException, code: int, message: str
) -> None:
    failing(error)
    result = world.run("look", "x")
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_debug_shows_where_and_keeps_the_exit_code(world: World, failing: Any) -> None:
    failing(Unreachable("refused"))
    result = world.run("--debug", "look", "x")
    assert result.exit_code == 3
    assert "Traceback" in result.stderr
    assert "in look" in result.stderr


def test_a_command_may_choose_its_exit_code(world: World) -> None:
    world.add("leave", "import click, sys\n@click.command()\ndef leave():\n    sys.exit(7)\n")
    assert world.run("leave").exit_code == 7
    world.add("go", "import click\n@click.command()\n@click.pass_context\ndef go(ctx):\n    ctx.exit(5)\n")
    assert world.run("go").exit_code == 5


# --- the client -------------------------------------------------------------------------------------------------------


@responses.activate
def test_options_beat_the_configuration(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    token, other, file = world.folder / "token", world.folder / "other", world.folder / "x.toml"
    write_secret_file(token, "abc.def")
    write_secret_file(other, "from.environment")
    file.write_text(f'[client]\nserver_url = "{SERVER}/from-file"\ntoken_file = "{token}"\n')
    responses.get(f"{SERVER}/from-file/v1/a", json={"n": 1})
    responses.get(f"{SERVER}/v1/a", json={"n": 2})
    result = world.run("--config", str(file), "look", "a")
    assert (result.exit_code, json.loads(result.stdout)) == (0, [False, {"n": 1}])
    result = world.run("--config", str(file), "look", "a", "--server", SERVER, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, [True, {"n": 2}])
    monkeypatch.setenv("PILOTAGE_TOKEN_FILE", str(other))
    world.run("--config", str(file), "look", "a")
    world.run("look", "a", "--server", SERVER, "--token-file", str(token))
    sent = [call.request.headers["Authorization"] for call in responses.calls]
    assert sent == ["Bearer abc.def", "Bearer abc.def", "Bearer from.environment", "Bearer abc.def"]


@responses.activate
def test_without_a_token_the_remedy_is_one_of_the_command(world: World) -> None:
    """A bug: the server's words about an HTTP header were handed on."""
    words = {"title": "Unauthorized", "status": 401, "detail": "send a token: Authorization: Bearer …"}
    responses.get(f"{SERVER}/v1/a", json=words, status=401, content_type="application/problem+json")
    result = world.run("look", "a", "--server", SERVER)
    assert result.exit_code == 1
    assert "--token-file" in result.stderr and "PILOTAGE_TOKEN_FILE" in result.stderr
    assert "Bearer" not in result.stderr
    write_secret_file(world.folder / "token", "abc.def")
    refused = world.run("look", "a", "--server", SERVER, "--token-file", str(world.folder / "token"))
    assert "Unauthorized (401)" in refused.stderr


def test_a_missing_server_or_token_file_is_told_with_the_remedy(world: World) -> None:
    result = world.run("look", "a")
    assert result.exit_code == 2
    assert "--server" in result.stderr
    assert "PILOTAGE_CLIENT_SERVER_URL" in result.stderr
    gone, readable = world.folder / "none", world.folder / "open"
    result = world.run("look", "a", "--server", SERVER, "--token-file", str(gone))
    assert result.exit_code == 2
    assert str(gone) in result.stderr
    readable.write_text("abc")
    readable.chmod(0o644)
    assert "chmod 600" in world.run("look", "a", "--server", SERVER, "--token-file", str(readable)).stderr


# --- config show ------------------------------------------------------------------------------------------------------


def test_config_show_says_where_each_value_came_from(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    file = world.folder / "x.toml"
    file.write_text(f'[client]\nserver_url = "{SERVER}"\n')
    monkeypatch.setenv("PILOTAGE_CLIENT_CA_FILE", "/ca.pem")
    result = world.run("--config", str(file), "config", "show", "client", "--json")
    assert json.loads(result.stdout) == {
        "client": {
            "server_url": {"value": SERVER, "source": f"file {file}"},
            "token_file": {"value": None, "source": "default"},
            "ca_file": {"value": "/ca.pem", "source": "environment PILOTAGE_CLIENT_CA_FILE"},
        }
    }
    monkeypatch.setenv("COLUMNS", "200")
    table = world.run("--config", str(file), "config", "show").stdout
    for words in (SERVER, f"file {file}", "/ca.pem", "environment PILOTAGE_CLIENT_CA_FILE", "not set", "[bold]a"):
        assert words in table


def test_config_show_masks_passwords(world: World) -> None:
    for arguments in ([], ["--json"]):
        output = world.run("config", "show", "pilot", *arguments).output
        assert "hush" not in output
        assert "me:***@db" in output


def test_config_show_leaves_out_what_is_not_installed_and_says_so(world: World) -> None:
    world.add("server", "import missing_module\n", "ServerConfig", SECTIONS)
    result = world.run("config", "show", "--json")
    assert result.exit_code == 0
    assert set(json.loads(result.stdout)) == {"client", "pilot"}
    assert "[server] left out: " in result.stderr
    assert world.run("config", "show", "server").exit_code == 2


def test_config_show_names_an_unknown_section_and_a_mistake(world: World) -> None:
    result = world.run("config", "show", "clinet")
    assert result.exit_code == 2
    assert "did you mean 'client'?" in result.stderr
    file = world.folder / "x.toml"
    file.write_text("[client]\nserver = 1\n")
    result = world.run("--config", str(file), "config", "show")
    assert result.exit_code == 2
    assert "did you mean 'server_url'?" in result.stderr
