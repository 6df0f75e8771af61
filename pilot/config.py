"""The section ``[pilot]`` of the configuration."""

from __future__ import annotations

from typing import Any, Optional

import msgspec

from common.errors import ErrorCode, PilotageError

_NOT_NEGATIVE = (
    "node",
    "cores",
    "max_jobs",
    "lifetime_s",
    "min_wall_s",
    "end_margin_s",
    "memory_grace_s",
    "memory_factor",
    "stdout_limit_mb",
    "processes_limit",
    "looping_s",
    "core_limit_mb",
    "scratch_reserve_mb",
    "wall_warning_s",
)


class PilotConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a pilot runs. Every key can be set as PILOTAGE_PILOT_<KEY>."""

    server_url: Optional[str] = None
    """The server's address, such as ``https://pilotage.example.org:8443``, or a relay's, such as
    ``mailbox:///shared/folder``."""
    ca_file: Optional[str] = None
    """The certificate authorities to verify the server with (PEM), in place of the system's."""
    worker: Optional[str] = None
    """The mark of the worker that this pilot runs in, as harvester gave it."""
    secret_file: Optional[str] = None
    """A file of mode 0600 with that worker's secret."""
    queue: Optional[str] = None
    """Leave unless the server says that this is the worker's queue; without it, any queue will do."""
    node: int = 0
    """The number of this node in a worker of several nodes."""
    work_dir: str = "pilotage-pilot"
    """The pilot's own folder; jobs run below it."""
    cores: int = 0
    """Offer so many cores, whatever the machine has, within what queue and worker allow; 0: those that are there."""
    max_jobs: int = 0
    """Take so many jobs and leave; 0: no limit."""
    lifetime_s: float = 0.0
    """Take no more jobs after so many seconds and leave; 0: as long as the slot lasts."""
    min_wall_s: float = 30.0
    """Take no more jobs when the slot has less wall time left than this."""
    end_margin_s: float = 60.0
    """Kill a payload so many seconds before the slot ends, to have time for its log and the report."""
    idle_exit_s: Optional[float] = None
    """Leave after so many seconds without a job; without it, what the server says."""
    watch_s: float = 5.0
    """Look at each payload's memory, disk and log this often."""
    memory_grace_s: float = 30.0
    """A payload may use more memory than its job asked for, but not for longer than this."""
    memory_factor: float = 1.0
    """A payload may use so many times the memory that its job asked for; 0: do not look."""
    stdout_limit_mb: int = 2048
    """The largest standard output or error of a payload; 0: do not look."""
    processes_limit: int = 5000
    """A payload may have so many processes at a time; 0: do not look."""
    looping_s: float = 7200.0
    """A payload that neither changes a file nor uses CPU time for so long hangs; one that computes without changing any
    file gets six times as long. 0: do not look."""
    core_limit_mb: int = 60
    """The largest process of which a core dump is kept when a payload hangs; 0: of none."""
    scratch_reserve_mb: int = 256
    """So much must stay free on the file system of the jobs: before that, the job that uses most beyond its part is
    stopped. 0: do not look."""
    wall_warning_s: float = 300.0
    """So many seconds before its time is over, a payload that handles SIGUSR1 gets it, once; 0: never."""
    apptainer: Optional[str] = None
    """The Apptainer to use; without it, the first on the search path."""
    image_cache: Optional[str] = None
    """The folder of pulled images; pilots of one user on a node may share it; without it, one in the pilot's own folder."""
    image_cache_mb: int = 20_000
    """What pulled images may take there; the longest unused are removed."""
    image_timeout_s: float = 1800.0
    """How long a pull of an image may take."""
    image_max_age_s: float = 86_400.0
    """Ask the registry again for an image without a digest in its address after so many seconds."""
    http_registries: list[str] = []
    """Registries (``host:port``) to ask without TLS."""
    copytools: dict[str, dict[str, Any]] = {}
    """Options of copytools on this node, by the tool's name: a site's own commands for lsm, authorities for http."""
    payload_users: list[str] = []
    """Users that payloads run as, one for each job side by side, each with a group of its own; for a pilot that is root."""
    benchmark: Optional[str] = None
    """A command, without a shell, of which the last number printed is what one core does, in HS23; it runs before the
    pilot registers, where neither machine nor job features say it. For people: the queue's core_power decides."""
    benchmark_s: float = 60.0
    """How long the benchmark may take."""
    log_level: str = "INFO"
    """The level from which messages are logged: DEBUG, INFO, WARNING, ERROR."""
    remove_work_dir: bool = False
    """Leave nothing of work_dir behind, unless a report still waits there for the server."""
    keep: bool = False
    """Keep the jobs' folders, to look at them."""

    def __post_init__(self) -> None:
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative; give 0 or more")
        if self.watch_s <= 0:
            raise ValueError(f"watch_s: {self.watch_s} must be more than 0")


def required(value: Optional[str], key: str, option: str) -> str:
    """``value``, or a PilotageError (BAD_CONFIGURATION) that says how to set it."""
    if value:
        return value
    detail = f"[pilot] {key} is not set: give {option}, or set PILOTAGE_PILOT_{key.upper()}"
    raise PilotageError(ErrorCode.BAD_CONFIGURATION, detail)
