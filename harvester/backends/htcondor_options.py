"""What an admin may say of HTCondor: how to reach a schedd (``options``), what a queue's jobs are like (``submit``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import msgspec

from common.config import ConfigError
from harvester.backends.htcondor_client import Settings
from harvester.backends.htcondor_states import MARK

_Seconds = Annotated[float, msgspec.Meta(ge=0)]
_NAME = re.compile(r"[A-Za-z_]\w*")


class CondorOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Options of the backend; with neither ``pool``, ``schedd`` nor ``address`` the schedd of this machine is meant."""

    pool: Optional[str] = None
    """The collector, as ``host:port``."""
    schedd: Optional[str] = None
    """The schedd's name in the pool; needed where the pool has several."""
    address: Optional[str] = None
    """The schedd's address in HTCondor's notation (``<host:port?...>``), for pools whose collector can't be asked."""
    spool: Optional[bool] = None
    """Whether a worker's files are sent to the schedd; by default for a schedd that isn't this machine's."""
    token_dir: Optional[str] = None
    """A folder with IDTOKENS to show."""
    token_file: Optional[str] = None
    """A file with a SciToken or WLCG token to show; read anew for each connection."""
    config: Optional[str] = None
    """HTCondor's own configuration file, in place of the machine's."""
    parameters: dict[str, str] = {}
    """Further settings of HTCondor's (``AUTH_SSL_CLIENT_CAFILE``)."""
    workers_dir: Optional[str] = None
    """Where the workers' folders are; a local schedd must get into it as the user that harvester runs as."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """How long an answer may take; uploads get more, by their size."""
    keep_s: _Seconds = 4 * 3600.0
    """How long an ended worker stays in the queue, where asking for it is cheapest, before the history has it alone."""
    force_remove_s: _Seconds = 900.0
    """How long a removed worker may take to end before the schedd is told to forget it."""


class CondorSubmit(msgspec.Struct, forbid_unknown_fields=True):
    """Options of a queue's workers. Expressions are HTCondor's: a text in ``attributes`` needs quotes of its own."""

    universe: Literal["vanilla", "grid", "parallel"] = "vanilla"
    """``grid`` sends workers on to a CE (``grid_resource``), ``parallel`` has several nodes a worker."""
    grid_resource: Optional[str] = None
    """``arc https://ce.example.org/`` or ``condor ce.example.org ce.example.org:9619``."""
    template: Optional[str] = None
    """A template of your own for the submit description."""
    accounting_group: Optional[str] = None
    accounting_group_user: Optional[str] = None
    requirements: Optional[str] = None
    rank: Optional[str] = None
    priority: Optional[int] = None
    attributes: dict[str, Union[bool, int, float, str]] = {}
    """Further attributes of the job."""
    commands: list[str] = []
    """Further lines of the submit description."""
    token_file: Optional[str] = None
    """A token for the CE (universe grid), by its path on the schedd's machine."""
    proxy_file: Optional[str] = None
    """An X.509 proxy for the CE (universe grid), likewise."""
    kill_grace_s: _Seconds = 30.0
    """How long a worker may take to end after SIGTERM."""
    wall_margin_s: _Seconds = 600.0
    """How much longer than its shape's wall time HTCondor lets a worker live."""
    releases: Annotated[int, msgspec.Meta(ge=0)] = 3
    """How many times a worker is released that was held for a reason that may pass."""
    release_after_s: _Seconds = 300.0
    """How long after it was held."""
    held_remove_s: _Seconds = 6 * 3600.0
    """When a held worker is removed that nobody held on purpose; 0: never."""


def settings(options: CondorOptions) -> Settings:
    """How to reach the schedd. Raises ConfigError: names the option and the remedy."""
    _check_paths(options)
    parameters = dict(options.parameters)
    methods = []
    if options.token_dir is not None:
        parameters["SEC_TOKEN_DIRECTORY"] = options.token_dir
        methods.append("IDTOKENS")
    if options.token_file is not None:
        parameters["SCITOKENS_FILE"] = options.token_file
        methods.append("SCITOKENS")
    if methods:
        parameters.setdefault("SEC_CLIENT_AUTHENTICATION_METHODS", ", ".join(methods))
    return Settings(options.pool, options.schedd, options.address, options.config, parameters, options.timeout_s)


def is_remote(options: CondorOptions) -> bool:
    """Whether the schedd may be on another machine."""
    return any(place is not None for place in (options.pool, options.schedd, options.address))


def read_submit(submit: Mapping[str, Any]) -> CondorSubmit:
    """A queue's ``submit`` options. Raises ConfigError: names the option and the remedy."""
    try:
        read = msgspec.convert(dict(submit), CondorSubmit)
    except msgspec.ValidationError as error:
        raise ConfigError(f"submit: {error}") from error
    if read.universe == "grid" and not read.grid_resource:
        raise ConfigError("submit.grid_resource: universe grid needs it, such as 'arc https://ce.example.org/'")
    if read.universe != "grid":
        for name in ("grid_resource", "token_file", "proxy_file"):
            if getattr(read, name) is not None:
                raise ConfigError(f"submit.{name}: only universe 'grid' takes it; set universe, or leave it out")
    for name in read.attributes:
        if not _NAME.fullmatch(name) or name.lower() == MARK.lower():
            raise ConfigError(f"submit.attributes: {name!r} can't be set; choose another name of letters and digits")
    _check_lines(read)
    return read


def _check_lines(submit: CondorSubmit) -> None:
    texts = {name: value for name, value in msgspec.structs.asdict(submit).items() if isinstance(value, str)}
    texts.update({f"attributes.{name}": value for name, value in submit.attributes.items() if isinstance(value, str)})
    texts.update({f"commands[{number}]": line for number, line in enumerate(submit.commands)})
    for name, text in texts.items():
        if "\n" in text or "\r" in text:
            raise ConfigError(f"submit.{name}: it must be one line")
    for line in submit.commands:
        if line.split()[:1] and line.split()[0].lower() == "queue":
            raise ConfigError("submit.commands: 'queue' is for harvester to say; leave it out")


def _check_paths(options: CondorOptions) -> None:
    for name in ("token_dir", "token_file", "config", "workers_dir"):
        path = getattr(options, name)
        if path is not None and not Path(path).is_absolute():
            raise ConfigError(f"options.{name}: {path!r} must be an absolute path")
    if options.token_dir is not None and not Path(options.token_dir).is_dir():
        raise ConfigError(f"options.token_dir: {options.token_dir!r} is no folder; make it and put a token into it")
    for name in ("token_file", "config"):
        path = getattr(options, name)
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"options.{name}: {path!r} is no file")
    if options.address is not None and options.schedd is not None:
        raise ConfigError("options.address: it names the schedd already; leave schedd out")
