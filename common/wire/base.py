"""The two families of messages, and the kinds of text and number in them."""

from __future__ import annotations

from typing import Annotated

import msgspec

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+\-]*$(?!\n)")]
"""A name of ours: letters, digits and ``. _ + -``, beginning with a letter or digit."""
_DID = r"^[^:\s/\x00-\x1f]+:[^\s/\x00-\x1f][^/\x00-\x1f]*$(?!\n)"
Did = Annotated[str, msgspec.Meta(min_length=3, max_length=511, pattern=_DID)]
"""``scope:name``; neither part holds a slash."""
Checksum = Annotated[str, msgspec.Meta(pattern=r"^(adler32:[0-9a-f]{8}|md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$(?!\n)")]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
NonNegative = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Number = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
"""A number that somebody else chose: an exit code, an error code."""
Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Measured = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""What was looked up on a machine."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class Strict(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Base of what people send."""


class Message(msgspec.Struct, omit_defaults=True):
    """Base of what programs tell one another."""


def encode(message: msgspec.Struct) -> bytes:
    """JSON of a message."""
    return msgspec.json.encode(message)
