"""Sweep: remove outputs that were recorded but never confirmed, or that the catalogue refused, after a safe delay.

Storage is the pilot's trade, so the removal is done by the ``pilotage pilot remove`` program, which has the copytools;
the server itself links to none.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from common.wire import OutputRole
from server.agents.sweep_credentials import write_credentials
from server.dispatch.context import Dispatcher
from server.engine.world import join_url
from server.store import events, outputs
from server.store.outputs import OutputRow

logger = logging.getLogger(__name__)

BATCH = 100
LOG = OutputRole.LOG.value
TIMEOUT_S = 300.0


class Removal(msgspec.Struct):
    """A line of the remover's answer."""

    url: str
    ok: bool
    error: str = ""


def sweep_unconfirmed(dispatcher: Dispatcher) -> int:
    """Remove a batch of abandoned outputs from their storages; how many are gone."""
    look = dispatcher.looks.get()
    before = dispatcher.now() - look.knobs.sweep_after_s
    with dispatcher.database.read() as connection:
        rows = outputs.unswept(connection, before, look.world.storages, BATCH)
    urls: dict[str, OutputRow] = {}
    for row in rows:
        if row.storage in look.world.storages:
            site = look.world.storages[row.storage].site
            ways = (
                look.world.log_ways(row.storage, site)
                if row.role == LOG
                else look.world.ways(row.storage, site, write=True)
            )
            for way in ways[:1]:
                urls[join_url(way.url, row.path)] = row
    if not rows:
        return 0
    gone: list[OutputRow] = []
    if urls:
        with tempfile.TemporaryDirectory(prefix="pilotage-sweep-") as folder:
            removals = _remove(list(urls), write_credentials(dispatcher, urls, Path(folder)))
        gone = [urls[each.url] for each in removals if each.ok and each.url in urls]
    with dispatcher.database.write() as connection:
        now = dispatcher.now()
        outputs.mark_removed(connection, [row.id for row in gone])
        # What cannot be removed now must not keep the others from their turn.
        outputs.put_off_sweep(connection, {row.id for row in rows} - {row.id for row in gone}, now)
        events.add(
            connection,
            *(
                events.Event(now, "OUTPUT_SWEPT", "output", row.did, row.task_id, row.job_id, detail={"path": row.path})
                for row in gone
            ),
        )
    return len(gone)


def _remove(urls: list[str], credentials: Path) -> list[Removal]:
    beside = Path(sys.executable).with_name("pilotage")
    program = str(beside) if beside.exists() else shutil.which("pilotage")
    if program is None:
        raise FileNotFoundError("the pilotage command is not installed beside this Python: nothing can be swept")
    done = subprocess.run(
        [program, "pilot", "remove", "--credentials", str(credentials)],
        input=b"\n".join(msgspec.json.encode(url) for url in urls),
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    removals = [msgspec.json.decode(line, type=Removal) for line in done.stdout.splitlines() if line.strip()]
    for removal in removals:
        if not removal.ok:
            logger.warning("%s could not be removed: %s", removal.url, removal.error)
    if len(removals) < len(urls):
        logger.warning("the remover answered for %d of %d files: %s", len(removals), len(urls), done.stderr[-500:])
    return removals
