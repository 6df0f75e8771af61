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
from harvester.queue_templates import inherited
from harvester.relay.agent import RelayConfig

SECTION = "harvester"
PLACEHOLDERS = frozenset({"server", "mark", "queue", "folder", "secret_file", "work_dir"})
"""What ``{…}`` in a pilot's command may name."""

CREDENTIAL = "credential:"
"""What the name of a credential begins with where its file is meant."""

SHIPPED = "pilotage"
"""The name of the bundle that goes with a worker."""

DIRECT_BACKEND = "arc"
_Count = Annotated[int, msgspec.Meta(ge=0)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]


class QueueConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Table ``[harvester.queues.NAME]``: how one queue is kept full."""

    backend: str = "local"
    """The batch system's backend, by its entry point: ``local``, ``fake`` or one that somebody added."""
    options: dict[str, Any] = {}
    """The backend's own options: queues with the same ones share it, and its bulk calls."""
    submit: dict[str, Any] = {}
    """What the backend is told about this queue's workers (a partition, an accounting group, a template)."""
    nodes: Annotated[int, msgspec.Meta(ge=1)] = 1
    """How many nodes a worker has, with a pilot on each."""
    max_workers: _Count = 10
    """Most workers at a time, waiting and running."""
    max_queued: _Count = 10
    """Most workers that wait in the batch system at a time."""
    per_cycle: _Count = 10
    """Most workers submitted in one cycle."""
    factor: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """How many workers to have for each pilot that the server wants beyond those that are busy (justIN runs 1.5)."""
    queued_ratio: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Most workers that wait for each one that runs; at least ``min_queued`` may wait, and never more than ``max_queued``."""
    min_queued: Annotated[int, msgspec.Meta(ge=1)] = 1
    """How many may wait however few run, where ``queued_ratio`` is given."""
    max_cores: _Count | None = None
    """Most cores that its workers ask for together."""
    max_memory_mb: _Count | None = None
    """Most memory that its workers ask for together, in MiB."""
    max_backlog: _Count | None = None
    """Most jobs that may wait in the batch system in all, whoever submitted them, for another worker to be submitted."""
    cancel_queued_after_s: _Seconds | None = 7200.0
    """For how long there must have been more workers waiting than wanted before those are withdrawn, newest first."""
    cancel_queued_when_closed: bool = False
    """Whether workers that wait are withdrawn as soon as the queue is draining, offline or drained."""
    throttle_after: Annotated[int, msgspec.Meta(ge=1)] = 5
    """After how many workers in a row that failed, or ended without any pilot, submission stops for a while."""
    backoff_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """For how long the first time; twice as long each further time, until one test worker has got a pilot."""
    backoff_max_s: Annotated[float, msgspec.Meta(gt=0)] = 7200.0
    """For how long at most."""
    max_wait_s: _Seconds = 3 * 86400.0
    """How long a worker may wait in the batch system before its secret expires; its wall time comes on top."""
    command: list[str] | None = None
    """The pilot's command; ``{server} {mark} {queue} {folder} {secret_file} {work_dir}`` are filled in."""
    bundle: str | None = None
    """The pilot as one file (``pilotage pilot bundle``), by its path on the worker nodes; it is started in place of the
    ``pilotage`` beside this Python."""
    ship_bundle: str | None = None
    """The pilot as one file, by its path on harvester's machine; it goes with each worker."""
    server_url: str | None = None
    """The server's address as this queue's pilots see it: a relay's, such as ``mailbox:///shared/folder``; without it,
    the harvester's own."""
    direct: bool = False
    """Whether it takes direct jobs too: people's own descriptions, run under their own proxies. With backend ``arc`` only."""
    environment: dict[str, str] = {}
    """Further environment variables of the worker. No secrets."""


class LogsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Table ``[harvester.logs]``: what becomes of the output of workers that have ended."""

    keep: bool = True
    """Whether it is brought home, to ``<state_dir>/logs/<queue>/<day>/<mark>/``."""
    keep_days: Annotated[float, msgspec.Meta(gt=0)] = 14.0
    """How long it is kept."""
    max_gb: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    """How much is kept in all; the oldest goes first."""
    tries: Annotated[int, msgspec.Meta(ge=1)] = 5
    """How often it is tried to bring a worker's output home, with growing pauses."""
    url: str | None = None
    """Where a web server of yours shows the folder ``<state_dir>/logs``: the server links workers to it."""


class MetricsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Table ``[harvester.metrics]``: figures for Prometheus."""

    listen: str
    """``HOST:PORT`` to serve them at, such as ``127.0.0.1:9464``."""


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the section and its resolved form have in common."""

    name: Name = "harvester"
    """The name under which it reports; each harvester of a server needs its own."""
    server_url: str
    """The server's address."""
    token_file: str
    """A file of mode 0600 with a token of role harvester, or ``credential:NAME``."""
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
    """How long ended workers, and what they left in the batch system, are kept."""
    relay: RelayConfig | None = None
    """A way to the server for pilots on nodes that have none."""
    logs: LogsConfig = LogsConfig()
    """What becomes of the output of workers that have ended."""
    metrics: MetricsConfig | None = None
    """Figures for Prometheus; without it there are none."""
    credentials: dict[str, dict[str, Any]] = {}
    """Tokens and proxies that it renews, each a table with its ``kind`` and that kind's own keys; options, ``submit`` and
    ``token_file`` name one by ``credential:NAME``."""


class HarvesterSection(_Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Section ``[harvester]`` as it is written; :func:`resolve` says what follows from it."""

    queues: dict[str, dict[str, Any]] = {}
    """The queues that it serves; ``template`` names one of ``templates`` to inherit from."""
    templates: dict[str, dict[str, Any]] = {}
    """What queues may inherit: tables like theirs, which may inherit in turn."""


class HarvesterConfig(_Settings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The configuration of a harvester: templates and names of credentials are resolved."""

    queues: dict[str, QueueConfig] = {}
    """The queues that it serves."""


def resolve(section: HarvesterSection) -> HarvesterConfig:
    """The configuration that a section makes. Raises ConfigError, which names the key and the remedy."""
    credentials = {name: str(credential_file(section, name)) for name in section.credentials}
    queues = {}
    for name, table in inherited(section.queues, section.templates, SECTION).items():
        where = f"[{SECTION}.queues.{name}]"
        try:
            queues[name] = msgspec.convert(_named(table, credentials, where), QueueConfig)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where} {error}") from error
    token_file = _named(section.token_file, credentials, f"[{SECTION}] token_file:")
    return check(msgspec.structs.replace(without_queues(section), token_file=token_file, queues=queues))


def without_queues(section: HarvesterSection) -> HarvesterConfig:
    """What a section says of the harvester itself: for looking at one whose queues can't be used."""
    return HarvesterConfig(**{key: getattr(section, key) for key in _Settings.__struct_fields__})


def credential_file(section: _Settings, name: str) -> Path:
    """Where a credential is kept, in a file of mode 0600."""
    return Path(section.state_dir).expanduser().absolute() / "credentials" / name


def _named(value: Any, credentials: Mapping[str, str], where: str) -> Any:
    """A value with the credentials' files in place of their names."""
    if isinstance(value, Mapping):
        return {key: _named(item, credentials, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_named(item, credentials, where) for item in value]
    if not (isinstance(value, str) and value.startswith(CREDENTIAL)):
        return value
    name = value.removeprefix(CREDENTIAL)
    if name not in credentials:
        known = ", ".join(sorted(credentials)) or "none"
        raise ConfigError(
            f"{where} {value!r}: there is no such credential; add a table [{SECTION}.credentials.{name}] (known: {known})"
        )
    return credentials[name]


def check(config: HarvesterConfig) -> HarvesterConfig:
    """What types can't say. Raises ConfigError, which names the key and the remedy."""
    if not config.queues:
        raise ConfigError(f"[{SECTION}] queues: there is none; add a table [{SECTION}.queues.NAME]")
    for name, queue in config.queues.items():
        where = f"[{SECTION}.queues.{name}]"
        _check_name(name, where)
        if queue.direct and queue.backend != DIRECT_BACKEND:
            raise ConfigError(
                f"{where} direct: only queues of backend {DIRECT_BACKEND!r} take direct jobs; leave it out"
            )
        if queue.command is not None:
            _check_command(queue.command, where)
        if queue.bundle is not None:
            _check_bundle(queue, where)
        if queue.ship_bundle is not None and not Path(queue.ship_bundle).is_file():
            raise ConfigError(
                f"{where} ship_bundle: {queue.ship_bundle!r} is no file here; make it: pilotage pilot bundle"
            )
    return config


def pilot_command(queue: QueueConfig) -> list[str]:
    """The queue's command for a pilot; by default its bundle, else the ``pilotage`` beside this Python."""
    if queue.command is not None:
        return queue.command
    # Not resolved: in a virtual environment the interpreter is a link, and the script lies beside the link.
    beside = str(Path(sys.executable).with_name("pilotage"))
    script = f"{{folder}}/{SHIPPED}" if queue.ship_bundle else queue.bundle or beside
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


def _check_bundle(queue: QueueConfig, where: str) -> None:
    if queue.command is not None or queue.ship_bundle is not None:
        other = "the command" if queue.command is not None else "ship_bundle"
        raise ConfigError(f"{where} bundle: {other} says already what to start; leave one of the two out")
    if not Path(queue.bundle or "").is_absolute():
        raise ConfigError(f"{where} bundle: {queue.bundle!r} must be an absolute path, the same on every worker node")


def only(queues: Mapping[str, QueueConfig], name: str | None) -> list[str]:
    """The names of all queues, or the one that was asked for. Raises ConfigError for an unknown one."""
    if name is None:
        return sorted(queues)
    if name not in queues:
        raise ConfigError(f"queue {name!r} is not configured here; known are {', '.join(sorted(queues)) or 'none'}")
    return [name]
