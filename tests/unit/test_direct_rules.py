"""Direct jobs: aCT's words for every state of ours, what is done next, and where a job may run."""

from __future__ import annotations

import itertools

import pytest

from common.states import FINAL_JOB_STATES, FINAL_WORKER_STATES, JobState, WorkerState
from common.wire.direct import DirectInstruction, DirectPlace
from harvester.backends.arc_states import ArcState
from harvester.direct.lane import LOST as HARVESTERS_LOST
from server.compat.act.states import CLEANABLE, FETCHABLE, KILLABLE, NATIVE, RERUNNABLE, STATES, arcstate, native
from server.engine.direct import JOB_STATES, LOST, Facts, address, instruction, names, place_for

W, J, D = WorkerState, JobState, DirectInstruction
PLACE = DirectPlace("q", "https://ce.example.org:443/arex", "grid")


def test_every_state_of_ours_has_a_word_of_act() -> None:
    for described, aborted, worker, job, killing, lost, results, fetch in itertools.product(
        (False, True), (False, True), [None, *W], [None, *J], (False, True), (False, True), (False, True), (False, True)
    ):
        word = arcstate(Facts(described, aborted, worker, job, killing, lost, results, fetch))
        assert word in STATES or (word is None and not described)


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        (Facts(False), None),
        (Facts(True), "tosubmit"),
        (Facts(True, aborted=True), "cancelled"),
        (Facts(True, worker=W.PLANNED, job=J.SENT), "tosubmit"),
        (Facts(True, worker=W.SUBMITTING, job=J.SENT), "submitting"),
        (Facts(True, worker=W.SUBMITTED, job=J.STARTING), "submitted"),
        (Facts(True, worker=W.RUNNING, job=J.RUNNING), "running"),
        (Facts(True, worker=W.FINISHED, job=J.HOLDING), "finished"),
        (Facts(True, worker=W.FINISHED, job=J.FINISHED, results=True), "done"),
        (Facts(True, worker=W.FAILED, job=J.FAILED), "failed"),
        (Facts(True, worker=W.FAILED, job=J.FAILED, lost=True), "lost"),
        (Facts(True, worker=W.FAILED, job=J.FAILED, fetch=True), "tofetch"),
        (Facts(True, worker=W.FAILED, job=J.FAILED, fetch=True, results=True), "donefailed"),
        (Facts(True, True, W.RUNNING, J.RUNNING), "tocancel"),
        (Facts(True, True, W.RUNNING, J.RUNNING, killing=True), "cancelling"),
        (Facts(True, True, W.CANCELLED, J.CANCELLED), "cancelled"),
    ],
)
def test_the_words_of_act(facts: Facts, word: str | None) -> None:
    assert arcstate(facts) == word


def test_what_may_be_done_is_done_with_states_that_there_are() -> None:
    for words in (KILLABLE, CLEANABLE, FETCHABLE, RERUNNABLE):
        assert set(words) - {None} <= STATES
    assert not {word for word in KILLABLE if word in CLEANABLE}


def test_every_state_of_a_ce_has_words_for_people() -> None:
    assert NATIVE.keys() == {state.value for state in ArcState}
    assert (native("RUNNING"), native("NEW-ONE"), native("")) == ("Running", "NEW-ONE", None)


def test_every_worker_state_has_a_job_state_and_none_ends_well_by_itself() -> None:
    assert JOB_STATES.keys() == set(W)
    assert {JOB_STATES[state] for state in FINAL_WORKER_STATES} & FINAL_JOB_STATES == {J.FAILED, J.CANCELLED}
    assert LOST == HARVESTERS_LOST


@pytest.mark.parametrize(
    ("facts", "worker", "kill", "stored", "wanted", "todo"),
    [
        (Facts(True, worker=W.RUNNING, job=J.RUNNING), W.RUNNING, False, False, True, D.NONE),
        (Facts(True, True, W.RUNNING, J.RUNNING), W.RUNNING, True, False, True, D.KILL),
        (Facts(True, worker=W.FINISHED, job=J.HOLDING), W.FINISHED, False, False, True, D.FETCH),
        (Facts(True, worker=W.FINISHED, job=J.FINISHED, results=True), W.FINISHED, False, True, True, D.NONE),
        (Facts(True, worker=W.FAILED, job=J.FAILED), W.FAILED, False, False, True, D.NONE),
        (Facts(True, worker=W.FAILED, job=J.FAILED, fetch=True), W.FAILED, False, False, True, D.FETCH),
        (Facts(True, worker=W.FAILED, job=J.FAILED, fetch=True, results=True), W.FAILED, False, True, True, D.NONE),
        (Facts(True, True, W.CANCELLED, J.CANCELLED), W.CANCELLED, True, False, True, D.NONE),
        (Facts(True), W.FAILED, False, False, False, D.CLEAN),
        (None, W.FINISHED, False, True, False, D.CLEAN),
        (None, W.RUNNING, False, False, False, D.KILL),
    ],
)
def test_what_is_done_next(
    facts: Facts | None, worker: WorkerState, kill: bool, stored: bool, wanted: bool, todo: DirectInstruction
) -> None:
    assert instruction(facts, worker, kill=kill, stored=stored, wanted=wanted) is todo


@pytest.mark.parametrize(
    ("cluster", "meant"),
    [
        ("https://ce.example.org/grid", True),
        ("https://CE.example.org:443/grid/", True),
        ("https://ce.example.org", True),
        ("https://ce.example.org/arex", True),
        ("https://ce.example.org/other", False),
        ("https://ce.example.org:8443/grid", False),
        ("https://other.example.org/grid", False),
        ("ce.example.org/grid", False),
        ("https://[", False),
        ("https://ce.example.org:99999999/grid", False),
        ("", False),
    ],
)
def test_which_place_a_cluster_is(cluster: str, meant: bool) -> None:
    assert names(cluster, PLACE) is meant


def test_the_first_cluster_that_is_served_counts() -> None:
    other = DirectPlace("r", "https://b.example.org/arex", "x")
    assert place_for(["https://b.example.org/x", "https://ce.example.org/grid"], [PLACE, other]) is other
    assert place_for(["https://nowhere.example.org"], [PLACE, other]) is None
    assert address(PLACE) == "https://ce.example.org:443/grid"
