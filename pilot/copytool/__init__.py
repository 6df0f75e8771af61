"""Copytools: one way to copy files in and out of storages, whatever they speak.

A copytool is a class that obeys :class:`pilot.copytool.base.Copytool`. Besides the built-in ones, any installed
package can bring one through the entry point group ``pilotage.copytools``. Each is imported only when it is used.

>>> load_copytool("file").name
'file'
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from typing import Any

from common.errors import ErrorCode, PilotageError
from pilot.copytool.base import Copytool, TransferOutcome, TransferRequest, transfer_timeout

__all__ = [
    "BUILT_IN",
    "GROUP",
    "Copytool",
    "TransferOutcome",
    "TransferRequest",
    "copytool_class",
    "load_copytool",
    "transfer_timeout",
]

#: Entry point group of copytools that other packages bring.
GROUP = "pilotage.copytools"

#: The built-in copytools, known also where Pilotage is not installed (a checkout, the pilot's single file).
BUILT_IN: dict[str, str] = {
    "file": "pilot.copytool.file:FileCopytool",
    "xrootd": "pilot.copytool.xrootd:XrootdCopytool",
    "http": "pilot.copytool.http:HttpCopytool",
    "s3": "pilot.copytool.s3:S3Copytool",
    "gfal": "pilot.copytool.gfal:GfalCopytool",
    "lsm": "pilot.copytool.lsm:LsmCopytool",
    "rucio": "pilot.copytool.rucio:RucioCopytool",
}


def _plugins() -> dict[str, str]:
    """Give name and address of every copytool that an installed package brings."""
    if sys.version_info >= (3, 10):
        found = importlib.metadata.entry_points(group=GROUP)
    else:
        found = importlib.metadata.entry_points().get(GROUP, [])
    return {entry.name: entry.value for entry in found}


def copytool_class(name: str) -> type[Copytool]:
    """Import the class of a copytool.

    Raises :class:`PilotageError`: ``UNKNOWN_COPYTOOL``, or ``MIDDLEWARE_IMPORT_FAILED`` when its module cannot be
    imported.
    """
    address = BUILT_IN.get(name)
    if address is None:
        plugins = _plugins()
        address = plugins.get(name)
        if address is None:
            known = ", ".join(sorted({*BUILT_IN, *plugins}))
            raise PilotageError(ErrorCode.UNKNOWN_COPYTOOL, f"copytool {name!r} is unknown: this pilot knows {known}")
    module, _, attribute = address.partition(":")
    try:
        found: type[Copytool] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PilotageError(
            ErrorCode.MIDDLEWARE_IMPORT_FAILED, f"copytool {name!r} ({address}) cannot be imported: {error}"
        ) from error
    return found


def load_copytool(name: str, **options: Any) -> Copytool:
    """Make a copytool; ``options`` go to its constructor.

    Raises :class:`PilotageError`: ``UNKNOWN_COPYTOOL``, or ``MIDDLEWARE_IMPORT_FAILED`` when it or the storage library
    that it needs cannot be imported.
    """
    return copytool_class(name)(**options)
