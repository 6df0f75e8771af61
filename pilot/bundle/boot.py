"""What a bundle runs first: unpack its archive into a folder of this user's own, once, and start the program there.

Standard library only: the archive holds this module as its ``__main__``. The folder is kept for the next start, named
by the build, so that a new build never mixes with an old one. Starts side by side may unpack at the same time: each
unpacks for itself, and the first to rename its folder wins.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from typing import Any, NoReturn, Optional

ABOUT = "bundle.json"
"""The archive's member that says what is in it."""
CACHE_VARIABLE = "PILOTAGE_BUNDLE_CACHE"
"""The environment variable that names the folder to unpack into, in place of :func:`places`."""
SIZE, EXECUTABLE, BLOB = 0, 1, 2
"""The fields of a row of the list of files: its size, whether it may be executed, the archive's member."""
ABANDONED_S = 3600.0
"""An unfinished folder so old was left by a start that was killed."""
UNUSED_S = 30 * 86400.0
"""A folder that no start has used for so long belongs to a build of the past."""

Files = Mapping[str, list[Any]]


class Unusable(Exception):
    """A folder that cannot be used to unpack into; the message says why."""


def places(environ: Mapping[str, str]) -> list[str]:
    """Where to unpack, the best first: the batch system's scratch, what every node has, the user's own."""
    if environ.get(CACHE_VARIABLE):
        return [os.path.abspath(environ[CACHE_VARIABLE])]  # noqa: PTH100 - no pathlib: every start pays for it
    name = f"pilotage-bundle-{os.geteuid()}"
    shared = [f"{root}/{name}" for root in (environ.get("TMPDIR", ""), "/tmp", "/var/tmp") if root]
    home = environ.get("XDG_CACHE_HOME") or (f"{environ['HOME']}/.cache" if environ.get("HOME") else "")
    return shared + ([f"{home}/pilotage-bundle"] if home else [])


def own_folder(path: str) -> str:
    """``path``, made with mode 0700 if it isn't there. Raises Unusable unless it is this user's alone, in a folder
    where nobody else can put another in its place, on a file system that programs may be loaded from."""
    parent = os.path.dirname(path)  # noqa: PTH120 - as above
    try:
        os.makedirs(parent, 0o700, exist_ok=True)  # noqa: PTH103
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)  # noqa: PTH102
        above, found = os.stat(parent), os.lstat(path)  # noqa: PTH116
        may_load = not os.statvfs(path).f_flag & os.ST_NOEXEC
        may_write = os.access(path, os.W_OK | os.X_OK)
    except OSError as error:
        raise Unusable(error.strerror or str(error)) from error
    if not stat.S_ISDIR(found.st_mode):
        raise Unusable("it is not a folder")
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise Unusable("it belongs to somebody else, or others may write there")
    if above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX:
        raise Unusable("others may put another folder in its place")
    if not may_load or not may_write:
        raise Unusable("it is read-only" if may_load else "programs may not be loaded from there (noexec)")
    return path


def whole(tree: str, files: Files) -> bool:
    """Whether all files are there with their sizes: a cleaner of /tmp, a full disk or a crash may have taken some."""
    try:
        return all(os.lstat(f"{tree}/{name}").st_size == row[SIZE] for name, row in files.items())
    except OSError:
        return False


def unpack(archive: str, files: Files, folder: str) -> None:
    """Write the files into ``folder``, which is empty. Their times are now, so that no cleaner takes them for old."""
    for name in sorted({os.path.dirname(name) for name in files}):  # noqa: PTH120
        os.makedirs(f"{folder}/{name}", 0o700, exist_ok=True)  # noqa: PTH103
    with zipfile.ZipFile(archive) as packed:
        for name, row in files.items():
            mode = 0o700 if row[EXECUTABLE] else 0o600
            descriptor = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with open(descriptor, "wb") as target:  # noqa: PTH123
                target.write(packed.read(row[BLOB]))


def ready(archive: str, name: str, files: Files, cache: str) -> str:
    """The folder ``cache``/``name`` with all the files in it, unpacked if need be. Raises OSError."""
    tree = f"{cache}/{name}"
    if whole(tree, files):
        os.utime(tree)
        return tree
    fresh = tempfile.mkdtemp(prefix=".new-", dir=cache)
    try:
        unpack(archive, files, fresh)
        _put(fresh, tree, files)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    _sweep(cache, name)
    return tree


def _put(fresh: str, tree: str, files: Files) -> None:
    """Give ``fresh`` its name, unless another start was faster."""
    try:
        os.rename(fresh, tree)  # noqa: PTH104
    except OSError:
        if whole(tree, files):
            return
        damaged = tempfile.mkdtemp(prefix=".new-", dir=os.path.dirname(tree))  # noqa: PTH120
        try:
            os.rename(tree, f"{damaged}/tree")  # noqa: PTH104
            os.rename(fresh, tree)  # noqa: PTH104
        except OSError:
            if not whole(tree, files):
                raise
        finally:
            shutil.rmtree(damaged, ignore_errors=True)


def _sweep(cache: str, name: str) -> None:
    """Remove what killed starts and builds of the past left; best effort."""
    now = time.time()
    with contextlib.suppress(OSError):
        for entry in os.scandir(cache):
            limit_s = ABANDONED_S if entry.name.startswith(".new-") else UNUSED_S
            if entry.name != name and now - entry.stat(follow_symlinks=False).st_mtime > limit_s:
                shutil.rmtree(entry.path, ignore_errors=True)


def unpacked(archive: str, name: str, files: Files, environ: Mapping[str, str]) -> str:
    """The unpacked program, in the first of the :func:`places` that will do. Raises Unusable when none does."""
    tried: list[str] = []
    for place in places(environ):
        try:
            return ready(archive, name, files, own_folder(place))
        except (Unusable, OSError) as error:
            tried.append(f"  {place}: {error}")
    raise Unusable(f"no folder to unpack into; name one by {CACHE_VARIABLE}. Tried:\n" + "\n".join(tried))


def too_old(libc: Optional[str], needed: list[int]) -> str:
    """Why the packages will not load on this node's C library (``libc``: such as "glibc 2.31"); empty if they will."""
    wanted = f"glibc {needed[0]}.{needed[1]}"
    name, _, number = (libc or "").partition(" ")
    if name != "glibc":
        return f"this node's C library is {libc or 'not glibc'}, and the packages in this file need {wanted} or newer"
    found = [int(part) for part in number.split(".")[:2] if part.isdigit()]
    return f"this node has {libc}, and the packages in this file need {wanted} or newer" if found < needed else ""


def give_up(why: str) -> NoReturn:
    """End with a message on standard error."""
    sys.stderr.write(f"pilotage: {why}\n")
    sys.exit(1)


def c_library() -> Optional[str]:
    """The node's C library; None where it has no name."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        return None


def main(read: Any) -> None:
    """Run the command line. ``read(name)`` gives a member of the archive."""
    about = json.loads(read(ABOUT))
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if version not in about["pythons"]:
        give_up(f"this file is for Python {', '.join(about['pythons'])}, not {version}: start it as a program")
    trouble = too_old(c_library(), about["pythons"][version]["glibc"])
    if trouble:
        give_up(trouble)
    name = f"{about['build'][:16]}-{version}"
    files: Files = json.loads(read(about["pythons"][version]["files"]))
    archive = sys.path[0]
    try:
        sys.path[0] = unpacked(archive, name, files, os.environ)
    except Unusable as error:
        give_up(str(error))
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"{about_line(about)}, on {sys.executable} {version}\n")
        return
    from common.cli.main import main as program

    program(prog_name=os.path.basename(archive))  # noqa: PTH119


def about_line(about: Mapping[str, Any]) -> str:
    """Version, build and kind of a bundle."""
    return f"pilotage {about['version']} build {about['build'][:16]} for {about['arch']}"


if __name__ == "__main__":
    main(__loader__.get_data)  # type: ignore[name-defined]
