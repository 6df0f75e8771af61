"""A real HTCondor pool on loopback: master, collector, negotiator, schedd and startd, each in the Debian 13 tree.

Its jobs run as ``grid``, an ordinary user of the tree; clients on this machine show a token (IDTOKENS).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from tests.services import grid_root as tree
from tests.services.base import Service, ServiceFailed, free_port, require_module, wait_until
from tests.services.grid_root import USER, GridRoot

SLOTS = 8
DOMAIN = "pool.test"
IDENTITY = f"{USER}@{DOMAIN}"
LOG_SHOWN = 3000
"""Characters of each log's end that are shown of a job that doesn't run."""


def status() -> str:
    """For the header of a test run: installed, to be installed, or unavailable with the reason."""
    return tree.status()


class CondorPool(Service):
    """A pool with ``SLOTS`` one-core slots; all that it writes lies in ``folder``, which must be below ``/tmp``."""

    def __init__(self, root: GridRoot, folder: Path) -> None:
        folder.mkdir()
        folder.chmod(0o755)
        self.root = root
        self.folder = folder
        self.port = free_port()
        self.pool = f"127.0.0.1:{self.port}"
        self.config = folder / "condor_config"
        self._make_folders()
        self.config.write_text("".join(f"{name} = {value}\n" for name, value in self._settings().items()))
        self._variables = {"CONDOR_CONFIG": str(self.config)}
        super().__init__(
            "htcondor",
            root.command("condor_master", "-f", env=self._variables),
            folder / "master.out",
            self._has_slots,
            stop_signal=signal.SIGQUIT,  # fast: jobs are killed
        )

    def _make_folders(self) -> None:
        for name in ("log", "spool", "execute", "lock", "run", "passwords", "tokens", "cred"):
            (self.folder / name).mkdir(mode=0o700 if name in ("passwords", "tokens") else 0o755)
        condor = self.root.user_id("condor")
        for name in ("log", "spool", "execute", "lock", "run"):
            os.chown(self.folder / name, *condor)
        (self.folder / "execute").chmod(0o755)
        key = self.folder / "passwords" / "POOL"
        key.write_bytes(secrets.token_bytes(64))
        key.chmod(0o600)

    def _settings(self) -> Mapping[str, object]:
        """Written for this pool alone; nothing of the packages' own configuration is read."""
        here = {name.upper(): self.folder / name for name in ("log", "spool", "execute", "lock", "run")}
        return {
            "RELEASE_DIR": "/usr",
            "LOCAL_DIR": self.folder,
            "REQUIRE_LOCAL_CONFIG_FILE": False,
            "LOCAL_CONFIG_DIR": "",
            **here,
            "BIN": "/usr/bin",
            "SBIN": "/usr/sbin",
            "LIB": "/usr/lib/condor",
            "LIBEXEC": "/usr/libexec/condor",
            "SHARE": "/usr/share/condor",
            "DAEMON_LIST": "MASTER COLLECTOR NEGOTIATOR SCHEDD STARTD",
            **self._network(),
            **self._security(),
            **self._timing(),
            # Slots of this machine, however few its cores are.
            "NUM_CPUS": SLOTS,
            "MEMORY": SLOTS * 512,
            "SLOT_TYPE_1": "100%",
            "SLOT_TYPE_1_PARTITIONABLE": True,
            "NUM_SLOTS_TYPE_1": 1,
            "STARTD_RECOMPUTE_DISK_FREE": False,
            "DISK": 100_000_000,
            "START": True,
            "SUSPEND": False,
            "PREEMPT": False,
            "KILL": False,
            "WANT_SUSPEND": False,
            "WANT_VACATE": True,
            "STARTER_ALLOW_RUNAS_OWNER": True,
            "MOUNT_UNDER_SCRATCH": "",
            "BASE_CGROUP": "",
            "SINGULARITY": "",
            "DISCARD_SESSION_KEYRING_ON_STARTUP": False,
        }

    def _network(self) -> Mapping[str, object]:
        return {
            "NETWORK_INTERFACE": "127.0.0.1",
            "BIND_ALL_INTERFACES": False,
            "ENABLE_IPV6": False,
            "NO_DNS": True,
            "DEFAULT_DOMAIN_NAME": DOMAIN,
            "UID_DOMAIN": DOMAIN,
            "FILESYSTEM_DOMAIN": DOMAIN,
            "TRUST_DOMAIN": DOMAIN,
            "FULL_HOSTNAME": f"node.{DOMAIN}",
            "CONDOR_HOST": "127.0.0.1",
            "COLLECTOR_HOST": self.pool,
            "COLLECTOR_PORT": self.port,
            "USE_SHARED_PORT": True,
            "SHARED_PORT_PORT": self.port,
        }

    def _security(self) -> Mapping[str, object]:
        return {
            "SEC_DEFAULT_AUTHENTICATION": "REQUIRED",
            "SEC_DEFAULT_INTEGRITY": "REQUIRED",
            "SEC_DEFAULT_ENCRYPTION": "PREFERRED",
            "SEC_DEFAULT_AUTHENTICATION_METHODS": "FS, IDTOKENS",
            "SEC_PASSWORD_DIRECTORY": self.folder / "passwords",
            "SEC_TOKEN_SYSTEM_DIRECTORY": self.folder / "tokens",
            "SEC_CREDENTIAL_DIRECTORY": self.folder / "cred",
            "ALLOW_READ": "*",
            "ALLOW_WRITE": "*",
            "ALLOW_DAEMON": f"condor@{DOMAIN} root@{DOMAIN}",
            "ALLOW_NEGOTIATOR": f"condor@{DOMAIN} root@{DOMAIN}",
            "ALLOW_ADMINISTRATOR": f"condor@{DOMAIN} root@{DOMAIN} {IDENTITY}",
        }

    def _timing(self) -> Mapping[str, object]:
        return {
            "NEGOTIATOR_INTERVAL": 1,
            "NEGOTIATOR_MIN_INTERVAL": 1,
            "NEGOTIATOR_CYCLE_DELAY": 1,
            "SCHEDD_INTERVAL": 1,
            "SCHEDD_MIN_INTERVAL": 1,
            "UPDATE_INTERVAL": 5,
            "POLLING_INTERVAL": 1,
            "STARTER_UPDATE_INTERVAL": 2,
            "SHADOW_QUEUE_UPDATE_INTERVAL": 2,
            "PERIODIC_EXPR_INTERVAL": 2,
            "JOB_START_COUNT": 20,
            "JOB_STOP_COUNT": 50,
            "MASTER_BACKOFF_CONSTANT": 1,
            "RUNBENCHMARKS": False,
            "JOB_RETIREMENT": 0,
            "MAXJOBRETIREMENTTIME": 0,
            "MACHINEMAXVACATETIME": 5,
            "SHUTDOWN_GRACEFUL_TIMEOUT": 10,
        }

    def command(self, *words: str | Path) -> str:
        """Run one of HTCondor's own commands as the pool's administrator; its output."""
        return self.root.run(*words, env=self._variables)

    def job(self, job: str, *attributes: str) -> dict[str, str]:
        """Attributes of a job in the queue, as HTCondor's own command shows them; empty when it isn't there."""
        words = [word for name in attributes for word in ("-format", f"{name}=%v\n", name)]
        lines = self.command("condor_q", job, *words).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def analysis(self, job: str) -> str:
        """Why a job doesn't run: HTCondor's own analysis, its slots, and the ends of its daemons' logs."""
        with contextlib.suppress(ServiceFailed):
            words = (
                ["condor_q", "-better-analyze", job],
                ["condor_status", "-af", "Name", "State", "Activity", "Cpus"],
            )
            said = [self.command(*command) for command in words]
            logs = [self.folder / "log" / name for name in ("NegotiatorLog", "SchedLog", "StartLog", "ShadowLog")]
            said += [f"{log.name}:\n{log.read_text(errors='replace')[-LOG_SHOWN:]}" for log in logs if log.exists()]
            return "\n".join(said)
        return "its daemons don't answer"

    def remove_all(self) -> None:
        """Remove all jobs from the queue, and forget those that won't go."""
        for option in ((), ("-forcex",)):
            with contextlib.suppress(ServiceFailed):  # the command fails when there is nothing to remove
                self.command("condor_rm", *option, "-constraint", "JobStatus != 3" if not option else "JobStatus == 3")

    def make_token(self, file: Path, user: str = USER) -> Path:
        """Write a token of the pool's for one of its users into a new file of mode 0600."""
        token = self.command("condor_token_create", "-identity", f"{user}@{DOMAIN}", "-key", "POOL")
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
            output.write(token)
        return file

    @contextlib.contextmanager
    def without_schedd(self) -> Iterator[None]:
        """The schedd is down inside the block, and answers again after it."""
        self.command("condor_off", "-fast", "-daemon", "schedd")
        wait_until(lambda: not self._schedd_answers(), "the schedd is down")
        try:
            yield
        finally:
            self.command("condor_on", "-daemon", "schedd")
            wait_until(self._schedd_answers, "the schedd answers")

    @contextlib.contextmanager
    def frozen_schedd(self) -> Iterator[None]:
        """The schedd takes connections inside the block, but answers nobody."""
        pid = int(self._shown("SCHEDD_PID"))
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def kill_starters(self) -> None:
        """Kill, without a word, the processes of the pool that look after running jobs."""
        startd = psutil.Process(int(self._shown("STARTD_PID")))
        for child in startd.children():
            if child.name() == "condor_starter":
                child.kill()

    def _shown(self, name: str) -> str:
        """One of the values that HTCondor tells of its daemons here."""
        values = dict(
            line.split(" = ", 1) for line in self.command("condor_who", "-quick").splitlines() if " = " in line
        )
        return values[name]

    def _schedd_answers(self) -> bool:
        try:
            self.command("condor_q", "-totals")
        except ServiceFailed:
            return False
        return True

    def _has_slots(self) -> bool:
        try:
            names = self.command("condor_status", "-any", "-autoformat", "MyType")
        except ServiceFailed:
            return False
        return {"Machine", "Scheduler", "Negotiator"} <= set(names.split())


@pytest.fixture(scope="session")
def condor_pool(services_folder: Path, grid_root: GridRoot) -> Iterator[CondorPool]:
    """A running pool for the whole session."""
    require_module("htcondor2")
    pool = CondorPool(grid_root, services_folder / "htcondor")
    try:
        pool.start()
        yield pool
    finally:
        pool.stop()
