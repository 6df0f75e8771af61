"""What kind of machine this is."""

from __future__ import annotations

import logging
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Optional

from common.wire import NodeInfo
from pilot.probe.figure import Figure
from pilot.probe.pci import text_of

logger = logging.getLogger(__name__)

#: What each level of x86-64 adds to the one before, in the words of /proc/cpuinfo (levels: psABI for x86-64, "Micro-
#: Architecture Levels").
X86_LEVELS: tuple[tuple[str, frozenset[str]], ...] = (
    ("x86-64-v1", frozenset({"cmov", "cx8", "fpu", "fxsr", "mmx", "sse", "sse2", "syscall"})),
    ("x86-64-v2", frozenset({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"})),
    ("x86-64-v3", frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"})),
    ("x86-64-v4", frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})),
)
#: No word of the description is longer.
MOST_CHARACTERS = 255


def describe_node(figures: Sequence[Figure] = (), root: Path = Path("/")) -> NodeInfo:
    """The machine that this process runs on. ``figures`` may say what its cores can do; ``root`` is ``/`` but for tests."""
    cpuinfo = text_of(root / "proc/cpuinfo")
    flags = frozenset(_field(cpuinfo, "flags").split())
    power = next((figure for figure in figures if figure.resource == "core_power"), None)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", text_of(root / "proc/meminfo"), re.MULTILINE)
    return NodeInfo(
        cpu_model=(_field(cpuinfo, "model name") or _field(cpuinfo, "CPU implementer"))[:MOST_CHARACTERS],
        cpu_level=cpu_level(flags),
        architecture=platform.machine(),
        cores=_cores(cpuinfo),
        threads=len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)),
        memory_mb=int(memory[1]) // 1024 if memory else 0,
        os=_release(text_of(root / "etc/os-release"))[:MOST_CHARACTERS],
        kernel=platform.release(),
        libc=_libc(),
        python=platform.python_version(),
        virtual="hypervisor" in flags,
        core_power=round(power.value, 3) if power else 0.0,
        power_source=power.source if power else "",
    )


def this_cpu_level(root: Path = Path("/")) -> str:
    """The level of this machine's CPU; empty where there are none, as on other architectures."""
    return cpu_level(frozenset(_field(text_of(root / "proc/cpuinfo"), "flags").split()))


def cpu_level(flags: Collection[str]) -> str:
    """The highest of :data:`X86_LEVELS` that a CPU with these flags reaches; empty for none."""
    reached = ""
    for name, needed in X86_LEVELS:
        if not needed <= set(flags):
            break
        reached = name
    return reached


def benchmark(command: str, environment: Mapping[str, str], timeout_s: float) -> Optional[Figure]:
    """The last number that a command prints, as what one core does; None, and a line in the log, when it prints none.

    ``command`` is split as a shell would, but no shell runs it.
    """
    try:
        answer = subprocess.run(
            shlex.split(command), capture_output=True, text=True, timeout=timeout_s, check=True, env=dict(environment)
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        logger.warning("the benchmark tells nothing: %s", error)
        return None
    numbers = re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])", answer.stdout)
    if not numbers or not 0 < float(numbers[-1]) < 1e6:
        logger.warning("the benchmark printed no number between 0 and a million: %.200s", answer.stdout)
        return None
    return Figure("core_power", "benchmark", float(numbers[-1]))


def _field(cpuinfo: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:[ \t]*(.*)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else ""


def _cores(cpuinfo: str) -> int:
    """Physical cores: pairs of socket and core; the number of processors where the kernel tells no pairs."""
    pairs = set(re.findall(r"^physical id\s*:\s*(\d+)\n(?:.+\n)*?core id\s*:\s*(\d+)", cpuinfo, re.MULTILINE))
    return len(pairs) or len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE))


def _release(text: str) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)"?$', text, re.MULTILINE)
    return found[1] if found else platform.system()


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return " ".join(platform.libc_ver()).strip()
