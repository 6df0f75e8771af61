"""The proxies that direct jobs run under: one for each person, for keys of harvester's own, in files of mode 0600.

A file holds what grid programs read as a proxy; beside it lies when it ends, and of which delegation it is.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import msgspec

from common.clock import Clock
from common.errors import PilotageError
from common.tokens import write_secret_file
from common.x509 import new_request, proxy_file
from harvester.api import HttpServerApi

log = logging.getLogger(__name__)

RENEW_AT = 0.5
"""A proxy is renewed when this part of its life is left: its person may have delegated anew long before."""
LOOK_S = 600.0
"""How often, at most, it is looked whether one that is due can be renewed."""
PART_S = 3600.0
"""A file that was begun so long ago is nobody's any more: writing one takes a moment."""


class NoProxy(Exception):
    """There is no proxy of a person now; the words say why."""


class _Kept(msgspec.Struct):
    """What is known of a proxy; times in seconds since the epoch."""

    made: float
    ends: float
    stamp: str = ""


class Proxies:
    """The proxies below ``folder``. To be used by one thread at a time."""

    def __init__(self, folder: Path, server: HttpServerApi, clock: Clock) -> None:
        self._folder = folder
        self._server = server
        self._clock = clock
        self._looked: dict[int, float] = {}

    def path(self, proxy_id: int) -> Path:
        """Where a proxy lies."""
        return self._folder / f"{proxy_id}.pem"

    def get(self, proxy_id: int) -> Path:
        """A proxy that is good, made or renewed where that is due. Raises NoProxy or OSError."""
        now = self._clock.now()
        kept = self._kept(proxy_id)
        good = kept is not None and kept.ends > now and self.path(proxy_id).exists()
        due = kept is None or kept.ends - now < RENEW_AT * (kept.ends - kept.made)
        looked = self._looked.get(proxy_id)
        if good and (not due or (looked is not None and self._clock.monotonic() - looked < LOOK_S)):
            return self.path(proxy_id)
        self._looked[proxy_id] = self._clock.monotonic()
        try:
            self._make(proxy_id, now)
        except (NoProxy, PilotageError) as error:
            if not good:
                raise NoProxy(str(error)) from error
            log.warning("proxy %d cannot be renewed: %s", proxy_id, error)
        return self.path(proxy_id)

    def sweep(self, keep: Collection[int]) -> None:
        """Remove those under which nothing runs any more, and what a harvester that was killed had begun. Raises OSError."""
        if not self._folder.is_dir():
            return
        old = self._clock.now() - PART_S
        for file in self._folder.iterdir():
            if file.name.startswith("."):
                with suppress(FileNotFoundError):  # another lane's, and whole by now
                    if file.stat().st_mtime < old:
                        file.unlink()
            elif file.stem.isdecimal() and int(file.stem) not in keep:
                file.unlink(missing_ok=True)

    def _make(self, proxy_id: int, now: float) -> None:
        key, request = new_request()
        signed = self._server.direct_proxy(proxy_id, request)
        if not signed.chain:
            raise NoProxy(signed.reason)
        try:
            text = proxy_file(signed.chain, key)
        except ValueError as error:
            raise NoProxy(f"the server's answer is no proxy: {error}") from error
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_secret_file(self.path(proxy_id), text)
        kept = _Kept(now, now + signed.life_s, signed.stamp)
        write_secret_file(self._folder / f"{proxy_id}.json", msgspec.json.encode(kept).decode())

    def _kept(self, proxy_id: int) -> _Kept | None:
        try:
            return msgspec.json.decode((self._folder / f"{proxy_id}.json").read_bytes(), type=_Kept)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            log.warning("what is known of proxy %d cannot be read: %s: a new one is made", proxy_id, error)
            return None
