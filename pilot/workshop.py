"""Makes an agent with everything real around it: slot, copytools, supervised payloads, the server over HTTP."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Mapping
from itertools import chain
from types import MappingProxyType
from typing import Any, Callable, Optional

from common.clock import SystemClock
from common.errors import ErrorCode, PilotageError
from common.wire import ACCOUNTS_TAG, Assignment, NodeChecks, NodeInfo, Offer, Queue
from pilot.accounts import Accounts
from pilot.agent import Agent, Session, Surroundings
from pilot.client import Server
from pilot.config import PilotConfig
from pilot.container.apptainer import SYSTEM_PATH
from pilot.copytool import BUILT_IN, Copytool, load_copytool
from pilot.copytool.credentials import Ambient, CredentialSource
from pilot.credentials import ServerCredentials
from pilot.debug import Debugger
from pilot.deliver import courier
from pilot.jobstate import Event
from pilot.plugins import check_node
from pilot.probe import SlotLimits, probe_slot
from pilot.probe.features import feature_figures
from pilot.probe.node import benchmark, describe_node
from pilot.probe.validate import Node, validate_node
from pilot.watch import Watch
from pilot.work import Means, Work
from pilot.workdir import WorkDir

logger = logging.getLogger(__name__)


class Workshop:
    """What an agent with real jobs needs. ``server`` is how this pilot speaks to the server at ``server_url``;
    ``clock_ahead_s`` how far this machine's clock is ahead of the server's, None while that is not known."""

    def __init__(
        self,
        config: PilotConfig,
        server_url: str,
        server: Server,
        work_dir: WorkDir,
        environ: Mapping[str, str],
        log_tail: Callable[[], str],
        clock_ahead_s: Callable[[], Optional[float]] = lambda: None,
    ) -> None:
        self._config = config
        self._server_url = server_url
        self._server = server
        self._work_dir = work_dir
        self._environ = environ
        self._log_tail = log_tail
        self._clock_ahead_s = clock_ahead_s
        self._clock = SystemClock()
        self._tools: list[Copytool] = []
        self._accounts: Optional[Accounts] = None
        self._credentials: Optional[ServerCredentials] = None
        self._watch = Watch(config.watch_s, config.scratch_reserve_mb)
        self._debugger = Debugger(server, work_dir.log)

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
            show=self._debugger.asked,
            node_info=self.describe(),
        )
        return Agent(self._config, self._server_url, worker, around)

    def describe(self) -> NodeInfo:
        """The machine, and what a core of it does: by the site's own figures, else by the configured benchmark."""
        figures = list(feature_figures(self._environ, self._clock.now()))
        command = self._config.benchmark
        if command and not any(figure.resource == "core_power" for figure in figures):
            measured = benchmark(command, self._environ, self._config.benchmark_s)
            figures += [measured] if measured is not None else []
        return describe_node(figures)

    def probe(self, queue: Queue) -> Offer:
        """Look at the slot, and get ready for its jobs. Raises PilotageError when none could run."""
        check_node(queue)
        folder, ambient = self._work_dir.root / "credentials", Ambient(self._environ)
        self._credentials = ServerCredentials(self._server, folder, ambient)
        more = list(chain.from_iterable(queue.copytools_for.values()))
        named = list(dict.fromkeys([*(queue.copytools or BUILT_IN), *more])) if queue.copytools or more else []
        self._tools = load_tools(named, self._credentials, self._config.copytools)
        if self._config.payload_users:
            self._accounts = Accounts(self._config.payload_users, self._work_dir.root)
        if not self._config.keep:
            self._remove_leftovers()
        limits = SlotLimits(queue.cores or None, queue.memory_mb or None, queue.disk_mb or None)
        found = probe_slot(self._work_dir.root, limits, self._environ, apptainer=self._config.apptainer)
        logger.info("the slot has: %s", found.explain())
        validate_node(
            queue.node_checks or NodeChecks(),
            Node(
                scratch=self._work_dir.root,
                gpus=found.gpus,
                clock_ahead_s=self._clock_ahead_s(),
                apptainer=self._config.apptainer,
                path=self._environ.get("PATH", SYSTEM_PATH),
                binds=queue.container_binds,
            ),
        )
        return Offer(
            cores=self._config.cores or found.cores,
            memory_mb=found.memory_mb,
            disk_mb=found.disk_mb,
            wall_s=found.wall_s,
            gpus=found.gpus,
            tags=[*found.tags, *([ACCOUNTS_TAG] if self._accounts is not None else [])],
        )

    def make_work(self, session: Session, assignment: Assignment, post: Callable[[Event], None]) -> Work:
        """The hands for one job."""
        means = Means(
            self._config,
            self._server_url,
            self._work_dir,
            self._tools,
            self._environ,
            self._clock,
            self._watch,
            self._debugger,
            self._accounts,
            self._credentials,
        )
        return Work(means, session, assignment, post)

    def close(self) -> None:
        """The pilot has left: what it was given for storages is removed."""
        if self._credentials is not None:
            self._credentials.close()

    def _remove_leftovers(self) -> None:
        """The folders of jobs that an earlier pilot here did not live to clean up."""
        for path in self._work_dir.jobs.iterdir():
            logger.warning("removing what an earlier pilot left: %s", path)
            shutil.rmtree(path, ignore_errors=True)


def load_tools(
    names: list[str],
    credentials: Optional[CredentialSource] = None,
    options: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> list[Copytool]:
    """The queue's copytools, or all that are built in; those that cannot be used here are left out.

    They show what ``credentials`` gives, or what this process has from its surroundings; ``options`` by tool are those
    of its constructor. Raises PilotageError: MIDDLEWARE_IMPORT_FAILED when none is left, BAD_CONFIGURATION for options
    that a tool does not take.
    """
    tools = []
    problems = []
    for name in names or list(BUILT_IN):
        try:
            tools.append(load_copytool(name, credentials=credentials, **options.get(name, {})))
        except (TypeError, ValueError) as error:
            raise PilotageError(ErrorCode.BAD_CONFIGURATION, f"[pilot] copytools.{name}: {error}") from error
        except PilotageError as error:
            if name in options and error.code is ErrorCode.UNKNOWN_COPYTOOL:
                raise PilotageError(ErrorCode.BAD_CONFIGURATION, f"[pilot] copytools.{name}: {error.detail}") from error
            problems.append(error.detail)
            log = logger.warning if names else logger.info
            log("copytool %s is left out: %s", name, error)
    if not tools:
        raise PilotageError(ErrorCode.MIDDLEWARE_IMPORT_FAILED, "; ".join(problems))
    return tools
