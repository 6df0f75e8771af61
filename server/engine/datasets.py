"""Which datasets an output belongs to.

As justIN has them: one for all outputs of a pattern, one for each storage they lie on (the rule that keeps them there
hangs on it), and numbered ones of a bounded size.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.wire import DatasetKind, OutputPattern

DEFAULT_NAME = "w{workflow}.{stage}.p{pattern}"
PLACEHOLDERS = ("workflow", "name", "stage", "task", "pattern", "owner")
MAX_NAME = 255
DAY_S = 86400.0

_PLACEHOLDER = re.compile(r"{(\w*)}")
_PLAIN = re.compile(r"[A-Za-z0-9._+\-]*\Z")


@dataclass(frozen=True)
class Naming:
    """What the placeholders of a dataset's name stand for; ``pattern`` counts from 1."""

    workflow: int
    name: str
    stage: str
    task: int
    pattern: int
    owner: str


@dataclass(frozen=True)
class Dataset:
    """A dataset as it is to be: its name within the task's scope, and the lifetime of its rule."""

    name: str
    kind: DatasetKind
    storage: str | None = None
    number: int | None = None
    lifetime_days: int | None = None


@dataclass(frozen=True)
class Numbered:
    """The numbered dataset that is being filled: files in it so far."""

    number: int = 1
    files: int = 0

    def next_after(self, most: int) -> Numbered:
        """Where the next file goes, when none has more than ``most``."""
        return Numbered(self.number + 1, 1) if self.files >= most else Numbered(self.number, self.files + 1)


def template_problem(template: str) -> str:
    """Why a name for datasets cannot be used, if so."""
    unknown = [name for name in _PLACEHOLDER.findall(template) if name not in PLACEHOLDERS]
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        return f"there is no {{{unknown[0]}}}; known: {known}"
    if not _PLAIN.match(_PLACEHOLDER.sub("", template)):
        return "use letters, digits and . _ + - beside the placeholders"
    return ""


def base_name(template: str | None, naming: Naming) -> str:
    """The name that all datasets of a pattern begin with."""
    values = {name: re.sub(r"[^A-Za-z0-9._+-]", "-", str(getattr(naming, name))) for name in PLACEHOLDERS}
    return _PLACEHOLDER.sub(lambda found: values[found[1]], template or DEFAULT_NAME)


def datasets_of(base: str, pattern: OutputPattern, storage: str, number: int | None) -> list[Dataset]:
    """The datasets of one output; ``number`` where there are numbered ones."""
    found = [
        Dataset(_fitting(base), DatasetKind.ALL),
        Dataset(_fitting(f"{base}-{storage}"), DatasetKind.STORAGE, storage, lifetime_days=pattern.lifetime_days),
    ]
    if number is not None:
        found.append(Dataset(_fitting(f"{base}.{number:06d}"), DatasetKind.NUMBERED, number=number))
    return found


def assign_numbers(filled: Numbered, most: int, count: int) -> tuple[list[int], Numbered]:
    """Numbers for ``count`` files that go on from what is ``filled``, and what is filled then."""
    numbers = []
    for _ in range(count):
        filled = filled.next_after(most)
        numbers.append(filled.number)
    return numbers, filled


def expires(created: float, lifetime_days: int | None) -> float | None:
    """When a dataset's rule ends; None for never."""
    return None if lifetime_days is None else created + lifetime_days * DAY_S


def pattern_numbers(patterns: Sequence[OutputPattern]) -> Mapping[str, int]:
    """The number of each pattern of a task, from 1 on."""
    return {each.pattern: number for number, each in enumerate(patterns, 1)}


def _fitting(name: str) -> str:
    if len(name) <= MAX_NAME:
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name[: MAX_NAME - len(mark) - 1]}-{mark}"
