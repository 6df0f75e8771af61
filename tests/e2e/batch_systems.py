"""A whole system whose pilots run in real batch systems: one harvester, a queue for each of them at a site of its own."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pwd
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from common.states import FINAL_WORKER_STATES
from common.wire import WorkerPage, WorkerView
from tests.e2e.looks import adler32
from tests.e2e.system import System
from tests.services.arc import QUEUE as ARC_QUEUE
from tests.services.arc import ArcCe
from tests.services.grid_root import USER, USER_ID
from tests.services.htcondor import CondorPool
from tests.services.slurm import SlurmCluster
from tests.services.sshd import SshServer
from tests.services.xrootd import NODE_PYTHON, XrootdServer

WORKERS = 4
"""Of each queue at a time."""
TIMEOUT_S = 60.0
STORE = "store"
"""The site of the storage: reached from all queues, and none of them its own."""
IDLE_S = 12.0
"""After so long without a job a pilot leaves; the server's demand is up to 8 s old, and would have others take its place."""
GATE = "/data"
"""Where payloads see the folder ``gate`` of the batch systems' world."""


class BatchSystem(ABC):
    """One real batch system as an admin describes it to harvester. ``user_id`` is whom its jobs run as: nobody special."""

    name: str
    user_id: int
    scratch: Path
    """A folder that its nodes see."""

    @abstractmethod
    def queue(self, folder: Path) -> dict[str, Any]:
        """The backend and its options; ``folder`` is there for what they name."""

    @abstractmethod
    def jobs_left(self) -> Sequence[str]:
        """What waits or runs in the batch system, as it says itself."""

    @abstractmethod
    def clear(self) -> None:
        """End whatever is there, at the end of a test that failed."""


class Condor(BatchSystem):
    """HTCondor: submitted to as to a remote schedd, with a token."""

    name, user_id = "CONDOR", USER_ID

    def __init__(self, pool: CondorPool) -> None:
        self._pool = pool
        self.scratch = pool.folder

    def queue(self, folder: Path) -> dict[str, Any]:
        tokens = folder / "condor-tokens"
        tokens.mkdir(mode=0o700)
        self._pool.make_token(tokens / "pool", USER)
        options = {"pool": self._pool.pool, "token_dir": str(tokens), "timeout_s": TIMEOUT_S}
        return {"backend": "htcondor", "options": options}

    def jobs_left(self) -> Sequence[str]:
        live = "PilotageMark isnt undefined && JobStatus != 4 && JobStatus != 3"
        shown = self._pool.command("condor_q", "-allusers", "-constraint", live, "-format", "%s\n", "PilotageMark")
        return shown.split()

    def clear(self) -> None:
        self._pool.remove_all()


class Arc(BatchSystem):
    """An ARC CE: a proxy, and REST."""

    name, user_id = "ARC", USER_ID

    def __init__(self, ce: ArcCe) -> None:
        self._ce = ce
        self.scratch = ce.folder

    def queue(self, folder: Path) -> dict[str, Any]:
        ce = self._ce
        options = {"url": ce.url, "ca_file": str(ce.authorities), "proxy_file": str(ce.proxy), "timeout_s": TIMEOUT_S}
        return {"backend": "arc", "options": options, "submit": {"queue": ARC_QUEUE}}

    def jobs_left(self) -> Sequence[str]:
        return [str(pid) for pid in self._ce.jobs()]

    def clear(self) -> None:
        self._ce.end_jobs()


class Slurm(BatchSystem):
    """A Slurm cluster: submitted to through a login node, as an ordinary account."""

    name = "SLURM"

    def __init__(self, cluster: SlurmCluster, sshd: SshServer) -> None:
        self._cluster = cluster
        self._sshd = sshd
        self.scratch = cluster.folder
        self.user_id = pwd.getpwnam(sshd.account.name).pw_uid

    def queue(self, folder: Path) -> dict[str, Any]:
        sshd = self._sshd
        self._cluster.allow(sshd.account.name)
        ssh = {
            "host": "127.0.0.1",
            "user": sshd.account.name,
            "port": sshd.port,
            "key_file": str(sshd.key_file),
            "known_hosts": str(sshd.known_hosts),
        }
        options = {
            "ssh": ssh,
            "slurm_conf": str(self._cluster.conf),
            "workers_dir": f"{sshd.account.home}/{folder.name}-workers",
            "timeout_s": TIMEOUT_S,
        }
        environment = {"PILOTAGE_PYTHON": NODE_PYTHON}
        return {"backend": "slurm", "options": options, "submit": {"partition": "main"}, "environment": environment}

    def jobs_left(self) -> Sequence[str]:
        return self._cluster.call("squeue", "--noheader", "--format=%i").split()

    def clear(self) -> None:
        self._cluster.cancel_all()


class BatchWorld(System):
    """Server and harvester; a queue of ``WORKERS`` workers at each of ``systems``, which get the pilot as ``bundle``.

    Queue, site and batch system have one name. ``gate`` is a folder that all payloads see.
    """

    def __init__(self, folder: Path, systems: Sequence[BatchSystem], bundle: Path, gate: Path) -> None:
        super().__init__(folder, settings={"idle_exit_s": IDLE_S, "heartbeat_s": 2.0, "acquire_wait_s": 1.0})
        self.systems = systems
        self._bundle = bundle
        self._gate = gate

    def __exit__(self, *ended: Any) -> None:
        try:
            super().__exit__(*ended)
        finally:
            for system in self.systems:
                system.clear()

    def put_queue(self, **changes: Any) -> None:
        fields = {"cores": 1, "memory_mb": 500, "disk_mb": 500, "wall_s": 3600, "copytools": ["xrootd"], **changes}
        for system in self.systems:
            self.put(f"/v1/sites/{system.name}", {"name": system.name})
            queue = {"name": system.name, "site": system.name, "tags": ["apptainer"], **fields}
            queue["container_binds"] = [f"{self._gate}:{GATE}:ro"]
            self.put(f"/v1/queues/{system.name}", queue)

    def harvester_queues(self) -> dict[str, dict[str, Any]]:
        """Of the batch systems: nothing of the pilot is on their nodes."""
        limits = {"max_workers": WORKERS, "max_queued": WORKERS, "per_cycle": WORKERS, "ship_bundle": str(self._bundle)}
        found = {}
        for system in self.systems:
            queue = {**limits, **system.queue(self.folder)}
            cache = self._bundle_cache(system)
            queue["environment"] = {"PILOTAGE_BUNDLE_CACHE": str(cache), **queue.get("environment", {})}
            found[system.name] = queue
        return found

    def _bundle_cache(self, system: BatchSystem) -> Path:
        """Where pilots of its user unpack the bundle: nodes would use their own ``/tmp``, which here all share."""
        cache = system.scratch / f"bundles-{self.folder.parent.name}"
        cache.mkdir(mode=0o700)
        os.chown(cache, system.user_id, -1)
        return cache

    def logs(self) -> str:
        """Also of the workers, as far as they are home."""
        tails = [f"--- {path}\n{text[-2000:]}" for path, text in self.worker_logs()]
        return "\n".join([super().logs(), *tails])

    # ------------------------------------------------------------ what became of workers

    def workers_seen(self) -> list[WorkerView]:
        """All workers, as the server was told of them."""
        return self.api.call("GET", "/v1/workers?limit=1000", None, WorkerPage).items

    def all_ended(self) -> bool:
        """Whether harvester has told of the end of every worker."""
        return all(one.state in FINAL_WORKER_STATES for one in self.workers_seen())

    def worker_logs(self) -> Iterator[tuple[Path, str]]:
        """What harvester has brought home: each worker's stderr, in the folder of its mark."""
        for path in sorted((self.folder / "harvester" / "logs").glob("*/*/*/stderr.gz")):
            yield path, gzip.decompress(path.read_bytes()).decode(errors="replace")

    def harvester_says(self, *words: str) -> Any:
        """What a command of ``pilotage harvester`` prints as JSON."""
        done = self.cli("harvester", *words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def processes_of_workers(marks: Sequence[str]) -> list[psutil.Process]:
    """The living processes that began as one of the workers."""
    wanted = set(marks)
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PILOTAGE_WORKER_MARK") in wanted:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue
    return found


def served_files(xrootd: XrootdServer, folder: str, count: int, source: Path) -> tuple[list[dict[str, Any]], set[str]]:
    """Put small files, no two alike, on the server; them as a task's input, and the MD5 sums of their contents."""
    files, sums = [], set()
    source.mkdir()
    for number in range(count):
        content = f"unit {number}\n".encode() * (100 + number)
        path = source / f"in-{number:04d}"
        path.write_bytes(content)
        xrootd.put(path, f"{folder}/in/{path.name}")
        replica = {"storage": "xrd", "path": f"in/{path.name}"}
        files.append(
            {"did": f"batch:{path.name}", "size": len(content), "checksum": adler32(content), "replicas": [replica]}
        )
        sums.add(hashlib.md5(content).hexdigest())
    return files, sums
