"""The catalogues, registrars and stagers of the server's configuration: plug-ins, made once with the options that an admin wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from common.config import ConfigError
from common.plugins import load_plugin, plugins
from server.catalogs.base import Catalog, NoOptions
from server.catalogs.cric import CricFeed
from server.catalogs.registration import GROUP as REGISTRARS
from server.catalogs.registration import Registrar
from server.catalogs.world_source import WorldSource
from server.config import ServerConfig
from server.stagers.base import Stager

CATALOGS = "pilotage.catalogs"
STAGERS = "pilotage.stagers"

T = TypeVar("T")


class Plugins:
    """All that are configured, by the names of their sections.

    Raises:
        ConfigError: a section names no plug-in that there is, or an option of it is wrong.
        PluginError: a plug-in cannot be loaded.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.catalogs: dict[str, Catalog] = {
            name: _make(_class(CATALOGS, f"[server.catalogs.{name}]", table), f"[server.catalogs.{name}]", table)
            for name, table in sorted(config.catalogs.items())
        }
        for name, catalog in self.catalogs.items():
            _join(f"[server.catalogs.{name}]", catalog.join, self.catalogs)
        self.world_sources = _world_sources(CricFeed(config.cric), self.catalogs)
        """What is imported from. Of two that say a field of the same thing, the first has it."""
        self.looks_due: dict[str, float] = {}
        """When it is time to look at each of them again; one that is not here was not looked at yet."""
        self.stagers: dict[str, Stager] = {
            name: _make(_class(STAGERS, f"[server.stagers.{name}]", table), f"[server.stagers.{name}]", table)
            for name, table in sorted(config.stagers.items())
        }
        self.registrars: dict[str, Registrar] = {
            name: _make_registrar(f"[server.registrars.{name}]", table)
            for name, table in sorted(config.registrars.items())
        }
        for name, registrar in self.registrars.items():
            if hasattr(registrar, "join"):
                _join(f"[server.registrars.{name}]", registrar.join, self.registrars)


def _world_sources(cric: CricFeed, catalogs: Mapping[str, Catalog]) -> dict[str, WorldSource]:
    """Those that are configured to describe the world: CRIC, then catalogues by their names."""
    found: dict[str, WorldSource] = {"cric": cric} if cric.kinds else {}
    for name, catalog in catalogs.items():
        if isinstance(catalog, WorldSource) and catalog.kinds:
            if name in found:
                raise ConfigError(
                    f"[server.catalogs.{name}] the world is imported from [server.cric] by this name: call it otherwise"
                )
            found[name] = catalog
    return found


def _make_registrar(where: str, table: Mapping[str, Any]) -> Registrar:
    """A registrar; one that takes no options is made without."""
    kind = _class(REGISTRARS, where, table)
    if hasattr(kind, "Options"):
        made: Registrar = _make(kind, where, table)
        return made
    try:
        msgspec.convert({name: value for name, value in table.items() if name != "plugin"}, NoOptions)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where} {error}") from error
    bare: Registrar = kind()
    return bare


def _class(group: str, where: str, table: Mapping[str, Any]) -> Any:
    word = table.get("plugin")
    known = plugins(group)
    if not isinstance(word, str) or word not in known:
        raise ConfigError(f"{where} plugin: there is no {word!r}; known: {', '.join(known) or 'none'}")
    return load_plugin(known[word])


def _make(kind: Any, where: str, table: Mapping[str, Any]) -> Any:
    options = {name: value for name, value in table.items() if name != "plugin"}
    try:
        return kind(msgspec.convert(options, kind.Options))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where} {error}") from error


def _join(where: str, join: Callable[[Mapping[str, T]], None], others: Mapping[str, T]) -> None:
    """Tell a plug-in of the others of its kind."""
    try:
        join(others)
    except ConfigError as error:
        raise ConfigError(f"{where} {error}") from error
