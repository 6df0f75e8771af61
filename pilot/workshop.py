"""Makes an agent with everything real around it: slot, copytools, supervised payloads, the server over HTTP."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Mapping
from typing import Callable

from common.clock import SystemClock
from common.errors import ErrorCode, PilotageError
from common.wire import Assignment, Offer, Queue
from pilot.agent import Agent, Session, Surroundings
from pilot.client import Server
from pilot.config import PilotConfig
from pilot.copytool import BUILT_IN, Copytool, load_copytool
from pilot.deliver import courier
from pilot.jobstate import Event
from pilot.probe import SlotLimits, probe_slot
from pilot.slot import Part
from pilot.work import Means, Work
from pilot.workdir import WorkDir

logger = logging.getLogger(__name__)


class Workshop:
    """What an agent with real jobs needs. ``server`` is how this pilot speaks to the server at ``server_url``."""

    def __init__(
        self,
        config: PilotConfig,
        server_url: str,
        server: Server,
        work_dir: WorkDir,
        environ: Mapping[str, str],
        log_tail: Callable[[], str],
    ) -> None:
        self._config = config
        self._server_url = server_url
        self._server = server
        self._work_dir = work_dir
        self._environ = environ
        self._log_tail = log_tail
        self._clock = SystemClock()
        self._tools: list[Copytool] = []

    def agent(self, worker: str) -> Agent:
        """The agent of this worker's pilot."""
        around = Surroundings(
            server=self._server,
            work_dir=self._work_dir,
            clock=self._clock,
            rng=random.Random(),
            probe=self.probe,
            make_work=self.make_work,
            deliver=courier(self._work_dir.spool, self._config.ca_file, lambda: self._tools).deliver,
            log_tail=self._log_tail,
        )
        return Agent(self._config, self._server_url, worker, around)

    def probe(self, queue: Queue) -> Offer:
        """Look at the slot, and get ready for its jobs. Raises PilotageError when none could run."""
        self._tools = load_tools(queue.copytools)
        if not self._config.keep:
            self._remove_leftovers()
        limits = SlotLimits(queue.cores or None, queue.memory_mb or None, queue.disk_mb or None)
        found = probe_slot(self._work_dir.root, limits, self._environ, apptainer=self._config.apptainer)
        logger.info("the slot has: %s", found.explain())
        return Offer(
            cores=found.cores,
            memory_mb=found.memory_mb,
            disk_mb=found.disk_mb,
            wall_s=batch_wall_s(self._environ, self._clock.now()),
            gpus=found.gpus,
            tags=found.tags,
        )

    def make_work(self, session: Session, assignment: Assignment, part: Part, post: Callable[[Event], None]) -> Work:
        """The hands for one job."""
        means = Means(self._config, self._server_url, self._work_dir, self._tools, self._environ, self._clock)
        return Work(means, session, assignment, part, post)

    def _remove_leftovers(self) -> None:
        """The folders of jobs that an earlier pilot here did not live to clean up."""
        for path in self._work_dir.jobs.iterdir():
            logger.warning("removing what an earlier pilot left: %s", path)
            shutil.rmtree(path, ignore_errors=True)


def load_tools(names: list[str]) -> list[Copytool]:
    """The queue's copytools, or all that are built in; those that cannot be used here are left out.

    Raises PilotageError (MIDDLEWARE_IMPORT_FAILED) when none is left.
    """
    tools = []
    problems = []
    for name in names or list(BUILT_IN):
        try:
            tools.append(load_copytool(name))
        except PilotageError as error:
            problems.append(error.detail)
            log = logger.warning if names else logger.info
            log("copytool %s is left out: %s", name, error)
    if not tools:
        raise PilotageError(ErrorCode.MIDDLEWARE_IMPORT_FAILED, "; ".join(problems))
    return tools


def batch_wall_s(environ: Mapping[str, str], now: float) -> int:
    """Seconds of wall time that the batch system says are left; 0 when it says nothing."""
    ends = environ.get("SLURM_JOB_END_TIME", "")
    return max(1, int(ends) - int(now)) if ends.isdigit() else 0
