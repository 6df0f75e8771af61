"""A real Rucio server on SQLite, in a virtual environment of its own, with an RSE on this machine's disk.

Its clients send their traces to a recorder beside it: a Rucio server takes them only when it has a message broker.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from common.tokens import write_secret_file
from tests.services.base import Service, ServiceFailed, ServiceUnavailable, hold_port, require, require_module, run
from tests.services.install import state_of

ROOT = Path(__file__).parents[2]
VENV = ROOT / ".services" / "rucio"
#: SQLite is what Rucio's own server needs least for; gunicorn serves it.
REQUIREMENTS = ("rucio[sqlite]>=41,<42", "gunicorn>=23")
INSTALL_TIMEOUT = 560.0
USER, PASSWORD = "ddmlab", "secret"
RSE, SCOPE = "DISK", "test"
_BOOTSTRAP = (
    "from rucio.db.sqla.util import build_database, create_base_vo, create_root_account\n"
    "build_database(); create_base_vo(); create_root_account()\n"
)
#: Rucio's migrations want their logging configured beside the rest.
_LOGGING = (
    "[loggers]\nkeys = root\n[handlers]\nkeys = console\n[formatters]\nkeys = plain\n[logger_root]\nlevel = WARN\n"
    "handlers = console\n[handler_console]\nclass = StreamHandler\nargs = (sys.stderr,)\nformatter = plain\n"
    "[formatter_plain]\nformat = %(message)s\n"
)
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def status() -> str:
    """For the header of a test run: installed, to be installed."""
    return state_of(True) if _whole().exists() else "to be installed"


def _whole() -> Path:
    """Its presence says that the installation is whole."""
    return VENV / ".installed"


def install() -> Path:
    """The folder of Rucio's programs, installed from PyPI when missing; raises ServiceUnavailable."""
    VENV.parent.mkdir(exist_ok=True)
    with (VENV.parent / "rucio.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _whole().exists():
            try:
                run([sys.executable, "-m", "venv", "--clear", VENV])
                pip = [VENV / "bin/python", "-m", "pip", "install", "--quiet", "--no-compile", *REQUIREMENTS]
                run(pip, timeout=INSTALL_TIMEOUT)
            except ServiceFailed as error:
                raise ServiceUnavailable(f"installing Rucio's server failed: {error}") from error
            _whole().touch()
    return VENV / "bin"


class Traces:
    """Records what Rucio's clients send as traces."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(201)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing to say."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def of(self, did: str) -> list[dict[str, Any]]:
        """The traces of a file, in the order of arrival."""
        scope, _, name = did.partition(":")
        return [each for each in self.received if each["scope"] == scope and name in _names(each)]

    def stop(self) -> None:
        """Stop recording."""
        self._server.shutdown()
        self._server.server_close()


def _names(trace: dict[str, Any]) -> tuple[Any, ...]:
    return (trace.get("filename"), trace.get("name"), trace.get("dataset"))


class RucioServer(Service):
    """A Rucio server with one account (root), one scope (``SCOPE``) and one RSE (``RSE``), a folder on disk."""

    def __init__(self, programs: Path, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.programs = programs
        # Making its database takes long: meanwhile somebody's connection could get the port.
        self._held = hold_port()
        self.port = self._held.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.traces = Traces()
        self.disk = folder / "disk"
        self.disk.mkdir()
        (folder / "log").mkdir()
        self.config = folder / "client.cfg"
        self.config.write_text(self._client_config())
        server_config = folder / "server.cfg"
        server_config.write_text(self._server_config())
        (folder / "alembic.ini").write_text(
            f"[alembic]\nscript_location = rucio.db.sqla:migrate_repo\nsqlalchemy.url = {self._database}\n{_LOGGING}"
        )
        env = {**os.environ, "RUCIO_CONFIG": str(server_config), "NO_PROXY": "*"}
        run([programs / "python", "-c", _BOOTSTRAP], env=env, cwd=folder)
        options = ["--no-control-socket", "-b", f"127.0.0.1:{self.port}", "-w", "1", "--threads", "4"]
        self.access_log = folder / "log" / "access"
        options += ["--access-logfile", str(self.access_log), "--access-logformat", "%(a)s %(m)s %(U)s %(s)s"]
        super().__init__(
            "rucio",
            [programs / "gunicorn", *options, "rucio.web.rest.flaskapi.v1.main:application"],
            folder / "log" / "gunicorn",
            self._answers_ping,
            env=env,
            cwd=folder,
        )

    def release(self) -> None:
        """Give the port back."""
        self._held.close()

    @property
    def _database(self) -> str:
        return f"sqlite:///{self.folder}/rucio.db"

    def _client_config(self) -> str:
        client = f"rucio_host = {self.url}\nauth_host = {self.url}\nauth_type = userpass\nusername = {USER}\n"
        client += "account = root\nrequest_retries = 1\n"
        return f"[client]\n{client}[policy]\npermission = generic\nschema = generic\n[trace]\ntrace_host = {self.traces.url}\n"

    def _server_config(self) -> str:
        sections = {
            "common": {"logdir": self.folder / "log", "loglevel": "WARNING"},
            "database": {"default": self._database, "echo": 0, "pool_recycle": 3600},
            "bootstrap": {"userpass_identity": USER, "userpass_pwd": PASSWORD, "userpass_email": "root@localhost"},
            "policy": {"permission": "generic", "schema": "generic", "lfn2pfn_algorithm_default": "hash"},
            "monitor": {"enable_metrics": False},
            "core": {"geoip_database": "/nonexistent"},
            "alembic": {"cfg": self.folder / "alembic.ini"},
        }
        lines = []
        for section, settings in sections.items():
            lines += [f"[{section}]", *(f"{name} = {value}" for name, value in settings.items())]
        return "\n".join([*lines, ""])

    def start(self) -> None:
        """Start the server, and furnish it the first time."""
        super().start()
        if not (self.folder / "furnished").exists():
            self.furnish()
            (self.folder / "furnished").touch()

    def furnish(self) -> None:
        """Make the scope and the RSE."""
        self.call("POST", f"/scopes/root/{SCOPE}")
        self.add_rse(RSE, "file", "localhost", 0, f"{self.disk}/", "rucio.rse.protocols.posix.Default")

    def add_rse(
        self, name: str, scheme: str, host: str, port: int, prefix: str, implementation: str, **settings: Any
    ) -> None:
        """Make an RSE with one protocol for everything, and let the account fill it. ``settings`` are Rucio's own."""
        self.call("POST", f"/rses/{name}", settings)
        may = {"read": 1, "write": 1, "delete": 1}
        protocol = {"hostname": host, "port": port, "prefix": prefix, "impl": implementation}
        self.call("POST", f"/rses/{name}/protocols/{scheme}", {**protocol, "domains": {"lan": may, "wan": may}})
        self.call("POST", f"/accountlimits/local/root/{name}", {"bytes": 10**15})

    def access(self, folder: Path) -> dict[str, Any]:
        """The options with which the server's plug-ins log in; the password lies in the folder."""
        write_secret_file(folder / "rucio.password", PASSWORD)
        return {
            "rucio_host": self.url,
            "account": "root",
            "auth_type": "userpass",
            "username": USER,
            "password_file": str(folder / "rucio.password"),
            "timeout_s": 20.0,
        }

    def add_files(self, rse: str, names: Sequence[str], **fields: Any) -> None:
        """Register files of the scope with replicas that lie at the RSE, as far as the catalogue knows."""
        files = [{"bytes": 1000, "adler32": "0cc737eb", "scope": SCOPE, "name": name, **fields} for name in names]
        self.call("POST", "/replicas", {"rse": rse, "files": files, "ignore_availability": True})

    def add_dataset(self, name: str, members: Sequence[str], kind: str = "DATASET") -> str:
        """Make a dataset of files (or a container of datasets) in the scope; its DID."""
        dids = [{"scope": SCOPE, "name": each} for each in members]
        self.call("POST", f"/dids/{SCOPE}/{name}", {"type": kind})
        if dids:
            self.call("POST", f"/dids/{SCOPE}/{name}/dids", {"dids": dids})
        return f"{SCOPE}:{name}"

    def client(self, *words: str) -> str:
        """Run the real ``rucio`` command, as a person does who has a password; its output, after the line of the command."""
        config = self.folder / "person.cfg"
        write_secret_file(
            config, f"{self.config.read_text()}".replace("[client]\n", f"[client]\npassword = {PASSWORD}\n")
        )
        env = {**os.environ, "RUCIO_CONFIG": str(config), "TMPDIR": str(self.folder), "COLUMNS": "200", "NO_PROXY": "*"}
        said = run([self.programs / "rucio", *words], env=env, cwd=self.folder)
        return f"$ rucio {' '.join(words)}\n{said.rstrip()}\n"

    def requests(self, agent: str = "pilotage") -> list[str]:
        """What clients of that name have asked so far: method, path and status of each request."""
        lines = self.access_log.read_text().splitlines() if self.access_log.exists() else []
        return [line[len(agent) + 1 :] for line in lines if line.startswith(f"{agent} ")]

    def token(self) -> str:
        """A new token of the server's for the account."""
        headers = {"X-Rucio-Account": "root", "X-Rucio-Username": USER, "X-Rucio-Password": PASSWORD}
        with _OPENER.open(urllib.request.Request(f"{self.url}/auth/userpass", headers=headers)) as reply:
            return str(reply.headers["X-Rucio-Auth-Token"])

    def expire(self, token: str) -> None:
        """Let a token's life be over."""
        database = sqlite3.connect(self.folder / "rucio.db", timeout=20)
        with database:
            database.execute("UPDATE tokens SET expired_at = '2020-01-01 00:00:00' WHERE token = ?", (token,))
        database.close()

    def call(self, method: str, path: str, body: Any = None) -> str:
        """Call the server as its account; the answer's body."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Rucio-Auth-Token": self.token(), "Content-Type": "application/json"},
        )
        try:
            with _OPENER.open(request) as reply:
                return str(reply.read().decode())
        except urllib.error.HTTPError as error:
            raise ServiceFailed(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}") from error

    def replicas(self, did: str) -> list[dict[str, Any]]:
        """What the catalogue knows of a file's replicas."""
        scope, _, name = did.partition(":")
        answer = self.call("POST", "/replicas/list", {"dids": [{"scope": scope, "name": name}], "all_states": True})
        return [json.loads(line) for line in answer.splitlines() if line]

    def _answers_ping(self) -> bool:
        try:
            with _OPENER.open(f"{self.url}/ping", timeout=20) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False


@pytest.fixture(scope="session")
def rucio(services_folder: Path) -> Iterator[RucioServer]:
    """A running Rucio server for the whole session; give each test file names of its own."""
    require_module("rucio.client")
    programs = require(install)
    server = require(lambda: RucioServer(programs, services_folder / "rucio"))
    try:
        server.start()
        yield server
    finally:
        server.stop()
        server.traces.stop()
        server.release()
