"""NVIDIA's GPUs through NVML, the driver's own library: cards, the instances that they are partitioned into (MIG), and
what processes use of them.

The Python side of it is the package nvidia-ml-py (module ``pynvml``), imported only where there is a driver. This module
is all that knows it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, TypeVar

from common.wire import Gpu
from pilot.probe.visible import Device, can_open

logger = logging.getLogger(__name__)

T = TypeVar("T")
MB = 1024 * 1024


def installed() -> bool:
    """Whether nvidia-ml-py can be imported here."""
    try:
        import pynvml  # noqa: F401
    except ImportError:
        return False
    return True


class Nvml:
    """An open library: make it, use it, :meth:`close` it. Raises OSError when the driver does not answer."""

    def __init__(self) -> None:
        import pynvml

        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise OSError(f"the NVIDIA driver does not answer: {error}") from error

    def close(self) -> None:
        """Let go of the library."""
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as error:
            logger.debug("closing NVML: %s", error)

    def devices(self, root: Path = Path("/")) -> list[Device]:
        """All cards that this process may open, in the library's order, those with MIG as their instances.

        A card that is lost, or that the device cgroup keeps from us, is left out.
        """
        found: list[Device] = []
        driver = self._asked(self._nvml.nvmlSystemGetDriverVersion) or ""
        for index in range(self._asked(self._nvml.nvmlDeviceGetCount) or 0):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                card = self._gpu(handle, index, driver)
            except self._nvml.NVMLError as error:
                logger.info("GPU %d is left out: %s", index, error)
                continue
            minor = self._asked(self._nvml.nvmlDeviceGetMinorNumber, handle)
            number = index if minor is None else minor
            if self._is_partitioned(handle):
                found += [Device(gpu, number) for gpu in self._instances(handle, card, number, root)]
            else:
                found.append(Device(card, number))
        return found

    def use(self, uuid: str, pids: Collection[int], since_us: int) -> Optional[tuple[Optional[float], float, int]]:
        """What processes use of a card or an instance: percent of its time (None: it does not say), MiB of its memory,
        and the moment of the newest sample in µs, to be given as ``since_us`` the next time. None when it is gone.

        Where the driver tells nothing of single processes, all that is used of the device is theirs: it is assigned to
        one job.
        """
        try:
            handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        except self._nvml.NVMLError as error:
            logger.debug("GPU %s: %s", uuid, error)
            return None
        percent, newest = self._percent(handle, pids, since_us)
        return percent, self._memory_mb(handle, pids), newest

    def _percent(self, handle: Any, pids: Collection[int], since_us: int) -> tuple[Optional[float], int]:
        samples = self._asked(self._nvml.nvmlDeviceGetProcessUtilization, handle, since_us)
        mine: dict[int, list[int]] = {}
        for sample in samples or []:
            if sample.pid in pids and sample.smUtil <= 100:  # garbage comes from processes that have just ended
                mine.setdefault(sample.pid, []).append(int(sample.smUtil))
        newest = max((int(sample.timeStamp) for sample in samples or []), default=since_us)
        if mine:
            return min(100.0, sum(sum(each) / len(each) for each in mine.values())), newest
        rates = self._asked(self._nvml.nvmlDeviceGetUtilizationRates, handle)
        return (None if rates is None else float(rates.gpu)), newest

    def _memory_mb(self, handle: Any, pids: Collection[int]) -> float:
        running = self._asked(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
        mine = [process.usedGpuMemory for process in running if process.pid in pids]
        if mine and None not in mine:
            return float(sum(mine)) / MB
        memory = self._asked(self._nvml.nvmlDeviceGetMemoryInfo, handle)
        return 0.0 if memory is None else float(memory.used) / MB

    def _gpu(self, handle: Any, index: int, driver: str) -> Gpu:
        nvml = self._nvml
        memory = self._asked(nvml.nvmlDeviceGetMemoryInfo, handle)  # none where it is the host's own
        capability = self._asked(nvml.nvmlDeviceGetCudaComputeCapability, handle)
        pci = self._asked(nvml.nvmlDeviceGetPciInfo, handle)
        return Gpu(
            vendor="nvidia",
            model=_text(nvml.nvmlDeviceGetName(handle)),
            memory_mb=0 if memory is None else int(memory.total) // MB,
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            index=index,
            driver=_text(driver),
            capability="" if capability is None else f"{capability[0]}.{capability[1]}",
            pci="" if pci is None else pci_address(_text(pci.busId)),
        )

    def _is_partitioned(self, handle: Any) -> bool:
        mode = self._asked(self._nvml.nvmlDeviceGetMigMode, handle)
        return bool(mode and mode[0] == self._nvml.NVML_DEVICE_MIG_ENABLE)

    def _instances(self, handle: Any, card: Gpu, minor: int, root: Path) -> Iterator[Gpu]:
        nvml = self._nvml
        for place in range(self._asked(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            instance = self._asked(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place)
            if instance is None or not self._may_open(instance, minor, root):
                continue
            memory = self._asked(nvml.nvmlDeviceGetMemoryInfo, instance)
            yield Gpu(
                vendor=card.vendor,
                model=_text(self._asked(nvml.nvmlDeviceGetName, instance) or card.model),
                memory_mb=0 if memory is None else int(memory.total) // MB,
                uuid=_text(nvml.nvmlDeviceGetUUID(instance)),
                index=card.index,
                driver=card.driver,
                capability=card.capability,
                parent=card.uuid,
                pci=card.pci,
            )

    def _may_open(self, instance: Any, minor: int, root: Path) -> bool:
        """Each instance has device nodes of its own, which a container or a device cgroup may keep from us."""
        gi = self._asked(self._nvml.nvmlDeviceGetGpuInstanceId, instance)
        ci = self._asked(self._nvml.nvmlDeviceGetComputeInstanceId, instance)
        folder = root / f"proc/driver/nvidia/capabilities/gpu{minor}/mig/gi{gi}"
        for path in (folder / "access", folder / f"ci{ci}" / "access"):
            try:
                found = re.search(r"^DeviceFileMinor:\s*(\d+)", path.read_text("ascii", "replace"), re.MULTILINE)
            except OSError:
                continue  # an old driver has no such files: the library itself knows
            if found and not can_open(root / f"dev/nvidia-caps/nvidia-cap{found[1]}"):
                return False
        return True

    def _asked(self, call: Callable[..., T], *arguments: object) -> Optional[T]:
        """None when this card, or this driver, does not know it."""
        try:
            return call(*arguments)
        except self._nvml.NVMLError:
            return None


@contextmanager
def opened() -> Iterator[Nvml]:
    """An :class:`Nvml` for the length of the block. Raises OSError."""
    nvml = Nvml()
    try:
        yield nvml
    finally:
        nvml.close()


def pci_address(text: str) -> str:
    """``00000000:3B:00.0`` as the kernel writes it: ``0000:3b:00.0``."""
    domain, _, rest = text.lower().partition(":")
    return f"{domain[-4:]}:{rest}" if rest else text.lower()


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
