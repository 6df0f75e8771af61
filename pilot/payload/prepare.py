"""From a payload's definition to files, arguments and environment."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Optional

from common.errors import ErrorCode, PilotageError
from common.wire import ProcessFailure, ProcessWhen
from pilot.container.apptainer import ContainerSettings, check_image, container_command
from pilot.payload.definition import PayloadDefinition, PayloadUnit, expand_command
from pilot.payload.folder import JobFolder
from pilot.payload.gpus import gpu_environment
from pilot.supervised import MARK, Around, PayloadSpec

DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
#: The only variables of the pilot's own environment that a payload outside a container gets to see.
HOST_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ")
#: Those that every payload gets to see, as jobscripts of justIN look for them; none is a secret.
HANDED_ON = ("RUCIO_ACCOUNT",)
GET_FILE = Path(__file__).parent / "scripts" / "pilotage-get-file"
GET_FILE_NAMES = ("pilotage-get-file", "justin-get-file")
JOBSCRIPT = "jobscript"
INPUTS = "inputs.txt"
COUNTERS = "counters.txt"
SECRETS = "secrets"
TRANSFORMATION = "transformation"
EXIT_CODE = "PILOTAGE_EXIT_CODE"
FAULTS = {
    ProcessWhen.BEFORE: ErrorCode.PREPROCESS_FAILED,
    ProcessWhen.BESIDE: ErrorCode.COPROCESS_FAILED,
    ProcessWhen.AFTER: ErrorCode.POSTPROCESS_FAILED,
}
_SECRET_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
UNITS = "units.json"


def prepare_payload(
    folder: JobFolder,
    definition: PayloadDefinition,
    host_environment: Mapping[str, str],
    container: Optional[ContainerSettings] = None,
) -> PayloadSpec:
    """Writes the payload's files into the job's folder and answers what to execute.

    ``host_environment`` is the pilot's own, of which :data:`HANDED_ON` are handed on, and :data:`HOST_VARIABLES` to a
    payload that runs without an image. Raises PilotageError: BAD_JOBSCRIPT, IMAGE_NOT_FOUND, CONTAINER_NOT_INSTALLED, SETUP_FAILED.
    """
    definition.check()
    image = None if definition.image is None else check_image(definition.image)
    if image is not None and container is None:
        raise PilotageError(
            ErrorCode.CONTAINER_NOT_INSTALLED, f"image {image} is asked for, the queue has no container"
        )
    try:
        argv = _write_files(folder, definition)
    except (OSError, UnicodeError) as error:
        raise PilotageError(ErrorCode.SETUP_FAILED, f"cannot write the payload's files: {error}") from error
    argv = _set_up(definition.setup, definition.rewrite(argv))
    handed_on = {name: host_environment[name] for name in HANDED_ON if name in host_environment}
    environment = {**handed_on, **payload_environment(folder, definition)}
    environment[MARK] = secrets.token_hex(16)
    around = _around(folder, definition)
    exit_code_as = EXIT_CODE
    if image is None or container is None:
        env = {**environment, **_host_part(folder, definition, host_environment)}
    else:
        if "PATH" in definition.environment:
            environment["PATH"] = f"{definition.environment['PATH']}:{folder.bin}"
        else:
            environment["APPEND_PATH"] = str(folder.bin)  # Apptainer's way to add to the image's own PATH
        vendor = definition.gpus[0].vendor if definition.gpus else None
        contained = partial(container_command, container, image, folder, environment=environment, gpu_vendor=vendor)
        command = contained(argv)
        argv, env = command.argv, {**command.env, MARK: environment[MARK]}
        around = [replace(process, argv=contained(process.argv).argv) for process in around]
        exit_code_as = f"APPTAINERENV_{EXIT_CODE}"
    return PayloadSpec(
        argv=argv,
        cwd=folder.work,
        env=env,
        stdout=folder.stdout,
        stderr=folder.stderr,
        around=tuple(around),
        exit_code_as=exit_code_as,
    )


def _write_files(folder: JobFolder, definition: PayloadDefinition) -> list[str]:
    """Everything in ``bin``; the payload's own command. Raises OSError, UnicodeError, PilotageError."""
    argv = expand_command(definition)
    if definition.jobscript is not None:
        script = folder.bin / JOBSCRIPT
        _write(script, definition.jobscript, 0o700)
        argv = [str(script)]
    elif definition.transformation is not None:
        argv = [str(_copy_program(definition.transformation, folder)), *argv]
    _write(folder.bin / INPUTS, _lines(item.location for item in definition.inputs), 0o600)
    _write(folder.bin / COUNTERS, _lines(str(item) for item in definition.counters), 0o600)
    _write(folder.bin / UNITS, json.dumps([_told(unit) for unit in definition.units]), 0o600)
    for name, paths in definition.secondary.items():
        _write(folder.bin / _stream_list(name), _lines(paths), 0o600)
    _write_secrets(folder, definition)
    for name in GET_FILE_NAMES:
        _write(folder.bin / name, GET_FILE.read_text("utf-8"), 0o700)
    return argv


def _around(folder: JobFolder, definition: PayloadDefinition) -> list[Around]:
    """The processes around the payload, each with a name by its kind and number, and log files of that name."""
    counts: Counter[ProcessWhen] = Counter()
    found = []
    for process in definition.processes:
        counts[process.when] += 1
        label = f"{process.when.value}-{counts[process.when]}"
        fault = {ProcessFailure.SITE: ErrorCode.SITE_PROCESS_FAILED, ProcessFailure.FAIL: FAULTS[process.when]}
        found.append(
            Around(
                label,
                process.when.value,
                _set_up(definition.setup, expand_command(definition, process.command)),
                stdout=folder.process_log(label, "stdout"),
                stderr=folder.process_log(label, "stderr"),
                timeout_s=process.timeout_s,
                error=fault.get(process.on_failure),
            )
        )
    return found


def _set_up(setup: str, argv: list[str]) -> list[str]:
    """The same command in the surroundings that the lines of ``setup`` make."""
    return ["/bin/sh", "-c", f'{setup}\nexec "$@"', "payload", *argv] if setup else argv


def _copy_program(program: Path, folder: JobFolder) -> Path:
    """An executable copy of the fetched program, under its own name, in a folder where nothing else is."""
    place = folder.bin / TRANSFORMATION / program.name
    place.parent.mkdir(mode=0o700)
    fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o700)
    with os.fdopen(fd, "wb") as copy, program.open("rb") as source:
        shutil.copyfileobj(source, copy)
    return place


def _write_secrets(folder: JobFolder, definition: PayloadDefinition) -> None:
    """Each secret into a file of its own, where neither outputs nor the log archive are taken from."""
    if definition.secrets:
        (folder.bin / SECRETS).mkdir(mode=0o700)
    for name, value in definition.secrets.items():
        if not _SECRET_NAME.fullmatch(name):
            raise PilotageError(ErrorCode.SETUP_FAILED, f"{name!r} is no name of a secret")
        _write(folder.bin / SECRETS / name, value, 0o600)


def payload_environment(folder: JobFolder, definition: PayloadDefinition) -> dict[str, str]:
    """The variables that every payload gets, with and without an image; the user's own are among them."""
    own = {
        "HOME": str(folder.work),
        "TMPDIR": str(folder.tmp),
        "PILOTAGE_JOB_ID": definition.job_id,
        "PILOTAGE_TASK_ID": definition.task_id,
        "PILOTAGE_INPUT_FILES": str(folder.bin / INPUTS),
        "PILOTAGE_COUNTERS": str(folder.bin / COUNTERS),
        "PILOTAGE_UNITS": str(folder.bin / UNITS),
        "PILOTAGE_CORES": str(definition.cores),
        "PILOTAGE_MAILBOX": str(folder.mailbox),
        "PILOTAGE_PATH": str(folder.bin),
    }
    for name in definition.secrets:
        own[f"PILOTAGE_SECRET_{name.upper()}"] = str(folder.bin / SECRETS / name)
    if definition.memory_mb:
        own["PILOTAGE_MEMORY_MB"] = str(definition.memory_mb)
    if definition.counters:
        own["PILOTAGE_SEED"] = str(definition.counters[0])
    if len(definition.units) == 1 and definition.units[0].events is not None:
        own["PILOTAGE_EVENTS"] = str(definition.units[0].events)
        own["PILOTAGE_FIRST_EVENT"] = str(definition.units[0].first_event or 0)
    for name in definition.secondary:
        own[f"PILOTAGE_SECONDARY_{name.upper()}"] = str(folder.bin / _stream_list(name))
    own.update(gpu_environment(definition.gpus))
    own.update(definition.credentials)
    return {**definition.environment, **own, **_justin_environment(folder, definition)}


def _justin_environment(folder: JobFolder, definition: PayloadDefinition) -> dict[str, str]:
    """What a jobscript written for justIN looks for; what is not known is not set."""
    started = definition.started_at
    known = {
        "JUSTIN_PATH": str(folder.bin),
        "JUSTIN_JOBSUB_ID": definition.job_id,
        "JUSTIN_SITE_NAME": definition.site,
        "JUSTIN_WORKFLOW_ID": definition.workflow_id,
        "JUSTIN_STAGE_ID": definition.stage,
        "JUSTIN_SCOPE": definition.scope,
        "JUSTIN_MQL": definition.query,
        "JUSTIN_PROCESSORS": str(definition.cores),
        "JUSTIN_RSS_MIB": str(definition.memory_mb or ""),
        "JUSTIN_WALL_SECONDS": str(definition.wall_s or ""),
        "JUSTIN_TIMESTAMP": "" if started is None else started.strftime("%Y%m%dT%H%M%SZ"),
    }
    return {name: value for name, value in known.items() if value}


def _host_part(folder: JobFolder, definition: PayloadDefinition, host: Mapping[str, str]) -> dict[str, str]:
    part = {"LANG": "C.UTF-8"}
    part.update((name, host[name]) for name in HOST_VARIABLES if name in host)
    part.update((name, definition.environment[name]) for name in HOST_VARIABLES if name in definition.environment)
    part["PATH"] = f"{part.get('PATH', DEFAULT_PATH)}:{folder.bin}"
    return part


def _told(unit: PayloadUnit) -> dict[str, object]:
    """A unit as an object of JSON, without what it has not."""
    return {name: value for name, value in asdict(unit).items() if value is not None and value != {}}


def _stream_list(name: str) -> str:
    return f"secondary-{name}.txt"


def _lines(items: Iterable[str]) -> str:
    return "".join(f"{item}\n" for item in items)


def _write(path: Path, text: str, mode: int) -> None:
    """Makes a new file; one that is there already, or a link, is an error."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "w", encoding="utf-8", newline="") as stream:
        stream.write(text)
