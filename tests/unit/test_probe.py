"""What the slot has: the least of all sources."""

from __future__ import annotations

import os
import socket
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Optional

import psutil
import pytest

from pilot.probe import Figure, SlotLimits, cgroup, node, probe_slot
from pilot.probe.batch import batch_figures
from pilot.probe.slurm import parse_left
from tests.unit.test_probe_gpu import intel_node

FIXTURES = Path(__file__).parent.parent / "fixtures"
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


def test_cpu_sets_of_both_versions(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "v2",
        {
            "proc/self/cgroup": "0::/job",
            "proc/self/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0",
            "sys/fs/cgroup/cpuset.cpus.effective": "0-63",
            "sys/fs/cgroup/job/cpuset.cpus.effective": "0-3,8,10-11",
        },
    )
    assert cgroup.cpuset_cores(root) == 7
    root = tree(
        tmp_path / "v1",
        {
            "proc/self/cgroup": "4:cpuset:/slurm/uid_5/job_9",
            "proc/self/mounts": "cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0",
            "sys/fs/cgroup/cpuset/slurm/uid_5/job_9/cpuset.cpus": "4",
            "sys/fs/cgroup/cpuset/cpuset.cpus": "0-7",
        },
    )
    assert cgroup.cpuset_cores(root) == 1
    assert cgroup.cpuset_cores(tmp_path) is None


def least(figures: list[Figure], resource: str) -> tuple[float, str]:
    figure = min((figure for figure in figures if figure.resource == resource), key=lambda figure: figure.value)
    return figure.value, figure.source


def test_the_ads_of_a_real_condor_slot() -> None:
    ads = {"_CONDOR_MACHINE_AD": str(FIXTURES / "condor/machine.ad"), "_CONDOR_JOB_AD": str(FIXTURES / "condor/job.ad")}
    assert batch_figures(ads, now=1795287448.0 + 200) == [
        Figure("cores", "condor machine ad Cpus", 2),
        Figure("memory_mb", "condor machine ad Memory", 1536),
        Figure("disk_mb", "condor machine ad Disk", 2049),
        Figure("gpus", "condor machine ad GPUs", 0),
        Figure("cores", "condor job ad CpusProvisioned", 2),
        Figure("memory_mb", "condor job ad MemoryProvisioned", 1536),
        Figure("disk_mb", "condor job ad DiskProvisioned", 2049),
        Figure("gpus", "condor job ad GPUsProvisioned", 0),
        Figure("wall_s", "condor job ad AllowedJobDuration", 7000),
        Figure("lease_s", "condor job ad JobLeaseDuration", 2400),
    ]
    assert batch_figures({"_CONDOR_MACHINE_AD": "/nowhere"}, 0.0) == []


def test_a_node_of_a_glidein_pool_says_when_it_ends(tmp_path: Path) -> None:
    ad = tmp_path / "ad"
    ad.write_text(
        "Cpus = 8\nMyCurrentTime = 1000\nTimeToLive = 3000\nGLIDEIN_ToDie = 3500\nMemory = ifThenElse(x, 1, 2)\n"
    )
    figures = batch_figures({"_CONDOR_MACHINE_AD": str(ad)}, now=1500.0)
    assert figures == [
        Figure("cores", "condor machine ad Cpus", 8),
        Figure("wall_s", "condor machine ad TimeToLive", 2500),
        Figure("wall_s", "condor machine ad GLIDEIN_ToDie", 2000),
    ]
    ad.write_text("JobCurrentStartDate = 1000\nMaxWallTime = 60\nAllowedExecuteDuration = 7200\n")
    assert batch_figures({"_CONDOR_JOB_AD": str(ad)}, now=1500.0) == [
        Figure("wall_s", "condor job ad AllowedExecuteDuration", 6700),
        Figure("wall_s", "condor job ad maxWallTime", 3100),
    ]


def slurm(name: str, **more: str) -> dict[str, str]:
    """The environment of a real job."""
    lines = (FIXTURES / "slurm" / f"{name}.env").read_text().splitlines()
    return {**dict(line.split("=", 1) for line in lines), "PATH": "/nowhere", **more}


def test_the_environments_of_real_slurm_jobs() -> None:
    assert batch_figures(slurm("one_task"), 0.0) == [
        Figure("cores", "SLURM_CPUS_ON_NODE", 2),
        Figure("memory_mb", "SLURM_MEM_PER_NODE", 2000),
        Figure("gpus", "SLURM_GPUS_ON_NODE", 1),
    ]
    assert batch_figures(slurm("one_task_step"), 0.0) == batch_figures(slurm("one_task"), 0.0)
    assert batch_figures(slurm("two_tasks_step"), 0.0) == [
        Figure("cores", "SLURM_CPUS_ON_NODE", 2),
        Figure("cores", "SLURM_CPUS_PER_TASK", 1),
    ]
    assert batch_figures({"SLURM_CPUS_ON_NODE": "4"}, 0.0) == []


def test_a_batch_script_has_all_cores_of_the_job_not_those_of_one_task() -> None:
    figures = batch_figures(slurm("two_tasks_batch"), 0.0)
    assert least(figures, "cores") == (2, "SLURM_CPUS_ON_NODE")
    assert least(figures, "memory_mb") == (1800, "SLURM_MEM_PER_CPU")


def test_a_task_of_a_step_has_its_part_of_the_node() -> None:
    environment = slurm("two_tasks_step", SLURM_MEM_PER_NODE="3000", SLURM_CPUS_ON_NODE="8", SLURM_CPUS_PER_TASK="2")
    assert least(batch_figures(environment, 0.0), "memory_mb") == (750, "SLURM_MEM_PER_NODE, 25% of it")
    del environment["SLURM_CPUS_PER_TASK"]
    environment |= {"SLURM_STEP_TASKS_PER_NODE": "2(x3),4", "SLURM_NODEID": "3"}
    assert least(batch_figures(environment, 0.0), "cores") == (2, "SLURM_CPUS_ON_NODE for 4 tasks of the step")


@pytest.mark.parametrize(
    ("answer", "left_s"),
    [("1-02:00:00", 93600), ("29:50", 1790), ("2:00:01", 7201), ("UNLIMITED", None), ("", None), ("INVALID", None)],
)
def test_the_time_left_as_squeue_writes_it(answer: str, left_s: Optional[int]) -> None:
    assert parse_left(f"{answer}\n") == left_s


def test_slurm_is_asked_for_the_time_left_where_no_variable_says_it(tmp_path: Path) -> None:
    assert least(batch_figures(slurm("one_task", SLURM_JOB_END_TIME="5000"), 1000.0), "wall_s") == (
        4000,
        "SLURM_JOB_END_TIME",
    )
    squeue = tmp_path / "squeue"
    squeue.write_text('#!/bin/sh\n[ "$*" = "--noheader --job 1 --format %L" ] && echo 29:50\n')
    squeue.chmod(0o755)
    assert least(batch_figures(slurm("one_task", PATH=f"{tmp_path}:/bin"), 0.0), "wall_s") == (1790, "squeue")
    squeue.write_text("#!/bin/sh\necho slurm_load_jobs error: Invalid job id >&2; exit 1\n")
    assert not [
        figure
        for figure in batch_figures(slurm("one_task", PATH=f"{tmp_path}:/bin"), 0.0)
        if figure.resource == "wall_s"
    ]


def test_the_other_batch_systems() -> None:
    now = psutil.Process().create_time() + 100
    assert batch_figures({"PBS_JOBID": "1", "NCPUS": "4"}, now) == [Figure("cores", "NCPUS", 4)]
    torque = batch_figures({"PBS_JOBID": "1", "PBS_NUM_PPN": "2", "PBS_WALLTIME": "3600"}, now)
    assert torque[0] == Figure("cores", "PBS_NUM_PPN", 2) and 3498 <= torque[1].value <= 3501
    assert batch_figures({"LSB_JOBID": "1", "LSB_MCPU_HOSTS": "node1 6 node2 2 "}, 0.0) == [
        Figure("cores", "LSB_MCPU_HOSTS", 6)
    ]
    assert batch_figures({"SGE_TASK_ID": "undefined", "NHOSTS": "1", "NSLOTS": "8"}, 0.0) == [
        Figure("cores", "NSLOTS", 8)
    ]
    assert batch_figures({"SGE_TASK_ID": "undefined", "NHOSTS": "2", "NSLOTS": "8"}, 0.0) == []


JOB_FEATURES = {
    "allocated_cpu": "8",
    "wall_limit_secs": "86400",
    "jobstart_secs": "1000",
    "max_rss_bytes": str(16 << 30),
    "scratch_limit_bytes": str(80 << 30),
    "shutdowntime_job": "90000",
    "hs06_job": "",
    "cpu_limit_secs": "junk",
}


def test_machine_and_job_features_in_folders(tmp_path: Path) -> None:
    tree(tmp_path / "job", JOB_FEATURES)
    tree(tmp_path / "machine", {"total_cpu": "64", "hs23": "1000", "shutdowntime": "70000"})
    environment = {"JOBFEATURES": str(tmp_path / "job"), "MACHINEFEATURES": str(tmp_path / "machine")}
    assert batch_figures(environment, 2000.0) == [
        Figure("cores", "job features allocated_cpu", 8),
        Figure("memory_mb", "job features max_rss_bytes", 16384),
        Figure("disk_mb", "job features scratch_limit_bytes", 81920),
        Figure("wall_s", "job features wall_limit_secs", 85400),
        Figure("wall_s", "job features shutdowntime_job", 88000),
        Figure("wall_s", "machine features shutdowntime", 68000),
        Figure("core_power", "machine features hs23", 15.625),
    ]


def test_machine_and_job_features_from_a_url(tmp_path: Path) -> None:
    tree(tmp_path, {**JOB_FEATURES, "hs23_job": "160"})
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            figures = batch_figures({"JOBFEATURES": f"http://127.0.0.1:{server.server_port}/"}, 2000.0)
        finally:
            server.shutdown()
            thread.join()
    assert least(figures, "memory_mb") == (16384, "job features max_rss_bytes")
    assert least(figures, "core_power") == (20.0, "job features hs23_job")


def test_features_that_cannot_be_had_are_asked_for_once(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    for place in (url, "http://[nonsense", "https://", "/no/such/folder"):
        caplog.clear()
        assert batch_figures({"JOBFEATURES": place}, 0.0) == []
        assert len(caplog.records) == (0 if place.startswith("/") else 1)


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
    assert slot.tags == ["linux", os.uname().machine] and slot.wall_s == 0
    slot = probe_slot(tmp_path, SlotLimits(memory_mb=2000, disk_mb=50), {"PATH": str(tmp_path)}, root)
    assert (slot.memory_mb, slot.disk_mb) == (2000, 50) and slot.cores == len(os.sched_getaffinity(0))


NAMESPACES = "#!/bin/sh\n[ $1 = version ] || echo pid:[1] ipc:[2]\n"


@pytest.mark.parametrize(
    ("script", "tagged"),
    [
        (NAMESPACES, True),
        ("#!/bin/sh\nexit 1\n", False),
        ("#!/no/sh\n", False),
        # As on a host without user namespaces: its version is told all the same.
        ("#!/bin/sh\n[ $1 = version ] && echo apptainer version 1.4\n", False),
    ],
)
def test_an_apptainer_that_runs_nothing_is_no_tag(tmp_path: Path, script: str, tagged: bool) -> None:
    program = tmp_path / "apptainer"
    program.write_text(script)
    program.chmod(0o755)
    slot = probe_slot(tmp_path, SlotLimits(), {"PATH": str(tmp_path)})
    assert ("apptainer" in slot.tags) is tagged


def test_the_wall_time_left_is_the_least_of_all_sources(tmp_path: Path) -> None:
    tree(tmp_path / "job", JOB_FEATURES)
    environment = {
        "_CONDOR_JOB_AD": str(FIXTURES / "condor/job.ad"),
        "JOBFEATURES": str(tmp_path / "job"),
        "PATH": str(tmp_path),
    }
    slot = probe_slot(tmp_path, SlotLimits(), environment, tmp_path, now=80000.0)
    assert slot.wall_s == 7400  # of 86,400 s from second 1000 on; condor's limit lies far in the future
    over = probe_slot(tmp_path, SlotLimits(), environment, tmp_path, now=99000.0)
    assert over.wall_s == 1  # a time that is over is not "unlimited"
    assert "wall_s 7400 (job features wall_limit_secs), wall_s 10000 (job features shutdowntime_job)" in slot.explain()


def test_a_full_disk_is_not_a_disk_without_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(total=10, used=10, free=0))
    ad = tmp_path / "ad"
    ad.write_text("Memory = 0\nCpus = -1\n")
    slot = probe_slot(tmp_path, SlotLimits(), {"_CONDOR_MACHINE_AD": str(ad), "PATH": "/nowhere"}, tmp_path)
    assert (slot.disk_mb, slot.memory_mb) == (1, 1) and slot.cores >= 1


def test_a_slot_offers_no_gpu_that_the_batch_system_did_not_give_it(tmp_path: Path) -> None:
    root = intel_node(tmp_path / "root")
    ad = tmp_path / "ad"
    ad.write_text("GPUs = 1\n")
    for environment, count in (({}, 3), ({"_CONDOR_MACHINE_AD": str(ad)}, 1)):
        slot = probe_slot(tmp_path, SlotLimits(), {**environment, "PATH": "/nowhere"}, root)
        assert len(slot.gpus) == count


V1 = "fpu cx8 cmov mmx fxsr sse sse2 syscall"
V2 = f"{V1} cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
V3 = f"{V2} avx avx2 bmi1 bmi2 f16c fma abm movbe xsave hypervisor"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("", ""),
        (V1, "x86-64-v1"),
        (V2, "x86-64-v2"),
        (V3, "x86-64-v3"),
        (V4, "x86-64-v4"),
        (V4.replace("f16c", ""), "x86-64-v2"),
    ],
)
def test_the_level_of_a_cpu(flags: str, level: str) -> None:
    assert node.cpu_level(flags.split()) == level


def test_the_description_of_a_node(tmp_path: Path) -> None:
    processor = "processor\t: {n}\nmodel name\t: AMD EPYC 7763 64-Core Processor\nphysical id\t: {socket}\nsiblings\t: 4\ncore id\t\t: {core}\nflags\t\t: {flags}\n"
    cpus = [processor.format(n=n, socket=n // 4, core=n % 2, flags=V3) for n in range(8)]
    files = {
        "proc/cpuinfo": "\n".join(cpus),
        "proc/meminfo": "MemTotal:       16384000 kB",
        "etc/os-release": 'NAME="AlmaLinux"\nPRETTY_NAME="AlmaLinux 9.4 (Seafoam Ocelot)"',
    }
    info = node.describe_node([Figure("core_power", "machine features hs23", 15.62512)], tree(tmp_path, files))
    assert (info.cpu_model, info.cpu_level) == ("AMD EPYC 7763 64-Core Processor", "x86-64-v3")
    assert (info.cores, info.threads, info.memory_mb, info.virtual) == (4, 8, 16000, True)
    assert (info.os, info.core_power, info.power_source) == (
        "AlmaLinux 9.4 (Seafoam Ocelot)",
        15.625,
        "machine features hs23",
    )
    assert "x86-64-v3" in probe_slot(tmp_path, SlotLimits(), {"PATH": str(tmp_path)}, tmp_path).tags
    assert node.describe_node(root=tmp_path / "none").cpu_model == ""


@pytest.mark.parametrize(
    ("script", "power"),
    [
        ("echo took 12 s; echo HS23 per core: 17.25", 17.25),
        ("echo v2", None),
        ("echo 0", None),
        ("exit 1", None),
        ("sleep 60", None),
    ],
)
def test_a_benchmark_tells_the_power_of_a_core(script: str, power: Optional[float]) -> None:
    found = node.benchmark(f"/bin/sh -c '{script}'", {"PATH": "/usr/bin:/bin"}, timeout_s=0.5)
    assert (found.value if found else None) == power
    assert node.benchmark("/no/such 'program", {}, 1.0) is None
