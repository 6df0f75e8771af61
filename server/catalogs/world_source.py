"""What a catalogue is that also knows sites, storages and distances, and how it says them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass
class Described:
    """Sites and storages with the fields of SiteSpec and StorageSpec that the other system decides on, and the distance
    (0 … 101) from a site to a storage. ``left_out`` says of what it has, and we cannot use, why."""

    sites: dict[str, dict[str, Any]] = field(default_factory=dict)
    storages: dict[str, dict[str, Any]] = field(default_factory=dict)
    distances: dict[tuple[str, str], int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


@runtime_checkable
class WorldSource(Protocol):
    """A catalogue that may describe the world."""

    @property
    def describes(self) -> bool:
        """Whether it is configured to."""

    def described(self) -> Described:
        """All that it knows. Raises CatalogError when it cannot be told now."""


def keys_of(described: Described) -> Mapping[tuple[str, str], dict[str, Any]]:
    """The same as the rules of imports want it."""
    found = {("site", name): fields for name, fields in described.sites.items()}
    found.update({("storage", name): fields for name, fields in described.storages.items()})
    for (site, storage), distance in described.distances.items():
        found["distance", f"{site} {storage}"] = {"distance": distance}
    return found
