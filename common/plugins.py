"""Entry points: how programs and experiments add commands, configuration sections, copytools and backends."""

from __future__ import annotations

import functools
import re
import sys
from typing import Any, Optional

from common.errors import ErrorCode, PilotageError

if sys.version_info >= (3, 10):
    from importlib import metadata
else:  # the standard library's entry_points() of Python 3.9 cannot select a group
    import importlib_metadata as metadata

DISTRIBUTION = "pilotage"
EntryPoint = metadata.EntryPoint


class PluginError(PilotageError):
    """An entry point that cannot be loaded; the detail names what to install."""

    def __init__(self, detail: str) -> None:
        super().__init__(ErrorCode.BAD_CONFIGURATION, detail)


@functools.cache
def version() -> str:
    """The version of the installed distribution; ``0+unknown`` where it runs without being installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+unknown"


def plugins(group: str) -> dict[str, EntryPoint]:
    """The entry points of ``group`` (such as ``pilotage.commands``) by name, in the order of their names."""
    return {entry.name: entry for entry in sorted(metadata.entry_points(group=group), key=lambda entry: entry.name)}


def load_plugin(entry: EntryPoint) -> Any:
    """What the entry point names. Raises PluginError, saying which extra to install when a module is missing."""
    try:
        return entry.load()
    except ModuleNotFoundError as error:
        raise PluginError(_missing(entry, error.name or "")) from error
    except (ImportError, AttributeError) as error:
        raise PluginError(f"{entry.name}: {entry.value} cannot be loaded: {error}") from error


def _missing(entry: EntryPoint, module: str) -> str:
    if f"{entry.module}.".startswith(f"{module}."):
        return f"{entry.name}: this installation lacks its module {module}; reinstall {DISTRIBUTION}"
    extra = _extra_with(module.partition(".")[0])
    what = f"{DISTRIBUTION}[{extra}]" if extra else module
    return f"{entry.name}: it needs the Python module {module}, which is not installed; run: pip install '{what}'"


def _extra_with(module: str) -> Optional[str]:
    """The extra of this distribution that brings ``module``, going by names that agree apart from case and dashes."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None
    for requirement in requirements:
        match = re.match(r"""([\w.-]+).*;.*\bextra\s*==\s*["']([^"']+)["']""", requirement)
        if match and _plain(match[1]) == _plain(module):
            return match[2]
    return None


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
