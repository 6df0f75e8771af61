"""Slurm by its own commands, run through a transport."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from harvester.backends.base import BackendError, BatchLoad, SubmitResult
from harvester.backends.slurm_answers import SACCT_FORMAT, SQUEUE_FORMAT, collapse, read_json, read_sacct, read_squeue
from harvester.backends.slurm_arrays import GONE, TAKEN, Arrays, job_id
from harvester.backends.slurm_states import JobRecord
from harvester.transport.base import Done, Transport, TransportError

EXPORTED = "HOME,USER,LOGNAME,PATH,LANG"
"""What of the submitting environment a worker gets; all of Slurm's own variables come on top."""
KILL_WORDS = 200
"""Words of one ``scancel``."""
JSON_SINCE = (23, 11)
"""The version from which ``squeue --json`` heeds its filters; before, it tells of all jobs of all users."""

_REFUSED = re.compile(r"Batch job submission failed: (.*)")
_LOCAL_REFUSED = re.compile(r"(?i)\b(invalid|unrecognized|ambiguous|requires an argument|unable to open file)\b")
NO_ANSWER = re.compile(
    r"(?i)unable to contact|socket timed out|connect(ion)? (failure|refused|reset|timed out)|zero bytes|receive failure|"
    r"send failure|controller in standby|temporarily unable|communication|header lengths|insane message|protocol|"
    r"munge|credential|authenticat|resolv|unexpected message|slurm_load_jobs|configless|could not establish"
)
_GONE = re.compile(r"(?i)invalid job id|already completing or completed|already finished|job has finished")
_NO_ACCOUNTING = re.compile(r"(?i)accounting storage is disabled")
_NAMED = re.compile(r"\b(\d+(?:_\[?[\d,-]+\]?)?)\b")


class Words(Enum):
    """How Slurm's commands are asked to answer."""

    AUTO = "auto"
    """JSON where it heeds filters, else plain."""
    JSON = "json"
    """JSON."""
    PLAIN = "plain"
    """Columns."""


@dataclass(frozen=True)
class Answer:
    """What became of an array's submission. ``job`` comes with an acceptance, ``reason`` with anything else."""

    result: SubmitResult
    job: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Request:
    """An array to submit: ``count`` workers of ``shape``; ``script`` holds the directives for ``sbatch``."""

    name: str
    count: int
    single: bool
    """Not an array but one job."""
    fields: Mapping[str, Any]
    """What a REST daemon is told in place of directives."""
    script: str


class Client(Protocol):
    """How Slurm is spoken to. Every call raises BackendError when nothing is known afterwards."""

    def submit(self, arrays: Arrays, request: Request) -> Answer:
        """Submit an array that lies in its folder, once."""

    def queue(self) -> list[JobRecord]:
        """All our jobs that the controller knows, lately ended ones included."""

    def history(self, jobs: Sequence[str]) -> list[JobRecord] | None:
        """What the accounting knows of arrays or jobs; None where there is no accounting."""

    def cancel(self, keys: Sequence[str], waiting_only: bool = False) -> dict[str, str]:
        """End jobs, or those of them that wait; why not, by key. One that isn't there any more is no problem."""

    def load(self, partition: str | None) -> BatchLoad:
        """All users' jobs in a partition, or in all."""


class Commands:
    """By sbatch, squeue, sacct and scancel. ``conf`` is the path of another slurm.conf than the default one."""

    def __init__(
        self, transport: Transport, timeout_s: float, words: Words = Words.AUTO, conf: str | None = None
    ) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._words = words
        # So that no list of tasks is cut short.
        self._env = ["env", "SLURM_BITSTR_LEN=0", *([f"SLURM_CONF={conf}"] if conf else [])]

    def submit(self, arrays: Arrays, request: Request) -> Answer:
        """``sbatch``, which is killed when the time is up."""
        command = [*self._env, "sbatch", *sbatch_words(arrays.folder(request.name), request)]
        try:
            return read_submission(arrays.submit(request.name, command, self._timeout_s))
        except TransportError as error:
            return Answer(SubmitResult.UNKNOWN, reason=str(error))

    def queue(self) -> list[JobRecord]:
        """``squeue``."""
        if self._json():
            return read_json(self._ask("squeue", "--json", "--me", "--states=all").stdout)
        words = ["--noheader", "--array", "--me", "--states=all", f"--Format={SQUEUE_FORMAT}"]
        return read_squeue(self._ask("squeue", *words).stdout)

    def history(self, jobs: Sequence[str]) -> list[JobRecord] | None:
        """``sacct``."""
        words = ["-X", "--jobs", ",".join(jobs)]
        as_json = self._json()
        words += ["--json"] if as_json else ["--noheader", "--parsable2", f"--format={SACCT_FORMAT}"]
        try:
            done = self._ask("sacct", *words)
        except BackendError as error:
            if _NO_ACCOUNTING.search(str(error)):
                return None
            raise
        return read_json(done.stdout) if as_json else read_sacct(done.stdout)

    def cancel(self, keys: Sequence[str], waiting_only: bool = False) -> dict[str, str]:
        """``scancel``, with the tasks of an array in one word."""
        condition = ["--state=PENDING"] if waiting_only else []
        refused: dict[str, str] = {}
        words = collapse(list(keys))
        for start in range(0, len(words), KILL_WORDS):
            done = self._run("scancel", *condition, *words[start : start + KILL_WORDS])
            if done.code:
                refused.update(_cancel_problems(done, keys))
        return refused

    def load(self, partition: str | None) -> BatchLoad:
        """``squeue``, in columns."""
        where = [f"--partition={partition}"] if partition else []
        words = ["--noheader", "--array", "--states=PENDING,RUNNING", "--format=%t", *where]
        counts = Counter(self._ask("squeue", *words).stdout.split())
        return BatchLoad(counts["PD"], counts["R"])

    def _json(self) -> bool:
        if self._words is Words.AUTO:
            self._words = Words.JSON if version(self._ask("squeue", "--version").stdout) >= JSON_SINCE else Words.PLAIN
        return self._words is Words.JSON

    def _ask(self, program: str, *words: str) -> Done:
        done = self._run(program, *words)
        if done.code:
            raise BackendError(f"{program}: {done.words}")
        return done

    def _run(self, program: str, *words: str) -> Done:
        return self._transport.run([*self._env, program, *words], None, self._timeout_s)


def sbatch_words(folder: str, request: Request) -> list[str]:
    """The words for ``sbatch``: what a template can't change."""
    return [
        "--parsable",
        f"--job-name={request.name}",
        *([] if request.single else [f"--array=0-{request.count - 1}"]),
        f"--chdir={folder}",
        *(f"--{name}={path}" for name, path in streams(folder, request).items()),
        "--open-mode=append",
        "--input=/dev/null",
        f"--export={EXPORTED}",
        f"{folder}/script",
    ]


def streams(folder: str, request: Request) -> dict[str, str]:
    """Where the workers' output goes: through the array's links into their own folders."""
    element = "0" if request.single else "%a"
    return {"output": f"{folder}/{element}/stdout", "error": f"{folder}/{element}/stderr"}


def read_submission(done: Done) -> Answer:
    """What ``sbatch`` means. Only clear words of Slurm's are a refusal."""
    if done.code == 0:
        job = job_id(done.stdout)
        if job.isdecimal():
            return Answer(SubmitResult.ACCEPTED, job)
        return Answer(SubmitResult.UNKNOWN, reason=f"sbatch answered {done.stdout[:200]!r}")
    if done.code in (GONE, TAKEN):
        return Answer(SubmitResult.UNKNOWN, reason="its folder is not as it was laid out")
    if done.code in (126, 127):
        return Answer(SubmitResult.UNKNOWN, reason=f"sbatch can't be run: {done.words}")
    if done.code in (124, 137):
        return Answer(SubmitResult.UNKNOWN, reason="sbatch did not come back in time")
    if not NO_ANSWER.search(done.words):
        refused = _REFUSED.search(done.words)
        if refused is not None:
            return Answer(SubmitResult.REFUSED, reason=f"sbatch: {refused[1]}")
        if _LOCAL_REFUSED.search(done.words):
            return Answer(SubmitResult.REFUSED, reason=done.words)
    return Answer(SubmitResult.UNKNOWN, reason=done.words)


def version(text: str) -> tuple[int, int]:
    """The version in ``slurm 23.02.6`` or ``slurm-wlm 22.05.8``; 0.0 if there is none."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _cancel_problems(done: Done, keys: Sequence[str]) -> dict[str, str]:
    """Which of the jobs could not be cancelled. Raises BackendError when it was not about jobs."""
    refused: dict[str, str] = {}
    for line in filter(None, map(str.strip, done.stderr.splitlines())):
        if _GONE.search(line):
            continue
        if NO_ANSWER.search(line):
            raise BackendError(f"scancel: {line}")
        named = _NAMED.search(line)
        about = [key for key in keys if named and _covers(named[1], key)]
        refused.update(dict.fromkeys(about or keys, line))
    return refused


def _covers(word: str, key: str) -> bool:
    return key == word or key.partition("_")[0] == word.partition("_")[0]
