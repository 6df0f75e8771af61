"""Why a payload failed: from its exit code or signal, the kernel's word, its own report, and what it said last."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from common.errors import SIGNAL_ERRORS, ErrorCode, PilotageError
from pilot.container import diagnose_container_failure
from pilot.payload.jobreport import NAME as JOB_REPORT
from pilot.payload.jobreport import PayloadReport
from pilot.payload.messages import KnownMessage, known_message
from pilot.supervised import PayloadEnd

SHELL_SIGNALS = (
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGABRT,
    signal.SIGILL,
    signal.SIGFPE,
    signal.SIGKILL,
    signal.SIGXCPU,
)
"""Signals that a shell's exit code 128 + n is taken for; programs use the numbers of others for purposes of their own."""
_UNSPECIFIC = (ErrorCode.PAYLOAD_FAILED, ErrorCode.KILL_SIGNAL)
_CORE = re.compile(r"core(\.\d+)?|core\.[^/]+\.\d+")


@dataclass(frozen=True)
class Ending:
    """What is known of a payload that has ended. ``stdout`` and ``stderr`` are their ends; ``oom_kills`` how many processes
    of the pilot's group the kernel killed for want of memory meanwhile; ``cores`` the core dumps in its folder."""

    end: PayloadEnd
    stdout: str = ""
    stderr: str = ""
    in_container: bool = False
    oom_kills: int = 0
    report: Optional[PayloadReport] = None
    cores: Sequence[str] = ()

    @property
    def exit_code(self) -> Optional[int]:
        """The payload's own exit code; None when a signal ended it."""
        return self.end.exit_code


def diagnose(ending: Ending, more: Sequence[KnownMessage] = ()) -> Optional[PilotageError]:
    """Why the payload failed; None when it did not.

    The more telling come first: Apptainer's own trouble, a process around the payload, the kernel out of memory, a
    signal, what the payload's report says, a known message. ``more`` are an experiment's own messages.
    """
    end = ending.end
    if end.error is None:
        return _told_failure(ending)
    found = PilotageError(end.error, end.detail)
    if found.code in _UNSPECIFIC:
        if ending.in_container:
            found = diagnose_container_failure(end.exit_code, ending.stderr) or found
        if found.code in _UNSPECIFIC:
            found = _of_signal(ending, found)
        if found.code in _UNSPECIFIC:
            found = _of_words(ending, more, found)
    return PilotageError(found.code, "; ".join(part for part in (found.detail, _beside(ending)) if part))


def _told_failure(ending: Ending) -> Optional[PilotageError]:
    """A payload whose exit code is 0 although its report says that it failed."""
    report = ending.report
    if report is None or report.exit_code in (None, 0):
        return None
    words = report.words or "no words"
    detail = f"the payload ended with exit code 0, but its {JOB_REPORT} says {report.exit_code} ({words})"
    return PilotageError(ErrorCode.PAYLOAD_FAILED, detail)


def _of_signal(ending: Ending, found: PilotageError) -> PilotageError:
    """The signal that ended the payload, or a program of its shell script."""
    name, detail = ending.end.signal, found.detail
    code = ending.end.exit_code
    if name is None and code is not None and code - 128 in SHELL_SIGNALS:
        name = signal.Signals(code - 128).name
        detail = f"a program of the payload was ended by {name} (exit code {code})"
    if name is None:
        return found
    if name == "SIGKILL" and ending.oom_kills:
        detail = f"{detail}: the kernel killed {ending.oom_kills} process(es) here for want of memory"
        return PilotageError(ErrorCode.OUT_OF_MEMORY, detail)
    known = SIGNAL_ERRORS.get(name)
    if known is None and ending.end.core:
        return PilotageError(ErrorCode.CORE_DUMP, detail)
    return PilotageError(known or ErrorCode.KILL_SIGNAL, detail)


def _of_words(ending: Ending, more: Sequence[KnownMessage], found: PilotageError) -> PilotageError:
    said = known_message(ending.stdout, ending.stderr, more)
    if said is None:
        return found
    code, line = said
    return PilotageError(code, f"{found.detail}: {line.strip()}")


def _beside(ending: Ending) -> str:
    """What else a person wants to know."""
    parts = []
    if ending.report is not None and ending.report.words:
        parts.append(f"{JOB_REPORT} says {ending.report.words}")
    if ending.cores:
        parts.append(f"core dumped: {', '.join(ending.cores)}")
    elif ending.end.core:
        parts.append("core dumped")
    return "; ".join(parts)


def core_dumps(work_dir: Path) -> list[str]:
    """The names of the core dumps in the payload's folder: regular files that are called so, none through a link."""
    try:
        entries = sorted(work_dir.iterdir())
    except OSError:
        return []
    return [entry.name for entry in entries if is_core_dump(entry.name) and not entry.is_symlink() and entry.is_file()]


def is_core_dump(name: str) -> bool:
    """Whether a file of this name is taken for a core dump."""
    return _CORE.fullmatch(name) is not None
