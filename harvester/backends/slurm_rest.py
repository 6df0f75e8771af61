"""Slurm by its REST daemon, slurmrestd, with tokens (JWT). Folders still go by the transport."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import msgspec
import requests

from common.config import ConfigError
from common.errors import PilotageError
from common.tokens import read_secret_file
from harvester.backends.base import BackendError, BatchLoad, SubmitResult
from harvester.backends.slurm_answers import read_json
from harvester.backends.slurm_arrays import Arrays
from harvester.backends.slurm_commands import NO_ANSWER, Answer, Request, streams
from harvester.backends.slurm_states import JobRecord, SlurmState, read_state
from harvester.transport.base import TransportError

PATH = "/usr/local/bin:/usr/bin:/bin"
"""The environment that a worker starts with; its start script sets the rest."""
NOT_THERE = ("Invalid job id", "already completing", "already completed", "already finished", "not found")

NOTHING_FOUND = 9003
"""The error of a question to the accounting that matches nothing."""
PLAIN_NUMBERS = "v0.0.38"
"""The last version that takes bare numbers, and an environment as a table."""


class RestOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The daemon: its address, the user to be, a file of mode 0600 with its token, the API's version."""

    url: str
    user: str
    token_file: str
    version: Annotated[str, msgspec.Meta(pattern=r"^v0\.0\.\d+$")] = "v0.0.38"
    ca_file: Optional[str] = None


class SlurmRest:
    """Speaks to slurmrestd. The token is read anew for each call: somebody renews it."""

    def __init__(self, options: RestOptions, timeout_s: float) -> None:
        self._options = options
        self._timeout_s = timeout_s
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = options.ca_file or True

    def submit(self, arrays: Arrays, request: Request) -> Answer:
        """One request; what it answers is written down beside the array."""
        try:
            if not arrays.take(request.name):
                return Answer(SubmitResult.UNKNOWN, reason="its folder is not as it was laid out")
            body = {
                "script": request.script,
                "job": job_fields(arrays.folder(request.name), request, self._options.version),
            }
            code, answer = self._call("POST", "slurm", "job/submit", body)
        except BackendError as error:
            return Answer(SubmitResult.UNKNOWN, reason=str(error))
        job = answer.get("job_id")
        if code == 200 and isinstance(job, int) and job > 0:
            try:
                arrays.keep(request.name, str(job))
            except TransportError:
                # It is found by its name then, should this answer get lost as well.
                return Answer(SubmitResult.ACCEPTED, str(job))
            return Answer(SubmitResult.ACCEPTED, str(job))
        reason = f"slurmrestd: {_problem(code, answer)}"
        refused = bool(answer.get("errors")) and not _no_answer(answer)
        return Answer(SubmitResult.REFUSED if refused else SubmitResult.UNKNOWN, reason=reason)

    def queue(self) -> list[JobRecord]:
        """All jobs of the cluster: the daemon has no narrower question."""
        return read_json(self._get("slurm", "jobs"))

    def history(self, jobs: Sequence[str]) -> list[JobRecord] | None:
        """One request for each array."""
        records: list[JobRecord] = []
        for job in jobs:
            records += read_json(self._get("slurmdb", f"job/{job}"))
        return records

    def cancel(self, keys: Sequence[str], waiting_only: bool = False) -> dict[str, str]:
        """One request for each."""
        refused: dict[str, str] = {}
        chosen = self._waiting(keys) if waiting_only else keys
        for key in chosen:
            code, answer = self._call("DELETE", "slurm", f"job/{key}")
            problem = _problem(code, answer)
            if code != 200 and _no_answer(answer):
                raise BackendError(f"slurmrestd: {problem}")
            if code != 200 and not any(words in problem for words in NOT_THERE):
                refused[key] = problem
        return refused

    def load(self, partition: str | None) -> BatchLoad:
        """Counted over all jobs of the cluster."""
        try:
            jobs = msgspec.json.decode(self._get("slurm", "jobs"))["jobs"]
        except (msgspec.DecodeError, LookupError, TypeError) as error:
            raise BackendError(f"slurmrestd: its answer makes no sense: {error!r}") from error
        here = [job for job in jobs if partition in (None, job.get("partition"))]
        states = Counter(
            read_state(record.state.split())
            for job in here
            for record in read_json(msgspec.json.encode({"jobs": [job]}))
        )
        return BatchLoad(states[SlurmState.PENDING], states[SlurmState.RUNNING])

    def _waiting(self, keys: Sequence[str]) -> list[str]:
        records = {record.key: record for record in self.queue()}
        return [key for key in keys if key in records and read_state(records[key].state.split()) is SlurmState.PENDING]

    def _get(self, api: str, what: str) -> bytes:
        code, answer = self._call("GET", api, what)
        if any(
            isinstance(one, Mapping) and one.get("error_number") == NOTHING_FOUND for one in answer.get("errors") or []
        ):
            return b'{"jobs": []}'
        if code != 200 and not answer.get("jobs"):
            raise BackendError(f"slurmrestd: {_problem(code, answer)}")
        return msgspec.json.encode(answer)

    def _call(
        self, method: str, api: str, what: str, body: Mapping[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """A status and an answer. Raises BackendError: there is none."""
        url = f"{self._options.url.rstrip('/')}/{api}/{self._options.version}/{what}"
        try:
            headers = {
                "X-SLURM-USER-NAME": self._options.user,
                "X-SLURM-USER-TOKEN": read_secret_file(Path(self._options.token_file)),
            }
            reply = self._session.request(method, url, json=body, headers=headers, timeout=self._timeout_s)
            answer = msgspec.json.decode(reply.content) if reply.content.strip() else {}
        except (requests.RequestException, msgspec.DecodeError, PilotageError) as error:
            raise BackendError(f"slurmrestd: {error}") from error
        return reply.status_code, answer if isinstance(answer, dict) else {}


def check_rest(options: RestOptions) -> None:
    """What types can't say. Raises ConfigError."""
    if not options.url.startswith(("http://", "https://")):
        raise ConfigError(f"options.rest.url: {options.url!r} must begin with http:// or https://")
    if options.ca_file is not None and not Path(options.ca_file).is_file():
        raise ConfigError(f"options.rest.ca_file: {options.ca_file!r} is no file here")


def job_fields(folder: str, request: Request, version: str) -> dict[str, Any]:
    """A job's properties, in the names of an API version."""
    asked = request.fields
    plain = int(version.rpartition(".")[2]) <= int(PLAIN_NUMBERS.rpartition(".")[2])
    gpus = f"gpu:{asked['gpu_type'] + ':' if asked['gpu_type'] else ''}{asked['gpus']}" if asked["gpus"] else None
    fields: dict[str, Any] = {
        "name": request.name,
        "current_working_directory": folder,
        "environment": {"PATH": PATH} if plain else [f"PATH={PATH}"],
        "standard_input": "/dev/null",
        **{f"standard_{name}": path for name, path in streams(folder, request).items()},
        "open_mode": "append",
        "nodes": [asked["nodes"], asked["nodes"]] if plain else str(asked["nodes"]),
        "tasks_per_node": 1,
        "cpus_per_task": asked["cores"],
        "array": None if request.single else f"0-{request.count - 1}",
        "gres" if plain else "tres_per_node": gpus if plain or gpus is None else f"gres/{gpus}",
        **{theirs: asked[ours] for ours, theirs in _NAMED.items()},
    }
    numbers = {"memory_per_node": asked["memory_mb"], "time_limit": -(-asked["wall_s"] // 60)}
    given = {name: number if plain else {"set": True, "number": number} for name, number in numbers.items() if number}
    return {name: value for name, value in {**fields, **given}.items() if value is not None}


_NAMED = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraints",
    "reservation": "reservation",
    "requeue": "requeue",
}


def _problem(code: int, answer: Mapping[str, Any]) -> str:
    errors = answer.get("errors") or []
    words = [str(one.get("description") or one.get("error") or one) for one in errors if isinstance(one, Mapping)]
    return "; ".join(dict.fromkeys(words)) or f"HTTP {code}"


def _no_answer(answer: Mapping[str, Any]) -> bool:
    return bool(NO_ANSWER.search(_problem(0, answer)))
