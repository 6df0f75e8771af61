"""What the demo sets up: configuration files, one site with a storage and a queue, and a workflow of three stages."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Optional, Union

from common.cli.api import QUEUE, SITE, STORAGE, Api
from common.states import ResourceState
from common.wire import (
    CounterInput,
    Endpoint,
    MergeRule,
    OutputPattern,
    QueueSpec,
    Requirements,
    SiteSpec,
    StageInput,
    StageSpec,
    StorageSpec,
    WorkflowRequest,
)

SITE_NAME, QUEUE_NAME, STORAGE_NAME = "here", "local", "disk"
SIMULATE, ANALYSE, FIT = "simulate", "analyse", "fit"
PLOT, NUMBERS, HISTOGRAM = "z-peak.png", "z-fit.json", "z-peak.root"
NEEDS = Requirements(cores=1, memory_mb=800, disk_mb=200)
SLOT_MEMORY_MB = 1000
SLOT_DISK_MB = 1000
SLOT_WALL_S = 3600


@dataclass(frozen=True)
class DemoFolder:
    """Where everything of one demo lies."""

    root: Path

    @property
    def server_config(self) -> Path:
        """Section ``[server]``."""
        return self.root / "server.toml"

    @property
    def config(self) -> Path:
        """Sections ``[client]`` and ``[harvester]``."""
        return self.root / "pilotage.toml"

    @property
    def server_state(self) -> Path:
        """The server's database, key and admin token."""
        return self.root / "server"

    @property
    def admin_token(self) -> Path:
        """Written by the server."""
        return self.server_state / "admin.token"

    @property
    def harvester_token(self) -> Path:
        """Written by the demo."""
        return self.root / "harvester.token"

    @property
    def storage(self) -> Path:
        """Where outputs lie."""
        return self.root / "storage"


def pilotage(*arguments: str) -> list[str]:
    """The command ``pilotage`` of this installation, whether or not it is on the search path."""
    return [sys.executable, "-m", "common.cli.main", *arguments]


def write_server_config(folder: DemoFolder) -> None:
    """A server on a free port of the loopback, with SQLite."""
    lines = ["[server]", _line("state_dir", str(folder.server_state)), _line("host", "127.0.0.1"), "port = 0"]
    folder.server_config.write_text("\n".join([*lines, ""]), encoding="utf-8")


def write_config(folder: DemoFolder, server_url: str, pilots: int) -> None:
    """Harvester with at most ``pilots`` local workers, and a client for whoever wants to look."""
    command = pilotage(
        *("pilot", "run", "--server", "{server}", "--worker", "{mark}"),
        *("--secret-file", "{secret_file}", "--work-dir", "{work_dir}"),
    )
    lines = [
        "[client]",
        _line("server_url", server_url),
        _line("token_file", str(folder.admin_token)),
        "",
        "[harvester]",
        _line("name", "demo"),
        _line("server_url", server_url),
        _line("token_file", str(folder.harvester_token)),
        _line("state_dir", str(folder.root / "harvester")),
        "cycle_s = 0.5",
        "",
        f"[harvester.queues.{QUEUE_NAME}]",
        _line("backend", "local"),
        f"max_workers = {pilots}",
        f"max_queued = {pilots}",
        f"per_cycle = {pilots}",
        _line("command", command),
        _line("options.workers_dir", str(folder.root / "workers")),
    ]
    folder.config.write_text("\n".join([*lines, ""]), encoding="utf-8")


def _line(key: str, value: object) -> str:
    """A line of TOML: JSON's strings and lists of strings are TOML's too."""
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"


def describe_world(api: Api, folder: DemoFolder) -> None:
    """Tell the server of the site, its storage and its queue."""
    folder.storage.mkdir()
    endpoint = Endpoint(url=folder.storage.as_uri())
    api.put_resource(SITE, SITE_NAME, SiteSpec(name=SITE_NAME, description="this machine"))
    api.put_resource(STORAGE, STORAGE_NAME, StorageSpec(name=STORAGE_NAME, site=SITE_NAME, endpoints=[endpoint]))
    describe_queue(api, ResourceState.ONLINE)


def describe_queue(api: Api, status: ResourceState) -> None:
    """Tell the server of the queue, and whether it is in use."""
    queue = QueueSpec(
        name=QUEUE_NAME,
        site=SITE_NAME,
        status=status,
        cores=1,
        memory_mb=SLOT_MEMORY_MB,
        disk_mb=SLOT_DISK_MB,
        wall_s=SLOT_WALL_S,
        trusted=True,  # the payloads are our own and run without a container
        copytools=["file"],
    )
    api.put_resource(QUEUE, QUEUE_NAME, queue)


def workflow(units: int, events: int, image: Optional[str]) -> WorkflowRequest:
    """Simulate ``units`` files of ``events`` collisions, analyse each, and fit the sum of their histograms."""
    simulate = _stage(
        SIMULATE,
        CounterInput(count=units, events=events),
        ["events-*.root"],
        image,
        files_per_job=4,
        environment={"DEMO_EVENTS": str(events)},
    )
    analyse = _stage(ANALYSE, StageInput(SIMULATE, "*.root"), ["mass-*.root"], image, files_per_job=8)
    # All at once: with fewer files than this it waits until its parent has ended.
    merge = MergeRule(min_files=units, max_files=units)
    fit = _stage(FIT, StageInput(ANALYSE, "*.root"), [PLOT, NUMBERS, HISTOGRAM], image, merge=merge)
    return WorkflowRequest(name="z-to-mumu", scope="demo", stages=[simulate, analyse, fit])


def _stage(
    name: str,
    source: Union[CounterInput, StageInput],
    outputs: list[str],
    image: Optional[str],
    *,
    files_per_job: Optional[int] = None,
    merge: Optional[MergeRule] = None,
    environment: Optional[dict[str, str]] = None,
) -> StageSpec:
    script = resources.files("common.cli") / "demo_payloads" / f"{name}.py"
    # In an image its own Python has uproot, numpy and matplotlib; otherwise the one that runs the demo.
    python = "python3" if image else sys.executable
    return StageSpec(
        name=name,
        input=source,
        jobscript=script.read_text(encoding="utf-8"),
        image=image,
        # One core is what each job asks for.
        environment={"DEMO_PYTHON": python, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **(environment or {})},
        outputs=[OutputPattern(pattern=pattern, storage=STORAGE_NAME) for pattern in outputs],
        requirements=NEEDS,
        files_per_job=files_per_job,
        # However many units there are, its jobs are short on purpose.
        scouts=False,
        merge=merge,
    )
