#!/usr/bin/python3
"""The commands of a small site with a storage of its own kind: ``lsm-get``, ``lsm-put``, ``lsm-rm``, ``lsm-stat``.

Which one it is says its name (links to this file). Written as a site would write it, for a mounted disk, with nothing
of the pilot's. ``--hold FILE`` keeps ``lsm-put`` from giving the stored file its name while FILE exists, ``--careless``
keeps it from comparing anything.
"""

import argparse
import contextlib
import errno
import hashlib
import os
import signal
import stat
import sys
import time
import uuid
import zlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

CHUNK = 1 << 20


class Refusal(Exception):
    """An exit code with its words."""

    def __init__(self, code, words):
        self.code = code
        super().__init__(words)


def place(url):
    """The path of a URL on the mounted disk."""
    return Path(unquote(urlsplit(url).path))


def open_file(path, code):
    """Open a regular file."""
    stream = path.open("rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        raise Refusal(code, f"{path} is no regular file")
    return stream


def copy(source, write, algorithm):
    """Copy an open file and give its size and checksum."""
    digest, adler, size = hashlib.new(algorithm if algorithm != "adler32" else "md5"), 1, 0
    while True:
        chunk = source.read(CHUNK)
        if not chunk:
            return size, f"adler32:{adler:08x}" if algorithm == "adler32" else f"{algorithm}:{digest.hexdigest()}"
        write(chunk)
        size += len(chunk)
        if algorithm == "adler32":
            adler = zlib.adler32(chunk, adler)
        else:
            digest.update(chunk)


def same(known, found):
    """Whether two checksums are the same, whoever dropped the zeros."""
    return known.partition(":")[2].lstrip("0") == found.partition(":")[2].lstrip("0")


def compare(options, size, checksum, codes):
    """Compare what was found with what we were told."""
    if options.size is not None and size != options.size:
        raise Refusal(codes[0], f"{size} bytes, not {options.size}")
    if options.checksum and not same(options.checksum, checksum):
        raise Refusal(codes[1], f"{checksum}, not {options.checksum}")


def algorithm_of(options):
    """The algorithm to compute."""
    return options.checksum.partition(":")[0] if options.checksum else "adler32"


def get(options):
    """Copy from the storage."""
    with open_file(place(options.source), errno.ENOENT) as source, Path(options.target).open("xb") as target:
        size, checksum = copy(source, target.write, algorithm_of(options))
    if not options.careless:
        compare(options, size, checksum, (204, 205))


def prefix(path):
    """What the temporary names of a file begin with."""
    return f".pilotage-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}-"


def put(options):
    """Copy to the storage, never over anything."""
    final, algorithm = place(options.target), algorithm_of(options)
    with Path(options.source).open("rb") as source:
        if final.exists():
            here = copy(source, lambda chunk: None, algorithm)
            with open_file(final, 211) as stored:
                there = copy(stored, lambda chunk: None, algorithm)
            raise Refusal(212 if here == there else 211, f"{final} exists")
        final.parent.mkdir(parents=True, exist_ok=True)
        part = final.parent / f"{prefix(final)}{uuid.uuid4().hex[:8]}.part"
        try:
            with part.open("xb") as target:
                size, checksum = copy(source, target.write, algorithm)
            while options.hold and Path(options.hold).exists():
                time.sleep(0.01)
            if not options.careless:
                compare(options, size, checksum, (209, 210))
                with part.open("rb") as stored:
                    compare(options, *copy(stored, lambda chunk: None, algorithm), (204, 205))
            try:
                os.link(part, final)
            except FileExistsError:
                raise Refusal(211, f"{final} appeared") from None
        finally:
            part.unlink()


def rm(options):
    """Remove from the storage, with what copies that were killed left."""
    final = place(options.source)
    with contextlib.suppress(FileNotFoundError):
        for path in list(final.parent.iterdir()):
            if path.name.startswith(prefix(final)):
                path.unlink()
    final.unlink()


def show(options):
    """Print size and checksum."""
    with open_file(place(options.source), 211) as stored:
        print(*copy(stored, lambda chunk: None, "adler32"))


def main():
    """Do what our name says."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    role = Path(sys.argv[0]).name
    parser = argparse.ArgumentParser(role)
    parser.add_argument("--size", type=int)
    parser.add_argument("--checksum")
    parser.add_argument("--hold")
    parser.add_argument("--careless", action="store_true")
    parser.add_argument("source")
    if role in ("lsm-get", "lsm-put"):
        parser.add_argument("target")
    options = parser.parse_args()
    try:
        {"lsm-get": get, "lsm-put": put, "lsm-rm": rm, "lsm-stat": show}[role](options)
    except Refusal as refusal:
        print(f"{role}: {refusal}", file=sys.stderr)
        return refusal.code
    except OSError as error:
        print(f"{role}: {error}", file=sys.stderr)
        return 207 if error.errno in (errno.EACCES, errno.EPERM) and role == "lsm-put" else error.errno
    return 0


if __name__ == "__main__":
    sys.exit(main())
