"""Checksums in HTTP headers: ``Digest`` (RFC 3230), as grid storages speak it, and ``Repr-Digest`` (RFC 9530)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Optional

from common.checksums import DIGITS, Checksum
from common.errors import PilotageError

#: Names of algorithms in the headers to ours; what is not here is passed over.
NAMES: dict[str, str] = {"adler32": "adler32", "adler": "adler32", "md5": "md5", "sha-256": "sha256"}

#: What we can compute, most useful first: the one computed on the way is named before all others.
_PREFERRED = ("adler32", "md5", "sha256")


def wanted(first: str) -> dict[str, str]:
    """Give the headers that ask for a digest, preferably of the algorithm ``first`` (our name).

    >>> wanted("md5")["Want-Digest"]
    'md5, adler32;q=0.5, sha-256;q=0.3'
    """
    rest = [name for name in _PREFERRED if name != first]
    old = {ours: theirs for theirs, ours in NAMES.items() if theirs != "adler"}
    new = {**old, "adler32": "adler"}
    return {
        "Want-Digest": f"{old[first]}, {old[rest[0]]};q=0.5, {old[rest[1]]};q=0.3",
        "Want-Repr-Digest": f"{new[first]}=9, {new[rest[0]]}=5, {new[rest[1]]}=3",
    }


def digests(headers: Mapping[str, str]) -> dict[str, Checksum]:
    """Give the checksums that an answer's headers hold, by our names of the algorithms.

    >>> digests({"Digest": "adler32=11e60398,sha-256=unreadable", "Repr-Digest": "md5=:nIBXPn9BiUi0ELhX2r08qA==:"})
    ... # doctest: +NORMALIZE_WHITESPACE
    {'adler32': Checksum(algorithm='adler32', value='11e60398'),
     'md5': Checksum(algorithm='md5', value='9c80573e7f418948b410b857dabd3ca8')}
    """
    found: dict[str, Checksum] = {}
    for header in ("Digest", "Repr-Digest"):
        for item in headers.get(header, "").split(","):
            name, equals, value = item.strip().partition("=")
            algorithm = NAMES.get(name.strip().lower())
            checksum = _checksum(algorithm, value.strip().strip(":")) if algorithm and equals else None
            if checksum is not None:
                found.setdefault(checksum.algorithm, checksum)
    return found


def _checksum(algorithm: str, value: str) -> Optional[Checksum]:
    """Read a value in base64 or, as adler32 is written and some write the others, in hexadecimal digits."""
    digits = DIGITS[algorithm]
    written = re.fullmatch("[0-9A-Fa-f]+", value) is not None
    if not written or (len(value) != digits and algorithm != "adler32"):
        try:
            value = base64.b64decode(value, validate=True).hex()
        except (binascii.Error, ValueError):
            return None
        if len(value) != digits:
            return None
    try:
        return Checksum(algorithm, value)
    except PilotageError:
        return None
