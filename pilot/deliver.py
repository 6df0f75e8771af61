"""Delivering final reports that an earlier pilot, or this one before it was killed, left in the spool."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum
from typing import Optional

from common.tokens import SecretFileError
from pilot.client import HttpServer, JobGone, Server, ServerAway, ServerError
from pilot.copytool import Copytool
from pilot.spool import Spool, SpooledReport
from pilot.transfers import Transfers

logger = logging.getLogger(__name__)


class Delivery(str, Enum):
    """What became of a spooled report."""

    DELIVERED = "delivered"
    """The server took it."""
    GONE = "gone"
    """The server had ended the job meanwhile; what was uploaded was removed."""
    REFUSED = "refused"
    """The server refuses it for good."""
    WAITING = "waiting"
    """The server could not be reached, or the report is another server's: it stays in the spool."""


class Courier:
    """Delivers spooled reports. ``server_of`` gives the server as the report's pilot may speak to it (or raises
    SecretFileError), ``remove`` removes uploaded files, as far as it can."""

    def __init__(
        self, spool: Spool, server_of: Callable[[SpooledReport], Server], remove: Callable[[list[str]], None]
    ) -> None:
        self._spool = spool
        self._server_of = server_of
        self._remove = remove

    def deliver(self, entry: SpooledReport) -> Delivery:
        """Deliver one report and take it out of the spool, unless it has to wait."""
        outcome = self._deliver(entry)
        logger.info("job %d: spooled report %s", entry.job_id, outcome.value)
        if outcome is not Delivery.WAITING:
            self._spool.remove(entry.pilot_id, entry.job_id)
        return outcome

    def _deliver(self, entry: SpooledReport) -> Delivery:
        try:
            self._server_of(entry).finish(entry.job_id, entry.report)
        except SecretFileError as error:
            logger.error("job %d: the token for its spooled report cannot be read: %s", entry.job_id, error)
            return Delivery.WAITING
        except JobGone as error:
            logger.warning("job %d: its spooled report comes too late: %s", entry.job_id, error)
            self._remove([output.url for output in entry.uploaded])
            return Delivery.GONE
        except ServerAway as error:
            logger.warning("job %d: its spooled report cannot be delivered now: %s", entry.job_id, error)
            return Delivery.WAITING
        except ServerError as error:
            logger.error("job %d: its spooled report is refused: %s", entry.job_id, error)
            return Delivery.REFUSED
        return Delivery.DELIVERED


def courier(spool: Spool, ca_file: Optional[str], tools: Callable[[], list[Copytool]]) -> Courier:
    """One that speaks HTTP with the tokens in the spool; ``tools`` gives the copytools for what has to be removed."""

    def server_of(entry: SpooledReport) -> Server:
        return HttpServer(entry.server, ca_file=ca_file, token=spool.token(entry.pilot_id))

    def remove(urls: list[str]) -> None:
        for error in Transfers(tools()).remove(urls):
            logger.warning("not removed: %s", error)

    return Courier(spool, server_of, remove)
