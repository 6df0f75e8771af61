"""The program that a PanDA pilot fetches and runs for a job: a shell script with the payload's files behind it.

It needs what every image has (sh, tail, head, tar, gzip, grep, sed) and no network, but for a transformation that lies elsewhere. It
unpacks the sandbox where it starts, gives the payload the same variables and lists that our own pilots give, runs it with
its own arguments, and gives the outputs the names that the pilot looks for.
"""

from __future__ import annotations

import io
import shlex
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from common.wire import AssignedFile, AssignedUnit, Assignment, FetchedProgram

NAME = "pilotage-run"
"""What it is called in its address, and in the job's folder."""
FOLDER = ".pilotage"
"""Below the folder where the payload starts: all that is not the payload's own."""
_DIGITS = 12
"""Places of a number inside the script, so that its own length does not depend on them."""

_HEAD = """#!/bin/sh
# Runs one job of Pilotage in the folder of a PanDA pilot. The payload's files follow behind the last line.
here=$(pwd)
parts="$here/{folder}"
mkdir -p "$parts/tmp" || exit 71
ls -A "$here" | sed 's:^:./:' > "$parts/before.txt" || exit 71
tail -c +{parts_from} "$0" | head -c {parts_long} | tar -xzf - -C "$parts" || exit 71
if [ {sandbox_long} -gt 0 ]; then
  tail -c +{sandbox_from} "$0" | head -c {sandbox_long} | tar -xzf - -C "$here" || exit 71
fi
for list in "$parts/names.txt" "$parts"/names-*.txt; do
  [ -e "$list" ] || continue
  while IFS= read -r name; do printf '%s/%s\\n' "$here" "$name"; done < "$list" > "$parts/paths${{list#"$parts/names"}}"
done
{variables}
export PILOTAGE_INPUT_FILES="$parts/paths.txt" PILOTAGE_COUNTERS="$parts/counters.txt"
export PILOTAGE_UNITS="$parts/units.json" PILOTAGE_PATH="$parts" JUSTIN_PATH="$parts" PATH="$PATH:$parts"
export HOME="$here" TMPDIR="$parts/tmp"
"""

_TAIL = """code=$?
[ $code -eq 0 ] || exit $code
if [ -s "$parts/dids.txt" ]; then
  cat pilotage-processed-dids.txt justin-processed-dids.txt > "$parts/processed" 2>/dev/null
  cat pilotage-processed-pfns.txt justin-processed-pfns.txt > "$parts/opened" 2>/dev/null
  if [ -s "$parts/processed" ] || [ -s "$parts/opened" ]; then
    while read -r did name; do
      grep -Fxq -e "$did" "$parts/processed" || grep -Fxq -e "$name" -e "$here/$name" "$parts/opened" || {
        echo "the payload did not process $did" >&2
        exit 70
      }
    done < "$parts/dids.txt" || exit 70
  fi
fi
"""

_FETCH = """program="$parts/program"
mkdir -p "$program"
program="$program/"{name}
case {url} in
  /cvmfs/*) cp {url} "$program" ;;
  file://*) cp {path} "$program" ;;
  *) curl -fsSL -o "$program" {url} 2>/dev/null || wget -q -O "$program" {url} ;;
esac || {{ echo "the transformation cannot be fetched" >&2; exit 69; }}
{check}chmod 700 "$program"
"$program" "$@"
"""

GET_FILE = """#!/bin/sh
# Gives the files of this job, one a call: DID, path, storage. Exit code 1: there are no more.
given="$PILOTAGE_PATH/given"
number=$(cat "$given" 2>/dev/null || echo 0)
number=$((number + 1))
line=$(sed -n "${number}p" "$PILOTAGE_PATH/files.txt")
[ -n "$line" ] || exit 1
echo "$number" > "$given"
printf '%s\\n' "$line"
"""


@dataclass(frozen=True)
class Sandbox:
    """An archive that the program unpacks: its length, and where it comes from."""

    size: int
    content: Iterator[bytes]


def program(made: Assignment, renamed: Mapping[str, str], sandbox: Sandbox | None) -> Iterator[bytes]:
    """The script, piece by piece. ``renamed`` are the outputs' names for the pilot by what the payload calls them."""
    parts = _archive(made)
    tail = _run(made) + _TAIL + _renames(renamed)
    size = 0 if sandbox is None else sandbox.size

    def text(parts_from: int) -> bytes:
        numbers = {
            "parts_from": parts_from,
            "parts_long": len(parts),
            "sandbox_from": parts_from + len(parts),
            "sandbox_long": size,
        }
        padded = {name: f"{value:<{_DIGITS}d}" for name, value in numbers.items()}
        head = _HEAD.format(folder=FOLDER, variables=_variables(made), **padded)
        return (head + tail + "exit 0\n").encode()

    yield text(len(text(0)) + 1)
    yield parts
    if sandbox is not None:
        yield from sandbox.content


def _variables(made: Assignment) -> str:
    values = {
        **made.environment,
        "PILOTAGE_JOB_ID": str(made.job_id),
        "PILOTAGE_TASK_ID": str(made.task_id),
        "PILOTAGE_CORES": str(made.requirements.cores),
        "PILOTAGE_MEMORY_MB": str(made.requirements.memory_mb),
        "JUSTIN_JOBSUB_ID": str(made.job_id),
        "JUSTIN_WORKFLOW_ID": str(made.workflow_id),
        "JUSTIN_STAGE_ID": made.stage,
        "JUSTIN_SCOPE": made.scope,
        "JUSTIN_PROCESSORS": str(made.requirements.cores),
        "JUSTIN_RSS_MIB": str(made.requirements.memory_mb),
    }
    if made.units and made.units[0].counter is not None:
        values["PILOTAGE_SEED"] = str(made.units[0].counter)
    if len(made.units) == 1 and made.units[0].events is not None:
        values["PILOTAGE_EVENTS"] = str(made.units[0].events)
        values["PILOTAGE_FIRST_EVENT"] = str(made.units[0].first_event or 0)
    lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items() if value]
    lines += [f'export PILOTAGE_SECONDARY_{name.upper()}="$parts/paths-{name}.txt"' for name in made.secondary]
    return "\n".join(lines)


def _run(made: Assignment) -> str:
    if made.jobscript is not None:
        return '"$parts/jobscript" "$@"\n'
    if made.transformation is not None:
        return _fetch(made.transformation)
    return '"$@"\n'


def _fetch(wanted: FetchedProgram) -> str:
    kind, _, value = (wanted.checksum or "").partition(":")
    check = ""
    if value:
        words = 'echo "the transformation has another checksum" >&2'
        check = f'echo "{value}  $program" | {kind}sum -c - >/dev/null || {{ {words}; exit 69; }}\n'
    name = wanted.url.rpartition("/")[2] or "transformation"
    path = wanted.url.removeprefix("file://")
    return _FETCH.format(url=shlex.quote(wanted.url), path=shlex.quote(path), name=shlex.quote(name), check=check)


def _renames(renamed: Mapping[str, str]) -> str:
    lines = []
    for name, lfn in renamed.items():
        old, new = shlex.quote(f"./{name}"), shlex.quote(f"./{lfn}")
        lines.append(f"if [ -e {old} ]; then mv {old} {new} || exit 71; fi\n")
    return "".join(lines)


def _archive(made: Assignment) -> bytes:
    """All small files, packed."""
    files = [unit.file for unit in made.units if unit.file is not None]
    plain = list({file.did: file for file in files}.values())
    texts = {
        "names.txt": _lines(_name(file) for file in plain),
        "files.txt": _lines(f"{file.did} {_name(file)} {_storage(file)}" for file in plain),
        "dids.txt": _lines(f"{file.did} {_name(file)}" for file in plain),
        "counters.txt": _lines(str(unit.counter) for unit in made.units if unit.counter is not None),
        "units.json": msgspec.json.encode([_told(unit) for unit in made.units]).decode(),
        "pilotage-get-file": GET_FILE,
        "justin-get-file": GET_FILE,
    }
    texts |= {f"names-{name}.txt": _lines(map(_name, there)) for name, there in made.secondary.items()}
    if made.jobscript is not None:
        texts["jobscript"] = made.jobscript
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.USTAR_FORMAT) as archive:
        for name, text in texts.items():
            content = text.encode()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o700
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def _told(unit: AssignedUnit) -> dict[str, Any]:
    found: dict[str, Any] = {"unit": unit.unit_id}
    if unit.file is not None:
        found |= {"did": unit.file.did, "path": _name(unit.file)}
        if unit.file.attributes:
            found["attributes"] = unit.file.attributes
    for name in ("first_event", "events", "counter"):
        if getattr(unit, name) is not None:
            found[name] = getattr(unit, name)
    return found


def _name(file: AssignedFile) -> str:
    return file.did.partition(":")[2]


def _storage(file: AssignedFile) -> str:
    return file.replicas[0].storage if file.replicas else "local"


def _lines(items: Iterable[str]) -> str:
    return "".join(f"{each}\n" for each in items)
