"""Pulls one image into a node's folder of images. Runs as a process of its own, started by :mod:`pilot.container.images`,
so that a time-out, a cancel or the pilot's death ends it and all that Apptainer started.

::

    <folder>/<name>.sif     an image, whole: it gets this name when all of it is on the disk
    <folder>/<name>.lock    held by the one process on this node that pulls it; the kernel lets go of it
    <folder>/<name>.part/   what is being pulled

The first argument is a JSON object: ``address``, ``folder``, ``name``, ``max_age_s``, ``limit_mb``. Exit code 0: the image
is there; 3: spython is missing; anything else: Apptainer's words are on stderr.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MB = 1024 * 1024
NO_SPYTHON = 3
#: An image that somebody used so recently is not removed: a job may be about to open it.
IN_USE_S = 600.0
#: After a failed attempt to renew an image, the old one is used for so long before the next.
RENEW_AGAIN_S = 600.0
_SIF_MAGIC = b"SIF_MAGIC\0"
#: A SIF's header: launch script, magic, version, architecture, id, then eight numbers, the last two of which are where
#: its data begin and how many bytes they are (the SIF specification, "Global header").
_SIF_HEADER = struct.Struct("<32s10s3s3s16s8q")


def is_whole(image: Path) -> bool:
    """Whether the file is a SIF with all of its bytes."""
    try:
        with image.open("rb") as stream:
            head = stream.read(_SIF_HEADER.size)
        size = image.stat().st_size
    except OSError:
        return False
    if len(head) < _SIF_HEADER.size:
        return False
    fields = _SIF_HEADER.unpack(head)
    return bool(fields[1] == _SIF_MAGIC and fields[-2] + fields[-1] <= size)


def is_fresh(image: Path, max_age_s: float) -> bool:
    """Whether the image is there, whole, and pulled no longer than ``max_age_s`` ago."""
    try:
        age_s = time.time() - image.stat().st_mtime
    except OSError:
        return False
    return age_s <= max_age_s and is_whole(image)


def mark_used(image: Path) -> None:
    """Note that the image is used now. Raises OSError when it has just been removed."""
    os.utime(image, (time.time(), image.stat().st_mtime))


@contextlib.contextmanager
def locked(lock: Path, wait: bool) -> Iterator[bool]:
    """Hold the lock of one image; False when somebody else has it and ``wait`` is False."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(fd)


def make_room(folder: Path, limit_mb: int) -> list[str]:
    """Removes images, the longest unused first, until those left fit; then what dead pulls left. Answers the names.

    One that was used in the last minutes stays, or one that is being pulled: the bound may be passed for a while.
    """
    removed = []
    images = [(image.stat(), image) for image in folder.glob("*.sif")]
    total = sum(status.st_size for status, _image in images)
    for status, image in sorted(images, key=lambda item: item[0].st_atime):
        if total <= limit_mb * MB or time.time() - status.st_atime < IN_USE_S:
            break
        with locked(image.with_suffix(".lock"), wait=False) as mine:
            if mine:
                image.unlink(missing_ok=True)
                total -= status.st_size
                removed.append(image.name)
    for part in folder.glob("*.part"):
        with locked(part.with_suffix(".lock"), wait=False) as mine:
            if mine:
                shutil.rmtree(part, ignore_errors=True)
                removed.append(part.name)
    return removed


def pull(client: Any, address: str, image: Path) -> None:
    """Pulls and puts in place. ``client`` is spython's. Raises CalledProcessError, or OSError."""
    part = image.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700)
    try:
        target = part / "image.sif"
        _name, words = client.pull(address, name=str(target), stream=True, quiet=True)
        for word in words:
            sys.stderr.write(word)
        if client.inspect(str(target)).get("attributes") is None or not is_whole(target):
            raise OSError(f"what came from {address} is no whole image")
        target.chmod(0o644)
        with target.open("rb") as stream:
            os.fsync(stream.fileno())
        target.replace(image)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def main(order: dict[str, Any]) -> int:
    """Pulls the image unless a whole and fresh one is there once the lock is had; answers the exit code."""
    folder = Path(order["folder"])
    image = folder / f"{order['name']}.sif"
    with locked(image.with_suffix(".lock"), wait=True):
        if is_fresh(image, order["max_age_s"]):
            return 0
        try:
            from spython.main import Client
        except ImportError as error:
            sys.stderr.write(f"{error}\n")
            return NO_SPYTHON
        try:
            pull(Client, order["address"], image)
        except (subprocess.CalledProcessError, OSError) as error:
            if not is_whole(image):
                sys.stderr.write(f"{error}\n")
                return 1
            sys.stderr.write(f"the image is not renewed, the old one is used: {error}\n")
            now = time.time()
            os.utime(image, (now, now - order["max_age_s"] + RENEW_AGAIN_S))
        mark_used(image)
    make_room(folder, order["limit_mb"])
    return 0


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[2])
    sys.exit(main(json.loads(sys.argv[1])))
