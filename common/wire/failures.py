"""What an admin says of failures: which are tried again, with what, and which hosts get nothing for a while."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Optional, Union

import msgspec

from common.wire.base import Count, Message, Name, Positive, Strict, Text


class ErrorSource(str, Enum):
    """Who brought a failure about."""

    PAYLOAD = "payload"
    """The payload, or what the user asked for."""
    SITE = "site"
    """The site, a storage or the network."""
    PILOT = "pilot"
    """The pilot fell silent, or its worker was lost."""
    PREEMPTION = "preemption"
    """The batch system took the slot back."""
    SERVER = "server"
    """The server ended the job: a time-out, or a kill."""
    NONE = "none"
    """Nobody: the unit was not touched."""


NumberRange = Annotated[str, msgspec.Meta(pattern=r"^-?[0-9]{1,9}(\.\.-?[0-9]{1,9})?$(?!\n)")]
"""A number such as ``1305``, or a range of them such as ``1200..1207``, ends included."""

MOST_PATTERN = 200
"""Characters of a message's pattern at the most."""


class RetryCondition(Strict, kw_only=True):
    """When a rule applies: everything that is given must hold; of a list, one.

    ``message`` is a regular expression, looked for anywhere in the error's words. ``images`` are shell patterns of the
    task's image; ``tags`` those that the task asks for; ``architectures`` the tags that the pilot found on its node.
    """

    sources: list[ErrorSource] = []
    error_codes: list[NumberRange] = []
    exit_codes: list[NumberRange] = []
    message: Annotated[str, msgspec.Meta(max_length=MOST_PATTERN)] = ""
    shares: list[Name] = []
    labels: dict[str, str] = {}
    images: list[Text] = []
    tags: list[str] = []
    sites: list[Name] = []
    architectures: list[str] = []


Factor = Annotated[float, msgspec.Meta(ge=1, le=100)]


class NoRetry(Strict, tag_field="kind", tag="no_retry"):
    """The unit fails at once."""


class LimitRetry(Strict, tag_field="kind", tag="limit_retry"):
    """The unit fails when it has come back ``limit`` times by faults of this kind."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)]


class MoreMemory(Strict, tag_field="kind", tag="more_memory", kw_only=True):
    """The unit asks for ``factor`` times its memory plus ``step_mb``, up to ``cap_mb``; at the cap it fails."""

    cap_mb: Positive
    factor: Factor = 1.0
    step_mb: Count = 0


class MoreTime(Strict, tag_field="kind", tag="more_time", kw_only=True):
    """The unit asks for ``factor`` times its wall time plus ``step_s``, up to ``cap_s``; at the cap it fails."""

    cap_s: Positive
    factor: Factor = 1.0
    step_s: Count = 0


class CustomAction(Strict, tag_field="kind", tag="custom", kw_only=True):
    """An action of the plug-in group ``pilotage.retry_actions``."""

    plugin: Name
    parameters: dict[str, Any] = {}


RetryAction = Union[NoRetry, LimitRetry, MoreMemory, MoreTime, CustomAction]


class RetryRule(Strict, kw_only=True):
    """What becomes of units whose job failed in a certain way.

    Of the active rules that apply, the first of each kind of action counts, in the order of ``position``, then name. A
    passive rule (``active`` is false) only leaves an event, so that it can be tried.
    """

    name: Name
    action: RetryAction
    when: RetryCondition = msgspec.field(default_factory=RetryCondition)
    position: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 100
    active: bool = True
    description: Text = ""


class RetryRuleList(Message):
    """``GET /v1/retry-rules``, in the order in which they are asked."""

    items: list[RetryRule] = []


class BlockedHost(Message):
    """A host that gets nothing until a moment, because it failed jobs fast; ``blocks`` says how often in a row.

    ``error_code`` is the last failure's.
    """

    queue: str
    host: str
    until: float
    blocks: int
    error_code: Optional[int] = None


class BlockedHostList(Message):
    """``GET /v1/blocked-hosts``."""

    items: list[BlockedHost] = []
