"""Every table: importing this module fills :data:`metadata`, for migrations and whoever makes a whole schema."""

from __future__ import annotations

from server.store import (
    schema,
    schema_access,
    schema_archive,
    schema_commands,
    schema_direct,
    schema_failures,
    schema_foreign,
    schema_harvesters,
    schema_imports,
    schema_inputs,
    schema_matching,
    schema_measurements,
    schema_outputs,
    schema_panda_client,
    schema_peeks,
    schema_probes,
    schema_projects,
)
from server.store.schema import metadata

__all__ = [
    "metadata",
    "schema",
    "schema_access",
    "schema_archive",
    "schema_commands",
    "schema_direct",
    "schema_failures",
    "schema_foreign",
    "schema_harvesters",
    "schema_imports",
    "schema_inputs",
    "schema_matching",
    "schema_measurements",
    "schema_outputs",
    "schema_panda_client",
    "schema_peeks",
    "schema_probes",
    "schema_projects",
]
