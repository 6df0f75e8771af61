"""How arrays of workers lie where Slurm sees them, and the protocol by which a submission is found again, or ruled out.

::

    ROOT/MARK/            a worker's folder (harvester.worker_folder); besides:
        array               the array's name and the worker's place in it
        started.NAME        a line for each of its starts in that array: the array's id in Slurm
    ROOT/arrays/NAME/     an array of workers
        0, 1, …             links to the workers' folders: an element finds its own by SLURM_ARRAY_TASK_ID
        script              what Slurm runs
        go → sent → job     its submission: not begun; begun; answered with the id within
        closed              its submission was ruled out: an element that starts nevertheless leaves at once

``go`` is renamed by whoever comes first: the one that submits (to ``sent``), or the one that rules the submission out (to
``closed``), so that only one of both can happen, whoever was killed when, and whatever of a broken line arrives late.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harvester.backends.base import BackendError
from harvester.transport.base import Done, Transport, TransportError
from harvester.worker_folder import FOLDER_VARIABLE

ARRAYS, ARRAY = "arrays", "array"
SLURM_JOB = "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}"
"""An element's job, as its shell knows it."""
GONE, TAKEN = 91, 92
"""Codes of :meth:`Arrays.submit` before anything was sent: the array's folder is missing, or its ``go``."""

# sh -c SCRIPT NAME ROOT …; marks and names come on the input, a line each.
_LOOK = """
if ! cd "$1" 2>/dev/null || [ ! -d arrays ]; then echo "no root"; exit 0; fi
while read -r mark; do
  [ -f "$mark/array" ] || continue
  name=-; index=-; read -r name index <"$mark/array"
  a=arrays/$name; job=-; phase=none
  if [ -s "$a/job" ]; then read -r job <"$a/job"; phase=job
  elif [ -e "$a/closed" ]; then phase=closed
  elif [ -e "$a/sent" ]; then phase=sent
  elif [ -e "$a/go" ]; then phase=go
  fi
  started=-; [ ! -s "$mark/started.$name" ] || read -r started <"$mark/started.$name"
  echo "$mark $name $index $phase $job $started"
done
"""
_CLOSE = """
cd "$1/arrays" || exit 3
while read -r name; do
  if mv "$name/$2" "$name/closed" 2>/dev/null; then echo "$name"
  elif [ ! -e "$name/sent" ] && [ ! -e "$name/go" ] && [ ! -e "$name/job" ]; then echo "$name"
  fi
done
"""
_REOPEN = 'cd "$1/arrays" || exit 3; while read -r name; do mv "$name/closed" "$name/sent"; done'
_TAKE = 'cd "$1" 2>/dev/null || exit 91; sync -f . || exit 91; mv go sent 2>/dev/null || exit 92'
# Whoever is killed here leaves `sent` without `job`. What sbatch says goes to files: a broken line must not end it.
_SUBMIT = """
cd "$1" 2>/dev/null || { echo 91; exit 0; }
sync -f . || { echo 91; exit 0; }
mv go sent 2>/dev/null || { echo 92; exit 0; }
limit=$2; shift 2
timeout --foreground -k 2 "$limit" "$@" >answer 2>errors </dev/null
code=$?
[ "$code" != 0 ] || mv answer job
echo "$code"
cat job 2>/dev/null
cat errors >&2
"""
_KEEP = 'cd "$1" && cat >answer && mv answer job'
_CLEAN = """
cd "$1" || exit 0
names=
while read -r mark; do
  if [ -f "$mark/array" ]; then read -r name index <"$mark/array"; names="$names $name"; fi
  rm -rf "./$mark"
done
for name in $(printf '%s\\n' $names | sort -u); do
  for link in "arrays/$name"/[0-9]*; do [ -d "$link" ] && continue 2; done
  rm -rf "./arrays/$name"
done
"""
_ENTER = """\
cd -P {folder}/"${{SLURM_ARRAY_TASK_ID:-0}}" || exit 71
folder=$PWD
mark=${{folder##*/}}
export {variable}="$folder"
echo "{job}" >>started.{name}
if [ -e {folder}/closed ]; then
  echo "the submission of this worker was given up before it arrived" >&2
  exit 75
fi
"""
_WORD = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")


@dataclass(frozen=True)
class Place:
    """What is known of a worker's submission without Slurm. ``phase``: none, go, sent, job or closed."""

    array: str
    index: str
    phase: str
    job: str = ""
    started: str = ""


class Arrays:
    """The arrays in ``root``, a path of the transport's far side.

    ``state_dir``, here, remembers that there is a root: where it is gone, its file system is not mounted, and nothing is
    known of any worker.
    """

    def __init__(
        self,
        transport: Transport,
        root: str,
        state_dir: Path,
        timeout_s: float,
        read_job: Callable[[str], str] | None = None,
    ) -> None:
        self._transport = transport
        self.root = root
        self._timeout_s = timeout_s
        self._read_job = read_job or job_id
        self._made = state_dir / f"workers-dir-{hashlib.sha256(root.encode()).hexdigest()[:16]}"

    def folder(self, name: str) -> str:
        """Where an array lies."""
        return f"{self.root}/{ARRAYS}/{name}"

    def remember(self) -> None:
        """There is a root from now on. Raises OSError."""
        if not self._made.exists():
            self._made.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._made.write_text(f"{self.root}\n", encoding="utf-8")

    def look(self, marks: Iterable[str]) -> dict[str, Place]:
        """What is known of workers' submissions; one without an array is left out.

        Raises BackendError: the root, which was there, isn't.
        """
        done = self._call(_LOOK, marks)
        if done.stdout.startswith("no root"):
            if self._made.exists():
                raise BackendError(f"{self.root}: workers' folders are gone from there; is its file system mounted?")
            return {}
        places: dict[str, Place] = {}
        for line in done.stdout.splitlines():
            fields = line.split()
            if len(fields) != 6:
                raise BackendError(f"{self.root}: a look at it gave {line[:200]!r}")
            mark, name, index, phase, job, started = ("" if field == "-" else field for field in fields)
            places[mark] = Place(name, index, phase, self._read_job(job) if job else "", started)
        return places

    def close(self, names: Iterable[str], phase: str) -> set[str]:
        """Rule submissions out that are in ``phase`` (go or sent); those that are ruled out now."""
        return set(self._call(_CLOSE, names, phase).stdout.split())

    def reopen(self, names: Iterable[str]) -> None:
        """They arrived after all."""
        self._call(_REOPEN, names)

    def submit(self, name: str, command: Sequence[str], limit_s: float) -> Done:
        """Run what submits an array, once; its exit code and words, or GONE or TAKEN.

        Raises TransportError: it may have run, or run still, or be about to.
        """
        words = ["sh", "-c", _SUBMIT, "submit", self.folder(name), f"{limit_s:.0f}", *command]
        done = self._transport.run(words, None, limit_s + self._timeout_s)
        code, _, answer = done.stdout.partition("\n")
        if done.code or not code.isdecimal():
            raise TransportError(f"{self.folder(name)}: {done.words}")
        return Done(int(code), answer, done.stderr)

    def take(self, name: str) -> bool:
        """Begin a submission that is made from here; whether it may be made."""
        done = self._transport.run(["sh", "-c", _TAKE, "take", self.folder(name)], None, self._timeout_s)
        return done.code == 0

    def keep(self, name: str, job: str) -> None:
        """Write the answer to a submission down."""
        done = self._transport.run(["sh", "-c", _KEEP, "keep", self.folder(name)], f"{job}\n".encode(), self._timeout_s)
        if done.code:
            raise TransportError(f"{self.folder(name)}: {done.words}")

    def clean(self, marks: Iterable[str]) -> None:
        """Remove workers' folders, and arrays of which nothing is left."""
        self._call(_CLEAN, marks)

    def _call(self, script: str, lines: Iterable[str], *arguments: str) -> Done:
        given = "".join(f"{line}\n" for line in lines if _WORD.match(line))
        done = self._transport.run(
            ["sh", "-c", script, "pilotage", self.root, *arguments], given.encode(), self._timeout_s
        )
        if done.code:
            raise BackendError(f"{self.root}: {done.words}")
        return done


def write_array(staging: Path, name: str, marks: Sequence[str], script: str) -> list[str]:
    """Lay an array out in ``staging``, whose workers' folders are there; ``go`` last. What to ship of it, in order.

    Raises OSError.
    """
    folder = staging / ARRAYS / name
    folder.mkdir(mode=0o700, parents=True)
    for index, mark in enumerate(marks):
        (staging / mark / ARRAY).write_text(f"{name} {index}\n", encoding="ascii")
        (folder / str(index)).symlink_to(f"../../{mark}")
    (folder / "script").write_text(script, encoding="utf-8")
    (folder / "script").chmod(0o700)
    (folder / "go").touch(mode=0o600)
    return [*marks, f"{ARRAYS}/{name}"]


def with_entry(script: str, folder: str, name: str, job: str = SLURM_JOB) -> str:
    """A script of an array that finds its worker's folder first: the entry comes after its directives, which it begins with."""
    lines = script.splitlines(keepends=True)
    body = next((at for at, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    entry = _ENTER.format(folder=shlex.quote(folder), name=name, job=job, variable=FOLDER_VARIABLE)
    return "".join([*lines[:body], entry, *lines[body:]])


def job_id(answer: str) -> str:
    """The job's id in what ``sbatch --parsable`` answers: ``ID`` or ``ID;CLUSTER``."""
    return answer.strip().partition(";")[0]


def by_array(places: Mapping[str, Place]) -> dict[str, list[str]]:
    """Marks by the names of their arrays."""
    found: dict[str, list[str]] = {}
    for mark, place in places.items():
        found.setdefault(place.array, []).append(mark)
    return found
