"""The secrets of workers that aren't submitted yet: files of mode 0600 named by mark, beside the database.

They must outlive a crash, because the server has their hashes already; and they must not lie in the database, whose
copies and dumps go places where secrets don't.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from common.tokens import SecretFileError, read_secret_file, write_secret_file


class SecretFiles:
    """The files in ``folder``, which is made with mode 0700."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, mark: str, secret: str) -> None:
        """Keep a secret, durably. Raises OSError."""
        write_secret_file(self._folder / mark, secret)

    def read(self, mark: str) -> str | None:
        """The secret of a worker; None when it is gone or unusable."""
        try:
            return read_secret_file(self._folder / mark)
        except SecretFileError:
            return None

    def remove(self, marks: Iterable[str]) -> None:
        """Forget secrets; those that aren't there don't matter."""
        for mark in marks:
            (self._folder / mark).unlink(missing_ok=True)

    def sweep(self, keep: Collection[str]) -> None:
        """Remove all but those of ``keep``: a crash may leave a secret whose worker was never written down."""
        for path in self._folder.iterdir():
            if path.name not in keep:
                path.unlink(missing_ok=True)
