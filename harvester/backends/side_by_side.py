"""Several calls at a time, in threads that don't hold the program up when it is to end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(call: Callable[[T], R], things: Iterable[T], most: int) -> list[R]:
    """``call`` for each of ``things``, at most ``most`` at a time; what they return, in order.

    Once one has failed no further one is begun, and when all have ended what it raised is raised. (The standard library's pools are waited for when
    the interpreter ends; these threads are not.)
    """
    listed = list(things)
    if min(most, len(listed)) < 2:
        return [call(thing) for thing in listed]
    calls = _Calls(call, listed)
    threads = [threading.Thread(target=calls.work, name="side-by-side", daemon=True) for _ in range(most)]
    for thread in threads[: len(listed)]:
        thread.start()
    for thread in threads[: len(listed)]:
        thread.join()
    return calls.outcome()


class _Calls(Generic[T, R]):
    def __init__(self, call: Callable[[T], R], things: list[T]) -> None:
        self._call = call
        self._left = iter(enumerate(things))
        self._lock = threading.Lock()
        self._done: dict[int, R] = {}
        self._failed: dict[int, BaseException] = {}

    def work(self) -> None:
        """Take one thing after another until none is left."""
        while True:
            with self._lock:
                taken = next(self._left, None) if not self._failed else None
            if taken is None:
                return
            number, thing = taken
            try:
                self._done[number] = self._call(thing)
            except BaseException as error:  # noqa: BLE001 - handed to the caller
                self._failed[number] = error

    def outcome(self) -> list[R]:
        """What the calls returned. Raises what the first one that failed raised."""
        for number in sorted(self._failed):
            raise self._failed[number]
        return [self._done[number] for number in sorted(self._done)]
