"""Plug-ins of experiments: the documentation's example in whole jobs, and that none can do harm by failing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import ErrorCode, PilotageError
from common.wire import AssignedFile, Assignment, Metrics, Needs, OutputRule, Queue
from docs import generate
from pilot.outputs import CollectedFile
from pilot.payload.diagnosis import Ending
from pilot.plugins import PayloadPlugin, PluginCalls, PluginJob, Refused, check_node, make_plugin
from pilot.supervised import PayloadEnd
from pilot.watch.files import folder_use
from pilot.watch.looping import Quiet

PAGE = Path(generate.__file__).parent / "how-to" / "write-a-plug-in.md"
BAD = """
import sys
from pilot.plugins import PayloadPlugin, Refused

class Bad(PayloadPlugin):
    def {hook}:
        {does}
"""


def install(folder: Path, name: str, code: str, target: str) -> None:
    """A distribution as pip would install it, with one plug-in."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}_plugin.py").write_text(code)
    info = folder / f"{name}_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[pilotage.payloads]\n{name} = {name}_plugin:{target}\n")


def run(folder: Path, stage: str) -> dict[str, Any]:
    """One job with the plug-ins that are installed in ``folder / "site"``."""
    (folder / "w.toml").write_text(f'name = "try"\n[[stage]]\nname = "s"\ninput.single = true\n{stage}')
    done = subprocess.run(
        [str(Path(sys.executable).with_name("pilotage")), "pilot", "run-local", "w.toml", "--json"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder / "site")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


# ---------------------------------------------------------------- the example of the documentation


@pytest.fixture
def skim(tmp_path: Path) -> Path:
    [code] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    [line] = re.findall(r"^skim = \"(.*)\"$", PAGE.read_text("utf-8"), re.MULTILINE)
    install(tmp_path / "site", "skim", code, line.partition(":")[2])
    return tmp_path


def payload(script: str, environment: str = "{ SKIM_RELEASE = '24.1' }") -> str:
    return (
        f"plugin = 'skim'\nenvironment = {environment}\noutputs = ['*.root']\ncommand = ['sh', '-c', '''{script}''']\n"
    )


def test_the_example_runs_a_job_its_way(skim: Path) -> None:
    script = (
        "echo $SKIM_HOME $SKIM_SITE $(nice); touch a.root scratch-b.root; echo 42 > events.count; echo x > skim.cfg"
    )
    said = run(skim, payload(script))
    assert said["state"] == "finished", said
    assert "/opt/skim/24.1 local 5\n" in said["log_tail"]
    assert [output["name"] for output in said["outputs"]] == ["a.root"]
    assert said["metrics"]["events"] == 42
    listing = subprocess.run(["tar", "tzf", said["log"]], capture_output=True, text=True, check=True).stdout
    assert "work/skim.cfg" in listing


def test_the_example_refuses_a_job_that_cannot_be_right(skim: Path) -> None:
    said = run(skim, payload("true", "{}"))
    assert (said["error_code"], said["units"]) == (ErrorCode.REFUSED_BY_PLUGIN, {"failed": 1})
    assert "say which release to use" in said["error_detail"]


def test_the_example_knows_its_exit_codes_and_messages(skim: Path) -> None:
    said = run(skim, payload("exit 66"))
    assert (said["error_code"], said["exit_code"]) == (ErrorCode.MISSING_INPUT, 66)
    said = run(skim, payload("echo conditions: run 9 timed out >&2; exit 1"))
    assert said["error_code"] == ErrorCode.SERVICE_UNAVAILABLE


# ---------------------------------------------------------------- plug-ins that fail, in whole jobs


@pytest.mark.parametrize(
    ("hook", "does", "state", "words"),
    [
        ("validate(self, job)", "1 / 0", "failed", "plug-in bad: validate: ZeroDivisionError"),
        ("command(self, job, argv)", "sys.exit(3)", "failed", "plug-in bad: command: SystemExit: 3"),
        ("outputs(self, job, files)", "return 7", "failed", "plug-in bad: outputs: TypeError"),
        ("metrics(self, job)", "return {'x': 1}", "finished", ""),
    ],
)
def test_a_plug_in_that_fails_is_a_numbered_error_and_never_a_dead_pilot(
    tmp_path: Path, hook: str, does: str, state: str, words: str
) -> None:
    install(tmp_path / "site", "bad", BAD.format(hook=hook, does=does), "Bad")
    said = run(tmp_path, "plugin = 'bad'\ncommand = ['true']\n")
    assert said["state"] == state and words in said["error_detail"]
    assert said["error_code"] == (ErrorCode.PLUGIN_FAILED if state == "failed" else None)
    assert said["units"] == ({"processed": 1} if state == "finished" else {"returned": 1})
    assert said["log"], "the log is there in every case"


def test_a_plug_in_that_is_not_installed_is_named(tmp_path: Path) -> None:
    said = run(tmp_path, "plugin = 'nowhere'\ncommand = ['true']\n")
    assert said["error_code"] == ErrorCode.PLUGIN_FAILED
    assert "plug-in 'nowhere' is not installed in this pilot" in said["error_detail"]


# ---------------------------------------------------------------- every method


FILE = AssignedFile("u:a")
OUTPUT = CollectedFile("a.root", Path("/w/a.root"), 1, OutputRule("*.root"))
ENDING = Ending(PayloadEnd(exit_code=1))
CALLS: dict[str, Callable[[PluginCalls], Any]] = {
    "validate": lambda calls: calls.validate(),
    "inputs": lambda calls: calls.inputs([FILE]),
    "environment": lambda calls: calls.environment(),
    "setup": lambda calls: calls.setup(),
    "command": lambda calls: calls.command(["true"]),
    "processes": lambda calls: calls.processes(),
    "idle_files": lambda calls: calls.idle_files(),
    "messages": lambda calls: calls.messages(),
    "diagnose": lambda calls: calls.diagnose(ENDING),
    "outputs": lambda calls: calls.outputs([OUTPUT]),
    "metrics": lambda calls: calls.metrics(),
    "redundant_files": lambda calls: calls.redundant_files(),
    "log_files": lambda calls: calls.log_files(),
}
ODD: list[tuple[str, Any]] = [
    *((hook, 7) for hook in CALLS if hook != "validate"),
    *((hook, [object()]) for hook in ("inputs", "command", "processes", "messages", "outputs", "log_files")),
    ("inputs", [AssignedFile("u:strange")]),
    ("command", []),
    ("environment", {"A": 1}),
    ("environment", {"PILOTAGE_JOB_ID": "7"}),
    ("metrics", {"nonsense": 1}),
    ("metrics", {"events": True}),
    ("outputs", [CollectedFile("token", Path("/etc/passwd"), 1, OutputRule("*"))]),
]


def calls_of(plugin: PayloadPlugin) -> PluginCalls:
    assignment = Assignment(
        job_id=1, task_id=1, workflow_id=1, stage="s", scope="u", units=[], requirements=Needs(), plugin="mine"
    )
    return PluginCalls(PluginJob(assignment, Queue(name="q", site="s"), Path("/w"), print), plugin)


def answering(hook: str, answer: Callable[[], Any]) -> PluginCalls:
    return calls_of(type("Odd", (PayloadPlugin,), {hook: lambda *_: answer()})())


def test_the_default_changes_nothing() -> None:
    calls = calls_of(PayloadPlugin())
    assert calls.inputs([FILE]) == [FILE] and calls.outputs([OUTPUT]) == [OUTPUT]
    assert (calls.environment(), calls.setup(), calls.command(["a", "b"])) == ({}, "", ["a", "b"])
    assert calls.diagnose(ENDING) is None and calls.metrics() == Metrics()
    assert (calls.processes(), calls.messages(), calls.redundant_files(), calls.log_files()) == ([], [], [], [])


def test_every_method_that_jobs_ask_is_in_the_tables_of_this_test_and_of_the_page() -> None:
    methods = {name for name in vars(PayloadPlugin) if not name.startswith("_")}
    assert methods == {*CALLS, "check_node"}
    page = PAGE.read_text("utf-8")
    assert [name for name in methods if f"`{name}`" not in page] == []


@pytest.mark.parametrize("hook", CALLS)
@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(1), RecursionError()])
def test_whatever_a_method_raises_has_a_number(hook: str, error: BaseException) -> None:
    def answer() -> None:
        raise error

    with pytest.raises(PilotageError) as caught:
        CALLS[hook](answering(hook, answer))
    assert caught.value.code is ErrorCode.PLUGIN_FAILED
    assert caught.value.detail.startswith(f"plug-in mine: {hook}: {type(error).__name__}")


@pytest.mark.parametrize("hook", CALLS)
def test_a_number_of_its_own_is_passed_on(hook: str) -> None:
    def answer() -> None:
        raise Refused("no")

    with pytest.raises(Refused):
        CALLS[hook](answering(hook, answer))


@pytest.mark.parametrize(("hook", "answer"), ODD)
def test_an_odd_answer_is_refused(hook: str, answer: Any) -> None:
    with pytest.raises(PilotageError) as caught:
        CALLS[hook](answering(hook, lambda: answer))
    assert caught.value.code is ErrorCode.PLUGIN_FAILED and f"mine: {hook}" in caught.value.detail


def test_outputs_may_get_attributes_and_an_order_but_no_other_content() -> None:
    second = CollectedFile("b.root", Path("/w/b.root"), 2, OutputRule("*.root"))
    marked = CollectedFile(OUTPUT.name, OUTPUT.path, OUTPUT.size, OUTPUT.pattern, {"run": 7})
    calls = answering("outputs", lambda: [second, marked])
    assert calls.outputs([OUTPUT, second]) == [second, marked]


def test_a_queues_plug_in_looks_at_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = BAD.format(hook="check_node(self, queue)", does="raise Refused(f'no release for {queue.name}')")
    install(tmp_path / "site", "looks", code, "Bad")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    check_node(Queue(name="q", site="s"))
    with pytest.raises(Refused, match="no release for q"):
        check_node(Queue(name="q", site="s", plugin="looks"))


def test_what_is_no_plug_in_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", "odd", "import no_such_module", "Odd")
    install(tmp_path / "site", "plain", "class Plain: pass", "Plain")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(PilotageError, match="PLUGIN_FAILED.*no_such_module"):
        make_plugin("odd")
    with pytest.raises(PilotageError, match="PLUGIN_FAILED.*is no PayloadPlugin"):
        make_plugin("plain")


def test_the_change_of_an_idle_file_is_no_sign_of_life(tmp_path: Path) -> None:
    (tmp_path / "out.root").write_text("x")
    before = folder_use(tmp_path, ["monitor*"])
    (tmp_path / "monitor.log").write_bytes(b"x" * 100_000)
    after = folder_use(tmp_path, ["monitor*"])
    assert after.mark == before.mark and after.size > before.size
    (tmp_path / "new.root").write_text("x")
    assert folder_use(tmp_path, ["monitor*"]).mark != before.mark
    quiet = Quiet(0.0, 100.0)
    assert [quiet.look(now, use, 0.0) for now, use in ((0.0, before), (60.0, after))] == [0.0, 60.0]


def test_a_method_that_hangs_costs_its_job_and_not_the_slot() -> None:
    let_go = threading.Event()
    plugin = type("Hangs", (PayloadPlugin,), {"metrics": lambda *_: let_go.wait()})()
    assignment = calls_of(plugin)._job
    calls = PluginCalls(assignment, plugin, limit_s=0.05)
    try:
        with pytest.raises(PilotageError, match="plug-in mine: metrics: no answer after 0 s") as caught:
            calls.metrics()
    finally:
        let_go.set()
    assert caught.value.code == ErrorCode.PLUGIN_FAILED
