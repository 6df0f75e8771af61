"""Every table: importing this module fills :data:`metadata`, for migrations and whoever makes a whole schema."""

from __future__ import annotations

from server.store import schema
from server.store.schema import metadata

__all__ = ["metadata", "schema"]
