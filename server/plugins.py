"""The catalogues and stagers of the server's configuration: plug-ins, made once with the options that an admin wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from common.config import ConfigError
from common.plugins import load_plugin, plugins
from server.catalogs.base import Catalog
from server.config import ServerConfig
from server.stagers.base import Stager

CATALOGS = "pilotage.catalogs"
STAGERS = "pilotage.stagers"

P = TypeVar("P", Catalog, Stager)


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
        self.stagers: dict[str, Stager] = {
            name: _make(_class(STAGERS, f"[server.stagers.{name}]", table), f"[server.stagers.{name}]", table)
            for name, table in sorted(config.stagers.items())
        }


def _class(group: str, where: str, table: Mapping[str, Any]) -> Any:
    word = table.get("plugin")
    known = plugins(group)
    if not isinstance(word, str) or word not in known:
        raise ConfigError(f"{where} plugin: there is no {word!r}; known: {', '.join(known) or 'none'}")
    return load_plugin(known[word])


def _make(kind: type[P], where: str, table: Mapping[str, Any]) -> P:
    options = {name: value for name, value in table.items() if name != "plugin"}
    try:
        return kind(msgspec.convert(options, kind.Options))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where} {error}") from error
