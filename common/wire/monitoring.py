"""The server's agents, as admins see and switch them."""

from __future__ import annotations

from typing import Optional

from common.wire.base import Message, Strict


class AgentView(Message):
    """One periodic duty of the server. Its numbers are up to some seconds old."""

    name: str
    enabled: bool
    period_s: float
    """How often it is due. A run that found something to do is followed by the next at once."""
    started: Optional[float] = None
    """When the last run began; None when it has not run yet."""
    seconds: float = 0.0
    """How long the last run took."""
    handled: int = 0
    """How many things the last run dealt with."""
    due: Optional[float] = None
    """When it runs next."""
    overrun: bool = False
    """Whether the last run took longer than its period."""
    late_s: float = 0.0
    """How long ago it was due, while it has not run."""
    runs: int = 0
    """Runs since its row was made; likewise below."""
    errors: int = 0
    overruns: int = 0
    error: str = ""
    """What went wrong in the last run; empty when it went well."""
    error_time: Optional[float] = None
    """When something last went wrong."""
    holder: str = ""
    """The process that ran it: host, process id and a mark."""


class AgentList(Message):
    """``GET /v1/agents``."""

    items: list[AgentView] = []


class AgentSwitch(Strict):
    """``PUT /v1/agents/{name}``."""

    enabled: bool
