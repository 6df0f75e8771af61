"""A server with the face of Data Dispatcher as a real process, a web server before it, and the real ``ddisp``."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from common.clock import SystemClock
from common.http import HttpClient
from common.tokens import TokenIssuer, load_or_create_key, read_secret_file
from tests.e2e.program import Program, pilotage, wait_for
from tests.oidc_provider import Provider
from tests.services.base import free_port
from tests.services.certificates import Authority
from tests.services.nginx import FrontEnd

SECRET = "f" * 40
REALM = "dune"
PASSWORDS = {"alice": "open sesame", "bob": "hunter2", "root": "toor"}
ROLES = """
[[person]]
name = "alice"
identities = ["iam:alice-at-iam", "x509:CN=Alice,DC=pilotage"]
roles = ["user"]

[[person]]
name = "carol"
identities = ["iam:carol-at-iam"]
groups = ["my_group"]
roles = ["user"]
"""
DICE = "import random\nrandom.random = lambda: 0.01\n"
"""The client sleeps up to ten seconds before it asks for a file: in the tests its dice show little."""
STORAGES = ("FNAL_DCACHE", "LANCASTER")
FILES = 12


class World:
    """Server, web server, issuer, and the clients of all who use them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.authority = Authority(folder / "ca")
        self.front_end = FrontEnd(folder / "nginx", self.authority, self.port, SECRET)
        self.provider = Provider(time.time)
        self.clients: list[Ddisp] = []
        self._write()
        own = {name: value for name, value in os.environ.items() if not name.startswith("PILOTAGE_")}
        environment = {**own, "XDG_CONFIG_HOME": str(folder / "none"), "PYTHONPATH": str(Path(__file__).parents[3])}
        argv = pilotage("--config", str(folder / "server.toml"), "server")
        self.server = Program("server", argv, folder, environment, self._answers)
        self.api = HttpClient(
            f"http://127.0.0.1:{self.port}", token=lambda: read_secret_file(self.state / "admin.token")
        )
        dice = folder / "dice"
        dice.mkdir()
        (dice / "sitecustomize.py").write_text(DICE)
        self._runner = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("ddisp_process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(dice)},
        )

    def run(self, words: Sequence[str], environment: dict[str, str], folder: Path, files: Sequence[Path]) -> int:
        """One command of the client, in a process of its own; its exit code."""
        asked = {
            "words": words,
            "environment": environment,
            "folder": str(folder),
            "files": [str(each) for each in files],
        }
        assert self._runner.stdin is not None and self._runner.stdout is not None
        self._runner.stdin.write(json.dumps(asked) + "\n")
        self._runner.stdin.flush()
        return int(self._runner.stdout.readline())

    @property
    def state(self) -> Path:
        """The server's folder."""
        return self.folder / "state"

    @property
    def data_url(self) -> str:
        """What people name in DATA_DISPATCHER_URL."""
        return f"{self.front_end.url}/compat/data-dispatcher/data"

    @property
    def auth_url(self) -> str:
        """What people name in DATA_DISPATCHER_AUTH_URL."""
        return f"{self.front_end.url}/compat/data-dispatcher/auth"

    def start(self) -> None:
        self.server.start()
        self.front_end.start()
        for number, name in enumerate(STORAGES):
            site = f"site{number}"
            self.put(f"/v1/sites/{site}", {"name": site, "distances": {STORAGES[1 - number]: 30}})
            endpoints = [{"url": f"root://{name.lower()}.example.org:1094//pnfs"}]
            self.put(f"/v1/storages/{name}", {"name": name, "site": site, "tape": False, "endpoints": endpoints})

    def stop(self) -> None:
        self.api.close()
        self._runner.communicate(timeout=120)
        self.front_end.stop()
        self.provider.stop()
        if self.server.running:
            self.server.stop()

    def put(self, path: str, body: dict[str, Any]) -> None:
        """Describe something, as an admin does."""
        self.api.call("PUT", path, body, type(None))

    def token(self, name: str, *roles: str) -> str:
        """A token of ours."""
        issuer = TokenIssuer(load_or_create_key(self.state / "signing.key"), "pilotage", SystemClock())
        return issuer.mint(name, roles or ("user",), 3600.0)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except OSError:
            return False
        return True

    def _write(self) -> None:
        folder = self.folder
        for name, text in {
            "front.secret": SECRET,
            "passwords": "".join(f"{user}:{REALM}:{ha1(user, word)}\n" for user, word in PASSWORDS.items()),
        }.items():
            (folder / name).touch(0o600)
            (folder / name).write_text(text)
        (folder / "people.toml").write_text(ROLES)
        lists = folder / "lists"
        lists.mkdir()
        (lists / "all.json").write_text(json.dumps([_known(number) for number in range(FILES)]))
        (folder / "server.toml").write_text(
            f"""
[server]
state_dir = "{self.state}"
port = {self.port}
mapping_file = "{folder}/people.toml"
[server.limits.anybody]
per_s = 1000.0
burst = 1000.0
[server.front_end]
secret_file = "{folder}/front.secret"
[[server.oidc]]
label = "iam"
issuer = "{self.provider.url}"
audience = ["pilotage"]
[server.catalogs.lists]
plugin = "file-list"
folder = "{lists}"
index = "all.json"
[server.compat.data_dispatcher]
on = true
catalog = "lists"
password_file = "{folder}/passwords"
realm = "{REALM}"
rse_site = "site0"
"""
        )


def ha1(user: str, password: str, realm: str = REALM) -> str:
    """What htdigest writes."""
    return hashlib.md5(f"{user}:{realm}:{password}".encode()).hexdigest()


def _known(number: int) -> dict[str, Any]:
    name = f"np04_raw_{number:02d}.root"
    path = f"fnal.gov/usr/dune/{name}"
    storages = STORAGES if number % 3 == 0 else STORAGES[number % 2 :][:1]
    return {
        "did": f"protodune-sp:{name}",
        "size": 1000 + number,
        "checksum": f"adler32:{number:08x}",
        "attributes": {"core.runs": [6833, number], "core.data_tier": "raw"},
        "replicas": [{"storage": each, "path": path} for each in storages],
    }


class Ddisp:
    """The client of one person, in a folder and with a library of tokens of their own."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.folder = world.folder / f"home-{name}"
        self.folder.mkdir()
        self.said: list[str] = []
        world.clients.append(self)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "PYTHONPATH": str(world.folder / "dice"),
            "PYTHONWARNINGS": "ignore",
            "REQUESTS_CA_BUNDLE": str(world.authority.file),
            "DATA_DISPATCHER_URL": world.data_url,
            "DATA_DISPATCHER_AUTH_URL": world.auth_url,
            "METACAT_SERVER_URL": world.data_url,
        }

    def ask(self, *words: str, stdin: str = "", cwd: Optional[Path] = None, **more: str) -> tuple[int, str, str]:
        """One command: how it ended, and what it said."""
        files = [self.folder / f".std{name}" for name in ("in", "out", "err")]
        for file, text in zip(files, (stdin, "", ""), strict=True):
            file.write_text(text)
        code = self.world.run(words, {**self.environment, **more}, cwd or self.folder, files)
        out, err = (file.read_text() for file in files[1:])
        shown = " ".join(f"'{word}'" if re.search(r"[\s\"]", word) else word for word in words)
        self.said.append(f"$ ddisp {shown}\n{out}{err}" + (f"(exit code {code})\n" if code else ""))
        return code, out, err

    def __call__(self, *words: str, **more: Any) -> str:
        """What a command says that must succeed."""
        code, out, err = self.ask(*words, **more)
        assert code == 0, f"ddisp {' '.join(words)}: {code}\n{out}{err}\n{self.world.server.tail()}"
        return out

    def json(self, *words: str, **more: Any) -> Any:
        """The same, of a command that says JSON."""
        return json.loads(self(*words, **more))

    def log_in(self, name: str) -> None:
        """By password."""
        out = self("login", "-m", "password", name, stdin=f"{PASSWORDS[name]}\n")
        assert re.search(rf"User: +{name}\nExpires: ", out), out

    def transcript(self) -> str:
        """All that was asked and said, without tokens and without what differs from run to run."""
        plain = "\n".join(self.said).replace(self.world.front_end.url, "https://pilotage.example.org")
        return re.sub(r"eyJ[\w-]+\.[\w-]+\.[\w-]+", "TOKEN", plain).replace(str(self.world.folder), "")


def make(ddisp: Ddisp, dids: Sequence[str], *words: str) -> int:
    """Make a project of a list, and wait until its files are known."""
    lines = "".join(f"{did}\n" for did in dids)
    project = int(ddisp("project", "create", "-l", "-", *words, stdin=lines))
    settled(ddisp, project, len(dids))
    return project


def settled(ddisp: Ddisp, project: int, count: int) -> None:
    """Wait until the agents have made units of all files."""

    def there() -> bool:
        view = ddisp.world.api.call("GET", f"/v1/projects/{project}", None, dict)
        return sum(view.get("files", {}).values()) == count

    wait_for(there, f"project {project} has {count} files", 180)
