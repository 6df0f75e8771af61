"""A description of the world in the test's own hands."""

from __future__ import annotations

from typing import Any

from server.engine.imports import Document
from server.engine.world import World


class Described:
    """A source of one storage, with its site."""

    kinds = ("site", "storage")
    period_s = 600.0
    removed_percent = 100.0

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {
            "site": "RAL",
            "status": "online",
            "tape": True,
            "naming": "rucio-hash",
            "endpoints": [{"url": "root://ral//x"}],
        }

    def described(self, world: World) -> list[Document]:
        """All that it has."""
        document = Document("rses", kinds=self.kinds)
        document.add("site", "RAL", {})
        document.add("storage", "RAL_DATADISK", self.fields)
        return [document]
