"""What a process is doing right now, for people: its stacks by gdb, else what the kernel tells of its threads.

gdb runs with an empty environment and none of the user's or the payload's settings. What it reads belongs to the payload:
it runs as the payload's user, so that a payload with an account of its own gains nothing by what it makes gdb read.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from pilot.watch.files import free_bytes
from pilot.watch.processes import ProcessGone, ProcessSeen, owners, read_process

CORE = "core"
GDB_S = 45.0
"""gdb is given up after so long: it has to read the symbols of large programs."""
MOST_PROCESSES = 10
MOST_BYTES = 1024 * 1024
MB = 1024 * 1024
_SETTINGS = ("set auto-load off", "set pagination off", "set print frame-arguments none", "set confirm off")
_STOPPED = ("T", "t")
_FORBIDDEN = "ptrace: Operation not permitted"


def find_gdb(path: str = os.defpath) -> Optional[str]:
    """gdb, if it is installed on the node."""
    return shutil.which("gdb", path=path)


def stack_of(seen: ProcessSeen, core: Optional[Path] = None, gdb: Optional[str] = None) -> str:
    """The stacks of all threads of a process; the process goes on afterwards. With ``core`` its memory is written there
    too. Without ``gdb`` (its path): what the kernel says."""
    text = f"process {seen.pid} {seen.name}, state {seen.state}, {seen.threads} threads, {seen.rss / MB:.1f} MiB\n"
    if gdb is None:
        return (
            text + "gdb is not installed on this node: where the kernel says that each thread waits\n" + _threads(seen)
        )
    try:
        user = _user_of(seen.pid)
    except ProcessGone:
        return text + "it has ended\n"
    if user is None:
        return text + "it runs with another user's rights: gdb is kept away from it\n"
    commands = [f"generate-core-file {core}"] if core is not None else []
    arguments = [gdb, "-nx", "-batch"]
    for setting in _SETTINGS:
        arguments += ["-iex", setting]
    for command in (*commands, "thread apply all bt 100"):
        arguments += ["-ex", command]
    return text + _run([*arguments, "-p", str(seen.pid)], seen, user)


def _user_of(pid: int) -> Optional[tuple[int, int]]:
    """User and group of a process; None when it has other rights than those of who started it. Raises ProcessGone."""
    users, groups = owners(pid)
    return (users[0], groups[0]) if len({*users}) == 1 and len({*groups}) == 1 else None


def _run(arguments: list[str], seen: ProcessSeen, user: tuple[int, int]) -> str:
    """gdb's words. A process that gdb left stopped, because it was given up, goes on."""
    # Only root can become the payload's user, and only root may have one that is not its own.
    other: dict[str, Any] = {}
    if os.geteuid() == 0 and user[0] != 0:
        other = {"user": user[0], "group": user[1], "extra_groups": []}
    try:
        process: subprocess.Popen[bytes] = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": os.defpath, "LC_ALL": "C", "HOME": "/", "DEBUGINFOD_URLS": ""},
            cwd="/",
            start_new_session=True,
            **other,
        )
    except OSError as error:
        return f"gdb could not be started: {error}\n"
    try:
        output, _ = process.communicate(timeout=GDB_S)
        more = ""
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        more = f"\ngdb was given up after {GDB_S:.0f} s\n"
    _let_go_on(seen)
    text = output[:MOST_BYTES].decode("utf-8", "replace") + more
    if _FORBIDDEN in text:
        text += "this node forbids it (sysctl kernel.yama.ptrace_scope): where the kernel says that each thread waits\n"
        text += _threads(seen)
    return text


def _let_go_on(seen: ProcessSeen) -> None:
    try:
        now = read_process(seen.pid)
        if now.start == seen.start and now.state in _STOPPED and seen.state not in _STOPPED:
            os.kill(seen.pid, signal.SIGCONT)
    except (ProcessGone, ProcessLookupError, PermissionError):
        return  # it has ended meanwhile


def _threads(seen: ProcessSeen) -> str:
    lines = []
    try:
        folders = sorted(Path(f"/proc/{seen.pid}/task").iterdir(), key=lambda folder: int(folder.name))
    except OSError:
        return "it has ended\n"
    for folder in folders:
        try:
            words = [(folder / part).read_text(errors="replace").strip() for part in ("comm", "wchan", "syscall")]
        except OSError as error:
            words = [str(error.strerror)]
        lines.append(f"thread {folder.name}: {' | '.join(words)}")
    return "\n".join(lines) + "\n"


def keep_evidence(processes: Sequence[ProcessSeen], folder: Path, core_mb: int) -> list[Path]:
    """Write the stacks of a payload's processes, and the core of the one that uses most CPU time, into ``folder``; the
    files that were written. Takes up to minutes; what cannot be had is left out.

    A core is written only of a process of at most ``core_mb`` MiB (0: of none), and if it leaves as much space free.
    """
    gdb = find_gdb()
    folder.mkdir(mode=0o700, exist_ok=True)
    stacks, core = folder / "stacks.txt", folder / CORE
    busiest = sorted(processes, key=lambda seen: seen.cpu_s, reverse=True)[:MOST_PROCESSES]
    with stacks.open("w", encoding="utf-8") as stream:
        for number, seen in enumerate(busiest):
            wanted = core if number == 0 and gdb is not None and _fits(seen, folder, core_mb) else None
            stream.write(stack_of(seen, wanted, gdb) + "\n")
        if len(processes) > len(busiest):
            stream.write(f"{len(processes) - len(busiest)} other processes are left out\n")
    return [path for path in (stacks, core) if path.exists()]


def _fits(seen: ProcessSeen, folder: Path, core_mb: int) -> bool:
    free = free_bytes(folder)
    try:
        user = _user_of(seen.pid)
    except ProcessGone:
        return False
    if user is None or user[0] != os.geteuid():  # it could not write it where the pilot keeps it
        return False
    return seen.rss <= core_mb * MB and free is not None and free > 2 * seen.rss
