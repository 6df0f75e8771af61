"""Which GPUs a slot has, what a payload is told of them, and what it uses of them."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common.wire import Gpu, Offer
from pilot.payload.gpus import gpu_environment
from pilot.probe import GpuMeter, nvml
from pilot.probe.gpu import find_gpus, parse_smi
from tests.services.base import require
from tests.services.install import install_packages, missing

FAKE_SOURCE = Path(__file__).parent.parent / "fixtures" / "fake_nvml.c"
CARD_0 = "GPU-1a2b3c4d-0000-4000-8000-000000000000"
CARD_1 = "GPU-5e6f7a8b-1111-4111-8111-111111111111"
MIG_A = "MIG-aaaaaaaa-2222-5222-8222-222222222222"
MIG_B = "MIG-bbbbbbbb-3333-5333-8333-333333333333"
GIB = 1 << 30


class Driver:
    """The fake driver's library, loaded under the name that the real one has, so that pynvml finds it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def __getitem__(self, name: str) -> int:
        return ctypes.c_int.in_dll(self._library, f"fake_{name}").value

    def __setitem__(self, name: str, value: int) -> None:
        ctypes.c_int.in_dll(self._library, f"fake_{name}").value = value

    def uses(self, place: int, used: int) -> None:
        (ctypes.c_ulonglong * 4).in_dll(self._library, "fake_used")[place] = used


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if missing(["gcc"]):
        require(lambda: install_packages("the fake driver", ["gcc", "libc6-dev"]))
    target = tmp_path_factory.mktemp("nvml") / "libfake.so"
    words = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o", str(target), str(FAKE_SOURCE)]
    subprocess.run(words, check=True)
    return ctypes.CDLL(str(target))


@pytest.fixture
def driver(library: ctypes.CDLL) -> Iterator[Driver]:
    found = Driver(library)
    usual = {"driver_loaded": 1, "mig": 0, "forbidden": -1, "shared_memory": -1, "pid": 0, "samples": 1}
    for name, value in usual.items():
        found[name] = value
    found.uses(0, 3 * GIB)
    yield found
    assert found["open"] == 0, "the library was not closed"
    for name, value in usual.items():
        found[name] = value


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A machine with NVIDIA's driver."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    return tmp_path


def uuids(node: Path, **environment: str) -> list[str]:
    return [gpu.uuid for gpu in find_gpus({"PATH": "/nowhere", **environment}, node)]


def test_all_cards_with_all_that_is_known(driver: Driver, node: Path) -> None:
    assert find_gpus({}, node) == [
        Gpu(vendor="nvidia", model="NVIDIA H200", memory_mb=143771, uuid=CARD_0, index=0, driver="570.124.06",
            capability="9.0", pci="0000:3b:00.0"),
        Gpu(vendor="nvidia", model="NVIDIA H200", memory_mb=143771, uuid=CARD_1, index=1, driver="570.124.06",
            capability="9.0", pci="0000:3c:00.0"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"CUDA_VISIBLE_DEVICES": "1"}, [CARD_1]),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, [CARD_1, CARD_0]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1a2b"}, [CARD_0]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-"}, []),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "0,7,1"}, [CARD_0]),
        ({"CUDA_VISIBLE_DEVICES": "0,0"}, [CARD_0]),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, []),
        ({"NVIDIA_VISIBLE_DEVICES": "none"}, []),
        ({"NVIDIA_VISIBLE_DEVICES": "5"}, [CARD_0, CARD_1]),
        ({"_CONDOR_AssignedGPUs": "CUDA1"}, [CARD_1]),
        ({"_CONDOR_AssignedGPUs": "GPU-5e6f7a8b, GPU-1a2b3c4d"}, [CARD_1, CARD_0]),
        ({"_CONDOR_AssignedGPUs": "10000"}, []),
        ({"SLURM_JOB_GPUS": "5"}, [CARD_1]),
        ({"SLURM_JOB_GPUS": "4-5"}, [CARD_0, CARD_1]),
        ({"SLURM_JOB_GPUS": "4,5", "SLURM_STEP_GPUS": "4"}, [CARD_0]),
        ({"SLURM_JOB_GPUS": "4,5", "CUDA_VISIBLE_DEVICES": "0"}, [CARD_0]),
    ],
)  # fmt: skip
def test_only_what_the_batch_system_left_to_the_slot(
    driver: Driver, node: Path, environment: dict[str, str], expected: list[str]
) -> None:
    assert uuids(node, **environment) == expected


def test_a_card_that_the_device_cgroup_keeps_from_us_is_not_offered(driver: Driver, node: Path) -> None:
    driver["forbidden"] = 0
    assert uuids(node) == [CARD_1]


def test_instances_of_a_card_are_devices_of_their_own(driver: Driver, node: Path) -> None:
    driver["mig"] = 1
    whole, small, large = find_gpus({}, node)
    assert (whole.uuid, whole.parent) == (CARD_0, "")
    assert (small.uuid, small.parent, small.memory_mb, small.model) == (MIG_A, CARD_1, 17408, "NVIDIA H200 MIG 1g.18gb")
    assert (large.uuid, large.memory_mb, large.index) == (MIG_B, 72704, 1)
    assert uuids(node, CUDA_VISIBLE_DEVICES=MIG_B) == [MIG_B]
    assert uuids(node, CUDA_VISIBLE_DEVICES="MIG-aaaa") == [MIG_A]
    assert uuids(node, CUDA_VISIBLE_DEVICES="1") == [MIG_A, MIG_B]
    assert uuids(node, CUDA_VISIBLE_DEVICES=CARD_1) == [MIG_A, MIG_B]
    assert gpu_environment([large])["CUDA_VISIBLE_DEVICES"] == MIG_B


def test_an_instance_whose_device_node_is_missing_is_not_offered(driver: Driver, node: Path) -> None:
    driver["mig"] = 1
    for gi, number in ((7, 21), (8, 30)):
        access = node / f"proc/driver/nvidia/capabilities/gpu5/mig/gi{gi}/access"
        access.parent.mkdir(parents=True)
        access.write_text(f"DeviceFileMinor: {number}\nDeviceFileMode: 292\nDeviceFileModify: 1\n")
    (node / "dev/nvidia-caps").mkdir()
    (node / "dev/nvidia-caps/nvidia-cap30").touch()
    assert uuids(node) == [CARD_0, MIG_B]


def test_a_card_that_shares_the_hosts_memory_has_none_of_its_own(driver: Driver, node: Path) -> None:
    driver["shared_memory"] = 0
    assert [gpu.memory_mb for gpu in find_gpus({}, node)] == [0, 143771]


def test_a_driver_that_does_not_answer_offers_nothing(
    driver: Driver, node: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver["driver_loaded"] = 0
    assert uuids(node) == [] and "Driver Not Loaded" in caplog.text


def test_a_machine_without_gpus_loads_nothing_and_starts_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, subprocess\n"
        "def no(*_a, **_k): raise AssertionError('started a program')\n"
        "subprocess.run = subprocess.Popen = no\n"
        "from pathlib import Path\n"
        "from pilot.probe import GpuMeter\n"
        "from pilot.probe.gpu import find_gpus\n"
        f"assert find_gpus({{'PATH': '/usr/bin'}}, Path({str(tmp_path)!r})) == []\n"
        "GpuMeter([]).look([1])\n"
        "assert 'pynvml' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


SMI = f"""0, {CARD_0}, NVIDIA H200, 143771, 570.124.06, 9.0, 00000000:3B:00.0, [N/A]
1, {CARD_1}, NVIDIA H200, 143771, 570.124.06, 9.0, 00000000:3C:00.0, Enabled
2, GPU-cccc, NVIDIA GB10, [N/A], 580.82.07, 12.1, 0000000F:01:00.0, Disabled
"""


def test_without_the_python_package_nvidia_smi_is_asked(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nvml, "installed", lambda: False)
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\ncat <<'E'\n{SMI}E\n")
    smi.chmod(0o755)
    found = find_gpus({"PATH": f"{tmp_path}:/bin"}, node)
    assert [(gpu.index, gpu.uuid, gpu.memory_mb, gpu.pci) for gpu in found] == [
        (0, CARD_0, 143771, "0000:3b:00.0"),
        (2, "GPU-cccc", 0, "000f:01:00.0"),
    ]
    assert "partitioned" in caplog.text
    assert uuids(node, PATH=f"{tmp_path}:/bin", CUDA_VISIBLE_DEVICES="2") == ["GPU-cccc"]
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert uuids(node, PATH=f"{tmp_path}:/bin") == []
    assert uuids(node, PATH="/nowhere") == [] and "neither nvidia-ml-py nor nvidia-smi" in caplog.text
    assert parse_smi("No devices were found\n") == []


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def amd_node(root: Path) -> Path:
    """Two MI250X dies and an older card without a UUID, behind the two CPUs of a node, as the kernel shows them."""
    tree(root, {"dev/kfd": "", "sys/module/amdgpu/version": "6.10.5", "proc/sys/kernel/osrelease": "5.14.0"})
    nodes = "sys/class/kfd/kfd/topology/nodes"
    for cpu in (0, 1):
        tree(root, {f"{nodes}/{cpu}/gpu_id": "0", f"{nodes}/{cpu}/properties": "cpu_cores_count 64\nsimd_count 0"})
    cards = [  # node, kfd id, minor, bus, target, unique id, VRAM, name
        (2, 53458, 128, 0xC1, 90010, 12732985337014146776, 68702699520, "AMD Instinct MI250X"),
        (3, 28851, 129, 0xC6, 90010, 0, 68702699520, "AMD Instinct MI250X"),
        (10, 4615, 130, 0xD1, 90006, 0, 0, ""),
    ]
    for place, kfd_id, minor, bus, target, unique, vram, name in cards:
        drm = f"sys/class/drm/renderD{minor}/device"
        known = (
            f"cpu_cores_count 0\nsimd_count 440\nvendor_id 4098\ndevice_id 29704\nlocation_id {bus << 8}\ndomain 0\n"
            f"drm_render_minor {minor}\ngfx_target_version {target}\nunique_id {unique}"
        )
        tree(root, {f"{nodes}/{place}/gpu_id": str(kfd_id), f"{nodes}/{place}/properties": known})
        bank = "heap_type 1\nsize_in_bytes 17163091968\nflags 0"
        tree(root, {f"{nodes}/{place}/mem_banks/0/properties": bank, f"dev/dri/renderD{minor}": ""})
        if vram:
            tree(root, {f"{drm}/mem_info_vram_total": str(vram), f"{drm}/product_name": name})
            tree(root, {f"{drm}/gpu_busy_percent": "70", f"{drm}/mem_info_vram_used": str(5 * GIB)})
    return root


def test_amd_cards_from_sysfs(tmp_path: Path) -> None:
    first, second, third = find_gpus({"PATH": "/nowhere"}, amd_node(tmp_path))
    assert first == Gpu(
        vendor="amd", model="AMD Instinct MI250X", memory_mb=65520, uuid="GPU-b0b4a6b3a6fc56d8", index=0,
        driver="amdgpu 6.10.5", capability="gfx90a", pci="0000:c1:00.0",
    )  # fmt: skip
    assert (second.uuid, second.index, second.pci) == ("", 1, "0000:c6:00.0")
    assert (third.model, third.memory_mb, third.capability, third.index) == ("AMD gfx906", 16368, "gfx906", 2)


def test_amd_cards_that_are_not_ours_are_not_offered(tmp_path: Path) -> None:
    root = amd_node(tmp_path)
    assert [gpu.index for gpu in find_gpus({"ROCR_VISIBLE_DEVICES": "1"}, root)] == [1]
    assert [gpu.pci for gpu in find_gpus({"ROCR_VISIBLE_DEVICES": "GPU-b0b4a6b3a6fc56d8"}, root)] == ["0000:c1:00.0"]
    assert [gpu.index for gpu in find_gpus({"HIP_VISIBLE_DEVICES": "2,0"}, root)] == [2, 0]
    (root / "dev/dri/renderD128").unlink()
    assert [(gpu.index, gpu.pci) for gpu in find_gpus({}, root)] == [(0, "0000:c6:00.0"), (1, "0000:d1:00.0")]
    (root / "dev/kfd").unlink()
    assert find_gpus({}, root) == []


def test_rocm_smi_names_what_sysfs_does_not(tmp_path: Path) -> None:
    smi = tmp_path / "bin/rocm-smi"
    tree(
        tmp_path,
        {"bin/rocm-smi": '#!/bin/sh\necho \'{"card2": {"PCI Bus": "0000:D1:00.0", "Card Series": "Radeon VII"}}\''},
    )
    smi.chmod(0o755)
    root = amd_node(tmp_path / "root")
    assert [gpu.model for gpu in find_gpus({"PATH": f"{smi.parent}:/bin"}, root)][-1] == "Radeon VII"
    smi.write_text("#!/bin/sh\necho 'WARNING: no such option'\n")
    assert [gpu.model for gpu in find_gpus({"PATH": f"{smi.parent}:/bin"}, root)][-1] == "AMD gfx906"


def intel_node(root: Path) -> Path:
    """Integrated graphics, a Data Center GPU Max on i915 as Intel ships it, a Battlemage on xe, an Arc on mainline i915."""
    window = "0x0000000000000000 0x0000000000ffffff 0x0\n0x0 0x0 0x0\n0x0000004000000000 0x00000043ffffffff 0x14220c"
    cards: list[tuple[str, str, str, str, dict[str, str]]] = [
        ("card0", "0000:00:02.0", "0x46a6", "i915", {"device/resource": window}),
        ("card1", "0000:4d:00.0", "0x0bd5", "i915", {"lmem_total_bytes": str(64 * GIB)}),
        ("card2", "0000:03:00.0", "0xe20b", "xe", {"device/tile0/physical_vram_size_bytes": str(12 * GIB)}),
        ("card3", "0000:9a:00.0", "0x56a0", "i915", {"device/resource": window}),
    ]
    for place, (card, address, device, driver, files) in enumerate(cards):
        real = root / "sys/devices/pci" / address
        (root / "sys/class/drm" / card).mkdir(parents=True)
        (real / "drm" / f"renderD{128 + place}").mkdir(parents=True)
        (root / f"sys/bus/pci/drivers/{driver}").mkdir(parents=True, exist_ok=True)
        (real / "driver").symlink_to(root / f"sys/bus/pci/drivers/{driver}")
        (root / "sys/class/drm" / card / "device").symlink_to(real)
        tree(root / "sys/class/drm" / card, {"device/vendor": "0x8086", "device/device": device, **files})
        tree(root, {f"dev/dri/renderD{128 + place}": ""})
    names = "8086  Intel Corporation\n\t0bd5  Ponte Vecchio [Data Center GPU Max 1550]\n\t\t8086 0001  Sub\n\t56a0  DG2 [Arc A770]\n"
    return tree(root, {"usr/share/misc/pci.ids": f"1002  AMD\n\t0bd5  Wrong\n{names}8087  Other\n\te20b  Wrong"})


def test_intels_discrete_cards_from_sysfs(tmp_path: Path) -> None:
    found = find_gpus({}, intel_node(tmp_path))
    assert [(gpu.index, gpu.pci, gpu.model, gpu.memory_mb) for gpu in found] == [
        (0, "0000:03:00.0", "Intel e20b", 12288),
        (1, "0000:4d:00.0", "Data Center GPU Max 1550", 65536),
        (2, "0000:9a:00.0", "Arc A770", 16384),
    ]
    assert [gpu.index for gpu in find_gpus({"ZE_AFFINITY_MASK": "2,0"}, tmp_path)] == [2, 0]
    assert find_gpus({"ZE_AFFINITY_MASK": "0.1"}, tmp_path) == []
    assert gpu_environment(found[1:])["ZE_AFFINITY_MASK"] == "1,2"


def test_a_job_is_told_exactly_its_own_gpus() -> None:
    nvidia = Gpu(vendor="nvidia", model="X", memory_mb=1, uuid="GPU-1")
    amd = [Gpu(vendor="amd", model="X", memory_mb=1, uuid="GPU-2"), Gpu(vendor="amd", model="X", memory_mb=1, index=3)]
    nothing = {"CUDA_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": "", "ZE_AFFINITY_MASK": "1000"}
    assert gpu_environment([]) == nothing
    assert gpu_environment([nvidia]) == {**nothing, "CUDA_VISIBLE_DEVICES": "GPU-1"}
    # AMD's library looks at CUDA_VISIBLE_DEVICES as well: an empty one would hide the job's own cards.
    assert gpu_environment(amd) == {"ROCR_VISIBLE_DEVICES": "GPU-2,3", "ZE_AFFINITY_MASK": "1000"}


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_use_of_a_card_is_that_of_the_jobs_processes(driver: Driver, node: Path) -> None:
    driver["pid"] = 77
    time = Time()
    meter = GpuMeter(find_gpus({"CUDA_VISIBLE_DEVICES": "0"}, node), time, node)
    time.now += 10
    use = meter.look([76, 77])
    assert (use.percent, use.memory_mb) == (30.0, 3072.0)  # the mean of its samples; others' are not counted
    driver.uses(0, GIB)
    time.now += 30
    driver["samples"] = 0  # the card's own figure: 80 percent
    use = meter.look([77])
    assert (use.percent, use.memory_mb) == (67.5, 3072.0)  # 10 s of 30 and 30 s of 80; the most that was seen
    meter.close()


def test_a_process_that_the_driver_cannot_see_has_all_of_its_own_card(driver: Driver, node: Path) -> None:
    time = Time()
    meter = GpuMeter(find_gpus({"CUDA_VISIBLE_DEVICES": "0"}, node), time, node)
    time.now += 5
    assert (meter.look([4711]).percent, meter.look([4711]).memory_mb) == (80.0, 3072.0)
    meter.close()


def test_an_instance_tells_its_memory_and_no_percent(driver: Driver, node: Path) -> None:
    driver["mig"] = 1
    time = Time()
    meter = GpuMeter(find_gpus({"CUDA_VISIBLE_DEVICES": MIG_A}, node), time, node)
    time.now += 5
    assert (meter.look([1]).percent, meter.look([1]).memory_mb) == (0.0, 512.0)
    meter.close()


def test_a_driver_that_died_leaves_the_use_unknown(driver: Driver, node: Path) -> None:
    gpus = find_gpus({}, node)
    driver["driver_loaded"] = 0
    meter = GpuMeter(gpus, Time(), node)
    assert meter.look([1]).percent == 0.0
    meter.close()


def test_the_use_of_amds_cards(tmp_path: Path) -> None:
    root, time = amd_node(tmp_path), Time()
    meter = GpuMeter(find_gpus({"ROCR_VISIBLE_DEVICES": "0"}, root), time, root)
    time.now += 1
    assert (meter.look([9]).percent, meter.look([9]).memory_mb) == (70.0, 5120.0)
    tree(
        root, {"sys/class/kfd/kfd/proc/9/vram_53458": str(6 * GIB), "sys/class/kfd/kfd/proc/8/vram_53458": str(9 * GIB)}
    )
    time.now += 1
    assert meter.look([9]).memory_mb == 6144.0


def test_the_use_of_intels_cards(tmp_path: Path) -> None:
    root, time = intel_node(tmp_path), Time()
    meter = GpuMeter(find_gpus({"ZE_AFFINITY_MASK": "1"}, root), time, root)
    (root / "proc/9/fd").mkdir(parents=True)

    def fdinfo(name: str, client: int, busy_ns: int, address: str = "0000:4d:00.0") -> None:
        if not (root / "proc/9/fd" / name).is_symlink():
            (root / "proc/9/fd" / name).symlink_to("/dev/dri/renderD129")
        text = (
            f"pos:\t0\ndrm-driver:\ti915\ndrm-client-id:\t{client}\ndrm-pdev:\t{address}\ndrm-total-local0:\t2048 MiB\n"
        )
        text += f"drm-total-system0:\t99 MiB\ndrm-engine-render:\t{busy_ns} ns\ndrm-engine-capacity-render:\t1"
        tree(root, {f"proc/9/fdinfo/{name}": text})

    fdinfo("3", 5, 0)
    fdinfo("4", 5, 0)  # the same client by another descriptor
    fdinfo("5", 6, 10**12, "0000:03:00.0")  # another card
    time.now += 10
    meter.look([9])
    fdinfo("3", 5, 4 * 10**9)
    fdinfo("4", 5, 4 * 10**9)
    time.now += 10
    use = meter.look([9])
    assert (use.percent, use.memory_mb) == (20.0, 2048.0)  # 0 of the first ten seconds, 4 of the second


def test_servers_and_pilots_of_other_versions_understand_the_offer() -> None:
    offer: dict[str, Any] = {"gpus": [{"vendor": "nvidia", "model": "X", "memory_mb": 10, "unheard": 1}]}
    assert msgspec.convert(offer, Offer).gpus == [Gpu(vendor="nvidia", model="X", memory_mb=10)]
    assert (
        msgspec.json.encode(Gpu(vendor="nvidia", model="X", memory_mb=10))
        == b'{"vendor":"nvidia","model":"X","memory_mb":10}'
    )
