"""Picking up what a payload left in its folder: regular files only, never through a link.

To be called when no process of the payload is left, so that what was checked is what will be uploaded. What belongs to an
output is its attributes: those of ``<output>.json`` beside it win over those that the job report tells of it. A core
dump is no output, unless a pattern begins with ``core``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Optional

from common.errors import ErrorCode
from common.wire import OutputRule
from pilot.payload.diagnosis import is_core_dump
from pilot.payload.processed import DID_LISTS, PFN_LISTS
from pilot.payload.safefile import UnsafeFileError, open_regular, read_regular, untrusted_json

MAX_NAME = 255
MAX_METADATA = 1_000_000
METADATA_SUFFIX = ".json"
MB = 1024 * 1024


@dataclass(frozen=True)
class CollectedFile:
    """An output: its name, path, size in bytes, the pattern that it matched, and the attributes of its metadata."""

    name: str
    path: Path
    size: int
    pattern: OutputRule
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """A name that matched a pattern and must not be uploaded."""

    name: str
    code: ErrorCode
    reason: str


@dataclass
class CollectedOutputs:
    """All outputs; the patterns (not optional) that nothing matched; what was refused; ``warnings`` for metadata files
    that were not understood, and outputs that are left out."""

    files: list[CollectedFile] = field(default_factory=list)
    missing_patterns: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def error(self) -> Optional[tuple[ErrorCode, str]]:
        """The first reason why the job fails, with its details; None when all is there."""
        if self.refused:
            first = self.refused[0]
            return first.code, f"output {first.name!r} {first.reason}"
        if self.missing_patterns:
            return ErrorCode.MISSING_OUTPUT, "no file matches " + ", ".join(repr(p) for p in self.missing_patterns)
        return None


@dataclass(frozen=True)
class OutputPolicy:
    """What holds for all outputs of a job. ``max_mb`` MiB are the most that one file may have (0: no limit of the queue's);
    with ``allow_none`` a payload that leaves no output at all has not failed; ``told`` are attributes by file name, from
    the payload's own report."""

    max_mb: int = 0
    allow_none: bool = False
    told: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def collect_outputs(
    work_dir: Path,
    patterns: Sequence[OutputRule],
    inputs: Collection[str] = (),
    policy: OutputPolicy = OutputPolicy(),
) -> CollectedOutputs:
    """Matches the names in the payload's folder with the patterns (shell globs without ``/``, case-sensitive).

    ``inputs``: names of input files in the folder, which are no outputs. A name counts for the first pattern that it
    matches. ``<output>.json`` beside an output is its metadata, not an output. Raises OSError when the folder itself
    cannot be read.
    """
    collected = CollectedOutputs()
    dir_fd = os.open(work_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        matched = _match(sorted(os.listdir(dir_fd)), patterns, {*inputs, *DID_LISTS, *PFN_LISTS})  # noqa: PTH208
        for name, pattern in matched.items():
            if not _is_metadata(name, matched):
                _collect(collected, work_dir, dir_fd, name, pattern, policy)
    finally:
        os.close(dir_fd)
    if policy.allow_none and not collected.files and not collected.refused:
        return collected
    found = {file.pattern.pattern for file in collected.files}
    refused = {pattern.pattern for entry in collected.refused for pattern in (matched.get(entry.name),) if pattern}
    for pattern in patterns:
        if not pattern.optional and pattern.pattern not in found | refused:
            collected.missing_patterns.append(pattern.pattern)
    return collected


def _match(names: Sequence[str], patterns: Sequence[OutputRule], excluded: Collection[str]) -> dict[str, OutputRule]:
    matched: dict[str, OutputRule] = {}
    for name in names:
        if name in excluded:
            continue
        for pattern in patterns:
            hidden = name.startswith(".") and not pattern.pattern.startswith(".")
            hidden = hidden or (is_core_dump(name) and not pattern.pattern.startswith("core"))
            if not hidden and fnmatchcase(name, pattern.pattern):
                matched[name] = pattern
                break
    return matched


def _is_metadata(name: str, matched: Collection[str]) -> bool:
    return name.endswith(METADATA_SUFFIX) and name[: -len(METADATA_SUFFIX)] in matched


def _collect(
    collected: CollectedOutputs, work_dir: Path, dir_fd: int, name: str, pattern: OutputRule, policy: OutputPolicy
) -> None:
    """Adds one matching name to the files or to the refused."""
    problem = _name_problem(name)
    if problem is not None:
        collected.refused.append(problem)
        return
    try:
        fd = open_regular(name, dir_fd)
    except UnsafeFileError as error:
        collected.refused.append(Refused(name, ErrorCode.OUTPUT_NOT_REGULAR, f"{error}: it is not uploaded"))
        return
    except OSError as error:
        code = ErrorCode.OUTPUT_NOT_REGULAR if error.errno == errno.ELOOP else ErrorCode.FILE_HANDLING_FAILED
        collected.refused.append(Refused(name, code, f"cannot be opened: {error.strerror}"))
        return
    size = os.fstat(fd).st_size
    os.close(fd)
    bound = min((mb for mb in (pattern.max_mb, policy.max_mb) if mb), default=0)
    if bound and size > bound * MB:
        reason = f"has {size} bytes ({size / MB:.1f} MiB), allowed are {bound} MiB"
        collected.refused.append(Refused(name, ErrorCode.OUTPUT_TOO_LARGE, reason))
        return
    attributes = {**policy.told.get(name, {}), **_metadata(name + METADATA_SUFFIX, dir_fd, collected.warnings)}
    if pattern.optional and attributes.get("events") == 0:
        collected.warnings.append(f"output {name!r} has no events and is optional: left out")
        return
    collected.files.append(CollectedFile(name, work_dir / name, size, pattern, attributes))


def _name_problem(name: str) -> Optional[Refused]:
    """File systems count bytes, catalogues characters: only the latter can be too long here; and a name must be text."""
    if len(name) > MAX_NAME:
        return Refused(name, ErrorCode.NAME_TOO_LONG, f"has a name of {len(name)} characters, {MAX_NAME} are allowed")
    if not name.isprintable():
        return Refused(ascii(name), ErrorCode.OUTPUT_NOT_REGULAR, "has a name that is no printable text")
    return None


def _metadata(name: str, dir_fd: int, warnings: list[str]) -> dict[str, Any]:
    """The JSON object of that file; empty, with a warning, when it is not one."""
    try:
        data = untrusted_json(read_regular(name, MAX_METADATA, dir_fd))
    except FileNotFoundError:
        return {}
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # no such file can exist
            warnings.append(f"metadata {name}: {error.strerror}")
        return {}
    except UnsafeFileError as error:
        warnings.append(f"metadata {name} {error}: not used")
        return {}
    except (ValueError, RecursionError) as error:
        warnings.append(f"metadata {name} is no JSON: {error}")
        return {}
    if not isinstance(data, dict):
        warnings.append(f"metadata {name} is no JSON object: not used")
        return {}
    return data
