"""Whole pilots whose payloads run in an image that has to be pulled."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.system import System
from tests.services.images import demand_fuse, require
from tests.services.registry import Registry

SCRIPT = """#!/bin/sh
echo "$FROM_IMAGE" >who.txt
cat /proc/[0-9]*/environ 2>/dev/null | grep -c PILOTAGE_PILOT_ >>who.txt
sleep 0.3
"""


def test_real_registry_the_jobs_of_two_pilots_share_an_image_that_is_pulled_once(
    registry: Registry, busybox_image: Path, tmp_path: Path
) -> None:
    require(demand_fuse)
    registry.push_folder("e2e/busybox:1", busybox_image)
    settings = {
        "PILOTAGE_PILOT_HTTP_REGISTRIES": json.dumps([registry.host]),
        "PILOTAGE_PILOT_IMAGE_CACHE": str(tmp_path / "images"),
    }
    with System(tmp_path, pilot_environment=settings) as system:
        system.storage("disk")
        task = system.task(
            input={"kind": "counter", "count": 4},
            jobscript=SCRIPT,
            image=f"docker://{registry.host}/e2e/busybox:1",
            outputs=[{"pattern": "who.txt", "storage": "disk"}],
            requirements={"cores": 1, "memory_mb": 100, "disk_mb": 50},
        )
        system.wait_task(task, "done")
        said = [Path(output.url.removeprefix("file://")).read_text().split() for output in system.outputs(task)]
        assert said == [["yes", "0"]] * 4, "the image's own environment, and nothing of the pilot's"
        assert len(list((tmp_path / "images").glob("*.sif"))) == 1
        assert system.pilot_logs().count("pulling image") <= 2, "those who came later found it"
