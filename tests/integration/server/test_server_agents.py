"""Agents can be seen, switched off and on; what they do is noted without a write for each run."""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec
import pytest
from sqlalchemy import event as hooks

from common.wire import AgentList, AgentSwitch, AgentView
from server.agents.runner import Agent, Runner
from tests.integration.server.harness import Refused, Site


def listed(site: Site) -> dict[str, AgentView]:
    result = site.raw("GET", "/v1/agents", token=site.token("user"))
    assert result.status_code == 200, result.text
    return {each.name: each for each in msgspec.json.decode(result.content, type=AgentList).items}


def kinds(site: Site) -> list[str]:
    result = site.raw("GET", "/v1/events", token=site.token("user"), query_string="subject=agent")
    return [each["kind"] for each in result.json["items"]]


def duty(name: str, work: Callable[[], int], period_s: float = 3600.0) -> Agent:
    return Agent(name, period_s, lambda _: work())


def test_an_agent_is_seen_before_it_has_run_and_afterwards_with_its_run(site: Site) -> None:
    begun, release = threading.Event(), threading.Event()

    def work() -> int:
        begun.set()
        release.wait(120)
        return 0

    runner = Runner(site.dispatcher, [duty("count-sheep", work, 7200.0)])
    runner.start()
    assert begun.wait(120)
    assert (listed(site)["count-sheep"].started, listed(site)["count-sheep"].period_s) == (None, 7200.0)
    release.set()
    runner.stop()
    found = listed(site)["count-sheep"]
    assert (found.started, found.runs, found.errors, found.error) == (site.clock.now(), 1, 0, "")
    assert found.due == site.clock.now() + 7200.0
    assert found.holder
    site.tick(7200 + 300)
    assert listed(site)["count-sheep"].late_s == 0, "its row may be as old as its period"
    site.tick(3600 * 4)
    assert listed(site)["count-sheep"].late_s > 3600


def test_an_agent_that_is_off_does_not_run_until_it_is_on(site: Site) -> None:
    runs: list[int] = []
    agent = duty("count-sheep", lambda: runs.append(1) or 0)
    runner = Runner(site.dispatcher, [agent])
    runner.start()
    runner.stop()
    n = len(runs)
    view = site.admin("PUT", "/v1/agents/count-sheep", AgentSwitch(False), AgentView)
    assert (view.enabled, view.due) == (False, None)
    runner.note()  # which it does every few seconds
    runner.once(agent)
    assert len(runs) == n
    other = Runner(site.dispatcher, [agent])
    other.start()  # a server that is started now knows it too
    other.stop()
    assert len(runs) == n
    site.admin("PUT", "/v1/agents/count-sheep", AgentSwitch(True), AgentView)
    site.admin("PUT", "/v1/agents/count-sheep", AgentSwitch(True), AgentView)
    runner.note()
    site.tick(40_000)
    runner.once(agent)
    assert len(runs) == n + 1
    assert kinds(site) == ["AGENT_SWITCHED"] * 2


def test_an_agent_that_nobody_knows_cannot_be_switched_nor_any_by_a_user(site: Site) -> None:
    runner = Runner(site.dispatcher, [duty("count-sheep", lambda: 0)])
    runner.start()
    runner.stop()
    with pytest.raises(Refused, match="known: count-sheep"):
        site.admin("PUT", "/v1/agents/count-sheeps", AgentSwitch(False))
    with pytest.raises(Refused) as error:
        site.user("PUT", "/v1/agents/count-sheep", AgentSwitch(False))
    assert error.value.status == 403


def test_failing_and_getting_well_are_events_and_each_failure_is_counted(site: Site) -> None:
    trouble = ["one", "two", "", ""]

    def work() -> int:
        if words := trouble.pop(0):
            raise RuntimeError(words)
        return 0

    agent = duty("count-sheep", work, 1.0)
    runner = Runner(site.dispatcher, [])
    for _ in range(3):
        runner.once(agent)
    runner.note()
    found = listed(site)["count-sheep"]
    assert (found.runs, found.errors, found.error, found.error_time) == (3, 2, "", site.clock.now())
    assert kinds(site) == ["AGENT_FAILED", "AGENT_RECOVERED"]


def test_a_run_that_outlasts_its_period_is_told(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    agent = duty("count-sheep", lambda: 0, 1e-9)
    runner = Runner(site.dispatcher, [])
    for _ in range(3):
        runner.once(agent)
    runner.note()
    found = listed(site)["count-sheep"]
    assert (found.overrun, found.overruns) == (True, 3)
    warnings = [record for record in caplog.records if "its period is" in record.message]
    assert len(warnings) == 1, "told when it begins, not each time"


def test_frequent_runs_write_nothing_of_their_own(site: Site) -> None:
    agent = duty("count-sheep", lambda: 0, 0.5)
    runner = Runner(site.dispatcher, [])
    runner.once(agent)
    commits: list[int] = []
    hooks.listen(site.database.engine, "commit", lambda _: commits.append(1))
    for _ in range(100):
        runner.once(agent)
    assert commits == []
    runner.note()
    assert listed(site)["count-sheep"].runs == 101


def test_what_was_not_noted_in_an_outage_is_noted_after_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from server.store import agents
    from server.store.database import DatabaseUnavailable

    agent = duty("count-sheep", lambda: 0, 0.5)
    runner = Runner(site.dispatcher, [])
    runner.once(agent)

    def down(*_: object) -> None:
        raise DatabaseUnavailable("down")

    with monkeypatch.context() as patch:
        patch.setattr(agents, "note_runs", down)
        runner.note()
    runner.once(agent)
    runner.note()
    assert listed(site)["count-sheep"].runs == 2
