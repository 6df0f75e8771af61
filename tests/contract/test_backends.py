"""One contract for every backend, on simulated and on real batch systems."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from common.clock import FrozenClock
from common.config import ConfigError
from common.states import WorkerState, allowed
from harvester.backends import fake, local
from harvester.backends.base import (
    BackendError,
    BackendFactory,
    Backlog,
    Observation,
    Withdrawable,
    WorkerRef,
)
from harvester.backends.fake import FakeBackend
from harvester.backends.local import LocalBackend
from tests.contract.backends import LIVE, FakeRig, Rig, W, new_mark

RIGS = ["fake", "local", "slurm", "slurm_ssh", "slurm_rest", "psij", "arc", "htcondor"]
"""Each has a fixture ``NAME_rig``: those of real batch systems are in ``tests/contract/conftest.py``."""


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest) -> Rig:
    made: Rig = request.getfixturevalue(f"{request.param}_rig")
    return made


# ---------------------------------------------------------------- the contract


def test_submitted_workers_run(rig: Rig) -> None:
    refs = rig.submit(rig.spec(), rig.spec(), rig.spec())
    assert len({ref.batch_id for ref in refs}) == 3
    for ref in refs:
        assert rig.until(ref, W.RUNNING).observation is Observation.STATE


def test_nothing_to_do_is_no_error(rig: Rig) -> None:
    assert rig.backend.submit([]) == []
    assert rig.backend.status([]) == {}
    assert rig.backend.find_by_marks([]) == {}


def test_a_good_end(rig: Rig) -> None:
    (ref,) = rig.submit(rig.spec("good"))
    outcome = rig.until(ref, W.FINISHED, W.FAILED)
    assert (outcome.state, outcome.exit_code) == (W.FINISHED, 0)


def test_a_bad_end(rig: Rig) -> None:
    (ref,) = rig.submit(rig.spec("bad"))
    outcome = rig.until(ref, W.FINISHED, W.FAILED)
    assert (outcome.state, outcome.exit_code) == (W.FAILED, 1)


def test_a_worker_that_it_does_not_know_is_denied(rig: Rig) -> None:
    (known,) = rig.submit(rig.spec())
    stranger = WorkerRef(new_mark(), known.batch_id + "0")
    statuses = rig.backend.status([stranger, known])
    assert statuses[stranger.mark].observation is Observation.DENIED
    assert statuses[stranger.mark].state is None
    assert statuses[known.mark].observation is Observation.STATE


def test_workers_are_found_by_their_marks_and_others_are_not(rig: Rig) -> None:
    refs = rig.submit(rig.spec(), rig.spec())
    found = rig.backend.find_by_marks([*(ref.mark for ref in refs), new_mark()])
    assert found == {ref.mark: ref for ref in refs}


def test_after_a_crash_everything_is_known_still(rig: Rig) -> None:
    stay, good = rig.submit(rig.spec(), rig.spec("good"))
    rig.until(stay, W.RUNNING)
    rig.until(good, W.FINISHED)
    later = rig.restarted()
    assert later.find_by_marks([stay.mark, good.mark]) == {stay.mark: stay, good.mark: good}
    assert later.status([good])[good.mark].state is W.FINISHED
    assert later.status([stay])[stay.mark].state in (W.RUNNING, W.FINISHED, W.FAILED)


def test_workers_can_be_ended(rig: Rig) -> None:
    stay, other = rig.submit(rig.spec(), rig.spec())
    rig.until(stay, W.RUNNING)
    assert rig.backend.kill([stay]) == {}  # type: ignore[attr-defined]
    assert rig.backend.kill([stay]) == {}, "a repeat is harmless"  # type: ignore[attr-defined]
    rig.until(stay, W.FAILED, W.CANCELLED)
    assert rig.backend.kill([stay]) == {}, "and so is one after the end"  # type: ignore[attr-defined]
    assert rig.backend.status([other])[other.mark].state in LIVE


def test_an_end_stays_the_same(rig: Rig) -> None:
    (ref,) = rig.submit(rig.spec("good"))
    rig.until(ref, W.FINISHED)
    rig.backend.kill([ref])  # type: ignore[attr-defined]
    assert rig.backend.status([ref])[ref.mark].state is W.FINISHED


def test_a_worker_that_has_started_is_never_withdrawn(rig: Rig) -> None:
    """Everyone's users complain of scale-in that kills work."""
    if not isinstance(rig.backend, Withdrawable):
        return
    (ref,) = rig.submit(rig.spec())
    rig.until(ref, W.RUNNING)
    rig.backend.withdraw([ref])
    rig.backend.withdraw([ref, WorkerRef(new_mark(), ref.batch_id + "0")])
    assert rig.until(ref, W.RUNNING).observation is Observation.STATE


def test_the_load_counts_what_runs(rig: Rig) -> None:
    if not isinstance(rig.backend, Backlog):
        return
    (ref,) = rig.submit(rig.spec())
    rig.until(ref, W.RUNNING)
    # A CE publishes its load from time to time.
    give_up = time.monotonic() + rig.deadline_s
    while (load := rig.backend.backlog(dict(rig.spec().submit))).running < 1:
        assert time.monotonic() < give_up, f"the load is {load}"
        rig.passes()
    assert load.waiting >= 0


@pytest.mark.parametrize(
    ("native", "table"), [(fake.FakeState, fake.STATES), (local.LocalState, local.STATES)], ids=["fake", "local"]
)
def test_every_foreign_state_has_a_meaning_that_a_worker_can_take(
    native: type[Enum], table: dict[Any, WorkerState]
) -> None:
    assert set(table) == set(native)
    assert all(allowed(W.MISSING, state) for state in table.values())


@pytest.mark.parametrize("factory", [FakeBackend, LocalBackend])
def test_an_unknown_option_is_named(factory: BackendFactory, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="colour"):
        factory.create({"colour": "red"}, tmp_path, FrozenClock())


# ---------------------------------------------------------------- the fake one


def test_fake_down_knows_nothing(tmp_path: Path) -> None:
    rig = FakeRig(tmp_path)
    (ref,) = rig.submit(rig.spec())
    rig.backend.system.down = True
    for call in (
        lambda: rig.backend.status([ref]),
        lambda: rig.backend.find_by_marks([ref.mark]),
        lambda: rig.backend.submit([rig.spec()]),
        lambda: rig.backend.kill([ref]),
    ):
        with pytest.raises(BackendError):
            call()


def test_fake_remembers_only_with_a_journal(tmp_path: Path) -> None:
    rig = FakeRig(tmp_path)
    rig.options.journal = None
    rig.backend = rig.restarted()
    (ref,) = rig.submit(rig.spec())
    assert rig.backend.find_by_marks([ref.mark]) == {ref.mark: ref}
    assert rig.restarted().find_by_marks([ref.mark]) == {}
