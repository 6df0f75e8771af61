"""Plug-ins of experiments: :class:`PayloadPlugin` is what they derive from."""

from __future__ import annotations

from pilot.outputs import CollectedFile
from pilot.payload.diagnosis import Ending
from pilot.payload.messages import KnownMessage, Stream
from pilot.plugins.base import PayloadPlugin, PluginJob, Refused
from pilot.plugins.calls import GROUP, PluginCalls, check_node, make_plugin

__all__ = [
    "GROUP",
    "CollectedFile",
    "Ending",
    "KnownMessage",
    "PayloadPlugin",
    "PluginCalls",
    "PluginJob",
    "Refused",
    "Stream",
    "check_node",
    "make_plugin",
]
