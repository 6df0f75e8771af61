"""Whatever workers, time-outs and people do to a project: no file is forgotten, none is accepted twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from common.wire.projects import FileOutcome, RestartState
from tests.integration.server import project_tools as tools
from tests.integration.server.harness import Site
from tests.integration.server.project_tools import agents, listed, look, make, release, reserve, restart

FILES = 12
WORKERS = st.sampled_from(["w1", "w2", "w3"])
TIMEOUT_S = 100.0


class Histories(RuleBasedStateMachine):
    """A model beside the server: where each file is, who holds it, and until when."""

    site: Site

    @initialize(retry=st.booleans())
    def begin(self, retry: bool) -> None:
        given = [listed(f"f{n:02d}", storages=["near-disk" if n % 2 else "far-disk"])[0] for n in range(FILES)]
        more: dict[str, Any] = {"retry_on_timeout": retry, "worker_timeout_s": TIMEOUT_S, "idle_timeout_s": 5000.0}
        self.project = make(self.site, files=given, **more)
        self.retry = retry
        self.states = {f"f{n:02d}": "ready" for n in range(FILES)}
        self.holders: dict[str, tuple[str, float]] = {}
        self.answers: dict[tuple[str, str], list[str]] = {}
        self.accepted: dict[str, int] = dict.fromkeys(self.states, 0)

    @rule(
        worker=WORKERS, site=st.sampled_from(["near", "far", None]), count=st.integers(1, 3), number=st.integers(0, 30)
    )
    def reserves(self, worker: str, site: str | None, count: int, number: int) -> None:
        self.site.dispatcher.projects.forget(self.project)
        request_id = f"request-{number:04d}"
        reply = reserve(self.site, self.project, worker, request_id=request_id, cpu_site=site, count=count)
        got = [each.did.partition(":")[2] for each in reply.files]
        before = self.answers.get((worker, request_id))
        if before is not None:
            self.repeated(worker, request_id, got)
            return
        ready = [name for name, state in self.states.items() if state == "ready"]
        assert len(got) == min(count, len(ready))
        assert set(got) <= set(ready)
        self.hold(worker, request_id, got)

    def repeated(self, worker: str, request_id: str, got: list[str]) -> None:
        """What this request got before and nobody else has got since; if that is nothing, it is a new request."""
        mine = set(self.answers[worker, request_id])
        held = self.site_states()
        newly = [name for name in got if self.states[name] == "ready" and held[name] == "reserved"]
        assert set(got) <= mine or got == newly, "given although somebody has it"
        if newly:
            self.hold(worker, request_id, newly)

    def hold(self, worker: str, request_id: str, got: list[str]) -> None:
        expires = self.site.clock.now() + TIMEOUT_S
        self.answers[worker, request_id] = got
        for name in got:
            assert self.states[name] == "ready"
            self.states[name] = "reserved"
            self.holders[name] = (worker, expires)

    def site_states(self) -> dict[str, str]:
        return {name: view.state.value for name, view in tools.files(self.site, self.project).items()}

    @rule(worker=WORKERS, number=st.integers(0, FILES - 1), outcome=st.sampled_from(FileOutcome), retry=st.booleans())
    def releases(self, worker: str, number: int, outcome: FileOutcome, retry: bool) -> None:
        name = f"f{number:02d}"
        (answer,) = release(self.site, self.project, name, worker=worker, outcome=outcome, retry=retry)
        if self.holders.get(name, ("", 0.0))[0] == worker:
            assert answer.accepted, answer
            del self.holders[name]
            self.states[name] = "done" if outcome is FileOutcome.DONE else "ready" if retry else "failed"
            self.accepted[name] += outcome is FileOutcome.DONE

    @rule(seconds=st.sampled_from([10.0, 60.0, 200.0, 6000.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.site.clock.advance(seconds)  # type: ignore[attr-defined]
        agents(self.site)
        now = self.site.clock.now()
        for name, (_, expires) in list(self.holders.items()):
            if expires <= now:
                del self.holders[name]
                self.states[name] = "ready" if self.retry else "failed"

    @rule(states=st.sets(st.sampled_from(RestartState), min_size=1))
    def restarts(self, states: set[RestartState]) -> None:
        restart(self.site, self.project, *states)
        for name, state in self.states.items():
            if state in {each.value for each in states}:
                self.states[name] = "ready"
                self.holders.pop(name, None)

    @rule(number=st.integers(0, FILES - 1))
    def restarts_one(self, number: int) -> None:
        name = f"f{number:02d}"
        restart(self.site, self.project, dids=[name])
        self.states[name] = "ready"
        self.holders.pop(name, None)

    @invariant()
    def no_file_is_forgotten(self) -> None:
        if not hasattr(self, "states"):
            return
        assert self.site_states() == self.states
        assert sum(look(self.site, self.project).files.values()) == FILES
        self.site.check_counts()
        generations = {
            each.did.partition(":")[2]: each.generation for each in self.site.units(self.project) if each.did
        }
        for name, accepted in self.accepted.items():
            assert accepted == generations[name] + (self.states[name] == "done"), "accepted once in each generation"


def test_no_history_forgets_a_file_or_takes_it_twice(kind: str, make_url_of: Callable[[str], str]) -> None:
    site = Site(make_url_of(kind))
    site.put_site("near", distances={"far-disk": 30})
    site.put_site("far", distances={"near-disk": 30})
    site.put_storage("near-disk", "near")
    site.put_storage("far-disk", "far")
    machine = type("Here", (Histories,), {"site": site})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=15, stateful_step_count=25, deadline=None, derandomize=True, database=None,
                suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
            ),
        )  # fmt: skip
    finally:
        site.database.close()


pytestmark = pytest.mark.timeout(900)
