"""The configurations that the how-to shows are taken as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import tomllib

from common.wire.direct import DirectPlace
from harvester.config import HarvesterSection, resolve
from server.access.mapping import Document
from server.compat.act.states import STATES
from server.config import ServerConfig
from server.engine.direct import names

PAGE = (Path(__file__).parents[2] / "docs/how-to/migrate-from-act.md").read_text(encoding="utf-8")


def test_the_worked_configuration() -> None:
    blocks: list[dict[str, Any]] = [tomllib.loads(text) for text in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)]
    server, mapping, harvester = blocks
    assert msgspec.convert(server["server"], ServerConfig).compat.act.on
    assert msgspec.convert(mapping, Document).person[0].name == "alice"
    queue = resolve(msgspec.convert(harvester["harvester"], HarvesterSection)).queues["ARC"]
    assert queue.direct and queue.max_workers == 0
    (cluster,) = re.findall(r"    - (https://\S+)", PAGE)
    assert names(cluster, DirectPlace("ARC", queue.options["url"], queue.submit["queue"]))


def test_every_state_of_act_is_told() -> None:
    table = PAGE.partition("| `arcstate` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines()[2:]))) == STATES
