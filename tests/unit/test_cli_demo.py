"""The demo's parts: its payloads, its processes, its messages. The whole of it runs in tests/e2e/test_demo.py."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from common.cli import demo as demo_module
from common.cli import demo_world as world
from common.cli.demo import Stalled, demo
from common.cli.demo_processes import DemoError, Processes, tail
from common.cli.demo_world import DemoFolder
from common.cli.progress import Snapshot
from common.states import TaskState
from common.wire import CounterInput, MergeRule, StageInput, TaskView, WorkflowView

PAYLOADS = Path(world.__file__).parent / "demo_payloads"


# ---------------------------------------------------------------- payloads


@pytest.fixture(scope="module")
def payloads() -> dict[str, ModuleType]:
    """The payload scripts as modules."""
    for name in ("numpy", "uproot", "matplotlib"):
        pytest.importorskip(name)
    loaded = {}
    for name in ("simulate", "analyse", "fit"):
        spec = importlib.util.spec_from_file_location(f"demo_payload_{name}", PAYLOADS / f"{name}.py")
        assert spec and spec.loader
        loaded[name] = importlib.util.module_from_spec(spec)
        # dataclasses look their module up.
        sys.modules[spec.name] = loaded[name]
        spec.loader.exec_module(loaded[name])
    return loaded


def masses(payloads: dict[str, ModuleType], seed: int, count: int) -> Any:
    return payloads["analyse"].selected_masses(payloads["simulate"].simulate(seed, count))


def test_the_same_counter_gives_the_same_events(payloads: dict[str, ModuleType]) -> None:
    import numpy as np

    first, again, other = (payloads["simulate"].simulate(seed, 100) for seed in (3, 3, 4))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["px1"], other["px1"])


def test_muons_have_their_mass_and_make_the_true_one(payloads: dict[str, ModuleType]) -> None:
    import numpy as np

    simulate = payloads["simulate"]
    rng = np.random.default_rng(1)
    mass = simulate.masses(rng, 1000)
    beta = rng.uniform(-0.5, 0.5, (3, 1000))
    one, two = (simulate.boost(muon, beta) for muon in simulate.decay(rng, mass))
    for muon in (one, two):
        squared = muon[0] ** 2 - np.sum(muon[1:] ** 2, axis=0)
        assert np.allclose(squared, simulate.MUON_MASS**2, atol=1e-6)
    both = one + two
    assert np.allclose(np.sqrt(both[0] ** 2 - np.sum(both[1:] ** 2, axis=0)), mass)


def test_the_fit_finds_what_was_simulated(payloads: dict[str, ModuleType]) -> None:
    import numpy as np

    counts, edges = np.histogram(masses(payloads, 1, 200_000), payloads["analyse"].EDGES)
    result = payloads["fit"].fit(counts.astype(float), edges)
    simulate = payloads["simulate"]
    for value, error, true in zip(result.values, result.errors, (simulate.Z_MASS, simulate.Z_WIDTH)):
        assert abs(value - true) < 4 * error
    assert result.errors[0] < 0.01 and result.errors[1] < 0.05
    assert result.chi2 < 1.5 * result.ndf


def test_the_fit_refuses_too_few_events(payloads: dict[str, ModuleType]) -> None:
    import numpy as np

    with pytest.raises(ValueError, match="too few"):
        payloads["fit"].fit(np.ones(100), np.linspace(66, 116, 101))


def test_histograms_with_other_edges_are_not_merged(payloads: dict[str, ModuleType], tmp_path: Path) -> None:
    import numpy as np
    import uproot

    for name, high in (("a.root", 2.0), ("b.root", 3.0)):
        with uproot.recreate(tmp_path / name) as file:
            file["mass"] = np.ones(2), np.linspace(0.0, high, 3)
    with pytest.raises(ValueError, match="other edges"):
        payloads["fit"].merge([tmp_path / "a.root", tmp_path / "b.root"])
    counts, _ = payloads["fit"].merge([tmp_path / "a.root", tmp_path / "a.root"])
    assert list(counts) == [2.0, 2.0]


def test_the_scripts_run_one_after_another(payloads: dict[str, ModuleType], tmp_path: Path) -> None:
    """As a pilot runs them: by their shebang, in a folder, with lists of what they get."""

    def run(name: str, variable: str, lines: list[str]) -> None:
        (tmp_path / "list").write_text("".join(f"{line}\n" for line in lines))
        environment = {"DEMO_PYTHON": sys.executable, "DEMO_EVENTS": "2000", variable: str(tmp_path / "list")}
        subprocess.run([PAYLOADS / f"{name}.py"], cwd=tmp_path, env=environment, check=True)

    run("simulate", "PILOTAGE_COUNTERS", ["1", "2"])
    # The server puts ids before names; a unit's file has them when the next stage gets it.
    for path in tmp_path.glob("events-*.root"):
        path.rename(tmp_path / f"1.5.{path.name}")
    run("analyse", "PILOTAGE_INPUT_FILES", ["1.5.events-00001.root", "1.5.events-00002.root"])
    run("fit", "PILOTAGE_INPUT_FILES", ["mass-00001.root", "mass-00002.root"])
    numbers = json.loads((tmp_path / "z-fit.json").read_text())
    assert 2000 < numbers["events"] < 4000
    assert (tmp_path / "z-peak.png").read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------- what is set up


def test_the_workflow_hands_files_on(tmp_path: Path) -> None:
    stages = world.workflow(30, 500, None).stages
    assert [stage.name for stage in stages] == ["simulate", "analyse", "fit"]
    assert stages[0].input == CounterInput(count=30, events=500)
    assert stages[1].input == StageInput("simulate", "*.root")
    assert stages[2].merge == MergeRule(30, 30)
    for stage in stages:
        assert stage.jobscript and stage.jobscript.startswith("#!/bin/sh\n")
        assert stage.environment["DEMO_PYTHON"] == sys.executable
        assert stage.requirements.cores == 1
    assert world.workflow(30, 500, "/i.sif").stages[0].environment["DEMO_PYTHON"] == "python3"


def test_the_configuration_is_read_back(tmp_path: Path) -> None:
    from common.config import ClientConfig, load_config

    folder = DemoFolder(tmp_path / 'a "quoted" folder ü')
    folder.root.mkdir()
    world.write_config(folder, "http://127.0.0.1:1", 3)
    loaded = load_config(ClientConfig, "client", [folder.config], {})
    assert loaded.value.token_file == str(folder.admin_token)


# ---------------------------------------------------------------- processes

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
print("ready", child.pid, flush=True)
import signal; signal.pause()
"""


@pytest.fixture
def before() -> set[psutil.Process]:
    """Children of this process that are none of the demo's business: other tests' services."""
    return set(psutil.Process().children())


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(dict(os.environ), tmp_path) as started:
        yield started


def test_stop_leaves_no_orphan(tmp_path: Path, before: set[psutil.Process]) -> None:
    """A worker that outlives the program that started it, and a child of a program that is killed."""
    with Processes(dict(os.environ), tmp_path) as processes:
        pids = [
            int(processes.start(name, [sys.executable, "-c", PARENT], re.compile(rb"ready (\d+)")))
            for name in ("a", "b")
        ]
        assert all(psutil.pid_exists(pid) for pid in pids)
        assert processes.children("a") == 1
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert set(psutil.Process().children()) <= before


def test_stop_kills_what_ignores_sigterm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: set[psutil.Process]
) -> None:
    monkeypatch.setattr("common.cli.demo_processes.STOP_S", 0.3)
    stubborn = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready x', flush=True); signal.pause()"
    )
    with Processes(dict(os.environ), tmp_path) as processes:
        processes.start("stubborn", [sys.executable, "-c", stubborn], re.compile(rb"ready (\w)"))
    assert set(psutil.Process().children()) <= before


def test_everything_is_stopped_after_an_error(tmp_path: Path, before: set[psutil.Process]) -> None:
    with pytest.raises(KeyboardInterrupt):
        with Processes(dict(os.environ), tmp_path) as processes:
            processes.start("a", [sys.executable, "-c", PARENT], re.compile(rb"ready (\d+)"))
            raise KeyboardInterrupt
    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_interrupt_leaves_no_process(
    tmp_path: Path, before: set[psutil.Process], number: signal.Signals
) -> None:
    """The program interrupts the demo once more while it is being stopped."""
    again = (
        "import os, signal, sys\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (os.kill(os.getppid(), {int(number)}), sys.exit()))\n"
        "print('ready x', flush=True); signal.pause()"
    )

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(number, interrupt)
    try:
        with Processes(dict(os.environ), tmp_path) as processes:
            processes.start("first", [sys.executable, "-c", PARENT], re.compile(rb"ready (\d+)"))
            processes.start("second", [sys.executable, "-c", again], re.compile(rb"ready (\w)"))
    finally:
        signal.signal(number, old)
    assert set(psutil.Process().children()) <= before


def test_processes_that_were_there_before_are_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as service:
        assert service.stdout and service.stdout.readline()
        with Processes(dict(os.environ), tmp_path):
            pass
        children = psutil.Process(service.pid).children()
        assert service.poll() is None and len(children) == 1
        children[0].kill()
        service.kill()


def test_a_program_that_dies_is_named_with_the_end_of_its_log(processes: Processes) -> None:
    lines = "import sys; [print('line', n) for n in range(30)]; sys.exit('out of luck')"
    processes.start("harvester", [sys.executable, "-c", lines])
    assert processes.wait(120)
    words = processes.obituary()
    assert words.startswith("harvester died (exit code 1); the end of ")
    assert "out of luck" in words and "line 29" in words and "line 3\n" not in words


def test_a_program_that_dies_before_it_is_ready(processes: Processes) -> None:
    with pytest.raises(DemoError, match=r"server died \(exit code 3\)"):
        processes.start("server", [sys.executable, "-c", "raise SystemExit(3)"], re.compile(rb"listening on (\S+)"))


def test_a_program_that_dies_while_its_child_holds_its_log(processes: Processes) -> None:
    """The end of the output is not the end of the program: granian's workers inherit it."""
    leave = PARENT.replace("import signal; signal.pause()\n", "").rstrip() + "\nraise SystemExit(4)\n"
    processes.start("server", [sys.executable, "-c", leave])
    assert processes.wait(120)
    assert "exit code 4" in processes.obituary()


def test_a_short_command_that_fails(processes: Processes, tmp_path: Path) -> None:
    fail = [sys.executable, "-c", "import sys; sys.exit('no key')"]
    with pytest.raises(DemoError, match="no key"):
        processes.run(fail, tmp_path / "log")
    assert processes.run([sys.executable, "-c", "print('token')"], tmp_path / "log") == b"token\n"


def test_tail_of_a_log_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot be read" in tail(tmp_path / "none")


# ---------------------------------------------------------------- what the command refuses


def snapshot(elapsed: float, done: int) -> Snapshot:
    task = TaskView(1, 1, "s", TaskState.RUNNING, units={"done": done, "ready": 9 - done})
    return Snapshot(WorkflowView(id=1, name="w", owner="o", scope="s", tasks=[task]), elapsed)


def test_a_workflow_that_does_not_move_is_given_up() -> None:
    moving = [snapshot(t * 100.0, t) for t in range(4)]
    assert list(demo_module._never_stalled(iter(moving))) == moving
    with pytest.raises(Stalled):
        list(demo_module._never_stalled(iter([*moving, snapshot(450.0, 3)])))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all that the demo needs were here, whatever Python runs the tests."""
    monkeypatch.setattr(demo_module, "SERVER_PYTHON", (3, 9))
    monkeypatch.setattr(demo_module, "MODULES", ())
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("installed")
def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(demo, ["--dir", str(tmp_path)])
    assert result.exit_code == 2 and "is not empty" in result.output


@pytest.mark.usefixtures("installed")
def test_too_few_events_to_fit_are_refused() -> None:
    result = CliRunner().invoke(demo, ["--units", "2", "--events", "100"])
    assert result.exit_code == 2 and "200 collisions are too few" in result.output


@pytest.mark.usefixtures("installed")
def test_always_a_container_needs_an_image() -> None:
    result = CliRunner().invoke(demo, ["--container", "always"])
    assert result.exit_code == 2 and "--image" in result.output


def test_an_old_python_is_named(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "SERVER_PYTHON", (3, 99))
    result = CliRunner().invoke(demo, [])
    assert result.exit_code == 1 and "the server needs Python 3.99 or later" in result.output


@pytest.mark.usefixtures("installed")
def test_a_missing_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "MODULES", ("json", "no_such_module"))
    result = CliRunner().invoke(demo, [])
    assert result.exit_code == 1
    assert "not installed: no_such_module; run: pip install 'pilotage[demo]'" in result.output


@pytest.mark.usefixtures("installed")
def test_a_proxy_for_the_loopback_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    result = CliRunner().invoke(demo, [])
    assert result.exit_code == 1 and "NO_PROXY=127.0.0.1" in result.output


def test_programs_inherit_no_configuration(tmp_path: Path) -> None:
    given = {"PATH": "/bin", "PILOTAGE_SERVER_PORT": "1", "NO_PROXY": "x"}
    environment = demo_module._environment(given, DemoFolder(tmp_path))
    assert "PILOTAGE_SERVER_PORT" not in environment and environment["PATH"] == "/bin"
    assert environment["NO_PROXY"] == "x,127.0.0.1,localhost"
