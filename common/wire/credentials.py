"""Credentials for storages, which pilots fetch from the server."""

from __future__ import annotations

from typing import Annotated, Optional

import msgspec

from common.wire.base import Id, Message
from common.wire.world import CredentialKind

Url = Annotated[str, msgspec.Meta(min_length=1, max_length=8192)]


class CredentialRequest(Message, kw_only=True):
    """``POST /v1/pilots/{id}/credentials``: for a transfer of one of the pilot's own jobs.

    The first of ``urls`` must be an input of the job, or with ``write`` one of its recorded outputs; the others are
    covered too as far as that goes with one credential. With ``payload`` it is for the payload itself, to read its
    input directly. ``csr`` (PEM) proves that the pilot has the key that a proxy is for.
    """

    job_id: Id
    urls: Annotated[list[Url], msgspec.Meta(min_length=1, max_length=10_000)]
    write: bool = False
    payload: bool = False
    csr: Optional[Annotated[str, msgspec.Meta(max_length=16_384)]] = None


class CredentialReply(Message, kw_only=True):
    """What the storage wants to be shown. ``covers`` are URLs for which it holds; one that ends in a slash: all below it.

    ``ambient``: the server gives nothing for it, the pilot uses what it has of that kind. ``provider`` names who gives
    it: a proxy of the same provider serves for all that wants one. ``csr_wanted``: ask again, with a CSR. ``token`` or
    ``chain`` (PEM, the proxy first, without its key) is good for ``life_s`` seconds from now.
    """

    kind: CredentialKind
    covers: list[str]
    ambient: bool = False
    provider: str = ""
    csr_wanted: bool = False
    token: Optional[str] = None
    chain: Optional[str] = None
    life_s: float = 0.0
