"""The supervisor: one small process per job that holds the payload's process tree.

Run as ``python -I -S -X utf8 supervisor.py``; standard library only, single-threaded, no import of this project, so
that it starts in milliseconds and stays small. It waits for events only: a line or the end of its stdin, SIGCHLD
(through a wake-up pipe), and the timers of a kill.

It reads one JSON object per line from stdin. The first is the payload: ``argv``, ``cwd``, ``env``, ``stdout``,
``stderr``, and optionally ``user`` (``uid``, ``gid``, ``groups`` to run as), ``umask``, ``nice`` and ``around``: processes around the payload, each with ``label``, ``when``
(``before``, ``beside``, ``after``), ``argv``, ``stdout``, ``stderr``, ``timeout_s`` and ``vital``. Those before run one
after another, then the payload with those beside it, which are told to end when it has ended, then those after, with
the payload's exit code in the variable that ``exit_code_as`` names. A vital one that fails ends everything. Later lines
are commands::

    {"kill": {"grace_s": 5, "why": "memory"}}   SIGTERM to the whole tree, after the grace SIGKILL to what is left
    {"signal": "SIGUSR1"}                       to the payload's main process

The end of stdin means that the pilot died, however it died: the tree is killed at once. To stdout it writes
``{"started": {"pid"}}`` and ``{"ended": {...}}``, or ``{"failed": {"stage", "errno", "message"}}`` when the payload
could not be started (stage ``exec``: the payload's program; ``prepare``: its surroundings).

How the tree is held: the supervisor is a child subreaper, so every orphan of the payload, daemons that forked twice
and left their session included, becomes its child, and a walk over /proc from the supervisor finds them all. It
ignores SIGTERM, SIGINT and SIGHUP: the pilot decides. Should the supervisor itself be killed with SIGKILL, the kernel
kills the payload's main process (PR_SET_PDEATHSIG), and the pilot the rest (:mod:`pilot.supervised`), or the guard, if
the pilot was killed, too (:mod:`pilot.guard`). The limit of the first: the kernel forgets PR_SET_PDEATHSIG when the
payload executes a set-uid program, changes its user or makes a user namespace, and it never holds for grandchildren.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # keeps the heavy typing module's names out of the start-up path
    from typing import Any, NoReturn, Optional

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
READ_SIZE = 65536
#: Between SIGTERM and SIGKILL for a process around the payload that has to end.
SIDE_GRACE_S = 5.0
#: Seconds after which a killed tree is looked at again, should no SIGCHLD tell of its end (grandchildren in a
#: sleep that cannot be interrupted).
RESCAN_S = 0.05
WHEN = ("before", "beside", "after")
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class SpawnFailed(Exception):
    """The payload could not be started; ``stage``, ``errno`` and ``message`` go to the pilot."""

    def __init__(self, stage: str, errno: Optional[int], message: str) -> None:
        super().__init__(message)
        self.stage = stage
        self.errno = errno
        self.message = message


def prctl(option: int, value: int) -> None:
    """Calls prctl(2). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "prctl")


def descendants(root: int) -> dict[int, int]:
    """The living (not zombie) processes below ``root`` and their process groups, found by one walk over /proc."""
    children: dict[int, list[int]] = {}
    groups: dict[int, int] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 (pathlib is not worth its import time here)
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as stream:  # noqa: PTH123
                state, ppid, group = stream.read().rsplit(b")", 1)[1].split()[:3]
        except (OSError, IndexError):
            continue  # ended while we looked
        children.setdefault(int(ppid), []).append(int(name))
        if state not in (b"Z", b"X"):
            groups[int(name)] = int(group)
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return {pid: groups[pid] for pid in found if pid in groups}


def send(pid: int, number: int) -> None:
    """Sends a signal to a process, or a group (negative); one that has just ended, or is another user's, is left."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def open_log(path: str) -> int:
    """Opens a log file of the payload for appending; never through a link."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)


def become_user(user: dict[str, Any], parent: int, logs: tuple[int, ...]) -> None:
    """Turns this process into another user's for good; ``logs`` are opened to that user's group, so that a payload can
    open its /dev/stdout again. Raises OSError."""
    for fd in logs:
        os.fchown(fd, -1, user["gid"])
        os.fchmod(fd, 0o660)
    os.setgroups(user["groups"])
    os.setresgid(user["gid"], user["gid"], user["gid"])
    os.setresuid(user["uid"], user["uid"], user["uid"])
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user makes the kernel forget it
    if os.getppid() != parent:
        os._exit(1)


def become_payload(spec: dict[str, Any], parent: int, error_fd: int) -> NoReturn:
    """The child's side of the fork: sets everything up and executes the payload, or writes why not to ``error_fd``."""
    stage = "prepare"
    try:
        signal.set_wakeup_fd(-1)
        # All: whoever started the pilot (a shell's background, nohup, a batch system) may have had some ignored.
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the supervisor died before the line above took hold
            os._exit(1)
        os.nice(int(spec.get("nice", 0)))
        logs = (open_log(spec["stdout"]), open_log(spec["stderr"]))
        if spec.get("user") is not None:
            become_user(spec["user"], parent, logs)
        os.umask(int(spec.get("umask", 0o022)))
        os.chdir(spec["cwd"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(logs[0], 1)
        os.dup2(logs[1], 2)
        stage = "exec"
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        answer = {"stage": stage, "errno": getattr(error, "errno", None), "message": f"{error}"}
        os.write(error_fd, json.dumps(answer).encode())
    finally:
        os._exit(127)


def spawn(spec: dict[str, Any]) -> int:
    """Starts the payload and answers its pid. Raises SpawnFailed."""
    error_read, error_write = os.pipe()  # both close on exec: the end of the stream is the sign of success
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        become_payload(spec, parent, error_write)
    os.close(error_write)
    answer = b""
    while True:
        piece = os.read(error_read, READ_SIZE)
        if not piece:
            break
        answer += piece
    os.close(error_read)
    if answer:
        os.waitpid(pid, 0)
        raise SpawnFailed(**json.loads(answer))
    return pid


class Side:
    """A process around the payload, from its description to its end. ``deadline`` is when its time is up; ``told`` says
    that it was asked to end, ``timed_out`` that this was because of its time."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.said = said
        self.when = str(said["when"])
        self.pid = 0
        self.deadline: Optional[float] = None
        self.told = False
        self.timed_out = False
        self.status: Optional[int] = None
        self.problem: Optional[str] = None

    @property
    def failed(self) -> bool:
        """Whether it did not do what it should: how one ends that the end of the payload ended does not count."""
        ended_badly = self.status not in (None, 0) and not self.told
        return self.problem is not None or self.timed_out or ended_badly

    def end(self, hard: bool) -> None:
        """SIGTERM, or SIGKILL, to it and all below it; SIGKILL is due after the grace."""
        number = signal.SIGKILL if hard else signal.SIGTERM
        below = descendants(self.pid)
        send(-self.pid, number)
        for pid in below:
            send(pid, number)
        self.told = True
        self.deadline = None if hard else time.monotonic() + SIDE_GRACE_S

    def outcome(self) -> dict[str, Any]:
        """For the pilot."""
        status = self.status if self.status is not None else 0
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        ended = self.status is not None and number is None
        return {
            "label": self.said["label"],
            "exit_code": os.WEXITSTATUS(status) if ended else None,
            "signal": None if number is None else signal_name(number),
            "timed_out": self.timed_out,
            "failed": self.failed,
            "problem": self.problem,
        }


class Supervisor:
    """Holds one payload, and the processes around it, from the first's start to the end of the last process. ``held``
    are descriptors that it keeps for nobody else: their closing tells the guard of its death."""

    def __init__(self, control: int, report: int, held: tuple[int, ...] = ()) -> None:
        self._control = control
        self._held = held
        self._report = report
        self._pending = b""
        self._pilot_gone = False
        self._spec: dict[str, Any] = {}
        self._queue: list[Optional[Side]] = []
        self._beside: list[Side] = []
        self._running: dict[int, Optional[Side]] = {}
        self._sides: list[Side] = []
        self._failed: Optional[SpawnFailed] = None
        self._begun = False
        self._pid = 0
        self._started = 0.0
        self._wall_s = 0.0
        self._status: Optional[int] = None
        self._killed: Optional[str] = None
        self._deadline: Optional[float] = None
        self._hard = False
        self._left_behind = 0
        self._empty = False

    def run(self) -> int:
        """Reads the payload's description, runs it, and answers this process's exit code."""
        wake = self._set_up()
        spec = self._read_spec()
        if spec is None:
            return 1
        self._spec = spec
        sides = [Side(said) for said in spec.get("around", ())]
        before, self._beside, after = ([side for side in sides if side.when == when] for when in WHEN)
        self._queue = [*before, None, *after]
        self._go_on()
        self._watch(wake)
        if self._pilot_gone:
            return 0
        error = self._failed
        if error is not None:
            self._say({"failed": {"stage": error.stage, "errno": error.errno, "message": error.message}})
        else:
            self._say({"ended": self._end()})
        return 0

    # ------------------------------------------------------------ one after another

    @property
    def _stopping(self) -> bool:
        """Whether nothing new may begin."""
        return self._hard or self._pilot_gone or self._deadline is not None or self._failed is not None

    def _go_on(self) -> None:
        """Start what is due, when what ran before has ended."""
        while self._queue and not self._running and not self._stopping:
            side = self._queue.pop(0)
            if side is not None:
                self._start_side(side)
                continue
            try:
                self._pid = spawn(self._spec)
            except SpawnFailed as error:
                self._failed = error
                return
            self._started = time.monotonic()
            self._began(self._pid, None)
            for beside in self._beside:
                self._start_side(beside)

    def _start_side(self, side: Side) -> None:
        spec = {**self._spec, **{name: side.said[name] for name in ("argv", "stdout", "stderr")}}
        if side.when == "after":
            spec["env"] = {**spec["env"], str(spec["exit_code_as"]): str(shell_code(self._status or 0))}
        self._sides.append(side)
        try:
            side.pid = spawn(spec)
        except SpawnFailed as error:
            side.problem = error.message
            self._side_over(side)
            return
        if side.said["timeout_s"]:
            side.deadline = time.monotonic() + float(side.said["timeout_s"])
        self._began(side.pid, side)

    def _began(self, pid: int, side: Optional[Side]) -> None:
        self._running[pid] = side
        self._empty = False
        if side is None or not self._begun:
            self._say({"started": {"pid": pid}})
        self._begun = True

    def _side_over(self, side: Side) -> None:
        """What the end of a process around the payload means for all others."""
        if not side.failed or not side.said["vital"]:
            return
        if side.when == "beside" and self._status is None:
            self._kill(f"the process {side.said['label']} failed", SIDE_GRACE_S)
        else:
            self._queue.clear()

    def _payload_over(self, status: int) -> None:
        self._status = status
        self._wall_s = time.monotonic() - self._started
        for side in self._running.values():
            if side is not None and not self._stopping:
                side.end(hard=False)

    def _end_late_sides(self) -> None:
        """Those whose time is up are told to end, and killed when they don't."""
        now = time.monotonic()
        for side in self._running.values():
            if side is not None and side.deadline is not None and now >= side.deadline:
                side.timed_out = side.timed_out or not side.told
                side.end(hard=side.told)

    def _set_up(self) -> int:
        """Makes this process what the module says; answers the fd that becomes readable at a signal."""
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        for fd in self._held:
            os.set_inheritable(fd, False)
        if os.getsid(0) != os.getpid():
            os.setsid()
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        return wake_read

    def _read_spec(self) -> Optional[dict[str, Any]]:
        while b"\n" not in self._pending:
            piece = os.read(self._control, READ_SIZE)
            if not piece:
                return None
            self._pending += piece
        line, self._pending = self._pending.split(b"\n", 1)
        spec: dict[str, Any] = json.loads(line)
        return spec

    def _watch(self, wake: int) -> None:
        """Waits for events until no process of the tree is left."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(wake, select.POLLIN)
        self._commands()
        while not self._empty:
            for fd, _events in poll.poll(self._timeout_ms()):
                if fd == wake:
                    os.read(wake, READ_SIZE)
                elif not self._read_control():
                    poll.unregister(self._control)
            self._reap()
            self._end_late_sides()
            self._go_on()
            self._advance()

    def _timeout_ms(self) -> Optional[float]:
        if self._hard:
            return RESCAN_S * 1000
        times = [side.deadline for side in self._running.values() if side is not None]
        due = [moment for moment in (self._deadline, *times) if moment is not None]
        return max(0.0, min(due) - time.monotonic()) * 1000 + 1 if due else None

    def _read_control(self) -> bool:
        """Reads what the pilot says; False at the end of the stream."""
        piece = os.read(self._control, READ_SIZE)
        if not piece:
            self._pilot_gone = True
            return False
        self._pending += piece
        self._commands()
        return True

    def _commands(self) -> None:
        while b"\n" in self._pending:
            line, self._pending = self._pending.split(b"\n", 1)
            command = json.loads(line)
            if "kill" in command:
                self._kill(str(command["kill"]["why"]), float(command["kill"]["grace_s"]))
            elif "signal" in command and self._status is None and self._pid:
                send(self._pid, signal.Signals[command["signal"]])

    def _kill(self, why: str, grace_s: float) -> None:
        if self._status is None and self._killed is None:
            self._killed = why
        deadline = time.monotonic() + grace_s
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
        if grace_s > 0:
            for pid in descendants(os.getpid()):
                send(pid, signal.SIGTERM)
                send(pid, signal.SIGCONT)  # a stopped process could not act on the first

    def _reap(self) -> None:
        while True:
            try:
                pid, status, _usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                self._empty = True
                return
            if pid == 0:
                return
            if pid not in self._running:
                continue
            side = self._running.pop(pid)
            if side is None:
                self._payload_over(status)
            else:
                side.status = status
                self._side_over(side)

    def _advance(self) -> None:
        """Decides whether it is time for SIGKILL, and sends it."""
        if self._empty:
            return
        ended = not self._running and (self._stopping or not self._queue)
        over = self._deadline is not None and time.monotonic() >= self._deadline
        if self._hard or self._pilot_gone or over or (ended and self._deadline is None):
            if not self._hard:
                self._left_behind = len(descendants(os.getpid())) if ended else 0
                for pid in {self._pid, *self._running} - {0}:
                    # unseen: a walk can miss all of a group that forks and ends all the time
                    send(-pid, signal.SIGKILL)
            self._hard = True
            self._kill_tree()

    def _kill_tree(self) -> None:
        """SIGKILL to all, whole process groups first: that is one step for the kernel, which no member can escape by
        forking, while a walk over pids never catches up with a tree that keeps forking. Repeated until a walk shows
        nobody new. Out of reach stays a tree in which every process forks *and* opens a group of its own."""
        seen: set[int] = set()
        while True:
            fresh = {pid: group for pid, group in descendants(os.getpid()).items() if pid not in seen}
            if not fresh:
                return
            for group in set(fresh.values()) - {os.getpgrp(), 0}:
                send(-group, signal.SIGKILL)
            for pid in fresh:
                send(pid, signal.SIGKILL)
            seen.update(fresh)

    def _end(self) -> dict[str, Any]:
        ran = self._status is not None
        status = self._status if self._status is not None else 0
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            "exit_code": os.WEXITSTATUS(status) if ran and number is None else None,
            "signal": None if number is None else signal_name(number),
            "core": os.WCOREDUMP(status),
            "sides": [side.outcome() for side in self._sides],
            "killed": self._killed,
            "wall_s": round(self._wall_s, 3),
            "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
            "max_rss_kb": usage.ru_maxrss,
            "left_behind": self._left_behind,
        }

    def _say(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._report, data) :]
        except BrokenPipeError:
            self._pilot_gone = True


def shell_code(status: int) -> int:
    """The exit code as a shell would tell it: 128 + n for signal n."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def signal_name(number: int) -> str:
    """``SIGSEGV`` for 11; ``SIG40`` for one that has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


if __name__ == "__main__":
    code = Supervisor(control=0, report=1, held=tuple(int(word) for word in sys.argv[1:])).run()
    sys.stderr.flush()
    os._exit(code)  # skips the interpreter's tear-down: the pilot waits for this process
