"""The secrets of workers that aren't submitted yet: files of mode 0600 beside the database.

They must outlive a crash, because the server has their hashes already; and they must not lie in the database, whose
copies and dumps go places where secrets don't.

A file holds the secrets of all workers that were planned together, since a durable file costs two writes of the disk
whatever is in it. It goes when the last of them is not needed any more.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import msgspec

from common.tokens import SecretFileError, read_secret_file, write_secret_file

log = logging.getLogger(__name__)

_Secrets = dict[str, str]


class SecretFiles:
    """The files in ``folder``, which is made with mode 0700. Threads may share it.

    What they hold is kept in memory: they are read when this is made, and where a mark isn't known.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._secrets: _Secrets = {}
        self._files: dict[str, Path] = {}
        self._waiting: dict[Path, set[str]] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._load()

    def write(self, secrets: Mapping[str, str]) -> None:
        """Keep secrets, each by its worker's mark, durably: all of them, or none. Raises OSError."""
        if not secrets:
            return
        path = self._folder / uuid.uuid4().hex
        write_secret_file(path, msgspec.json.encode(secrets).decode("ascii"))
        with self._lock:
            self._add(path, dict(secrets))

    def read(self, mark: str) -> str | None:
        """The secret of a worker; None when it is gone or unusable."""
        with self._lock:
            return self._secrets.get(mark)

    def remove(self, marks: Iterable[str]) -> None:
        """Forget secrets; those that aren't there don't matter. Raises OSError."""
        with self._lock:
            self._remove(list(marks))

    def sweep(self, keep: Collection[str]) -> None:
        """Remove all but those of ``keep``: a crash may leave secrets of workers that were never written down.

        Raises OSError.
        """
        with self._lock:
            self._remove(self._files.keys() - set(keep))
            for path in self._folder.iterdir():
                if path not in self._waiting:
                    path.unlink(missing_ok=True)

    def _load(self) -> None:
        for path in self._folder.iterdir():
            if path.name.startswith("."):
                continue  # half written when harvester was killed
            try:
                self._add(path, msgspec.json.decode(read_secret_file(path), type=_Secrets))
            except (SecretFileError, msgspec.DecodeError) as error:
                log.error("%s: its secrets are lost: %s", path, error)

    def _add(self, path: Path, secrets: _Secrets) -> None:
        self._waiting[path] = set(secrets)
        for mark, secret in secrets.items():
            self._secrets[mark] = secret
            self._files[mark] = path

    def _remove(self, marks: Iterable[str]) -> None:
        for mark in marks:
            path = self._files.get(mark)
            if path is None:
                continue
            if self._waiting[path] == {mark}:
                path.unlink(missing_ok=True)
                del self._waiting[path]
            else:
                self._waiting[path].discard(mark)
            del self._files[mark], self._secrets[mark]
