"""The tables of PanDA's users' face: every state of ours, every parameter and option that the real client sends."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
import tomllib

from common.states import FINAL_TASK_STATES, JobState, TaskState, UnitState
from server.compat.panda_client.face import ROUTES
from server.compat.panda_client.job_line import OPTIONS
from server.compat.panda_client.parameters import PARAMETERS, Use, empty
from server.compat.panda_client.show import _FILE_STATUS
from server.compat.panda_client.states import JOB_STATUS, SUPER_STATUS, TASK_STATUS
from server.config import ServerConfig
from tests.services.panda_client import installed_sources

DOCUMENTED = [
    "taskName",
    "userName",
    "vo",
    "workingGroup",
    "prodSourceLabel",
    "taskType",
    "processingType",
    "taskPriority",
    "currentPriority",
    "architecture",
    "transUses",
    "transHome",
    "transPath",
    "site",
    "includedSite",
    "excludedSite",
    "cloud",
    "nFiles",
    "nFilesPerJob",
    "nMaxFilesPerJob",
    "nGBPerJob",
    "nEvents",
    "nEventsPerJob",
    "nEventsPerFile",
    "nEventsPerInputFile",
    "noInput",
    "pfnList",
    "jobParameters",
    "log",
    "coreCount",
    "ramCount",
    "ramCountUnit",
    "baseRamCount",
    "cpuTime",
    "cpuTimeUnit",
    "walltime",
    "maxWalltime",
    "maxAttempt",
    "maxFailure",
    "skipScout",
    "mergeOutput",
    "mergeSpec",
    "buildSpec",
    "preproSpec",
    "container_name",
    "multiStepExec",
    "outDiskCount",
    "workDiskCount",
    "ioIntensity",
    "useLocalIO",
    "allowInputLAN",
    "messageDriven",
    "campaign",
    "noLoopingCheck",
    "disableAutoRetry",
    "useSecrets",
    "hpoWorkflow",
    "segmentedWork",
    "nEventsPerWorker",
    "inputPreStaging",
    "goal",
]
"""What PanDA's documents say that a task may have."""
IN_CODE = re.compile(r'(?:ask_?[Pp]aram_?[Mm]ap|task_param_map)(?:\.get\(|\[)"([A-Za-z_]+)"')
ELSEWHERE = {"userName", "taskPriority", "getNumEventsInMetadata", "totNumJobs", "maxNumJobs"}
"""Seen in other commands of the client than prun, and in its example."""


@pytest.fixture(scope="module")
def sources(panda_client_venv: Path) -> dict[str, str]:
    """The client's modules by name."""
    return {path.name: path.read_text() for path in installed_sources(panda_client_venv).glob("*.py")}


def test_every_parameter_that_the_client_sends_is_in_the_table(sources: dict[str, str]) -> None:
    sent = {name for text in sources.values() for name in IN_CODE.findall(text)}
    assert len(sent) > 60 and sent >= ELSEWHERE
    assert not sent - set(PARAMETERS), "these would be refused as unknown"


def test_every_documented_parameter_is_in_the_table() -> None:
    assert not set(DOCUMENTED) - set(PARAMETERS)


def test_whoever_is_not_carried_out_is_explained() -> None:
    assert all(known.words for known in PARAMETERS.values() if known.use is not Use.USED)
    assert all(empty(value) for value in (None, False, "", 0, [], {}))
    assert not any(empty(value) for value in (True, "x", 1, [0], {"a": 0}))


def test_every_option_that_prun_gives_its_scripts_is_in_the_table(sources: dict[str, str]) -> None:
    """What stands in quotes behind ``jobParameters`` in prun: options of the scripts that build and run."""
    text = sources["PrunScript.py"]
    job = text[text.index("# job parameters") : text.index("# merging\n")]
    found = set(re.findall(r'"value": f?[\'"](--?[A-Za-z]+)', job))
    found |= {
        each
        for line in re.findall(r"jobParameters \+?= (f?['\"].*)", job)
        for each in re.findall(r"(--?[A-Za-z0-9]+)[ =\"]", line)
    }
    found -= {"--goodRunListXML", "--goodRunListDataType", "--goodRunListProdStep", "--goodRunListDS"}
    assert {"-r", "-p", "--writeInputToTxt", "--bexec", "--rootVer"} <= found
    assert not found - set(OPTIONS), "these would be refused as unknown"


def test_every_verb_that_prun_and_pbook_call_is_served(sources: dict[str, str]) -> None:
    text = sources["Client.py"]
    called = set(re.findall(r'endpoint="([a-z_]+/[a-z_]+)"', text)) | set(
        re.findall(r'endpoint = "([a-z_]+/[a-z_]+)"', text)
    )
    called |= set(re.findall(r'/(file_server/[a-z_]+|system/[a-z_]+)"', text))
    served = {route.path.removeprefix("/api/v1/") for route in ROUTES if "{" not in route.path}
    others = {each for each in called if each.partition("/")[0] in ("workflow", "event")} | {"job/submit"}
    assert not called - served - others


def test_every_state_of_ours_has_a_word_of_pandas() -> None:
    assert set(TASK_STATUS) == set(SUPER_STATUS) == set(TaskState)
    assert set(JOB_STATUS) == set(JobState)
    assert set(_FILE_STATUS) == set(UnitState)


def test_the_client_takes_for_over_what_is_over(sources: dict[str, str]) -> None:
    final = re.search(r"task_final_superstatus_list = (\[.*\])", sources["localSpecs.py"])
    active = re.search(r"task_active_superstatus_list = (\[.*\])", sources["localSpecs.py"])
    assert final is not None and active is not None
    for state in TaskState:
        words = final[1] if state in FINAL_TASK_STATES else active[1]
        assert f'"{SUPER_STATUS[state]}"' in words


def test_the_configuration_of_the_page_is_one() -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "migrate-from-panda.md").read_text(encoding="utf-8")
    found = re.search(r"```toml\n(\[server\.compat\.panda_client\].*?)```", page, re.DOTALL)
    assert found is not None
    config = msgspec.convert(tomllib.loads(found[1])["server"], ServerConfig)
    assert config.compat.panda_client.on and "experiment" in config.compat.panda_client.logins
