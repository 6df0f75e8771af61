"""Section ``[harvester]`` of the configuration, with a table for each queue that this harvester serves."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from common.config import ConfigError
from common.wire import Name
from harvester.backends.base import placeholders

SECTION = "harvester"
PLACEHOLDERS = frozenset({"server", "mark", "queue", "secret_file", "work_dir"})
"""What ``{…}`` in a pilot's command may name."""

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]


class QueueConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Table ``[harvester.queues.NAME]``: how one queue is kept full."""

    backend: str = "local"
    """The batch system's backend, by its entry point: ``local``, ``fake`` or one that somebody added."""
    options: dict[str, Any] = {}
    """The backend's own options."""
    max_workers: _Count = 10
    """Most workers at a time, waiting and running."""
    max_queued: _Count = 10
    """Most workers that wait in the batch system at a time."""
    per_cycle: _Count = 10
    """Most workers submitted in one cycle."""
    factor: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """How many workers to have for each pilot that the server wants beyond those that are busy (justIN runs 1.5)."""
    max_wait_s: _Seconds = 3 * 86400.0
    """How long a worker may wait in the batch system before its secret expires; its wall time comes on top."""
    command: list[str] | None = None
    """The pilot's command; ``{server} {mark} {queue} {secret_file} {work_dir}`` are filled in."""
    environment: dict[str, str] = {}
    """Further environment variables of the worker. No secrets."""


class HarvesterConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Section ``[harvester]``."""

    name: Name = "harvester"
    """The name under which it reports; each harvester of a server needs its own."""
    server_url: str
    """The server's address."""
    token_file: str
    """A file of mode 0600 with a token of role harvester."""
    ca_file: str | None = None
    """Certificate authorities to verify the server with (PEM), in place of the system's."""
    state_dir: str
    """Where it keeps its database and the secrets of workers not yet submitted."""
    cycle_s: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    """From the start of one cycle to the start of the next."""
    denials: Annotated[int, msgspec.Meta(ge=1)] = 3
    """How many times in a row a batch system must deny a worker before it counts as missing."""
    lost_after_s: _Seconds = 3600.0
    """How long a missing worker without a living pilot is waited for before it counts as failed."""
    keep_ended_s: _Seconds = 7 * 86400.0
    """How long ended workers and their logs are kept."""
    queues: dict[str, QueueConfig] = {}
    """The queues that it serves."""


def check(config: HarvesterConfig) -> HarvesterConfig:
    """What types can't say. Raises ConfigError, which names the key and the remedy."""
    if not config.queues:
        raise ConfigError(f"[{SECTION}] queues: there is none; add a table [{SECTION}.queues.NAME]")
    for name, queue in config.queues.items():
        where = f"[{SECTION}.queues.{name}]"
        _check_name(name, where)
        if queue.command is not None:
            _check_command(queue.command, where)
    return config


def pilot_command(queue: QueueConfig) -> list[str]:
    """The queue's command for a pilot; by default the ``pilotage`` beside this Python."""
    if queue.command is not None:
        return queue.command
    # Not resolved: in a virtual environment the interpreter is a link, and the script lies beside the link.
    script = str(Path(sys.executable).with_name("pilotage"))
    named = ["--server", "{server}", "--worker", "{mark}", "--secret-file", "{secret_file}", "--work-dir", "{work_dir}"]
    return [script, "pilot", "run", *named]


def backend_key(queue: QueueConfig) -> bytes:
    """Queues with the same key share one backend, and so its bulk calls."""
    return msgspec.json.encode([queue.backend, queue.options], order="deterministic")


def _check_name(name: str, where: str) -> None:
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {name!r} is no queue's name: {error}") from error


def _check_command(command: list[str], where: str) -> None:
    if not command:
        raise ConfigError(f"{where} command: it is empty; leave it out for the default")
    unknown = sorted(placeholders(command) - PLACEHOLDERS)
    if unknown:
        known = " ".join(f"{{{name}}}" for name in sorted(PLACEHOLDERS))
        raise ConfigError(f"{where} command: {{{unknown[0]}}} means nothing; known are {known}")
    if "{secret_file}" not in " ".join(command):
        raise ConfigError(f"{where} command: it must hand {{secret_file}} to the pilot, which can't register without")


def only(queues: Mapping[str, QueueConfig], name: str | None) -> list[str]:
    """The names of all queues, or the one that was asked for. Raises ConfigError for an unknown one."""
    if name is None:
        return sorted(queues)
    if name not in queues:
        raise ConfigError(f"queue {name!r} is not configured here; known are {', '.join(sorted(queues)) or 'none'}")
    return [name]
