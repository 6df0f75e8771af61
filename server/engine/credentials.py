"""Which credential a pilot may have: only for what its own job reads, and where it stores what it has recorded.

A token is scoped to the very files that are read, and to the job's own folder for what is written: there its temporary
names lie too, and nobody else's files. What a lost job had uploaded may still be removed, file by file.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from common.wire import CredentialKind, Endpoint, ReplicaSpec
from server.engine.world import World, join_url

MOST_SCOPE_CHARS = 2200
"""Of a token's scopes: XRootD takes tokens of up to 4096 characters where an admin has not said otherwise."""
SCOPE_SAFE = "/~:@!$&'()*+,;=-._"
"""What stands in a scope's path as it is, beside letters and digits: scopes are separated by blanks."""
READ = ("storage.read",)
WRITE = ("storage.read", "storage.create", "storage.modify")
"""A pilot asks for the size and the checksum of what it stored, renames it, and removes what went wrong."""


@dataclass(frozen=True)
class File:
    """A file on a storage, ``path`` below its prefix; a ``log`` may have a way of its own."""

    storage: str
    path: str
    log: bool = False


@dataclass(frozen=True)
class Held:
    """What a pilot at ``site`` has to do with storages in one job: the replicas it may read, what it is about to upload,
    and what of a job that is over was recorded and never became visible."""

    site: str
    inputs: Sequence[ReplicaSpec] = ()
    outputs: Sequence[File] = ()
    abandoned: Sequence[File] = ()


@dataclass(frozen=True)
class Grant:
    """What a credential may be for: a storage's endpoint, the scopes of a token there, the URLs that it covers."""

    storage: str
    endpoint: Endpoint
    scopes: tuple[str, ...]
    covers: tuple[str, ...]


@dataclass(frozen=True)
class _Way:
    """One URL that a job may use; ``path`` is where a token for it must reach."""

    storage: str
    endpoint: Endpoint
    path: str


def grant(world: World, held: Held, urls: Sequence[str], *, write: bool) -> Grant | None:
    """For the first of ``urls``, and as many of the others as one token takes; None if it is none of the job's.

    Reading: an input, or below the folder of an output. Writing: in the folder of a recorded output, or the very file
    that a job which is over has left.
    """
    exact = _files(world, held.site, held.abandoned, True) if write else _inputs(world, held)
    folders = _folders(world, held)
    words = WRITE if write else READ
    first: _Way | None = None
    scopes: dict[str, None] = {}
    covers: dict[str, None] = {}
    for url in urls:
        cover, way = _find(url, exact, folders)
        if way is None:
            if first is None:
                return None
            continue
        first = first or way
        if (way.storage, way.endpoint.url) != (first.storage, first.endpoint.url):
            continue
        new = [scope for word in words if (scope := f"{word}:{way.path}") not in scopes]
        token = way.endpoint.credential is CredentialKind.TOKEN
        if token and scopes and sum(len(scope) + 1 for scope in (*scopes, *new)) > MOST_SCOPE_CHARS:
            continue
        scopes.update(dict.fromkeys(new))
        covers[cover] = None
    return None if first is None else Grant(first.storage, first.endpoint, tuple(scopes), tuple(covers))


def _find(url: str, exact: dict[str, _Way], folders: dict[str, _Way]) -> tuple[str, _Way | None]:
    """How a URL may be used, and what is covered with it."""
    if url in exact:
        return url, exact[url]
    folder, _, name = url.rpartition("/")
    if unquote(name) in ("", ".", "..") or "?" in name or "/" in unquote(name):
        return url, None
    return f"{folder}/", folders.get(f"{folder}/")


def _inputs(world: World, held: Held) -> dict[str, _Way]:
    return _files(world, held.site, (File(each.storage, each.path) for each in held.inputs), False)


def _files(world: World, site: str, files: Iterable[File], write: bool) -> dict[str, _Way]:
    found: dict[str, _Way] = {}
    for file in files:
        if file.storage in world.storages:
            log = write and file.log
            for endpoint in world.log_ways(file.storage, site) if log else world.ways(file.storage, site, write=write):
                url = join_url(endpoint.url, file.path)
                found[url] = _Way(file.storage, endpoint, scope_path(endpoint, url))
    return found


def _folders(world: World, held: Held) -> dict[str, _Way]:
    """The folders of recorded outputs, which hold nothing but one job's, by their URLs with a slash."""
    folders = {File(each.storage, posixpath.dirname(each.path), each.log) for each in held.outputs}
    return {f"{url}/": way for url, way in _files(world, held.site, folders, True).items()}


def endpoint_problem(endpoint: Endpoint) -> tuple[str, str]:
    """The field of an endpoint that does not go with its credential, and the remedy; empty if all do."""
    kind = endpoint.credential
    if endpoint.provider is not None and kind not in (CredentialKind.TOKEN, CredentialKind.PROXY):
        return "provider", "providers give tokens or proxies: set credential to token or proxy, or leave it out"
    if endpoint.payload_provider is not None and kind is not CredentialKind.PROXY:
        return "payload_provider", "it is for credential = proxy only: leave it out"
    for word in ("audience", "token_prefix"):
        if getattr(endpoint, word) and kind is not CredentialKind.TOKEN:
            return word, "it is for credential = token only: leave it out"
    if kind is CredentialKind.TOKEN and endpoint.provider is not None and not endpoint.audience:
        return "audience", "a token needs one: name what the storage takes for its own"
    return "", ""


def scope_path(endpoint: Endpoint, url: str) -> str:
    """The path in a token's scope for a URL: absolute, normalised, without the endpoint's ``token_prefix``."""
    # Two slashes at the beginning mean something to POSIX, and nothing here.
    path = "/" + posixpath.normpath(unquote(urlsplit(url).path)).lstrip("/")
    prefix = endpoint.token_prefix.rstrip("/")
    if prefix and (path == prefix or path.startswith(f"{prefix}/")):
        path = path[len(prefix) :] or "/"
    return quote(path, safe=SCOPE_SAFE)
