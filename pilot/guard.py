"""The last belt of a payload: should both its pilot and its supervisor be killed with SIGKILL, a shell that waits for
nothing else kills what they leave.

The kernel's own word for it, PR_SET_PDEATHSIG, does not do: it holds for one process, and is forgotten when that one
enters a user namespace, as Apptainer does. A shell takes a tenth of the memory of a second Python.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Optional

#: Reads from a pipe whose other end pilot and supervisor hold, and the kernel closes when both are dead. A word means
#: that all is over. Its arguments: the session of the supervisor, what the environment of each process of the payload has,
#: and when the supervisor began, which closes its end a while before it leaves /proc, where a zombie can stay for long:
#: a process of its number that began at another time is somebody else's, and so is that session.
SCRIPT = r"""
trap '' TERM INT HUP QUIT
read -r word && exit 0
began() {
    read -r line 2>/dev/null <"/proc/$1/stat" || return
    set -- "" "" ${line##*) }
    echo "${22}"
}
rounds=0
while [ $rounds -lt 100 ]; do
    rounds=$((rounds + 1)) found= now=$(began "$1")
    [ -z "$now" ] || [ "$now" = "$3" ] && session=$1 || session=none
    for process in /proc/[0-9]*; do
        [ "${process#/proc/}" != $$ ] && read -r line 2>/dev/null <"$process/stat" || continue
        set -- "$1" "$2" "$3" ${line##*) }
        [ "$4" != Z ] || continue
        if [ "$7" = "$session" ] || grep -qaF "$2" "$process/environ" 2>/dev/null; then
            kill -9 "${process#/proc/}" 2>/dev/null && found=yes
        fi
    done
    [ -n "$found" ] || exit 0
done
"""
DONE = b"done\n"


def _began(pid: int) -> str:
    """When that process began, in the kernel's ticks since its start (field 22 of proc(5)'s stat); "" if it has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


class Guard:
    """Watches over the payload of one supervisor. Make it with :meth:`open`, before the supervisor, which inherits
    :attr:`descriptor`; then :meth:`start`."""

    def __init__(self, read: int, write: int) -> None:
        self._read = read
        self.descriptor = write
        self._process: Optional[subprocess.Popen[bytes]] = None

    @classmethod
    def open(cls) -> Guard:
        """A guard that does not watch yet. Raises OSError."""
        return cls(*os.pipe())

    def start(self, session: int, mark: str) -> None:
        """Watch over the supervisor's session and all processes with ``mark`` in their environment. Raises OSError."""
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", SCRIPT, "pilotage-guard", str(session), mark, _began(session)],
            stdin=self._read,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
            start_new_session=True,
        )

    def close(self) -> None:
        """All is over: the guard may go."""
        os.close(self._read)
        try:
            os.write(self.descriptor, DONE)
        except BrokenPipeError:  # somebody killed it
            pass
        os.close(self.descriptor)
        if self._process is not None:
            self._process.wait()
