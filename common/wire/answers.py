"""Why a slot gets nothing, and whether the server is well."""

from __future__ import annotations

from common.wire.base import Message
from common.wire.pilots import (
    Offer,
    Refusal,
)


class WhyReply(Message):
    """``GET /v1/queues/{q}/why`` and ``GET /v1/tasks/{id}/why``: for each bucket the first filter that said no.

    ``matched`` lists the buckets that the slot may claim from.
    """

    queue: str
    offer: Offer
    refusals: list[Refusal] = []
    matched: list[Refusal] = []
    note: str = ""


class WhyList(Message):
    """``GET /v1/tasks/{id}/why``: an answer for each queue."""

    items: list[WhyReply] = []


class Health(Message):
    """``GET /healthz``."""

    status: str
    version: str
    database: str
    time: float
