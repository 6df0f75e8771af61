"""What also knows sites, storages, queues and distances, and how it says them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from server.engine.imports import Document
from server.engine.world import World


@runtime_checkable
class WorldSource(Protocol):
    """A description of the world from elsewhere, such as a catalogue may have."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of things that it is configured to describe, of :data:`server.engine.imports.KINDS`; maybe none."""

    @property
    def period_s(self) -> float:
        """How often it is looked at."""

    @property
    def removed_percent(self) -> float:
        """How much of what it describes may vanish at once."""

    def described(self, world: World) -> list[Document]:
        """All that it knows; what cannot be told now is a problem of its document. ``world`` is ours as it is, for a source
        that describes what is between things that others describe. May be called by several threads at once."""
