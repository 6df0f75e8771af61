"""The doctor as a program, and what a contained payload is told of GPUs, with a real Apptainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from common.wire import Gpu
from pilot.container import ContainerSettings
from pilot.payload import JobFolder, PayloadDefinition, prepare_payload
from pilot.supervised import SupervisedProcess
from tests.services.apptainer import Apptainer


def test_the_doctor_finds_a_real_apptainer_and_runs_a_container(apptainer: Apptainer, tmp_path: Path) -> None:
    queue = tmp_path / "queue.toml"
    queue.write_text('copytools = ["file"]\n[node_checks]\ncontainer = true\n')
    words = [sys.executable, "-m", "common.cli.main", "pilot", "doctor", "--json", "--queue-file", str(queue)]
    environment = {**os.environ, "PILOTAGE_PILOT_APPTAINER": apptainer.binary, "HOME": str(tmp_path)}
    done = subprocess.run(
        [*words, "--work-dir", str(tmp_path)], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    found = {each["name"]: each for each in report["findings"]}
    assert found["container"]["detail"] == "a program runs in an image folder" and report["fit"]
    assert "apptainer" in report["slot"]["tags"]


def told(folder: JobFolder, settings: ContainerSettings, image: Path, gpus: list[Gpu]) -> str:
    """What a contained payload reads in the variables."""
    script = '#!/bin/sh\necho "${CUDA_VISIBLE_DEVICES-unset}|${ROCR_VISIBLE_DEVICES-unset}|${ZE_AFFINITY_MASK-unset}"\n'
    definition = PayloadDefinition(job_id="1", task_id="1", jobscript=script, image=str(image), gpus=gpus)
    assert SupervisedProcess.start(prepare_payload(folder, definition, dict(os.environ), settings)).wait(60).ok
    return folder.stdout.read_text().strip()


def test_a_contained_payload_without_gpus_is_told_so(apptainer: Apptainer, busybox_image: Path, tmp_path: Path) -> None:
    settings = ContainerSettings(apptainer.binary)
    assert told(JobFolder.create(tmp_path, "1"), settings, busybox_image, []) == "||1000"


def test_a_contained_payload_is_told_its_own_gpus(apptainer: Apptainer, busybox_image: Path, tmp_path: Path) -> None:
    settings = ContainerSettings(apptainer.binary)
    gpus = [Gpu(vendor="nvidia", model="X", memory_mb=1, uuid=f"GPU-{n}") for n in (1, 2)]
    assert told(JobFolder.create(tmp_path, "1"), settings, busybox_image, gpus) == "GPU-1,GPU-2||1000"
