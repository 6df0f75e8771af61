"""The signals of a batch system, or of a person, that end a pilot."""

from __future__ import annotations

import signal

from pilot.agent import Agent

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGXCPU)
"""All of them mean that the slot is being taken away, or will be soon."""


def catch_signals(agent: Agent) -> None:
    """Hand the batch system's signals to the agent. For the main thread."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda received, _frame: agent.stop(signal.Signals(received).name))
