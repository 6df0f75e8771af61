"""A load process: ``python -m server.bench.load``. It takes orders on standard input and answers with results.

One thread, raw sockets and epoll; requests are rendered and tokens minted before the clock starts. What the process
itself costs is part of each result, so that a reader sees how little of the machine it took.
"""

from __future__ import annotations

import gc
import signal
import sys

from server.bench.closed_loop import ClosedLoop
from server.bench.idle_loop import IdleLoop
from server.bench.messages import Claims, Files, Go, Idle, Order, Ready, World, receive, send
from server.bench.open_loop import OpenLoop


def main() -> None:
    """Prepare what is ordered, say that it is ready, run on each ``Go``; until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the benchmark, which then ends this process
    prepared: ClosedLoop | OpenLoop | IdleLoop | None = None
    while True:
        order: Claims | Files | Idle | World | Go | None = receive(sys.stdin.buffer, Order)
        if order is None:
            return
        if isinstance(order, Go):
            if prepared is None:
                raise AssertionError("told to go before anything was ordered")
            send(sys.stdout.buffer, prepared.run(order))
            continue
        prepared = _loop(order)
        gc.collect()
        gc.freeze()
        gc.disable()  # nothing here makes cycles, and a pause would be charged to the server
        send(sys.stdout.buffer, Ready())


def _loop(order: Claims | Files | Idle | World) -> ClosedLoop | OpenLoop | IdleLoop:
    if isinstance(order, World):
        return OpenLoop(order)
    return IdleLoop(order) if isinstance(order, Idle) else ClosedLoop(order)


if __name__ == "__main__":
    main()
