"""What Prometheus and people are shown is right, costs nothing to ask for, and names nobody."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event as hooks

from common.errors import ErrorCode
from server.agents.housekeeping import keep_house
from server.agents.measure import measure_system
from server.agents.runner import Agent, Runner
from server.api.application import create_application
from server.config import ServerConfig
from server.dispatch import watching
from server.dispatch.context import Dispatcher
from server.store import events
from server.store.database import DatabaseUnavailable
from server.store.events import Event
from tests.integration.server.harness import Site, files, stage

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(site: Site) -> Series:
    """Each series with its value, as Prometheus reads them."""
    site.tick(10)
    result = site.raw("GET", "/metrics")
    assert result.status_code == 200, result.text
    assert result.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(result.text)
        for sample in family.samples
    }


def value(series: Series, name: str, **labels: str) -> float:
    """The sum of the series that have at least these labels."""
    found = [
        n for (each, has), n in series.items() if each == f"pilotage_{name}" and labels.items() <= dict(has).items()
    ]
    assert found, f"there is no {name} {labels}"
    return sum(found)


def measured(site: Site) -> Series:
    """A scrape after the agents have run."""
    site.tick(60)
    site.agents()
    while measure_system(site.dispatcher):
        pass
    return scrape(site)


def test_the_whole_system_in_numbers(site: Site) -> None:
    site.world()
    for name, weight in (("atlas", 3.0), ("cms", 1.0)):
        site.admin("PUT", f"/v1/shares/{name}", {"name": name, "weight": weight})
    site.submit(stage("a", count=5, share="atlas"), stage("b", count=2, share="cms"))
    pilot, _ = site.pilot(), site.pilot()
    pilot.beat(pilot.acquire())
    series = measured(site)
    assert value(series, "units", state="ready") == 6
    assert value(series, "units", state="reserved") == 1
    assert value(series, "share_ready_units") == 6
    shares = {share: value(series, "share_target_ratio", share=share) for share in ("atlas", "cms")}
    assert shares["atlas"] == pytest.approx(3 * shares["cms"])
    assert value(series, "pilots") == 2
    assert value(series, "oldest_ready_seconds") >= 60
    assert value(series, "events_total", kind="JOB_CLAIMED") == 1
    assert value(series, "queue_workers", queue="q", state="planned") == 2
    assert value(series, "measured_age_seconds") <= 20
    site.tick(1000)
    assert value(measured(site), "pilots_late") == 2


def test_jobs_come_from_the_roll_up(site: Site) -> None:
    site.world()
    site.counter(5)
    pilot = site.pilot(cores=4)
    jobs = pilot.ask(3).jobs
    pilot.succeed(jobs[0])
    series = measured(site)
    assert value(series, "jobs") == len(jobs) - 1 == 2
    assert value(series, "queue_jobs", queue="q") == 2
    assert value(series, "events_total", kind="JOB_FINISHED") == 1


def test_requests_are_counted_by_route_and_status_and_no_name_makes_a_series(site: Site) -> None:
    for number in range(3):
        site.raw("GET", f"/v1/tasks/{number + 100}", token=site.token("user"))
        site.raw("GET", f"/no/such/{number}")
    site.raw("GET", "/v1/tasks")
    series = scrape(site)
    route = "/v1/tasks/{task_id}"
    assert value(series, "http_requests_total", route=route, method="GET", status="404") == 3
    assert value(series, "http_requests_total", route="none", status="404") == 3
    assert value(series, "http_requests_total", route="/v1/tasks", status="401") == 1
    assert value(series, "http_request_seconds_count", route=route) == 3
    assert value(series, "http_request_seconds_bucket", route=route, le="+Inf") == 3
    assert 0 < value(series, "http_request_seconds_sum", route=route) < 30


def test_one_answer_holds_the_numbers_of_all_processes(site: Site) -> None:
    other = Dispatcher(site.database, site.issuer, ServerConfig(), site.clock)
    other.watch.request("GET", "/v1/tasks", 200, 0.5)
    other.watch.claim(0.003)
    with site.database.write() as connection:
        watching.measure.say(connection, "elsewhere:1", watching.own_sample(other), site.clock.now())
    series = scrape(site)
    assert value(series, "http_requests_total", process="elsewhere:1", route="/v1/tasks") == 1
    assert value(series, "claim_seconds_bucket", process="elsewhere:1", le="0.0025") == 0
    assert value(series, "claim_seconds_bucket", process="elsewhere:1", le="0.005") == 1
    assert value(series, "database_connections_limit", process=watching.process_name()) > 0
    site.tick(200)
    assert not [key for key in scrape(site) if ("process", "elsewhere:1") in key[1]], "it is gone"


def test_errors_of_the_database_are_counted(site: Site) -> None:
    class Broken:
        def __getattr__(self, _: str) -> Callable[..., object]:
            def fail(*_: object, **__: object) -> object:
                raise DatabaseUnavailable("down")

            return fail

    sound, site.dispatcher.database = site.dispatcher.database, Broken()  # type: ignore[assignment]
    assert site.raw("GET", "/healthz").status_code == 503
    site.dispatcher.database = sound
    assert value(scrape(site), "database_errors_total") == 1


def test_agents_can_be_paged_on(site: Site) -> None:
    def fail(_: Dispatcher) -> int:
        raise RuntimeError("boom")

    runner = Runner(site.dispatcher, [])
    runner.once(Agent("count-sheep", 1.0, fail))
    runner.note()
    site.tick(600)
    series = scrape(site)
    assert value(series, "agent_failing", agent="count-sheep") == 1
    assert value(series, "agent_errors_total", agent="count-sheep") == 1
    assert 500 < value(series, "agent_lag_seconds", agent="count-sheep") < 700


def test_measuring_reads_no_row_of_a_unit_or_job(site: Site) -> None:
    site.world()
    site.counter(10)
    site.pilot().acquire()
    said: list[str] = []
    hooks.listen(site.database.engine, "before_cursor_execute", lambda *found: said.append(found[2]))
    measure_system(site.dispatcher)
    scrape(site)
    assert len(said) > 10
    words = {word.strip('";,()') for statement in said for word in statement.split()}
    assert not words & {"unit", "job", "job_archive", "unit_detail"}


def test_whoever_asks_often_is_given_the_same_page(site: Site) -> None:
    for path in ("/metrics", "/"):
        site.raw("GET", path)
        said: list[str] = []
        hooks.listen(site.database.engine, "before_cursor_execute", lambda *found, kept=said: kept.append(found[2]))
        pages = {site.raw("GET", path).text for _ in range(20)}
        assert (len(pages), said) == (1, []), path


def test_both_can_be_switched_off(site: Site) -> None:
    config = ServerConfig(metrics=False, dashboard=False)
    from falcon.testing import TestClient

    client = TestClient(create_application(Dispatcher(site.database, site.issuer, config, site.clock)))
    for path in ("/metrics", "/"):
        result = client.simulate_get(path)
        assert (result.status_code, result.json["type"]) == (404, "pilotage:not-found")


# ------------------------------------------------------------ the dashboard


def test_the_dashboard_shows_tasks_queues_shares_agents_and_problems(site: Site) -> None:
    site.world()
    task = site.submit(stage("secret-stage", given=files("secret-file"), count=1, max_attempts=1), name="alice")[0]
    site.put_queue("shut", status="offline")
    pilot = site.pilot()
    pilot.fail(pilot.acquire(), int(ErrorCode.PAYLOAD_FAILED))
    site.submit(stage("next", count=3), name="alice")
    with site.database.write() as connection:
        events.add(connection, Event(site.clock.now(), "SITE_FAULT", "site", "<script>alert(1)</script>"))
    Runner(site.dispatcher, []).once(Agent("count-sheep", 1.0, lambda _: 0))
    site.tick(30)
    site.agents()
    keep_house(site.dispatcher)
    measure_system(site.dispatcher)
    result = site.raw("GET", "/")
    assert result.headers["content-type"].startswith("text/html")
    page = result.text
    for words in ("JOB_FAILED", "shut", "offline", "default", "What went wrong", f"<td>{task + 1}</td>"):
        assert words in page, words
    assert "&lt;script&gt;" in page
    for words in ("<script", "alice", "secret", "http://", "https://", "src="):
        assert words not in page, f"it shows {words}"


def test_the_dashboard_says_when_the_agents_do_not_run(site: Site) -> None:
    assert "the agents do not run" in site.raw("GET", "/").text
    measure_system(site.dispatcher)
    site.tick(10)
    assert "all is well" in site.raw("GET", "/").text
    site.tick(600)
    assert "the agents do not run" in site.raw("GET", "/").text


def test_the_dashboard_without_anything_to_show(site: Site) -> None:
    site.tick(10)
    measure_system(site.dispatcher)
    assert site.raw("GET", "/").text.count("none") >= 2


def test_problems_are_kept_in_order_and_bounded(site: Site) -> None:
    from server.store import cursors, dashboard

    for start in range(0, 120, 30):
        with site.database.write() as connection:
            for number in range(start, start + 30):
                events.add(connection, Event(1.7e9 + number, "JOB_LOST", "job", number, job_id=number))
                events.add(connection, Event(1.7e9 + number, "JOB_RUNNING", "job", number, job_id=number))
        with site.database.write() as connection:
            assert cursors.count(connection, site.clock.now()) == 60
    with site.database.read() as connection:
        assert [each.job_id for each in dashboard.problems(connection)] == list(range(70, 120))
        counts = cursors.counts(connection)
    assert counts == {"JOB_LOST": 120, "JOB_RUNNING": 120}
