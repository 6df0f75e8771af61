"""Commands on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from harvester.transport.base import LOG_BYTES, Done, Input, TransportError


class LocalTransport:
    """Runs commands as processes of this machine, with harvester's environment less what configures harvester."""

    def run(self, command: Sequence[str], stdin: Input = None, timeout_s: float = 60.0) -> Done:
        """Run a command in a process group of its own."""
        return run_process(command, stdin, timeout_s)

    def local_path(self, path: str) -> Optional[Path]:
        """The path itself."""
        return Path(path)

    def put(self, folder: Path, names: Sequence[str], target: str, timeout_s: float = 60.0) -> None:
        """Copy, unless they lie there already."""
        try:
            for name in names:
                source, copy = folder / name, Path(target) / name
                if source == copy:
                    continue
                copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                if source.is_dir():
                    shutil.copytree(source, copy, symlinks=True, dirs_exist_ok=True)
                else:
                    shutil.copy2(source, copy, follow_symlinks=False)
        except OSError as error:
            raise TransportError(f"{target}: {error}") from error

    def fetch(self, source: str, names: Sequence[str], folder: Path, timeout_s: float = 60.0) -> None:
        """Copy the ends of files, unless they lie there already."""
        try:
            for name in names:
                path, copy = Path(source) / name, folder / name
                if path != copy and path.is_file() and not path.is_symlink():
                    copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    copy.write_bytes(_end_of(path))
        except OSError as error:
            raise TransportError(f"{source}: {error}") from error

    def close(self) -> None:
        """Nothing to do."""


def run_process(
    command: Sequence[str], stdin: Input = None, timeout_s: float = 60.0, env: Optional[Mapping[str, str]] = None
) -> Done:
    """Run a command here, in a process group that is killed when the time is up. Raises TransportError."""
    given = stdin if isinstance(stdin, bytes) else None
    source = subprocess.PIPE if given is not None else subprocess.DEVNULL if stdin is None else stdin
    try:
        process = subprocess.Popen(
            list(command),
            stdin=source,  # type: ignore[arg-type]  # a file, a pipe or nothing
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env) if env is not None else _inherited(os.environ),
            start_new_session=True,
        )
    except OSError as error:
        raise TransportError(f"{command[0]}: {error.strerror}") from error
    try:
        stdout, stderr = process.communicate(given, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _kill_group(process)
        raise TransportError(f"{command[0]}: no answer within {timeout_s:g} s") from None
    except BaseException:
        _kill_group(process)
        raise
    return Done(process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"))


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # Its leader is not reaped yet, so that the group's number is still its own.
    os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    process.wait()


def _end_of(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        return file.read(LOG_BYTES)


def _inherited(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if not name.startswith("PILOTAGE_")}
