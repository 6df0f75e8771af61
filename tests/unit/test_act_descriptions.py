"""What the face of aCT reads of descriptions, in xRSL and ADL."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.wire.direct import Language
from harvester.backends.arc_direct import Unfit, marked
from server.compat.act.descriptions import read
from server.compat.act.xrsl import BadDescription, parse

FULL = """
& (* a comment with (brackets) and "quotes" *)
 (executable = run.sh) (Job_Name="a ""quoted"" name")
 (arguments = "-c" 'it''s' bare-word key=value)
 (inputFiles = ("run.sh" "") ("data" "https://host/data;cache=no") ("local.txt" /home/me/local.txt)
               ("url" "file:///tmp/x") ("remote" root://host:1094//file))
 (stdout="out" # ".txt") (join = yes) (count = 4) (memory >= 1000)
"""


def test_a_description_in_xrsl() -> None:
    found = read(FULL)
    assert found.described.text == FULL, "it goes on as it is"
    assert found.described.language is Language.XRSL
    assert found.described.name == 'a "quoted" name'
    assert (found.described.stdout, found.described.stderr) == ("out.txt", "out.txt")
    assert found.uploaded == {"run.sh", "local.txt", "url"}
    assert parse(FULL).attributes["arguments"] == ["-c", "it's", "bare-word", "key=value"]


def test_a_description_of_one_attribute_as_act_writes_it() -> None:
    assert read('(executable="/bin/true")').described.name == "unnamed"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing in it"),
        ("&", "nothing in it"),
        ("hello", r"'\('"),
        ("&(executable=", r"'\)' expected"),
        ('&(executable="/bin/true)', "cannot be read"),
        ("&(executable=a)(executable=b)", "twice"),
        ("&(jobname=a)", "no executable"),
        ("&(executable=a b)", "one value"),
        ("&(executable=(a b))", "one value"),
        ("+(&(executable=a))(&(executable=b))", "several jobs|expected"),
        ("&(|(executable=a)(executable=b))", "several jobs"),
        ("&(executable=$(X))", "variables"),
        ("&(executable=a)(inputfiles=b)", "pairs"),
        ("&(executable=a)(delegationid=b)", "not the user's"),
        ("&(executable=a)(inputfiles=(b http://[))", "no address"),
        ("&(executable=a)(jobname='" + "n" * 300 + "')", "longer"),
        ("&(executable=" + "(" * 50 + "a" + ")" * 50 + ")", "nested"),
        ("<nonsense", "no XML"),
        ("<a/>", "ActivityDescription"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "document type"),
        ("<ActivityDescription/>", "no executable"),
    ],
)
def test_a_description_that_cannot_be_taken(text: str, words: str) -> None:
    with pytest.raises(BadDescription, match=words):
        read(text)


ADL = """<?xml version="1.0"?>
<ActivityDescription xmlns="http://www.eu-emi.eu/es/2010/12/adl">
<ActivityIdentification><Name> the name </Name></ActivityIdentification>
<Application><Executable><Path>run.sh</Path></Executable><Output>o</Output><Error>e</Error></Application>
<DataStaging>
<InputFile><Name>run.sh</Name></InputFile>
<InputFile><Name>far</Name><Source><URI>https://host/far</URI></Source></InputFile>
</DataStaging></ActivityDescription>"""


def test_a_description_in_adl() -> None:
    found = read(ADL)
    assert found.described.language is Language.ADL
    assert (found.described.name, found.described.stdout, found.described.stderr) == ("the name", "o", "e")
    assert found.uploaded == {"run.sh"}


@given(st.text(alphabet="&|+()=<>\"'#$* \nabc\x00é", max_size=60))
def test_no_text_is_too_odd_to_be_refused(text: str) -> None:
    try:
        read(text)
    except BadDescription:
        pass


def test_the_mark_changes_nothing_of_what_a_description_says() -> None:
    with_mark = marked(FULL, Language.XRSL, "0123456789abcdef")
    assert "pilotage 0123456789abcdef" in with_mark
    assert parse(with_mark) == parse(FULL)
    assert parse(marked("(executable=a)", Language.XRSL, "0123456789abcdef")) == parse("(executable=a)")
    assert "pilotage 0123456789abcdef" in marked(ADL, Language.ADL, "0123456789abcdef")
    assert read(marked(ADL, Language.ADL, "0123456789abcdef")).uploaded == read(ADL).uploaded
    with pytest.raises(Unfit):
        marked("<a/>", Language.ADL, "0123456789abcdef")
