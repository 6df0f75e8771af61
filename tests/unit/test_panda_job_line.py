"""The job line of a task of PanDA: how its pieces are put together and read again."""

from __future__ import annotations

from typing import Any

import pytest

from common.wire import QueueSpec, SiteSpec
from server.compat.panda_client.inputs import _matcher, first_events
from server.compat.panda_client.job_line import (
    Wrong,
    ahead,
    command_of,
    numbered,
    options_of,
    output_map,
    output_name,
    output_pattern,
    read_line,
)
from server.compat.panda_client.needs import needs_of, sites_of
from server.compat.panda_client.values import Values
from server.engine.world import World
from tests.integration.server.harness import file


def constant(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "constant", "value": value, **more}


def test_pieces_are_joined_by_spaces_unless_they_say_otherwise() -> None:
    line = read_line(
        [constant('-p "', padding=False), constant("a%20b", padding=False), constant('"'), constant("-r .")]
    )
    assert line.text == '-p "a%20b" -r .'
    assert options_of(line.text) == {"-p": "a%20b", "-r": "."}


def test_hidden_pieces_are_not_part_of_the_line() -> None:
    assert read_line([constant("__delimiter__", hidden=True), constant("x")]).text == "x"


def test_a_number_takes_none_of_the_digits_behind_it() -> None:
    """``%RNDM:10`` and a 5 behind it were once one number."""
    counter = {"type": "template", "param_type": "pseudo_input", "value": "${SEQNUMBER}", "offset": 10}
    line = read_line([constant("seed="), counter])
    assert command_of("seed%3D${SEQNUMBER}5", line) == "seed=%RNDM:0000000000000000105"


def test_a_counter_with_two_beginnings_is_refused() -> None:
    counter = {"type": "template", "param_type": "pseudo_input", "value": "${SEQNUMBER}", "offset": 10}
    with pytest.raises(Wrong, match="two numbers"):
        read_line([counter, {**counter, "offset": 11}])


def test_options_that_cannot_be_carried_out_are_all_named() -> None:
    with pytest.raises(Wrong) as error:
        options_of("--useRootCore --rootVer 6.30 -p x --strange --noX509")
    assert [words.partition(":")[0].partition(" ")[0] for _, words in error.value.problems] == [
        "--useRootCore", "--rootVer", "--strange",
    ]  # fmt: skip


def test_a_value_may_follow_an_equals_sign() -> None:
    assert options_of("--writeInputToTxt=IN:a.txt --allowNoOutput=x -p 'a=b'") == {
        "--writeInputToTxt": "IN:a.txt",
        "-p": "a=b",
    }


@pytest.mark.parametrize("text", ["[]", "{1: 2}", "{'a': 'b/c'}", "{'a\\n': 'b'}", "(" * 5000, "{'a': f()}"])
def test_a_map_of_outputs_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Wrong):
        output_map(text)


def test_outputs_get_names_with_numbers_and_patterns_that_take_them() -> None:
    template = "user.ann.$JEDITASKID._${SN/P}.out[1].txt"
    assert output_map(f"{{'out.txt': '{template}'}}") == {"out.txt": template}
    assert output_name(template) == ("user.ann.", ".out[1].txt")
    assert output_pattern(template) == "user.ann.*._*.out?1?.txt"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("user.ann.$JEDITASKID._${SN/P}.out.txt", "user.ann.%OUT.out.txt"),
        ("$JEDITASKID._${SN}x", "%OUTx"),
        ("100%.$JEDITASKID._${SN/P}.txt", None),
        ("x" * 250 + ".$JEDITASKID._${SN/P}.txt", None),
    ],
    ids=["usual", "bare", "per cent", "long"],
)
def test_an_output_has_a_name_ahead(template: str, name: str | None) -> None:
    assert ahead(template) == name


def test_a_program_is_told_the_whole_name_unless_its_end_would_be_lost() -> None:
    assert numbered("o=u.$JEDITASKID._${SN/P}.root") == "o=u.%OUT.root"
    assert numbered("o=u.$JEDITASKID._${SN/P}_1") == "o=u.$JEDITASKID._${SN/P}_1"


@pytest.mark.parametrize("template", ["plain.txt", "x.${SN}.txt", "x.$JEDITASKID._${SN/P}.${MIDDLENAME}.txt"])
def test_names_that_nobody_fills_in_are_refused(template: str) -> None:
    with pytest.raises(Wrong, match="JEDITASKID"):
        output_name(template)


@pytest.mark.parametrize(
    ("pattern", "taken", "left"),
    [
        (r"\.log\.tgz(\.\d+)*$", ["a.log.tgz", "a.log.tgz.1"], ["a.log.tgz.x", "a.root"]),
        (r"data.*\.root", ["data1.root", "my.data.root.2"], ["x.root", "data1xroot"]),
        (r"\.root$", ["a.root"], ["a.root.1"]),
        (r"a.c", ["abc", "xabcx"], ["ac"]),
    ],
)
def test_files_are_matched_as_prun_means_it(pattern: str, taken: list[str], left: list[str]) -> None:
    matches = _matcher(pattern, "include")
    assert all(matches(name) for name in taken) and not any(matches(name) for name in left)


@pytest.mark.parametrize("pattern", ["(a+)+$", "[a]", "a|b", "a{3}", "\\d", "a+*", "("])
def test_other_expressions_are_refused_and_never_run(pattern: str) -> None:
    with pytest.raises(Wrong, match="match"):
        _matcher(pattern, "include")


def test_events_must_be_a_whole_number_of_files() -> None:
    files = [file(str(number), "disk", events=100) for number in range(3)]
    assert len(first_events(files, 200)) == 2 and len(first_events(files, 1000)) == 3
    with pytest.raises(Wrong, match="whole number"):
        first_events(files, 250)
    with pytest.raises(Wrong, match="does not know"):
        first_events([file("x", "disk")], 1)


def test_memory_is_of_each_core_unless_it_says_otherwise() -> None:
    def memory(**given: Any) -> int:
        return int(needs_of(Values({"coreCount": 4, "ramCount": 1000, **given}))["requirements"].memory_mb)

    assert memory() == 4000
    assert memory(ramCountUnit="MBPerCore") == 4000
    assert memory(ramCountUnit="MB") == 1000


def test_a_queue_stands_for_its_site_only_if_that_has_no_other() -> None:
    queues = {name: QueueSpec(name=name, site=site) for name, site in (("a1", "a"), ("b1", "b"), ("b2", "b"))}
    world = World(sites={name: SiteSpec(name) for name in "ab"}, queues=queues, storages={})
    assert list(sites_of(["a1", "b", "AUTO"], world, "site")) == ["a", "b"]
    with pytest.raises(Wrong, match="one of several"):
        list(sites_of(["b1"], world, "site"))
    with pytest.raises(Wrong, match="no site or queue"):
        list(sites_of(["c"], world, "site"))
