"""Calls to the server from the loop: made on a lane, answered on the loop's thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NoReturn, TypeVar

from pilot.client import ServerError
from pilot.loop import Lane, Loop

T = TypeVar("T")


def ask(
    loop: Loop, lane: Lane, call: Callable[[], T], then: Callable[[T], None], failed: Callable[[ServerError], None]
) -> None:
    """Make ``call`` on ``lane``; then ``then`` or ``failed`` runs on the loop. Any other exception ends the loop."""

    def run() -> None:
        try:
            reply = call()
        except ServerError as error:
            loop.post(partial(failed, error))
        except Exception as error:  # noqa: BLE001 (raised again, on the loop)
            loop.post(partial(_raise, error))
        else:
            loop.post(partial(then, reply))

    lane.submit(run)


def _raise(error: Exception) -> NoReturn:
    raise error
