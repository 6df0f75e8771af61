"""A site of ours that pilots and Harvesters of PanDA call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from server.compat.settings import Compat
from server.config import ServerConfig
from tests.integration.server.harness import Site
from tests.panda_pilot import PandaPilot

QUEUE = "PANDA_Q"


def config(registrar: str = "", **more: Any) -> ServerConfig:
    """Both faces on; ``more`` is of the pilots' face."""
    told = {"panda": {"on": True, "url": "http://server.example.org", "queues": {QUEUE: "q"}, **more}}
    return ServerConfig(registrar=registrar, compat=msgspec.convert({**told, "panda_harvester": {"on": True}}, Compat))


def made(url: str, **more: Any) -> Site:
    """A site with the faces on, a queue ``q`` and a storage ``disk``."""
    site = Site(url, config=config(**more))
    site.say_up()
    site.world()
    return site


def send_to(site: Site) -> Any:
    """What brings a test client's requests to the app."""

    def send(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        route, _, query = path.partition("?")
        answer = site.client.simulate_request(method, route, query_string=query, body=body, headers=dict(headers))
        return answer.status_code, answer.content

    return send


def pilot(site: Site, subject: str = "pilots of atlas", **more: Any) -> PandaPilot:
    """A pilot of PanDA."""
    return PandaPilot(send_to(site), site.token("foreign_pilot", subject), QUEUE, **more)
