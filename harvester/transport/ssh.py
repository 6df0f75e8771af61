"""Commands on another machine, by OpenSSH's client: one connection for all, keys only, host keys checked.

A broken line is told by ssh's exit code 255; so a program that ends with that itself can't be told from one. The login
shell over there must be a POSIX one (sh, bash, dash, ksh, zsh).
"""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
import stat
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Optional

import msgspec

from common.config import ConfigError
from harvester.transport.base import LOG_BYTES, Done, Input, TransportError
from harvester.transport.local import run_process

LINE_BROKE = 255
PERSIST_S = 120
"""How long an unused connection is kept."""
FETCH_FILES = 16
"""Files brought home in one command."""

_PUT = 'umask 077 && mkdir -p "$1" && exec tar -x -o -f - -C "$1"'
# Each file after a line with its size, padded should it shrink meanwhile: the rest would shift. In base64, being bytes.
_FETCH = """
cd "$1" || exit 3
most=$2; shift 2
for name; do
  size=-1
  if [ -f "$name" ] && [ ! -L "$name" ] && [ -r "$name" ]; then size=$(($(wc -c <"$name"))); fi
  if [ "$size" -gt "$most" ]; then skip=$((size - most)); size=$most; else skip=0; fi
  echo "$size"
  [ "$size" -lt 1 ] || { tail -c +$((skip + 1)) "$name"; head -c "$size" /dev/zero; } | head -c "$size"
done | base64
"""


class SshOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to and as whom. ``options`` are further ones of ssh_config, such as ``ProxyJump=gate``."""

    host: Annotated[str, msgspec.Meta(min_length=1)]
    user: Optional[str] = None
    port: Optional[Annotated[int, msgspec.Meta(ge=1, le=65535)]] = None
    key_file: Optional[str] = None
    known_hosts: Optional[str] = None
    options: list[str] = []


class SshTransport:
    """Runs commands on ``options.host``."""

    def __init__(self, options: SshOptions, connect_s: float = 15.0) -> None:
        self._options = options
        self._connect_s = connect_s

    def run(self, command: Sequence[str], stdin: Input = None, timeout_s: float = 60.0) -> Done:
        """Run a command over there. When the time is up the connection is given up as well."""
        try:
            done = run_process([*self._words(), "--", self._options.host, shlex.join(command)], stdin, timeout_s)
        except TransportError as error:
            self._end_connection("exit")
            raise TransportError(f"{self._options.host}: {error}") from error
        if done.code == LINE_BROKE:
            raise TransportError(f"{self._options.host}: {done.words}")
        return done

    def local_path(self, path: str) -> Optional[Path]:
        """Nothing over there is seen from here."""
        return None

    def put(self, folder: Path, names: Sequence[str], target: str, timeout_s: float = 60.0) -> None:
        """All of them in one stream; a file that has several names goes once."""
        with tempfile.TemporaryFile() as stream:
            try:
                with tarfile.open(fileobj=stream, mode="w") as archive:
                    for name in names:
                        archive.add(folder / name, arcname=name)
            except OSError as error:
                raise TransportError(f"{folder}: {error}") from error
            stream.seek(0)
            done = self.run(["sh", "-c", _PUT, "put", target], stream, timeout_s)
        if done.code:
            raise TransportError(f"{self._options.host}:{target}: {done.words}")

    def fetch(self, source: str, names: Sequence[str], folder: Path, timeout_s: float = 60.0) -> None:
        """A few files in one command."""
        for start in range(0, len(names), FETCH_FILES):
            part = names[start : start + FETCH_FILES]
            done = self.run(["sh", "-c", _FETCH, "fetch", source, str(LOG_BYTES), *part], None, timeout_s)
            if done.code:
                raise TransportError(f"{self._options.host}:{source}: {done.words}")
            _unpack(done.stdout, part, folder)

    def close(self) -> None:
        """End the connection that commands share, after those that are under way, as of another program of ours."""
        self._end_connection("stop")

    def _end_connection(self, how: str) -> None:
        """``exit`` at once, or ``stop`` taking commands."""
        try:
            if self._socket().exists():
                run_process([*self._words(), "-O", how, "--", self._options.host], None, 5.0)
        except TransportError:
            return  # it was hung, and is gone when its own time is up

    def _words(self) -> list[str]:
        given = self._options
        settings = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": f"{self._connect_s:.0f}",
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "3",
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "ControlMaster": "auto",
            "ControlPersist": f"{PERSIST_S}",
            "ControlPath": str(self._socket()),
        }
        if given.key_file is not None:
            settings.update(IdentityFile=given.key_file, IdentitiesOnly="yes")
        if given.known_hosts is not None:
            settings.update(UserKnownHostsFile=given.known_hosts)
        words = [f"-o{name}={value}" for name, value in settings.items()]
        words += [f"-o{option}" for option in given.options]
        words += [] if given.user is None else ["-l", given.user]
        words += [] if given.port is None else ["-p", str(given.port)]
        return ["ssh", "-T", *words]

    def _socket(self) -> Path:
        """Where the shared connection listens: of this user alone, short, another for other options."""
        folder = Path(tempfile.gettempdir()) / f"pilotage-ssh-{os.getuid()}"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
        except OSError as error:
            raise TransportError(f"{folder}: {error.strerror}") from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise TransportError(f"{folder}: it must be a folder of this user, of mode 0700: remove it")
        return folder / hashlib.sha256(msgspec.json.encode(self._options)).hexdigest()[:16]


def check_ssh(options: SshOptions) -> None:
    """What types can't say. Raises ConfigError."""
    if options.host.startswith("-"):
        raise ConfigError(f"options.ssh.host: {options.host!r} is no host's name")
    for key in ("key_file", "known_hosts"):
        path = getattr(options, key)
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"options.ssh.{key}: {path!r} is no file here")
    for option in options.options:
        if "=" not in option or "\n" in option:
            raise ConfigError(f"options.ssh.options: {option!r} must be of the form Name=value, as in ssh_config")


def _unpack(text: str, names: Sequence[str], folder: Path) -> None:
    content = base64.b64decode(text)
    try:
        for name in names:
            line, _, content = content.partition(b"\n")
            size = int(line)
            if size >= 0:
                target = folder / name
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                target.write_bytes(content[:size])
                content = content[size:]
    except (ValueError, OSError) as error:
        raise TransportError(f"{folder}: {error}") from error
