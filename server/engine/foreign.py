"""What pilots of other systems can run: they are told their outputs' names before they begin, and never record any.

A pattern of outputs has names ahead if it is a plain name itself, if the task says what jobs call its file, or if ``%OUT``
in the payload's arguments makes names that it matches. What is written must also be possible to tell such pilots, whose lists are separated by commas.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from msgspec import structs

from common.wire import ForeignTerms, OutputPattern, OutputRule, QueueSpec, StageSpec
from server.engine.placeholders import SERIAL, named_outputs
from server.engine.probes import is_own_work

WILD = frozenset("*?[")
_PLAIN = re.compile(r"[A-Za-z0-9._+=@~-]+")
"""What a name in a list of theirs, and in a shell command, may hold."""


@dataclass(frozen=True)
class NamedOutput:
    """An output whose name is known ahead: as the payload writes it. ``rule`` is the pattern that it belongs to."""

    name: str
    rule: OutputRule


def plain_name(name: str) -> bool:
    """Whether a name can stand in the lists of other systems' pilots."""
    return _PLAIN.fullmatch(name) is not None and name not in (".", "..")


def unsuited(spec: StageSpec) -> str:
    """Why a pilot of another system cannot run a task's jobs; empty if it can."""
    if is_own_work(spec):
        return "it is work of our own pilots"
    for what, there in (("secrets", spec.secrets), ("processes around the payload", spec.processes)):
        if there:
            return f"the task has {what}, which only our own pilots handle"
    if spec.plugin is not None:
        return "the task names a plug-in of our own pilots"
    if spec.transformation is not None and (spec.transformation.checksum or "").startswith("adler32:"):
        return "the transformation's checksum is adler32, which shells cannot verify: give its sha256"
    suffixes = named_outputs(spec)
    for rule in spec.outputs:
        names = _names(rule, suffixes, "1._000001")
        if not names:
            return f"the output pattern {rule.pattern} names no file ahead: write a name, or %OUT in the command"
        odd = [name for name in names if not plain_name(name)]
        if odd:
            return f"the output {odd[0]} has a name that other systems' lists cannot hold"
    return ""


def copying(queue: QueueSpec) -> QueueSpec:
    """A queue as such pilots use it: they copy all input, as they decide by rules of their own what else to do."""
    return structs.replace(queue, remote_io=False) if queue.remote_io else queue


def share_refusal(share: str, terms: ForeignTerms) -> str:
    """Why a pilot of another system does not take jobs of a share; empty if it does."""
    if not terms.shares or share in terms.shares:
        return ""
    return f"the pilot takes jobs of {', '.join(terms.shares)} only, not of share {share}"


def terms_key(terms: ForeignTerms | None) -> Hashable:
    """What tells terms from others."""
    if terms is None:
        return None
    return (terms.min_cores, terms.max_cores, terms.min_core_mb, terms.max_core_mb, *terms.shares)


def kind_refusal(cores: int, memory_mb: int, terms: ForeignTerms) -> str:
    """Why a job is of another kind than was asked for; empty if it is of that."""
    core_mb = memory_mb / cores
    for what, value, least, most in (
        ("cores", cores, terms.min_cores, terms.max_cores),
        ("MB of memory a core", core_mb, terms.min_core_mb, terms.max_core_mb),
    ):
        if value < least or (most and value > most):
            wanted = f"{least} to {most}" if most else f"{least} or more"
            return f"the job needs {value:.0f} {what}, the pilot asks for jobs with {wanted}"
    return ""


def outputs_of(spec: StageSpec, beginning: str) -> list[NamedOutput]:
    """The outputs of one job, each name once; ``beginning`` is what ``%OUT`` stands for in it."""
    found: dict[str, NamedOutput] = {}
    suffixes = named_outputs(spec)
    for rule in spec.outputs:
        for name in _names(rule, suffixes, beginning):
            found.setdefault(name, NamedOutput(name, rule))
    return list(found.values())


def list_problem(names: Sequence[str]) -> str:
    """Why the input files of a job cannot be told; empty if they can: they all lie in one folder, by their names."""
    for name in names:
        if not plain_name(name):
            return f"the name of input {name!r} cannot stand in a list of other systems' pilots"
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    return f"two inputs have the name {twice[0]}" if twice else ""


def _names(rule: OutputPattern, suffixes: Sequence[str], beginning: str) -> list[str]:
    """The names of a job's outputs of one pattern; none if they are not known."""
    if rule.name is not None:
        return [rule.name.replace(SERIAL, beginning)]
    if WILD & set(rule.pattern):
        return [f"{beginning}{suffix}" for suffix in suffixes if _of_pattern(rule, suffix)]
    return [rule.pattern]


def _of_pattern(rule: OutputRule, suffix: str) -> bool:
    return fnmatchcase(f"1._000001{suffix}", rule.pattern)
