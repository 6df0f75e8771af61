"""The small process around a local worker: runs its pilot and writes down how it ended.

Run as a file of its own by ``python -I -S`` with the worker's folder and then the command, in a session of its own.
It needs nothing but the standard library, outlives harvester, and leaves in the folder:

* ``process``: who it is. Made with a link, which only one process can win: a second wrapper for the same worker, however
  it came to be started, sees the file and leaves without running anything.
* ``stdout``, ``stderr``: what the pilot wrote.
* ``exit``: how the pilot ended.
"""

import json
import os
import signal
import sys

FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)
NOT_STARTED = 127
"""Exit code of a command that could not be started, as in the shell."""


def identity(pid: int) -> "tuple[int, str, int]":
    """Start time in clock ticks since boot, state letter and session of a process, from ``/proc``.

    Ticks since boot name a process together with its pid: unlike a time of day they never change.
    Raises OSError when there is no such process.
    """
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123 - no pathlib: every worker pays for it
        fields = file.read().rpartition(")")[2].split()
    return int(fields[19]), fields[0], int(fields[3])


def boot_id() -> str:
    """The name of this run of the machine: after a reboot, pids and ticks begin again."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123 - as above
        return file.read().strip()


def _write(name: str, content: "dict[str, object]") -> str:
    temporary = f"{name}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, json.dumps(content).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return temporary


def _claim(folder: str) -> bool:
    """Whether this is the one wrapper of the worker."""
    pid = os.getpid()
    temporary = _write(f"{folder}/process", {"pid": pid, "ticks": identity(pid)[0], "boot": boot_id()})
    try:
        os.link(temporary, f"{folder}/process")
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)  # noqa: PTH108 - as above
    return True


def _start(folder: str, command: "list[str]") -> int:
    write = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawnp(
        command[0],
        command,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, f"{folder}/stdout", write, 0o600),
            (os.POSIX_SPAWN_OPEN, 2, f"{folder}/stderr", write, 0o600),
        ],
        setsigmask=[],
        # Python ignores the last two, and what is ignored is inherited.
        setsigdef={*FORWARDED, signal.SIGPIPE, signal.SIGXFSZ},
    )


def _wait(pid: int) -> int:
    """Hand signals on until the child has ended; its wait status."""
    while True:
        number = signal.sigwait({*FORWARDED, signal.SIGCHLD})
        if number != signal.SIGCHLD:
            os.kill(pid, number)
            continue
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status


def main(folder: str, command: "list[str]") -> int:
    """Run ``command``; the exit code of this process is of no interest to anybody."""
    # Blocked before anything else, so that no signal is lost between here and the wait.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    if not _claim(folder):
        return 0
    try:
        pid = _start(folder, command)
    except OSError as error:
        how: dict[str, object] = {"exit_code": NOT_STARTED, "reason": f"{command[0]}: {error.strerror}"}
    else:
        code = os.waitstatus_to_exitcode(_wait(pid))
        how = {"exit_code": code} if code >= 0 else {"signal": -code}
    os.replace(_write(f"{folder}/exit", how), f"{folder}/exit")  # noqa: PTH105 - as above
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
