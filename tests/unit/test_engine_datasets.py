"""Which datasets an output belongs to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.wire import DatasetKind, OutputPattern
from server.engine.datasets import (
    MAX_NAME,
    Naming,
    Numbered,
    assign_numbers,
    base_name,
    datasets_of,
    expires,
    template_problem,
)

NAMING = Naming(workflow=504, name="beam", stage="reco", task=7, pattern=2, owner="alice@example.org")


def test_without_a_name_the_numbers_of_workflow_and_pattern_make_it() -> None:
    assert base_name(None, NAMING) == "w504.reco.p2"


def test_placeholders_are_filled_in_and_odd_letters_replaced() -> None:
    template = "mc.{name}.{stage}.{task}.{pattern}.{owner}.{workflow}"
    assert base_name(template, NAMING) == "mc.beam.reco.7.2.alice-example.org.504"


@pytest.mark.parametrize(
    ("template", "words"),
    [("{run}", "there is no {run}"), ("a/b", "letters, digits"), ("{stage", "letters, digits"), ("a b", "letters")],
)
def test_a_name_that_cannot_be_used_is_refused_with_words(template: str, words: str) -> None:
    assert words in template_problem(template)


@pytest.mark.parametrize("template", ["{workflow}.{name}.{stage}.{task}.{pattern}.{owner}", "plain-name_1+x"])
def test_a_name_that_can_be_used(template: str) -> None:
    assert template_problem(template) == ""


def test_an_output_is_in_one_for_all_one_for_its_storage_and_a_numbered_one() -> None:
    pattern = OutputPattern("*.root", lifetime_days=30, max_files_per_dataset=100)
    found = datasets_of("w1.reco.p1", pattern, "MANCHESTER", 3)
    assert [(each.name, each.kind) for each in found] == [
        ("w1.reco.p1", DatasetKind.ALL),
        ("w1.reco.p1-MANCHESTER", DatasetKind.STORAGE),
        ("w1.reco.p1.000003", DatasetKind.NUMBERED),
    ]
    # The rule hangs on the one of the storage.
    assert [(each.storage, each.lifetime_days) for each in found] == [(None, None), ("MANCHESTER", 30), (None, None)]


def test_without_a_bound_there_is_no_numbered_one() -> None:
    kinds = [each.kind for each in datasets_of("b", OutputPattern("*"), "s", None)]
    assert kinds == [DatasetKind.ALL, DatasetKind.STORAGE]


def test_a_very_long_name_is_cut_and_stays_unique() -> None:
    names = {datasets_of("b" * 200, OutputPattern("*"), "s" * 100 + end, None)[1].name for end in "xy"}
    assert len(names) == 2
    assert {len(name) for name in names} == {MAX_NAME}


def test_a_rule_without_a_lifetime_never_ends() -> None:
    assert expires(100.0, None) is None
    assert expires(100.0, 2) == 100.0 + 2 * 86400


@given(most=st.integers(1, 50), batches=st.lists(st.integers(0, 120), max_size=10))
def test_numbered_datasets_are_filled_one_by_one_and_never_overfilled(most: int, batches: list[int]) -> None:
    filled = Numbered()
    numbers: list[int] = []
    for count in batches:
        more, filled = assign_numbers(filled, most, count)
        numbers += more
    assert numbers == [1 + index // most for index in range(sum(batches))]
