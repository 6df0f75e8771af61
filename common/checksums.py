"""Checksums of files, written ``algorithm:value`` everywhere: ``adler32:0a1b2c3d``.

Adler32 is what grid storages know; it is always eight lower-case hexadecimal digits here, however a catalogue wrote it.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from common.errors import ErrorCode, PilotageError

#: Hexadecimal digits of each algorithm's value.
DIGITS: dict[str, int] = {"adler32": 8, "md5": 32, "sha256": 64}

#: Other spellings, PanDA's ``ad:`` and ``md:`` among them, to ours.
ALIASES: dict[str, str] = {
    "ad": "adler32",
    "ad32": "adler32",
    "adler": "adler32",
    "md": "md5",
    "md5sum": "md5",
    "sha-256": "sha256",
}

#: Bytes read at a time: large enough for the interpreter's overhead to vanish, small enough to cancel between two.
CHUNK_BYTES = 4 * 1024 * 1024


def known_algorithm(name: str) -> str:
    """Give our name of an algorithm; :class:`PilotageError` ``UNKNOWN_CHECKSUM_TYPE`` when there is none."""
    lower = name.strip().lower()
    algorithm = ALIASES.get(lower, lower)
    if algorithm not in DIGITS:
        raise PilotageError(
            ErrorCode.UNKNOWN_CHECKSUM_TYPE, f"checksum type {name!r} is unknown: use one of {', '.join(DIGITS)}"
        )
    return algorithm


@dataclass(frozen=True)
class Checksum:
    """A checksum: equal to another when algorithm and normalised value are.

    >>> str(Checksum("adler32", "A1B2C3"))
    'adler32:00a1b2c3'
    """

    algorithm: str
    value: str

    def __post_init__(self) -> None:
        algorithm = known_algorithm(self.algorithm)
        digits = DIGITS[algorithm]
        value = self.value.strip().lower()
        if algorithm == "adler32" and value:
            value = value.zfill(digits)  # some catalogues drop leading zeros
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
            raise PilotageError(
                ErrorCode.UNKNOWN_CHECKSUM_TYPE,
                f"checksum value {self.value!r} is no {algorithm}: write {digits} hexadecimal digits",
            )
        object.__setattr__(self, "algorithm", algorithm)
        object.__setattr__(self, "value", value)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value}"


def parse_checksum(text: str) -> Checksum:
    """Read ``algorithm:value``; PanDA's ``ad:`` and ``md:`` are understood.

    Raises :class:`PilotageError` ``UNKNOWN_CHECKSUM_TYPE`` naming the text and the remedy.

    >>> parse_checksum("ad:A1B2C3D")
    Checksum(algorithm='adler32', value='0a1b2c3d')
    """
    algorithm, colon, value = text.partition(":")
    if not colon:
        raise PilotageError(
            ErrorCode.UNKNOWN_CHECKSUM_TYPE, f"checksum {text!r} names no type: write it like adler32:0a1b2c3d"
        )
    return Checksum(algorithm, value)


class Hasher:
    """Computes a checksum while data flows by.

    >>> hasher = Hasher("adler32")
    >>> hasher.update(b"Wikipedia")
    >>> str(hasher.result())
    'adler32:11e60398'
    """

    def __init__(self, algorithm: str) -> None:
        self.algorithm = known_algorithm(algorithm)
        self._adler = 1  # adler32 of nothing (RFC 1950)
        self._digest = None if self.algorithm == "adler32" else hashlib.new(self.algorithm, usedforsecurity=False)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes."""
        if self._digest is None:
            self._adler = zlib.adler32(data, self._adler)
        else:
            self._digest.update(data)

    def result(self) -> Checksum:
        """Give the checksum of all bytes so far."""
        value = f"{self._adler:08x}" if self._digest is None else self._digest.hexdigest()
        return Checksum(self.algorithm, value)


def file_checksum(path: str | Path, algorithm: str = "adler32") -> Checksum:
    """Compute the checksum of a file in constant memory; :class:`OSError` when it cannot be read."""
    hasher = Hasher(algorithm)
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    with Path(path).open("rb", buffering=0) as stream:
        while True:
            count = stream.readinto(buffer)
            if not count:
                return hasher.result()
            hasher.update(view[:count])
