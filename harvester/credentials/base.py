"""What a kind of credential is: a plug-in that can get a fresh one.

Entry points of the group :data:`GROUP` name factories. A table ``[harvester.credentials.NAME]`` names one as its ``kind``
and gives the keys of that kind beside those of :class:`CommonKeys`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import msgspec

from common.clock import Clock
from common.config import ConfigError
from common.plugins import load_plugin, plugins

GROUP = "pilotage.credentials"
"""The entry point group that kinds of credentials are found in."""

K = TypeVar("K", bound="CommonKeys")

_Seconds = Annotated[float, msgspec.Meta(gt=0)]


class CredentialError(Exception):
    """A credential could not be had; says why, and what to do. Never shows one."""


class CommonKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys that every kind has."""

    kind: str
    """The kind, by its entry point."""
    renew_before_s: _Seconds | None = None
    """How long before its end it is renewed; without it, when a third of its life is left."""
    warn_before_s: _Seconds | None = None
    """How long before its end there is a problem to act on; without it, when a sixth of its life is left."""
    every_s: _Seconds = 600.0
    """How often it is renewed where its end isn't known."""


class Source(Protocol):
    """Gets fresh credentials. Called from one thread at a time."""

    def obtain(self) -> str:
        """A credential: a token, or a proxy's chain and key (PEM). Within a minute or so.

        Raises CredentialError: there is none to be had now.
        """


class SourceFactory(Protocol):
    """What an entry point of the group names."""

    def create(self, keys: Mapping[str, Any], memory: Path, clock: Clock) -> Source:
        """Make one from a table of the configuration; ``memory`` is a file of its own for what it must remember.

        Raises ConfigError: a key is unknown or wrong; the detail names it.
        """


def load(kind: object) -> SourceFactory:
    """The factory of a kind. Raises ConfigError: there is none of that name. Raises PluginError: it can't be loaded."""
    found = plugins(GROUP)
    if not isinstance(kind, str) or kind not in found:
        raise ConfigError(f"kind: {kind!r} is not known; choose one of: {', '.join(found)}")
    factory: SourceFactory = load_plugin(found[kind])
    return factory


def read_keys(keys: Mapping[str, Any], kind: type[K]) -> K:
    """A table as the struct of its kind. Raises ConfigError: names the key and what is wrong with it."""
    try:
        return msgspec.convert(dict(keys), kind)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from error


def common_keys(keys: Mapping[str, Any]) -> CommonKeys:
    """What a table says that every kind has. Raises ConfigError."""
    return read_keys({key: keys[key] for key in CommonKeys.__struct_fields__ if key in keys}, CommonKeys)
