"""Configuration of the server. System-wide knobs that admins turn at run time are in :class:`Knobs`."""

from __future__ import annotations

import msgspec

from server.engine.outcomes import Caps


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Section ``[server]``."""

    database: str = ""
    """URL of the database; without one, SQLite in ``state_dir``."""
    state_dir: str = "pilotage-server"
    """Folder for the signing key, the admin's token and, with SQLite, the database."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8443
    """Port to listen on; 0 takes a free one."""
    web_processes: int = 1
    """Processes that serve requests. With SQLite one is best."""
    web_threads: int = 16
    """Threads of each process: requests at work at the same time, long polls included."""
    long_polls: int = 8
    """Pilots of each process that may wait for work inside a request."""
    tls_cert: str = ""
    """File with the server's certificate chain; without one it speaks plain HTTP."""
    tls_key: str = ""
    """File with the certificate's key."""
    issuer: str = "pilotage"
    """Name that goes into tokens, and is required of them."""


class Knobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``PUT /v1/settings/{key}`` turns, with the defaults. Times in seconds."""

    heartbeat_s: float = 60.0
    """How often a pilot reports."""
    heartbeat_timeout_s: float = 3600.0
    """Silence after which a job is lost; counts only while the server was up."""
    worker_end_grace_s: float = 30.0
    """Silence after which the jobs of a pilot are lost whose worker has ended for the batch system."""
    idle_exit_s: float = 120.0
    """How long a pilot without work stays."""
    acquire_wait_s: float = 10.0
    """How long a request for work may wait on the server."""
    pilot_token_s: float = 3600.0
    """Life of a pilot's token; renewed by heartbeats at half of it."""
    idle_requests_per_s: float = 200.0
    """What all idle pilots together may cost."""
    sweep_after_s: float = 3600.0
    """How long after its job's end a recorded, never confirmed output is removed."""
    site_failures: int = 20
    """Site faults after which a unit fails."""
    lost_pilots: int = 10
    """Lost pilots after which a unit fails."""
    preemptions: int = 50
    """Preemptions after which a unit fails."""

    def caps(self, max_attempts: int) -> Caps:
        """The caps of a task's units."""
        return Caps(max_attempts, self.site_failures, self.lost_pilots, self.preemptions)
