"""The rig of a real HTCondor pool: workers run there as an ordinary user."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

from harvester.backends.base import WorkerRef
from harvester.backends.htcondor import CondorBackend
from harvester.backends.htcondor_options import CondorOptions
from tests.contract.backends import Rig
from tests.services.base import ServiceFailed
from tests.services.grid_root import USER
from tests.services.htcondor import CondorPool

WAITS_TO_RESCHEDULE = 100


class HtcondorRig(Rig):
    """Submits to a pool's schedd as to a remote one, with a token of ``identity``; ``options`` change how."""

    def __init__(self, pool: CondorPool, folder: Path, identity: str = USER, **options: Any) -> None:
        self.pool = pool
        self.folder = folder
        tokens = folder / "tokens"
        tokens.mkdir(mode=0o700)
        pool.make_token(tokens / "pool", identity)
        self.options = CondorOptions(pool=pool.pool, token_dir=str(tokens), timeout_s=20, **options)
        self._waited = 0
        self._made: list[CondorBackend] = []
        self.backend: CondorBackend = self.restarted()

    def restarted(self) -> CondorBackend:
        made = CondorBackend(self.options, self.folder)
        self._made.append(made)
        return made

    def passes(self) -> None:
        threading.Event().wait(0.2)
        self._waited += 1
        if self._waited % WAITS_TO_RESCHEDULE == 0:
            # As an admin does: once, unexplained, a released job was idle for minutes in a pool with free slots.
            with contextlib.suppress(ServiceFailed):
                self.pool.command("condor_reschedule")

    def explained(self, ref: WorkerRef) -> str:
        return "\n" + self.pool.analysis(ref.batch_id)

    def worker_folder(self, mark: str) -> Path:
        return self.folder / "workers" / mark

    def close(self) -> None:
        self.pool.remove_all()
        self.close_backends()

    def close_backends(self) -> None:
        for backend in self._made:
            backend.close()
