"""Layered configuration: TOML sections with typed defaults, and where each value came from.

A program declares its section as a msgspec struct with defaults and names it in the entry point group
``pilotage.config``. From the weakest to the strongest: the struct's default, ``/etc/pilotage/*.toml``,
``~/.config/pilotage/*.toml``, the file of ``--config`` or PILOTAGE_CONFIG, the environment variable
``PILOTAGE_<SECTION>_<KEY>``, the command line. Sizes and durations are plain numbers with the unit in the key's name.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Optional, TypeVar, Union

import msgspec

from common.errors import ErrorCode, PilotageError
from common.plugins import load_plugin, plugins

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

log = logging.getLogger(__name__)

GROUP = "pilotage.config"
SYSTEM_FOLDER = Path("/etc/pilotage")
PREFIX = "PILOTAGE_"
DEFAULT = "default"
COMMAND_LINE = "command line"

T = TypeVar("T", bound=msgspec.Struct)


class ConfigError(PilotageError):
    """A setting that cannot be used; the detail names where it stands, the key and the remedy."""

    def __init__(self, detail: str) -> None:
        super().__init__(ErrorCode.BAD_CONFIGURATION, detail)


class ClientConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Section ``[client]``: how the user's commands reach the server."""

    server_url: Optional[str] = None
    """The server's address, such as ``https://pilotage.example.org:8443``."""
    token_file: Optional[str] = None
    """A file of mode 0600 with the user's token; without it, the places of WLCG Bearer Token Discovery."""
    ca_file: Optional[str] = None
    """The certificate authorities to verify the server with (PEM), in place of the system's."""


@dataclass(frozen=True)
class Setting:
    """One value in force, and its source: ``default``, ``file …``, ``environment …`` or ``command line``."""

    value: Any
    source: str


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A section as it is in force; ``sources`` says for each key where its value came from."""

    value: T
    sources: dict[str, str]


def load_config(
    section_type: type[T],
    section: str,
    files: Optional[Sequence[Path]] = None,
    environ: Optional[Mapping[str, str]] = None,
    overrides: Optional[Mapping[str, object]] = None,
) -> Loaded[T]:
    """The section in force.

    ``files`` go from the weakest to the strongest (default: :func:`config_files`); ``overrides`` come from the command
    line, None meaning not given. Raises ConfigError.
    """
    settings = gather(section_type, section, files, environ, overrides)
    missing = [key for key in _fields(section_type) if key not in settings]
    if missing:
        raise ConfigError(
            f"[{section}] {missing[0]} is not set: put it into a configuration file, "
            f"or set {_variable(section, missing[0])}"
        )
    try:
        value = section_type(**{key: setting.value for key, setting in settings.items()})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"[{section}] {error}") from error
    return Loaded(value, {key: setting.source for key, setting in settings.items()})


def gather(
    section_type: type[msgspec.Struct],
    section: str,
    files: Optional[Sequence[Path]] = None,
    environ: Optional[Mapping[str, str]] = None,
    overrides: Optional[Mapping[str, object]] = None,
) -> dict[str, Setting]:
    """Each key that has a value, with its source. A key without a default that nobody set is left out.

    Raises ConfigError for an unknown key, a value of the wrong type and a file that cannot be read.
    """
    environ = os.environ if environ is None else environ
    files = config_files(environ) if files is None else files
    fields = _fields(section_type)
    settings = {key: Setting(_default(field), DEFAULT) for key, field in fields.items() if not field.required}
    for path in files:
        source = f"file {path}"
        for key, raw in _read_section(path, section).items():
            field = _known(fields, key, f"{path}: [{section}]")
            settings[key] = Setting(_convert(raw, field, f"{path}: [{section}] {key}", strict=True), source)
    for key, field in fields.items():
        variable = _variable(section, key)
        if environ.get(variable):
            settings[key] = Setting(_from_text(environ[variable], field, variable), f"environment {variable}")
    _warn_of_unknown(environ, section, fields)
    for key, raw in (overrides or {}).items():
        if raw is not None:
            field = _known(fields, key, COMMAND_LINE)
            settings[key] = Setting(_convert(raw, field, f"{COMMAND_LINE}: {key}", strict=False), COMMAND_LINE)
    return settings


def config_files(
    environ: Mapping[str, str],
    explicit: Union[str, Path, None] = None,
    system_folder: Path = SYSTEM_FOLDER,
) -> list[Path]:
    """The files to read, the weakest first: the system's, the user's, then ``explicit`` or else PILOTAGE_CONFIG.

    A system or user file that this process may not read is left out with a warning (a server's file often is not for
    everybody). Raises ConfigError when the named file is not there.
    """
    folders = [system_folder]
    base = environ.get("XDG_CONFIG_HOME") or (environ.get("HOME") and f"{environ['HOME']}/.config")
    if base:
        folders.append(Path(base) / "pilotage")
    found: list[Path] = []
    for path in (path for folder in folders for path in sorted(folder.glob("*.toml"))):
        if os.access(path, os.R_OK):
            found.append(path)
        else:
            log.warning("%s: left out, because this user may not read it", path)
    named = explicit or environ.get("PILOTAGE_CONFIG")
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise ConfigError(f"{path}: there is no such file; correct --config or PILOTAGE_CONFIG")
        found.append(path)
    return found


def section_names() -> list[str]:
    """The sections that the installed programs declare."""
    return list(plugins(GROUP))


def section_type(name: str) -> type[msgspec.Struct]:
    """The struct of a section. Raises ConfigError for an unknown one, PluginError when its program is not installed."""
    entries = plugins(GROUP)
    if name not in entries:
        raise ConfigError(f"there is no section [{name}]; {_nearest(name, entries)}")
    declared: type[msgspec.Struct] = load_plugin(entries[name])
    return declared


def fields_of(section_type: type[msgspec.Struct]) -> list[str]:
    """The keys of a section, in the order in which they are declared."""
    return list(_fields(section_type))


def _fields(section_type: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.name: field for field in msgspec.structs.fields(section_type)}


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


def _variable(section: str, key: str) -> str:
    return f"{PREFIX}{section}_{key}".upper().replace("-", "_")


def _read_section(path: Path, section: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: this is not TOML: {error}") from error
    for name in document:
        # A program that runs without being installed (a bundle) knows no other sections than its own.
        known = {section, *(section_names() or document)} if name != section else {section}
        if name not in known:
            raise ConfigError(f"{path}: there is no section [{name}]; {_nearest(name, known)}")
    table = document.get(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {section} must be a section: write [{section}] and its keys below")
    return table


def _known(fields: Mapping[str, msgspec.structs.FieldInfo], key: str, where: str) -> msgspec.structs.FieldInfo:
    if key not in fields:
        raise ConfigError(f"{where}: there is no key {key!r}; {_nearest(key, fields)}")
    return fields[key]


def _nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


def _convert(raw: object, field: msgspec.structs.FieldInfo, where: str, *, strict: bool) -> Any:
    try:
        return msgspec.convert(raw, type=field.type, strict=strict)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from error


def _from_text(text: str, field: msgspec.structs.FieldInfo, variable: str) -> Any:
    """A variable's value: as it stands where that fits the key's type, else as a TOML value (lists, tables)."""
    try:
        return msgspec.convert(text, type=field.type, strict=False)
    except msgspec.ValidationError as error:
        try:
            parsed = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            raise ConfigError(f"environment {variable}: {error}") from error
    return _convert(parsed, field, f"environment {variable}", strict=True)


def _warn_of_unknown(environ: Mapping[str, str], section: str, fields: Iterable[str]) -> None:
    """Warn only: the environment is not ours alone (Kubernetes sets PILOTAGE_SERVER_SERVICE_HOST by itself)."""
    known = {_variable(section, key) for key in fields}
    for name in sorted(set(environ) - known):
        if name.startswith(_variable(section, "")):
            log.warning("environment %s: [%s] has no such key; %s", name, section, _nearest(name, known))
