"""What the benchmark and its load processes tell one another: msgpack, each message after its length."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

import msgspec

from common.wire import Offer
from server.config import ServerConfig


class Target(msgspec.Struct):
    """The server: with ``ca_file`` it speaks TLS. By its configuration tokens are minted with its own key."""

    host: str
    port: int
    config: ServerConfig
    ca_file: str = ""


class Claims(msgspec.Struct, tag="claims"):
    """Closed loop: each connection claims as soon as it was answered, with ``lives`` also records and confirms.

    Connection ``c`` of ``n`` takes turns with every n-th of the pilots ``first_pilot … + pilots - 1``.
    """

    target: Target
    name: str
    connections: int
    first_pilot: int
    pilots: int
    offer: Offer
    lives: bool = False


class Files(msgspec.Struct, tag="files"):
    """Closed loop: each connection reserves a file of the projects, in their order, and gives it back as done."""

    target: Target
    name: str
    connections: int
    projects: list[int]
    cpu_site: str


class Idle(msgspec.Struct, tag="idle"):
    """Pilots without work, each asking again when it was told to; then a workflow of ``units`` is submitted.

    The pilots ``first_pilot … + pilots - 1`` come evenly over ``coming_s`` and share the connections, each pilot always
    the same one. When their rate is steady, ``settle_s`` after the last came at the latest, it is measured for
    ``seconds``. What follows ends when ``busy_share`` of them have a job, ``limit_s`` after the submission at the latest.
    """

    target: Target
    name: str
    connections: int
    first_pilot: int
    pilots: int
    offer: Offer
    units: int
    share: str
    coming_s: float
    settle_s: float
    seconds: float
    limit_s: float
    busy_share: float = 0.9


class World(msgspec.Struct, tag="world"):
    """Open loop: heartbeats and whole lives at moments fixed in advance (Poisson), latency from those moments.

    Pilot ``p`` of ``first_beating … + beating - 1`` holds job ``p`` and beats; those from ``first_idle`` on take turns
    at living. Of all beating pilots, ordered at random, this process takes every ``parts``-th.
    """

    target: Target
    name: str
    connections: int
    heartbeats_per_s: float
    lives_per_s: float
    seconds: float
    warm_up_s: float
    first_beating: int
    beating: int
    first_idle: int
    idle: int
    offer: Offer
    part: int = 0
    parts: int = 1
    seed: int = 1


class Go(msgspec.Struct, tag="go"):
    """Start at ``start`` on the monotonic clock; a closed loop ends after ``seconds``, or so many ``claims``."""

    start: float
    seconds: float = 0.0
    claims: int = 0


Order = Claims | Files | Idle | World | Go


class Ready(msgspec.Struct):
    """All is rendered and connected."""


class IdleSeen(msgspec.Struct):
    """What an idle fleet did, in seconds from the start of the run: ``asks`` and ``starts`` are float64 moments at which
    pilots asked and got a job.

    ``settled`` is when measuring began, ``steady`` whether the rate was steady then. ``sent_away`` counts answers without
    a job after the first with one, ``refusal`` is why the last pilot got nothing of the new work.
    """

    asks: bytes = b""
    starts: bytes = b""
    settled: float | None = None
    steady: bool = False
    submitted: float | None = None
    sent_away: int = 0
    refusal: str = ""


class Result(msgspec.Struct):
    """What one run measured. ``latencies`` are float64 seconds by kind of request; ``claims`` int64 (unit, job) pairs.

    ``backlog`` counts requests that were due and not answered, every 0.1 s. ``cpu_s`` is the load process's own.
    """

    elapsed_s: float = 0.0
    cpu_s: float = 0.0
    requests: int = 0
    lives: int = 0
    empty: int = 0
    errors: int = 0
    examples: list[str] = []
    latencies: dict[str, bytes] = {}
    claims: bytes = b""
    backlog: list[int] = []
    idle: IdleSeen | None = None


_LENGTH = struct.Struct("!Q")


def send(stream: BinaryIO, message: object) -> None:
    """Write one message."""
    body = msgspec.msgpack.encode(message)
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()


def receive(stream: BinaryIO, kind: Any) -> Any:
    """Read one message of a type, or of one of several; None at the end of the stream.

    Raises:
        EOFError: the stream ended within a message.
    """
    head = stream.read(_LENGTH.size)
    if not head:
        return None
    body = stream.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
    if len(head) < _LENGTH.size or len(body) < _LENGTH.unpack(head)[0]:
        raise EOFError("the other process ended in the middle of a message")
    return msgspec.msgpack.decode(body, type=kind)
