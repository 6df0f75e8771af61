"""What a cycle, or a lane's part of one, did."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.errors import PilotageError
from common.http import Unreachable
from harvester.provisioner import Decision
from harvester.store import Change, Worker

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What a cycle did. ``problems`` say what was skipped and why; after ``server_down`` the server isn't asked again."""

    decisions: list[Decision] = field(default_factory=list)
    planned: int = 0
    submitted: int = 0
    refused: int = 0
    changed: int = 0
    problems: list[str] = field(default_factory=list)
    server_down: bool = False

    def note(self, what: str, error: PilotageError) -> None:
        """A call to the server failed."""
        self.problems.append(f"{what}: {error}")
        self.server_down = self.server_down or isinstance(error, Unreachable)

    def skip(self, workers: Sequence[Worker], what: str) -> None:
        """Something could not be done for some workers."""
        queues = ", ".join(sorted({worker.queue for worker in workers}))
        self.problems.append(f"queue {queues}: {what}")

    def count(self, changes: Sequence[Change]) -> None:
        """Workers were changed."""
        for change in changes:
            if change.target is not change.source:
                self.changed += 1
                why = f" ({change.reason})" if change.reason not in ("", change.target.value) else ""
                log.info("worker %s: %s -> %s%s", change.mark, change.source.value, change.target.value, why)
