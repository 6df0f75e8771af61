"""What a payload can see of its pilot and of other jobs: a payload that looks everywhere is run in each way there is."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import pytest

from tests.integration.a_pilot import SECRET
from tests.services.apptainer import Apptainer

ROOT = Path(__file__).parents[2]
#: Looks for the secret in all places where a pilot's could be found, and tries to act on the pilot. It must not hold
#: the secret itself, hence the brackets. busybox understands it.
INTRUDER = r"""
secret='to[p]-secret'
found() { echo "FOUND $*"; }
look() { timeout 2 cat "$1" 2>/dev/null </dev/null | tr '\0' '\n' | grep -q "$secret" && found "$1"; }
[ "$$" != "$TARGET" ] || found "the pilot's own number"
env | grep -q "$secret" && found environment
for name in secret pilot.log spool/7.token jobs/job-other/work/data jobs/job-other/tmp/data jobs/job-other/bin/data \
    jobs/job-other/stdout; do look "$TARGET_DIR/$name"; done
for folder in "$TARGET_DIR" "$TARGET_DIR/jobs" "$TARGET_DIR/jobs/job-other" "$TARGET_DIR/jobs/job-other/work"; do
    ls "$folder" 2>/dev/null | grep -q -e secret -e other -e data && found "list of $folder"
    (: >"$folder/intruder") 2>/dev/null
done
for process in /proc/[0-9]*; do
    look "$process/environ"
    for descriptor in "$process"/fd/*; do
        case $(readlink "$descriptor" 2>/dev/null) in "$TARGET_DIR"/secret) look "$descriptor" ;; esac
    done
    case ${process#/proc/} in "$TARGET" | "$SUPERVISOR")
        ls "$process/cwd/" 2>/dev/null | grep -q . && found "$process/cwd"
        ls "$process/root/" 2>/dev/null | grep -q . && found "$process/root"
        look "$process/root$TARGET_DIR/secret"
        (exec 3<"$process/mem") 2>/dev/null && found "$process/mem"
        (exec 3>"$process/mem") 2>/dev/null && found "write to $process/mem"
        ;;
    esac
done
kill -0 "$TARGET" 2>/dev/null && found "signal to the pilot"
grep -q " @.*pilot" /proc/net/unix && found "abstract socket"
(: >>/proc/sys/kernel/core_pattern) 2>/dev/null && found "write to core_pattern"
(: >>/sys/kernel/mm/transparent_hugepage/enabled) 2>/dev/null && found "write to /sys"
echo "processes $(ls -d /proc/[0-9]* | wc -l)"
"""


@dataclass
class Ran:
    """A pilot's process and what it said."""

    root: Path
    process: subprocess.Popen[str]
    started: dict[str, Any]
    end: dict[str, Any] = field(default_factory=dict)

    def wait(self) -> dict[str, Any]:
        out, _ = self.process.communicate(timeout=240)
        self.end = json.loads(out.splitlines()[-1])
        return self.end

    @property
    def found(self) -> list[str]:
        lines = [line for line in self.end["stdout"].splitlines() if line.startswith("FOUND ")]
        assert "processes " in self.end["stdout"], f"the payload did not come to its end: {self.end}"
        # A container has folders of its own by the names of those that lead to what is bound: the host's are looked at.
        lines += [f"FOUND write to {path}" for path in self.root.rglob("intruder") if "job-mine" not in path.parts]
        return [line.removeprefix("FOUND ") for line in lines]


class Host:
    """Starts pilots, each in a folder of its own, which other users can get at unless the pilot closes it."""

    def __init__(self, folder: Path, apptainer: Apptainer, image: Path) -> None:
        self.folder = folder
        self.apptainer = apptainer
        self.image = image
        self.ran: list[Ran] = []

    def start(self, command: str, *, image: bool = False, users: tuple[str, ...] = (), **more: Any) -> Ran:
        root = self.folder / uuid.uuid4().hex
        order = {
            "root": str(root),
            "command": command,
            "image": str(more.get("image_path", self.image)) if image else None,
            "apptainer": self.apptainer.binary,
            "users": list(users),
            "binds": more.get("binds", []),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.a_pilot", json.dumps(order)],
            env={"PATH": os.environ["PATH"], "BEARER_TOKEN": SECRET, "X509_USER_PROXY": SECRET},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        ran = Ran(root, process, json.loads(process.stdout.readline() or "{}"))
        self.ran.append(ran)
        return ran

    def run(self, command: str, **more: Any) -> Ran:
        ran = self.start(command, **more)
        ran.wait()
        return ran

    def close(self) -> None:
        for ran in self.ran:
            if ran.process.poll() is None:
                ran.process.kill()
            ran.process.communicate()


@pytest.fixture
def host(apptainer: Apptainer, busybox_image: Path, services_folder: Path) -> Iterator[Host]:
    host = Host(services_folder, apptainer, busybox_image)
    yield host
    host.close()


@pytest.fixture
def users(payload_users: tuple[str, str]) -> tuple[str, str]:
    return payload_users


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        select.select([], [], [], 0.02)


def test_real_isolation_the_intruder_finds_what_there_is_to_find(host: Host) -> None:
    """Without container and account, as on a trusted queue, the payload is the pilot's own user: it finds everything."""
    found = host.run(INTRUDER).found
    for what in (
        "/secret",
        "pilot.log",
        "spool/7.token",
        "job-other/work/data",
        "/environ",
        "/cwd",
        "/mem",
        "signal",
        "write to",
    ):
        assert any(what in line for line in found), f"{what} is not among {found}"


def test_real_isolation_in_a_container_nothing_is_seen(host: Host) -> None:
    ran = host.run(INTRUDER, image=True)
    assert ran.found == []


def test_real_isolation_as_another_user_nothing_is_seen(host: Host, users: tuple[str, str]) -> None:
    ran = host.run(INTRUDER + "\nid -un", users=users)
    assert ran.found == [] and ran.end["stdout"].splitlines()[-1] == users[0]


def test_real_isolation_in_a_container_as_another_user_nothing_is_seen(host: Host, users: tuple[str, str]) -> None:
    ran = host.run(INTRUDER + "\ncat /proc/self/uid_map", users=users, image=True)
    assert ran.found == []
    assert ran.end["stdout"].splitlines()[-1].split()[1] != "0", "not even root in a namespace of its own"


def test_real_isolation_namespaces_and_privileges_of_a_container(host: Host) -> None:
    """Apptainer leaves out what its configuration forbids without a word: each is looked at from inside."""
    script = "for n in pid ipc mnt user; do readlink /proc/self/ns/$n; done; cat /proc/self/status; ls -d /proc/[0-9]* | wc -l; cat /proc/1/comm"
    ran = host.run(script, image=True)
    lines = ran.end["stdout"].splitlines()
    for kind, inside in zip(("pid", "ipc", "mnt"), lines):
        assert inside.startswith(f"{kind}:[") and inside != str(Path(f"/proc/self/ns/{kind}").readlink())
    status = dict(line.split(":\t") for line in lines if ":\t" in line)
    assert set(status["CapEff"]) == set(status["CapBnd"]) == {"0"} and status["NoNewPrivs"] == "1"
    assert lines[-1] == "appinit" and int(lines[-2]) <= 6, "it sees its own processes only"


def test_real_isolation_scratch_is_writable_and_as_large_as_the_disk(host: Host) -> None:
    """Apptainer's own /tmp is 64 MB in memory."""
    script = "for d in /tmp /var/tmp $TMPDIR $HOME .; do echo x >$d/probe || echo no $d; done; dd if=/dev/zero of=/tmp/big bs=1M count=100 && ls -l $TMPDIR"
    ran = host.run(script, image=True)
    assert ran.end["exit_code"] == 0 and "104857600" in ran.end["stdout"] and "no " not in ran.end["stdout"]


def test_real_isolation_get_file_and_logs_work_as_another_user(host: Host, users: tuple[str, str]) -> None:
    script = (
        "$PILOTAGE_PATH/pilotage-get-file; echo again >>/dev/stdout; echo out >out.dat; (echo x >$PILOTAGE_PATH/x) 2>&1"
    )
    ran = host.run(script, users=users)
    said = ran.end["stdout"].splitlines()
    assert said[:2] == ["s:a /data/a DISK", "again"] and "ermission denied" in said[2], ran.end
    work = next(host.folder.glob("*/jobs/job-mine/work/out.dat"))
    assert work.stat().st_uid == os.geteuid(), "it was taken back, so that it can be uploaded"


DAEMON = """
echo up >up; (setsid sh -c 'trap "" TERM HUP; (setsid sleep 300) & exec sleep 300' &) ; {then}
"""


def processes_of(mark: str) -> list[int]:
    """Living processes with that word in their command line."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and mark in (path / "cmdline").read_text() and int(path.name) != os.getpid():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def session_of(leader: int) -> list[str]:
    """The names of the living processes of a session."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            name, _, rest = (path / "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        if int(rest.split()[3]) == leader and rest.split()[0] not in "ZX":
            found.append(name)
    return found


@pytest.mark.parametrize("image", [False, True], ids=["another user", "container"])
def test_real_isolation_daemons_die_with_the_payload(host: Host, request: pytest.FixtureRequest, image: bool) -> None:
    users = () if image else request.getfixturevalue("users")
    seconds = f"{3600 + uuid.uuid4().int % 100000}"
    ran = host.run(DAEMON.replace("300", seconds).format(then="sleep 0.3"), image=image, users=users)
    assert ran.end["exit_code"] == 0, ran.end
    assert processes_of(f"sleep\0{seconds}") == []


@pytest.mark.parametrize("victims", [("pid",), ("supervisor",), ("supervisor", "pid"), ("pid", "supervisor")])
@pytest.mark.parametrize("how", ["another user", "container", "sif"])
def test_real_isolation_kill_9_leaves_no_payload(
    host: Host, request: pytest.FixtureRequest, how: str, victims: tuple[str, ...]
) -> None:
    users = request.getfixturevalue("users") if how == "another user" else ()
    image: Optional[Path] = request.getfixturevalue("busybox_sif") if how == "sif" else host.image
    seconds = f"{3600 + uuid.uuid4().int % 100000}"
    ran = host.start(f"sleep {seconds}", image=how != "another user", users=users, image_path=image)
    until(lambda: processes_of(f"sleep\0{seconds}"))
    for victim in victims:
        os.kill(ran.started[victim], signal.SIGKILL)
    # Apptainer's own process names the payload's image, the process that serves a SIF is in its session.
    until(lambda: processes_of(f"sleep\0{seconds}") == [] and session_of(ran.started["supervisor"]) == [])
