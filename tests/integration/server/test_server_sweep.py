"""What was recorded and never confirmed is removed from its storage, after a safe delay, and in turns."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from common.errors import ErrorCode
from server.agents import sweep
from server.agents.sweep import Removal, sweep_unconfirmed
from server.store.codes import OutputState
from server.store.schema import output
from tests.integration.server.harness import Site


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The URLs of each call of the remover, which removes all but those with ``stuck`` in their names."""
    calls: list[list[str]] = []

    def remove(urls: list[str], _credentials: Path) -> list[Removal]:
        calls.append(urls)
        return [Removal(url, ok="stuck" not in url) for url in urls]

    monkeypatch.setattr(sweep, "_remove", remove)
    return calls


def states(site: Site) -> dict[str, OutputState]:
    with site.database.read() as connection:
        return {row.name: OutputState(row.state) for row in connection.execute(select(output))}


def fail_with(site: Site, *names: str) -> None:
    pilot = site.pilot()
    job = pilot.acquire()
    pilot.record(job, *names)
    pilot.fail(job, int(ErrorCode.STAGE_OUT_FAILED))


def test_abandoned_files_are_removed_after_the_delay_and_only_they(site: Site, asked: list[list[str]]) -> None:
    site.world()
    site.counter(3)
    alive = site.pilot()
    alive.record(alive.acquire(), "alive")
    done = site.pilot()
    done.succeed(done.acquire(), "done")
    fail_with(site, "gone")
    site.clock.advance(3500)
    assert sweep_unconfirmed(site.dispatcher) == 0
    site.clock.advance(200)
    assert sweep_unconfirmed(site.dispatcher) == 1
    assert sweep_unconfirmed(site.dispatcher) == 0
    assert [[url.rpartition(".")[2] for url in urls] for urls in asked] == [["gone"]]
    assert states(site) == {
        "alive": OutputState.RECORDED,
        "done": OutputState.CONFIRMED,
        "gone": OutputState.REMOVED,
    }


def test_files_that_cannot_be_removed_do_not_keep_others_from_their_turn(
    site: Site, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "BATCH", 2)
    site.world()
    site.counter(1)
    fail_with(site, "stuck1", "stuck2", "free1", "free2")
    site.clock.advance(4000)
    assert [sweep_unconfirmed(site.dispatcher) for _ in range(3)] == [0, 2, 0]
    assert len(asked) == 2  # what is stuck is not asked for again at once
    site.clock.advance(4000)
    assert sweep_unconfirmed(site.dispatcher) == 0
    assert sorted(url.rpartition(".")[2] for url in asked[2]) == ["stuck1", "stuck2"]
    assert states(site)["stuck1"] == OutputState.ABANDONED
