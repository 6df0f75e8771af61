"""Which folders of the host a queue may show to its payloads: any but those in which secrets of the pilot, of its user
or of other jobs lie."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import ErrorCode, PilotageError

#: Shared by everybody on the node, or about everybody.
COMMON = (Path("/tmp"), Path("/var/tmp"), Path("/proc"))


def source_of(bind: str) -> Path:
    """The folder of the host in a bind ``source[:destination[:options]]``."""
    return Path(bind.split(":", 1)[0])


def check_binds(binds: Sequence[str], private: Iterable[Path]) -> None:
    """Refuses a bind that shows ``private`` folders, or is inside one; or that shows /tmp, /proc or the home folder.

    What lies below those three may be bound. Raises PilotageError (CONTAINER_BIND_FAILED) that names the bind.
    """
    closed = [path.resolve() for path in private]
    for bind in binds:
        source = source_of(bind)
        if "," in bind or not source.is_absolute():
            raise _refused(bind, "give one absolute path, as in /data:/data:ro")
        real = source.resolve()
        for path in closed:
            if _shows(real, path) or path in real.parents:
                raise _refused(bind, f"it would show {path}, which is the pilot's own")
        for path in (*COMMON, _home()):
            if _shows(real, path.resolve()):
                raise _refused(bind, f"it would show {path}, where others keep their files: name a folder below it")


def _shows(source: Path, path: Path) -> bool:
    return source == path or source in path.parents


def _home() -> Path:
    try:
        return Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:  # a user id without a name, as in some batch systems' containers
        return Path("/root")


def _refused(bind: str, why: str) -> PilotageError:
    return PilotageError(ErrorCode.CONTAINER_BIND_FAILED, f"the queue's container_binds has {bind!r}: {why}")
