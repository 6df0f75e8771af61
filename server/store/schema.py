"""The tables.

The hot table is :data:`unit`: narrow and numeric, about 60 bytes a row; everything wordy about a unit lies in
:data:`unit_detail`. Claims walk the partial index ``unit_ready (bucket_id, seq) WHERE state = ready``. Moments are
seconds since the epoch, and always bound parameters: the database's clock is never asked.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from server.store.codes import FIRST_FINAL_JOB_CODE, UNIT_READY, OutputState, PilotState
from server.store.schema_base import BigId, metadata
from server.store.schema_events import agent_run, event

__all__ = ["BigId", "agent_run", "event", "metadata"]
"""Of other modules, named here too."""


def _primary_key() -> Column[int]:
    return Column("id", BigId, primary_key=True, autoincrement=True)


site = Table(
    "site",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("spec", Text, nullable=False),
)

queue = Table(
    "queue",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("site", String(255), ForeignKey("site.name"), nullable=False),
    Column("status", String(16), nullable=False),
    Column("spec", Text, nullable=False),
)

storage = Table(
    "storage",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("site", String(255), ForeignKey("site.name"), nullable=False),
    Column("status", String(16), nullable=False),
    Column("spec", Text, nullable=False),
)

share = Table(
    "share",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("parent", String(255), ForeignKey("share.name")),
    Column("weight", Double, nullable=False),
)

setting = Table(
    "setting",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("value", Text, nullable=False),
)

workflow = Table(
    "workflow",
    metadata,
    _primary_key(),
    Column("name", String(255), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("group_name", String(255)),
    Column("scope", String(255), nullable=False),
    Column("labels", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("request_id", String(255)),
    UniqueConstraint("owner", "request_id", name="workflow_request"),
    sqlite_autoincrement=True,
)

task = Table(
    "task",
    metadata,
    _primary_key(),
    Column("workflow_id", BigId, ForeignKey("workflow.id"), nullable=False),
    Column("stage", String(255), nullable=False),
    Column("position", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("state_reason", Text, nullable=False, server_default=""),
    Column("resume_state", String(16)),
    Column("priority", Integer, nullable=False),
    Column("share", String(255), nullable=False),
    Column("spec", Text, nullable=False),
    Column("resolved", BigInteger, nullable=False, server_default="0"),
    Column("input_closed", Boolean, nullable=False, server_default=text("false")),
    Column("created", Double, nullable=False),
    Column("ended", Double),
    Column("changed", BigInteger, nullable=False, server_default="0"),
    Column("measured", Text),
    Column("measuring", Boolean, nullable=False, server_default=text("true")),
    Column("scouts_left", Integer),
    Column("scout_sites", Text),
    Column("outside", Boolean, nullable=False, server_default=text("false")),
    Index("task_measuring", "state", postgresql_where=text("measuring"), sqlite_where=text("measuring")),
    Index("task_changed", "changed"),
    Index("task_workflow", "workflow_id"),
    Index("task_state", "state"),
    sqlite_autoincrement=True,
)

bucket = Table(
    "bucket",
    metadata,
    _primary_key(),
    Column("task_id", BigId, ForeignKey("task.id"), nullable=False),
    Column("locations", Text, nullable=False),
    Column("maybe_ready", Boolean, nullable=False),
    Column("ready_since", Double, nullable=False),
    Column("unit_mb", Integer, nullable=False, server_default="0"),
    Column("memory_mb", Integer, nullable=False, server_default="0"),
    Column("wall_s", Integer, nullable=False, server_default="0"),
    Column("min_ready", Integer, nullable=False, server_default="1"),
    Column("changed", BigInteger, nullable=False, server_default="0"),
    Column("grouping", String(255), nullable=False, server_default=""),
    UniqueConstraint("task_id", "locations", "memory_mb", "wall_s", "grouping", name="bucket_key"),
    Index("bucket_changed", "changed"),
    sqlite_autoincrement=True,
)
Index("bucket_maybe_ready", bucket.c.task_id, postgresql_where=bucket.c.maybe_ready, sqlite_where=bucket.c.maybe_ready)

site_fault = Table(
    "site_fault",
    metadata,
    Column("bucket_id", BigId, primary_key=True, autoincrement=False),
    Column("site", String(255), primary_key=True),
    Column("n", Integer, nullable=False),
    Column("until", Double, nullable=False),
)
"""Sites at which a bucket's jobs keep failing by the site's fault; the row goes with the first success."""

unit = Table(
    "unit",
    metadata,
    _primary_key(),
    Column("task_id", BigId, nullable=False),
    Column("bucket_id", BigId, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("job_id", BigInteger),
    Column("size_mb", Integer, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("generation", SmallInteger, nullable=False, server_default="0"),
    Column("payload_failures", SmallInteger, nullable=False, server_default="0"),
    Column("site_failures", SmallInteger, nullable=False, server_default="0"),
    Column("lost_pilots", SmallInteger, nullable=False, server_default="0"),
    Column("preemptions", SmallInteger, nullable=False, server_default="0"),
    Column("events", Integer, nullable=False, server_default="0"),
    Index("unit_task", "task_id", "id"),
    sqlite_autoincrement=True,
)
_ready = text(f"state = {UNIT_READY}")
Index("unit_ready", unit.c.bucket_id, unit.c.seq, postgresql_where=_ready, sqlite_where=_ready)
Index(
    "unit_job",
    unit.c.job_id,
    postgresql_where=unit.c.job_id.is_not(None),
    sqlite_where=unit.c.job_id.is_not(None),
)

unit_detail = Table(
    "unit_detail",
    metadata,
    Column("unit_id", BigId, primary_key=True, autoincrement=False),
    Column("did", Text),
    Column("size", BigInteger),
    Column("events", BigInteger),
    Column("checksum", String(80)),
    Column("counter", BigInteger),
    Column("attributes", Text),
    Column("replicas", Text),
    Column("bad_storages", Text),
    Column("error_code", Integer),
    Column("error_detail", Text),
    Column("first_event", BigInteger),
)

unit_delta = Table(
    "unit_delta",
    metadata,
    Column("task_id", BigId, nullable=False),
    Column("bucket_id", BigId, nullable=False),
    Column("source", SmallInteger),
    Column("state", SmallInteger, nullable=False),
    Column("n", BigInteger, nullable=False),
)

unit_count = Table(
    "unit_count",
    metadata,
    Column("task_id", BigId, primary_key=True, autoincrement=False),
    Column("bucket_id", BigId, primary_key=True, autoincrement=False),
    Column("state", SmallInteger, primary_key=True, autoincrement=False),
    Column("n", BigInteger, nullable=False),
)

worker = Table(
    "worker",
    metadata,
    Column("mark", String(64), primary_key=True),
    Column("harvester", String(255), nullable=False),
    Column("queue", String(255), ForeignKey("queue.name"), nullable=False),
    Column("state", String(16), nullable=False),
    Column("batch_id", Text),
    Column("secret_hash", String(64), unique=True),
    Column("shape", Text, nullable=False),
    Column("nodes", Integer, nullable=False),
    Column("starts", Integer, nullable=False, server_default="0"),
    Column("created", Double, nullable=False),
    Column("updated", Double, nullable=False),
    Column("expires", Double, nullable=False),
    Column("reason", Text, nullable=False, server_default=""),
    Column("host", String(255), nullable=False, server_default=""),
    Column("log_url", Text),
    Column("log_tail", Text, nullable=False, server_default=""),
    Index("worker_queue_state", "queue", "state"),
)

pilot = Table(
    "pilot",
    metadata,
    _primary_key(),
    Column("worker", String(64), ForeignKey("worker.mark"), nullable=False),
    Column("nonce", String(64), nullable=False),
    Column("node", Integer, nullable=False),
    Column("start", Integer, nullable=False),
    Column("queue", String(255), nullable=False),
    Column("site", String(255), nullable=False),
    Column("host", String(255), nullable=False),
    Column("version", String(64), nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("registered", Double, nullable=False),
    Column("ended", Double),
    Column("end_reason", Text, nullable=False, server_default=""),
    Column("log_tail", Text, nullable=False, server_default=""),
    Column("node_info", Text),
    Column("pushed", Boolean, nullable=False, server_default=text("false")),
    UniqueConstraint("worker", "node", "start", name="pilot_worker_node_start"),
    sqlite_autoincrement=True,
)
_expected = text(f"state = {int(PilotState.EXPECTED)}")
Index("pilot_expected", pilot.c.worker, postgresql_where=_expected, sqlite_where=_expected)
Index("pilot_active", pilot.c.queue, postgresql_where=text("state = 0"), sqlite_where=text("state = 0"))
Index("pilot_active_id", pilot.c.id, postgresql_where=text("state = 0"), sqlite_where=text("state = 0"))

job = Table(
    "job",
    metadata,
    _primary_key(),
    Column("task_id", BigId, nullable=False),
    Column("bucket_id", BigId, nullable=False),
    Column("pilot_id", BigId, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("n_units", Integer, nullable=False),
    Column("cores", Integer, nullable=False),
    Column("queue", String(255), nullable=False),
    Column("site", String(255), nullable=False),
    Column("host", String(255), nullable=False),
    Column("claimed", Double, nullable=False),
    Column("started", Double),
    Column("ended", Double),
    Column("exit_code", Integer),
    Column("error_code", Integer),
    Column("error_detail", Text),
    Column("log_tail", Text),
    Column("metrics", Text),
    Column("kill_reason", Text),
    Column("digest", String(64)),
    Column("reply", Text),
    Column("request_id", String(64), nullable=False),
    Column("ordinal", SmallInteger, nullable=False),
    Column("confirmed", Double),
    Index("job_task", "task_id", "id"),
    UniqueConstraint("pilot_id", "request_id", "ordinal", name="job_request"),
    sqlite_autoincrement=True,
)
_alive = text("ended IS NULL")  # not the state: an update of a column in an index's predicate is never a cheap one
Index("job_alive", job.c.pilot_id, postgresql_where=_alive, sqlite_where=_alive)

replay = Table(
    "replay",
    metadata,
    Column("holder", String(64), primary_key=True),
    Column("request_id", String(64), primary_key=True),
    Column("ids", Text, nullable=False),
    Column("time", Double, nullable=False),
    Index("replay_time", "time"),
)
"""What a get-file call gave, for its repeat: ``holder`` is ``job:ID``. A claim's repeat is found by its jobs' rows."""

pilot_beat = Table(
    "pilot_beat",
    metadata,
    Column("pilot_id", BigId, primary_key=True, autoincrement=False),
    Column("time", Double, nullable=False),
)
"""When a pilot was last heard of.

Not logged on PostgreSQL, so a crash of the database empties it: a pilot without a row counts as heard of when the row
of pilot 0 was made, which the reaper makes anew whenever it is missing.
"""

pilot_report = Table(
    "pilot_report",
    metadata,
    Column("pilot_id", BigId, primary_key=True, autoincrement=False),
    Column("report", Text),
    Column("offer", Text),
)
"""What a pilot last reported of its jobs and last offered, as JSON.

Not logged either; apart from its beat, so that looking for silence stays cheap.
"""

job_delta = Table(
    "job_delta",
    metadata,
    Column("task_id", BigId, nullable=False),
    Column("queue", String(255), nullable=False),
    Column("source", SmallInteger),
    Column("state", SmallInteger, nullable=False),
    Column("n", Integer, nullable=False),
    Column("cores", Integer, nullable=False),
)

job_count = Table(
    "job_count",
    metadata,
    Column("task_id", BigId, primary_key=True, autoincrement=False),
    Column("queue", String(255), primary_key=True),
    Column("state", SmallInteger, primary_key=True, autoincrement=False),
    Column("n", BigInteger, nullable=False),
    Column("cores", BigInteger, nullable=False),
)
_counted_alive = text(f"state < {FIRST_FINAL_JOB_CODE}")
Index("job_count_alive", job_count.c.task_id, postgresql_where=_counted_alive, sqlite_where=_counted_alive)

revision = Table(
    "revision",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("n", BigInteger, nullable=False),
)
"""Numbers that grow with each change of what ``name`` says: readers look again only then."""

cores_in_use = Table(
    "cores_in_use",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("cores", BigInteger, nullable=False),
)
"""Cores of jobs that run by ``share`` and by ``owner``: kept up as ``job_count`` is, and now and then summed from it."""

web_process = Table(
    "web_process",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("seen", Double, nullable=False),
    Column("idle", Text, nullable=False),
)
"""What each web process says of itself every few seconds: its idle pilots by queue, as JSON."""

output = Table(
    "output",
    metadata,
    _primary_key(),
    Column("job_id", BigId, nullable=False),
    Column("task_id", BigId, nullable=False),
    Column("name", String(255), nullable=False),
    Column("did", Text, nullable=False),
    Column("role", String(16), nullable=False),
    Column("storage", String(255), nullable=False),
    Column("path", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("checksum", String(80), nullable=False),
    Column("events", BigInteger),
    Column("attributes", Text),
    Column("state", SmallInteger, nullable=False),
    Column("recorded", Double, nullable=False),
    Column("fed", Boolean, nullable=False, server_default=text("false")),
    Column("pattern", SmallInteger),
    Column("registration", SmallInteger, nullable=False, server_default="0"),
    Column("sweep_since", Double),
    UniqueConstraint("job_id", "name", name="output_job_name"),
    Index("output_task", "task_id", "id"),
    sqlite_autoincrement=True,
)
_unfed = text(f"state = {int(OutputState.CONFIRMED)} AND NOT fed")
Index("output_unfed", output.c.task_id, postgresql_where=_unfed, sqlite_where=_unfed)
_unswept = text(f"state = {int(OutputState.ABANDONED)}")
Index("output_unswept", output.c.sweep_since, postgresql_where=_unswept, sqlite_where=_unswept)

lease = Table(
    "lease",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", String(255), nullable=False),
    Column("expires", Double, nullable=False),
)

liveness = Table(
    "liveness",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("up_since", Double, nullable=False),
    Column("seen", Double, nullable=False),
)
"""One row: since when the web side has been up without a gap, and when it was last seen."""
