"""What Alembic runs: the migrations, on the connection that it is handed."""

from __future__ import annotations

from alembic import context

from server.store.all_tables import metadata
from server.store.schema_events import is_partition

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    include_name=lambda name, kind, _: not (kind == "table" and is_partition(name or "")),
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
