"""Keep the books: jobs that have ended become records and accounting, their outputs find their datasets."""

from __future__ import annotations

from server.dispatch.books import write_books
from server.dispatch.context import Dispatcher

BATCH = 1000


def keep_books(dispatcher: Dispatcher) -> int:
    """A batch of jobs that have ended; how many, if there are more.

    One transaction: a crash leaves them on the list, so that each is counted once.
    """
    with dispatcher.database.write() as connection:
        written = write_books(dispatcher, connection, BATCH, dispatcher.now())
    # A trickle is left for the next period: looking again at once would spin on a busy system.
    return written if written == BATCH else 0
