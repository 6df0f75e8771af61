"""The real ``act`` 1.0.0, a real server, a real harvester and a real ARC CE: all that a user of aCT does in a day."""

from __future__ import annotations

import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.clock import SystemClock
from common.states import WorkerState
from common.wire.direct import Language
from harvester.backends.arc_direct import ArcDirect
from harvester.backends.base import SubmitResult
from tests.e2e.program import wait_for
from tests.integration.act_world import ActClient, ActSystem
from tests.services.arc import QUEUE, ArcCe
from tests.transcripts import keep

JOBS = 9
RESULTS = """
cat greeting.txt; cat sub/more.txt; id -un
mkdir -p plots/deep/er; echo one > plots/one.txt; echo two > plots/deep/er/two.txt
head -c 3000000 /dev/urandom > big.bin; : > empty.txt
"""


ADL = """<?xml version="1.0"?>
<!-- a comment of the person's --><ActivityDescription xmlns="http://www.eu-emi.eu/es/2010/12/adl">
<ActivityIdentification><Name>adl</Name></ActivityIdentification>
<Application><Executable><Path>/bin/echo</Path><Argument>hello</Argument></Executable><Output>out.txt</Output></Application>
<DataStaging><OutputFile><Name>out.txt</Name></OutputFile></DataStaging></ActivityDescription>"""


def xrsl(name: str, script: str = "", more: str = "") -> str:
    """A description as people write them, with a comment and odd blanks."""
    command = script or "echo hello from " + name
    return (
        f'&(* the job {name} *)\n (executable = "/bin/sh")\n (arguments="-c" "{command}")\n (jobName="{name}")\n'
        f' (stdout="out.txt")(stderr="err.txt")\n (outputfiles=("out.txt" "")("err.txt" "")){more}\n'
    )


@pytest.fixture(scope="module")
def system(arc_ce: ArcCe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ActSystem]:
    with ActSystem(tmp_path_factory.mktemp("act"), arc_ce) as made:
        yield made
    # What a job that was ended has started lives on in this batch system.
    arc_ce.end_jobs()


@pytest.fixture
def act(system: ActSystem, tmp_path: Path) -> Iterator[ActClient]:
    """Somebody who has delegated."""
    made = ActClient(system, tmp_path)
    made.new_proxy()
    try:
        made("proxy")
        made.until_served()
        yield made
    finally:
        made.close()


def test_a_day_with_act(system: ActSystem, act: ActClient) -> None:
    assert stat.S_IMODE(act.token.stat().st_mode) == 0o600
    assert system.cluster in act("info")
    act.write("greeting.txt", "good morning\n")
    act.write("sub/more.txt", "and more\n")
    act.write("results.sh", RESULTS)
    inputs = '(inputfiles=("results.sh" "")("greeting.txt" "greeting.txt")("sub/more.txt" "sub/more.txt"))'
    act.write(
        "results.xrsl",
        f'&(executable="/bin/sh")(arguments="results.sh"){inputs}(jobname="results")'
        '(stdout="out.txt")(stderr="err.txt")'
        '(outputfiles=("out.txt" "")("plots/" "")("big.bin" "")("empty.txt" ""))',
    )
    # With the two others as many as the client has threads, and its listing connection stays open besides.
    names = [act.write(f"job{n}.xrsl", xrsl(f"job{n}")) for n in range(JOBS)]
    act.write("wrong.xrsl", "&(executable=")
    act.write("empty.xrsl", '&(jobname="empty")(stdout="out.txt")')
    act.write("bad.xrsl", xrsl("bad", "echo oh no; exit 3"))
    said = act("sub", "results.xrsl", *names, "wrong.xrsl", "empty.xrsl", "bad.xrsl")
    assert len(re.findall(r"Inserted job \w+ with ID \d+", said)) == JOBS + 2
    assert "wrong.xrsl not submitted" in said
    assert "empty.xrsl not submitted: the description cannot be read: it has no executable" in said
    act.until(results="done", bad="failed", **{f"job{n}": "done" for n in range(JOBS)})
    listed = act("stat")
    assert re.search(r"\d+ +results +https://localhost:\d+/arex/\w+ +Finished +done", listed)
    assert "hello from job1" in act("cat", "-n", "job1")
    assert "oh no" in act("cat", "-n", "bad")
    act("get")
    (folder,) = [path.parent for path in act.home.glob("*/big.bin")]
    assert (folder / "out.txt").read_text().split() == ["good", "morning", "and", "more", "grid"]
    assert (folder / "plots/deep/er/two.txt").read_text() == "two\n"
    assert (folder / "big.bin").stat().st_size == 3_000_000 and (folder / "empty.txt").read_bytes() == b""
    assert sorted(path.read_text() for path in act.home.glob("*/out.txt") if path.parent != folder) == [
        f"hello from job{n}\n" for n in range(JOBS)
    ]
    assert act.states() == {"bad": "failed"}
    act("fetch")
    act.until(bad="donefailed")
    act("get", "--use-jobname", "--state", "donefailed")
    assert (act.home / "bad/out.txt").read_text() == "oh no\n"
    assert act("stat") == ""
    keep("act-a-day", "\n".join(act.transcript))


def test_kill_resub_and_clean(system: ActSystem, act: ActClient) -> None:
    sessions = Path(system.ce.folder / "session")
    before = set(sessions.iterdir())  # of others, which may have failed
    act.write("long.xrsl", xrsl("long", "sleep 300"))
    once = act.write("once.sh", "mkdir /tmp/$1 && exit 7; rmdir /tmp/$1; echo second time")
    marker = f"act-{act.user}"
    act.write(
        "again.xrsl",
        f'&(executable="/bin/sh")(arguments="{once}" "{marker}")(inputfiles=("{once}" ""))(jobname="again")'
        '(stdout="out.txt")(outputfiles=("out.txt" ""))',
    )
    act("sub", "long.xrsl", "again.xrsl")
    act.until(long="running", again="failed")
    assert "Will kill 1 jobs" in act("kill", "-n", "long")
    act.until(long="cancelled")
    assert "Will resubmit 1 jobs" in act("resub")
    act.until(again="done")
    assert act("cat", "-n", "again") == "second time\n"
    assert "Cleaned 2 jobs" in act("clean")
    assert act("stat") == ""
    wait_for(lambda: set(sessions.iterdir()) <= before, "the CE is clean", 240)
    assert "there is no state" in act("stat", "-s", "nonsense", code=1)
    assert "no such cluster" in act("sub", "--clusterlist", "elsewhere", "long.xrsl")
    keep("act-kill-resub-clean", "\n".join(act.transcript))


def test_harvester_killed_again_and_again_runs_each_job_once(system: ActSystem, act: ActClient) -> None:
    log = f"/tmp/{act.proxy.name}.runs"
    names = [act.write(f"job{n}.xrsl", xrsl(f"job{n}", f"echo job{n} >> {log}")) for n in range(4)]
    act("sub", *names)
    for pause in (0.2, 0.9, 0.5):
        threading.Event().wait(pause)  # anywhere: the submissions take about a second
        system.harvester.kill9()
        system.harvester.start()
    try:
        act.until(**{f"job{n}": "done" for n in range(4)})
        assert sorted(Path(log).read_text().split()) == [f"job{n}" for n in range(4)]
    finally:
        Path(log).unlink(missing_ok=True)
    assert "Cleaned 4 jobs" in act("clean")


def test_the_ce_keeps_the_mark_in_either_language(arc_ce: ArcCe, tmp_path: Path) -> None:
    options = {"url": arc_ce.url, "ca_file": str(arc_ce.authorities), "proxy_file": "/unused", "timeout_s": 60.0}
    ce = ArcDirect.create(options, arc_ce.proxy, tmp_path, SystemClock())
    ce.prepare()
    outcomes = [
        ce.submit("mark-of-the-xrsl", xrsl("x"), Language.XRSL, QUEUE),
        ce.submit("mark-of-the-one", '(executable="/bin/true")', Language.XRSL, QUEUE),
        ce.submit("mark-of-the-adl", ADL, Language.ADL, QUEUE),
        ce.submit("mark-of-the-bad", "&(executable=", Language.XRSL, QUEUE),
    ]
    results = [outcome.result for outcome in outcomes]
    assert results == [SubmitResult.ACCEPTED] * 3 + [SubmitResult.REFUSED], outcomes
    again = ArcDirect.create(options, arc_ce.proxy, tmp_path, SystemClock())
    found = again.find([outcome.mark for outcome in outcomes])
    assert {mark: ref.batch_id for mark, ref in found.items()} == {each.mark: each.batch_id for each in outcomes[:3]}
    refs = list(found.values())
    wait_for(lambda: {each.state for each in ce.status(refs).values()} == {WorkerState.FINISHED}, "all end", 240)
    assert ce.clean(refs) == {} and ce.clean(refs) == {}
    assert ce.files(refs[0].batch_id) is None


def test_the_session_of_the_how_to(system: ActSystem, act: ActClient) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/migrate-from-act.md").read_text(encoding="utf-8")
    act.write("hello.xrsl", page.partition("```text\n")[2].partition("```")[0])
    act.write("hello.sh", "echo hello from the page\n")
    said = {}
    for line in page.partition("```console\n")[2].partition("```")[0].splitlines():
        words = line.removeprefix("$ act ").split()
        if words[0] == "cat":
            act.until(hello="done")
        said[words[0]] = act(*words)
    assert "Successfully inserted proxy" in said["proxy"]
    assert "Inserted job hello with ID" in said["sub"]
    assert said["cat"] == "hello from the page\n"
    assert (act.home / "hello/out.txt").read_text() == "hello from the page\n"
    keep("act-how-to", "\n".join(act.transcript))
