"""Rigs of Slurm: by its commands here, by its commands behind ssh as an ordinary user, by its REST daemon."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import Any

from common.clock import SystemClock
from harvester.backends.psij import PsijBackend
from harvester.backends.slurm import SlurmBackend
from tests.contract.backends import Rig
from tests.services.slurm import SlurmCluster
from tests.services.sshd import SshServer

TIMEOUT_S = 20.0


class SlurmRig(Rig):
    """Workers of the account that runs the tests."""

    def __init__(self, cluster: SlurmCluster, folder: Path, **options: Any) -> None:
        self.cluster = cluster
        self.folder = folder
        self.workers_dir = str(cluster.folder / "workers" / uuid.uuid4().hex)
        self.options: dict[str, Any] = {
            "workers_dir": self.workers_dir,
            "timeout_s": TIMEOUT_S,
            "slurm_conf": str(cluster.conf),
            **options,
        }
        self.backend: SlurmBackend = self.restarted()

    def restarted(self) -> SlurmBackend:
        return SlurmBackend.create(self.options, self.folder, SystemClock())

    def passes(self) -> None:
        threading.Event().wait(0.1)

    def close(self) -> None:
        """End what is left."""
        self.backend.close()
        self.cluster.cancel_all()


class SlurmSshRig(SlurmRig):
    """Workers of an ordinary account, submitted through a login node."""

    def __init__(self, cluster: SlurmCluster, folder: Path, sshd: SshServer) -> None:
        cluster.allow(sshd.account.name)
        super().__init__(
            cluster, folder, ssh=ssh_options(sshd), workers_dir=f"{sshd.account.home}/workers-{uuid.uuid4().hex}"
        )
        self.workers_dir = str(self.options["workers_dir"])


class SlurmRestRig(SlurmRig):
    """Workers submitted by REST."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        token = folder / "slurm-token"
        token.write_text(cluster.token("root"))
        token.chmod(0o600)
        rest = {"url": cluster.rest_url, "user": "root", "token_file": str(token)}
        super().__init__(cluster, folder, via="slurmrestd", rest=rest)


class PsijRig(Rig):
    """Workers submitted by PSI/J's executor for Slurm."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.workers_dir = str(cluster.folder / "workers" / uuid.uuid4().hex)
        self.options: dict[str, Any] = {
            "executor": "slurm",
            "workers_dir": self.workers_dir,
            "timeout_s": TIMEOUT_S,
            "environment": {"SLURM_CONF": str(cluster.conf)},
        }
        self.backend: PsijBackend = self.restarted()

    def restarted(self) -> PsijBackend:
        return PsijBackend.create(self.options, self.folder, SystemClock())

    def passes(self) -> None:
        threading.Event().wait(0.1)

    def close(self) -> None:
        """End what is left."""
        self.cluster.cancel_all()


def ssh_options(sshd: SshServer) -> dict[str, Any]:
    return {
        "host": "127.0.0.1",
        "user": sshd.account.name,
        "port": sshd.port,
        "key_file": str(sshd.key_file),
        "known_hosts": str(sshd.known_hosts),
    }
