"""What the slot has: the least of all sources."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.wire import Gpu
from pilot.probe import SlotLimits, cgroup, probe_slot
from pilot.probe.batch import Figure, batch_figures
from pilot.probe.gpu import find_gpus, parse_gpus

SMI = """0, GPU-aaaa-1, NVIDIA H200, 143771
1, GPU-bbbb-2, NVIDIA A100-SXM4-40GB, 40960
2, GPU-cccc-3, NVIDIA GB10, [N/A]
"""
UNLIMITED_V1 = "9223372036854771712"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_cgroup_v2_takes_the_least_of_all_ancestors(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/batch/job1/step",
            "proc/self/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0",
            "sys/fs/cgroup/batch/memory.max": str(64 << 30),
            "sys/fs/cgroup/batch/job1/memory.max": str(2 << 30),
            "sys/fs/cgroup/batch/job1/step/memory.max": "max",
            "sys/fs/cgroup/batch/job1/cpu.max": "250000 100000",
            "sys/fs/cgroup/batch/cpu.max": "max 100000",
        },
    )
    assert cgroup.memory_limit_mb(root) == 2048
    assert cgroup.cpu_quota(root) == 2.5


def test_cgroup_v1_also_where_the_groups_path_is_hidden_by_a_container(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/slurm/job\n3:cpu,cpuacct:/docker/x\n1:name=systemd:/\n0::/",
            "proc/self/mounts": "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
            "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1,
            "sys/fs/cgroup/memory/slurm/memory.limit_in_bytes": str(3 << 30),
            "sys/fs/cgroup/memory/slurm/job/memory.limit_in_bytes": str(4 << 30),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    )
    assert cgroup.memory_limit_mb(root) == 3072
    assert cgroup.cpu_quota(root) == 1.5


def test_no_limits_and_no_cgroups_are_none(tmp_path: Path) -> None:
    assert cgroup.memory_limit_mb(tmp_path) is None and cgroup.cpu_quota(tmp_path) is None
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\n2:cpu:/",
            "proc/self/mounts": "cgroup /c/memory cgroup rw,memory 0 0\ncgroup /c/cpu cgroup rw,cpu 0 0",
            "c/memory/memory.limit_in_bytes": UNLIMITED_V1,
            "c/cpu/cpu.cfs_quota_us": "-1",
            "c/cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert cgroup.memory_limit_mb(root) is None and cgroup.cpu_quota(root) is None


def test_the_machine_ad_of_condor(tmp_path: Path) -> None:
    ad = tmp_path / ".machine.ad"
    ad.write_text('Cpus = 8\nMemory = 16384\nDisk = 20480000\nTotalCpus = 64\nTotalMemory = 1\nMyType = "Machine"\n')
    assert batch_figures({"_CONDOR_MACHINE_AD": str(ad)}) == [
        Figure("cores", "condor machine ad Cpus", 8),
        Figure("memory_mb", "condor machine ad Memory", 16384),
        Figure("disk_mb", "condor machine ad Disk", 20000),
    ]
    assert batch_figures({"_CONDOR_MACHINE_AD": str(tmp_path / "no")}) == []


def test_the_variables_of_slurm() -> None:
    slurm = {"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "4", "SLURM_MEM_PER_CPU": "2000", "SLURM_CPUS_PER_TASK": "x"}
    assert batch_figures(slurm) == [
        Figure("cores", "SLURM_CPUS_ON_NODE", 4),
        Figure("memory_mb", "SLURM_MEM_PER_CPU", 8000),
    ]
    assert batch_figures({"SLURM_JOB_ID": "1", "SLURM_MEM_PER_NODE": "3000"})[0].value == 3000
    assert batch_figures({"SLURM_CPUS_ON_NODE": "4"}) == []


def test_gpus_from_nvidia_smi() -> None:
    assert parse_gpus(SMI) == [
        Gpu(vendor="nvidia", model="NVIDIA H200", memory_mb=143771, uuid="GPU-aaaa-1"),
        Gpu(vendor="nvidia", model="NVIDIA A100-SXM4-40GB", memory_mb=40960, uuid="GPU-bbbb-2"),
        Gpu(vendor="nvidia", model="NVIDIA GB10", memory_mb=0, uuid="GPU-cccc-3"),
    ]
    assert parse_gpus("No devices were found\n") == []


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("", []), ("1", ["GPU-bbbb-2"]), ("GPU-cccc,0", ["GPU-cccc-3", "GPU-aaaa-1"]), ("0,9,1", ["GPU-aaaa-1"]), ("-1", [])],
)  # fmt: skip
def test_only_visible_gpus_are_offered(visible: str, expected: list[str]) -> None:
    assert [gpu.uuid for gpu in parse_gpus(SMI, visible)] == expected


def test_gpus_without_or_with_a_broken_driver_are_none(tmp_path: Path) -> None:
    assert find_gpus({"PATH": str(tmp_path)}) == []
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' ; exit 9\n")
    smi.chmod(0o755)
    assert find_gpus({"PATH": str(tmp_path)}) == []
    smi.write_text("#!/bin/sh\necho '0, GPU-1, X, 10'\n")
    assert [gpu.model for gpu in find_gpus({"PATH": str(tmp_path)})] == ["X"]


def test_the_slot_is_the_least_of_all_sources(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", {"proc/meminfo": "MemTotal:       16384000 kB\nMemFree: 1 kB"})
    ad = tmp_path / "ad"
    ad.write_text("Cpus = 1\nMemory = 3000\nDisk = 102400\n")
    env = {"_CONDOR_MACHINE_AD": str(ad), "PATH": str(tmp_path)}
    slot = probe_slot(tmp_path, SlotLimits(cores=64, memory_mb=4000), env, root)
    assert (slot.cores, slot.memory_mb, slot.disk_mb, slot.gpus) == (1, 3000, 100, [])
    assert {figure.source for figure in slot.figures} >= {
        "queue",
        "CPU affinity",
        "MemTotal",
        "condor machine ad Memory",
    }
    assert "memory_mb 3000 (condor machine ad Memory)" in slot.explain()
    assert slot.tags == ["linux", os.uname().machine]
    slot = probe_slot(tmp_path, SlotLimits(memory_mb=2000, disk_mb=50), {"PATH": str(tmp_path)}, root)
    assert (slot.memory_mb, slot.disk_mb) == (2000, 50) and slot.cores == len(os.sched_getaffinity(0))


def test_an_apptainer_that_does_not_run_is_no_tag(tmp_path: Path) -> None:
    program = tmp_path / "apptainer"
    for script, tagged in (("#!/bin/sh\nexit 0\n", True), ("#!/bin/sh\nexit 1\n", False), ("#!/no/sh\n", False)):
        program.write_text(script)
        program.chmod(0o755)
        slot = probe_slot(tmp_path, SlotLimits(), {"PATH": str(tmp_path)})
        assert ("apptainer" in slot.tags) is tagged
