"""The real ``act`` against a real server and a real harvester, whose queue is a real ARC CE."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import requests

from tests.e2e.program import wait_for
from tests.e2e.system import System
from tests.services.arc import PERSON, QUEUE, ArcCe
from tests.services.certificates import write_proxy

NAME = "grid"
"""Our queue."""
DEADLINE_S = 300.0
USERS_FROM, USERS = 100_000, 1_000_000
"""``act`` reads ``/tmp/x509up_u<user>`` whatever its configuration says: each run is a user of its own there."""


class ActSystem(System):
    """Server and harvester, with the one queue ``grid``; the CE's person is known as ``robot``."""

    def __init__(self, folder: Path, ce: ArcCe, **more: Any) -> None:
        self.ce = ce
        self.mapping = folder / "mapping.toml"
        self.mapping.write_text(
            f'[[person]]\nname = "robot"\nidentities = ["x509:/DC=pilotage/CN={PERSON}"]\nroles = ["user"]\n'
        )
        act = {"on": True, "authorities": str(ce.authorities)}
        super().__init__(
            folder, configuration={"server": {"mapping_file": str(self.mapping), "compat": {"act": act}}}, **more
        )

    def put_queue(self, **changes: Any) -> None:
        self.put(f"/v1/queues/{NAME}", {"name": NAME, "site": "here", "cores": 1, "memory_mb": 1000, **changes})

    def harvester_queues(self) -> dict[str, dict[str, Any]]:
        return {
            NAME: {
                "backend": "arc",
                "direct": True,
                "max_workers": 0,
                "options": {
                    "url": self.ce.url,
                    "ca_file": str(self.ce.authorities),
                    "proxy_file": str(self.ce.proxy),
                    "timeout_s": 60.0,
                    "settle_s": 8.0,
                },
                "submit": {"queue": QUEUE},
            }
        }

    @property
    def cluster(self) -> str:
        """How the CE's queue is named to people."""
        return f"{self.ce.url.removesuffix('/arex')}/{QUEUE}"


class ActClient:
    """A person with ``act``, in a home of its own. ``transcript`` is what was typed and what came."""

    def __init__(self, system: ActSystem, folder: Path) -> None:
        self.system = system
        self.home = folder
        self.transcript: list[str] = []
        self.user = USERS_FROM + (os.getpid() * 7 + abs(hash(str(folder)))) % USERS
        self.proxy = Path(f"/tmp/x509up_u{self.user}")
        config = folder / ".config/act-client/config.yaml"
        config.parent.mkdir(parents=True)
        config.write_text(
            f"server: {system.url}\nclusters:\n  default:\n    - {system.cluster}\n  elsewhere:\n"
            "    - https://ce.example.org/none\n"
        )

    @property
    def token(self) -> Path:
        """Where it keeps its token."""
        return self.home / ".local/share/act-client/token"

    def new_proxy(self) -> None:
        """What ``arcproxy`` would do."""
        write_proxy(self.system.ce.person, self.proxy)

    def close(self) -> None:
        """Take the proxy away."""
        self.proxy.unlink(missing_ok=True)

    def __call__(self, *words: str, code: int = 0) -> str:
        """Run ``act`` to its end; what it printed."""
        script = Path(sys.executable).with_name("act")
        inside = ["unshare", "--user", f"--map-user={self.user}", sys.executable, str(script), *words]
        environment = {"HOME": str(self.home), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PYTHONSAFEPATH": "1"}
        done = subprocess.run(
            inside, cwd=self.home, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        self.transcript.append(f"$ act {' '.join(words)}\n{done.stdout}{done.stderr}")
        assert done.returncode == code, self.transcript[-1]
        assert "Traceback" not in done.stdout + done.stderr, self.transcript[-1]
        return done.stdout

    def write(self, name: str, text: str) -> str:
        """A file in the home; its name."""
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name

    def asked(self, path: str, **params: str) -> Any:
        """What the server answers when it is asked as ``act`` asks, without starting it each time."""
        headers = {"Authorization": f"Bearer {self.token.read_text()}"}
        answer = requests.get(f"{self.system.url}/{path}", params=params, headers=headers, timeout=120)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def states(self) -> dict[str, str]:
        """The state of each job, by name."""
        listed = self.asked("jobs", client="jobname", arc="arcstate")
        return {each["c_jobname"]: each["a_arcstate"] for each in listed}

    def until_served(self) -> None:
        """Return once harvester has told where it brings jobs: before, there is no cluster to hand one in to."""
        wait_for(
            lambda: self.system.cluster in self.asked("info")["clusters"],
            lambda: f"{self.system.cluster} is served\n{self.system.logs()}",
            DEADLINE_S,
        )

    def until(self, **wanted: str) -> None:
        """Return once jobs are in these states."""
        seen: dict[str, str] = {}

        def look() -> bool:
            seen.clear()
            seen.update(self.states())
            return all(seen.get(name) == state for name, state in wanted.items())

        wait_for(look, lambda: f"{wanted}, there is {seen}\n{self.system.logs()}", DEADLINE_S)
