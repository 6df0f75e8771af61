"""What the shares should have, and what they have."""

from __future__ import annotations

from common.wire import ShareTree
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound


def tree(dispatcher: Dispatcher, below: str | None = None) -> ShareTree:
    """All shares in the order of service, or one and those below it. As the agents summed up use last, a few seconds ago.

    Raises:
        NotFound: there is no such share.
    """
    look = dispatcher.looks.get()
    if below is not None and below not in look.share_use.names:
        names = ", ".join(sorted(share.name for share in look.shares)[:10])
        raise NotFound(f"there is no share {below!r}; known: {names}")
    with dispatcher.looks.mutex:
        return ShareTree(items=look.share_use.views(below))
