"""The section ``[pilot]`` of the configuration."""

from __future__ import annotations

from typing import Optional

import msgspec

from common.errors import ErrorCode, PilotageError


class PilotConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a pilot runs. Every key can be set as PILOTAGE_PILOT_<KEY>."""

    server_url: Optional[str] = None
    """The server's address, such as ``https://pilotage.example.org:8443``."""
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
    """The largest standard output or error of a payload."""
    apptainer: Optional[str] = None
    """The Apptainer to use; without it, the first on the search path."""
    image_cache: Optional[str] = None
    """Where fetched images are kept; without it, in each job's folder."""
    log_level: str = "INFO"
    """The level from which messages are logged: DEBUG, INFO, WARNING, ERROR."""
    keep: bool = False
    """Keep the jobs' folders, to look at them."""

    def __post_init__(self) -> None:
        for name in ("node", "max_jobs", "lifetime_s", "min_wall_s", "end_margin_s", "stdout_limit_mb"):
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
