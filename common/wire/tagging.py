"""What an admin says of new tasks: to which share they belong, with which priority, under which labels."""

from __future__ import annotations

from typing import Annotated, Optional

import msgspec

from common.wire.base import Message, Name, Strict, Text

TagPattern = Annotated[str, msgspec.Meta(max_length=200)]
"""A regular expression, looked for anywhere in the text; ``^`` and ``$`` are its ends."""


class TaggingCondition(Strict, kw_only=True):
    """To which tasks a rule applies: everything that is given must match.

    ``workflow`` and ``stage`` are names. Of ``labels`` and ``attributes`` each named one must be there and match;
    attributes that are no text match as JSON.
    """

    owner: TagPattern = ""
    group: TagPattern = ""
    workflow: TagPattern = ""
    stage: TagPattern = ""
    image: TagPattern = ""
    scope: TagPattern = ""
    share: TagPattern = ""
    labels: dict[str, TagPattern] = {}
    attributes: dict[str, TagPattern] = {}


class Tags(Strict, kw_only=True):
    """What a rule gives: the task's ``share`` and ``priority``, and ``labels`` of its workflow."""

    share: Optional[Name] = None
    priority: Optional[Annotated[int, msgspec.Meta(ge=-10_000, le=10_000)]] = None
    labels: dict[str, str] = {}


class TaggingRule(Strict, kw_only=True):
    """What becomes of tasks of a certain kind when they are submitted.

    Of the active rules that apply, the first that gives a share, a priority or a certain label counts for it, in the order
    of ``position``, then name. It counts more than what the user asked for.
    """

    name: Name
    set: Tags
    when: TaggingCondition = msgspec.field(default_factory=TaggingCondition)
    position: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 100
    active: bool = True
    description: Text = ""


class TaggingRuleList(Message):
    """``GET /v1/tagging-rules``, in the order in which they are asked."""

    items: list[TaggingRule] = []
