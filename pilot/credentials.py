"""Credentials for storages that the pilot fetches from the server, one for each job and endpoint, and keeps fresh.

They lie in files of mode 0600 in the pilot's own folder, which no container gets to see. Each is renewed when two
thirds of its life are over, by a thread that sleeps until then; its file is replaced, so that whoever reads it anew for
each connection goes on. What the server has nothing for is shown what the pilot was given by its surroundings.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Protocol

from common.errors import ErrorCode, PilotageError
from common.tokens import write_secret_file
from common.wire import CredentialKind, CredentialReply, CredentialRequest
from pilot.client import ServerAway, ServerError
from pilot.copytool.base import safe_url
from pilot.copytool.credentials import Credential, CredentialSource

logger = logging.getLogger(__name__)

RENEW_AT = 2 / 3
"""The part of its life after which a credential is renewed; up to a tenth less, so that many pilots don't come at once."""
JITTER = 0.1
NO_LIFE_S = 600.0
"""For how long it holds that the server has nothing for a storage."""
LITTLE_S = 5.0
"""A credential with less life than this opens no connection any more."""
RETRY_S = 60.0
"""The longest wait until the next try to renew; a quarter of the life that is left where that is less."""
CLOSE_S = 1.0
"""How long a call that renews something is waited for at the end."""
MOST_URLS = 500
"""URLs for which a credential is asked at once: the server covers as many as fit."""


def since_boot() -> float:
    """Seconds that go on while the machine is suspended, when credentials age too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Giver(Protocol):
    """Who gives credentials: the server."""

    def credentials(self, request: CredentialRequest) -> CredentialReply:
        """Fetch one. Raises ServerError."""


@dataclass(frozen=True)
class PayloadCredential:
    """What a payload is given to read its input directly: the variables that name its file, and the URLs that it is
    good for. Without a variable the storage wants nothing."""

    environment: dict[str, str]
    covers: frozenset[str]


@dataclass
class _Kept:
    """A credential as it was fetched; times in monotonic seconds. ``path`` is its file, if it has one.

    ``payload``: it lies in the job's folder, for the payload.
    """

    urls: tuple[str, ...]
    write: bool
    payload: bool
    path: Path
    kind: CredentialKind = CredentialKind.AMBIENT
    covers: frozenset[str] = frozenset()
    credential: Optional[Credential] = None
    renew_at: float = 0.0
    ends: float = 0.0

    def holds_for(self, url: str) -> bool:
        """Whether it covers a URL."""
        return url in self.covers or any(each.endswith("/") and url.startswith(each) for each in self.covers)


@dataclass
class _Job:
    """What a job reads and where it writes: URLs and folders as the server named them, by their plain form.

    ``lock`` is held while the server is asked.
    """

    job_id: int
    reads: dict[str, str] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    kept: list[_Kept] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    closed: bool = False

    def known(self, url: str, write: bool) -> Optional[str]:
        """A URL in plain form as the server knows it; None when the job has nothing to do with it."""
        folder, _, name = url.rpartition("/")
        if f"{folder}/" in self.folders:
            return self.folders[f"{folder}/"] + name
        return None if write else self.reads.get(url)


@dataclass
class _Proxy:
    """A proxy that all jobs share whose storages want one of the same provider."""

    path: Path
    renew_at: float = 0.0
    ends: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class ServerCredentials:
    """The credentials of one pilot's jobs. ``folder`` is emptied; ``clock`` gives seconds that never go back.

    Raises OSError when the folder cannot be made.
    """

    def __init__(
        self,
        server: Giver,
        folder: Path,
        ambient: CredentialSource,
        *,
        clock: Callable[[], float] = since_boot,
        rng: Optional[random.Random] = None,
    ) -> None:
        self._server = server
        self._folder = folder
        self._ambient = ambient
        self._clock = clock
        self._rng = rng or random.Random()
        self._jobs: dict[int, _Job] = {}
        self._proxies: dict[str, _Proxy] = {}
        self._numbers = iter(range(1, 2**62))
        self._changed = threading.Condition()
        self._thread: Optional[threading.Thread] = None
        self._stopped = False
        shutil.rmtree(folder, ignore_errors=True)  # an earlier pilot's
        folder.mkdir(mode=0o700)

    # ------------------------------------------------------------ what the jobs tell

    def reads(self, job_id: int, urls: Iterable[str]) -> None:
        """A job is going to read these."""
        with self._changed:
            self._jobs.setdefault(job_id, _Job(job_id)).reads.update((plain(url), url) for url in urls)

    def writes(self, job_id: int, urls: Sequence[str]) -> None:
        """A job is going to write these, or files beside them."""
        with self._changed:
            folders = [url.rpartition("/")[0] + "/" for url in urls]
            self._jobs.setdefault(job_id, _Job(job_id)).folders.update((plain(each), each) for each in folders)

    def forget(self, job_id: int) -> None:
        """A job is over: its credentials are removed."""
        with self._changed:
            job = self._jobs.pop(job_id, None)
        if job is not None:
            with job.lock:
                job.closed = True
                for kept in job.kept:
                    if kept.path.parent == self._folder:
                        kept.path.unlink(missing_ok=True)

    def close(self) -> None:
        """End the renewing, and remove all files."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    # ------------------------------------------------------------ what the copytools ask

    def for_url(self, url: str, *, write: bool) -> Credential:
        """What to show for ``url``. What belongs to no job of this pilot is shown what its surroundings have.

        Raises PilotageError: COMMUNICATION_FAILED when the server is away, MISSING_CREDENTIALS when it refuses.
        """
        job, known = self._job_of(plain(url), write)
        if job is None:
            return self._ambient.for_url(url, write=write)
        with self._asking(job):
            kept = next((each for each in job.kept if _serves(each, known, write)), None)
            if kept is None:
                urls = [known] if write else [known, *(each for each in job.reads.values() if each != known)]
                kept = _Kept(tuple(urls[:MOST_URLS]), write, False, self._new_path())
            self._fresh(job, kept, known)
            return self._shown(kept, url)

    def for_payload(self, job_id: int, urls: Sequence[str], path: Path) -> PayloadCredential:
        """A credential with which the job's payload may read ``urls``, as far as it covers them, in the file ``path``.

        It is kept fresh there until the job is forgotten; asked for again, it covers the new URLs. Raises PilotageError
        like :meth:`for_url`.
        """
        with self._changed:
            job = self._jobs.setdefault(job_id, _Job(job_id))
        with self._asking(job):
            kept = next((each for each in job.kept if each.payload), None)
            if kept is None:
                kept = _Kept((), False, True, path)
            kept.urls, kept.renew_at = tuple(urls[:MOST_URLS]), 0.0
            self._fresh(job, kept, urls[0])
            names = {CredentialKind.TOKEN: "BEARER_TOKEN_FILE", CredentialKind.PROXY: "X509_USER_PROXY"}
            if kept.kind not in names:
                return PayloadCredential({}, kept.covers)
            if kept.credential is None:  # what the pilot has itself is not the payload's
                return PayloadCredential({}, frozenset())
            return PayloadCredential({names[kept.kind]: str(kept.path)}, kept.covers)

    def _job_of(self, url: str, write: bool) -> tuple[Optional[_Job], str]:
        """The job that has to do with a URL in plain form, and the URL as the server knows it."""
        with self._changed:
            for job in self._jobs.values():
                known = job.known(url, write)
                if known is not None:
                    return job, known
        return None, url

    @contextlib.contextmanager
    def _asking(self, job: _Job) -> Iterator[None]:
        with job.lock:
            if job.closed:
                raise PilotageError(ErrorCode.MISSING_CREDENTIALS, f"job {job.job_id} is over")
            yield

    def _shown(self, kept: _Kept, url: str) -> Credential:
        if kept.credential is not None:
            return kept.credential
        return of_kind(kept.kind, self._ambient, url, kept.write)

    # ------------------------------------------------------------ fetching and renewing

    def _fresh(self, job: _Job, kept: _Kept, url: str) -> None:
        """See to it that a credential is good for a while. Raises PilotageError."""
        now = self._clock()
        if now < kept.renew_at and now + LITTLE_S <= kept.ends:
            return
        try:
            self._fetch(job, kept)
        except PilotageError as error:
            left_s = kept.ends - self._clock()
            if left_s < LITTLE_S or not kept.holds_for(url):
                raise
            logger.warning("job %d: a credential with %.0f s left is not renewed: %s", job.job_id, left_s, error)
            kept.renew_at = self._clock() + min(left_s / 4, RETRY_S)
        if kept not in job.kept:
            job.kept.append(kept)
        self._wake()

    def _fetch(self, job: _Job, kept: _Kept) -> None:
        reply = self._ask(job, kept)
        if reply.csr_wanted and not kept.payload:
            proxy = self._proxy_of(job, kept, reply.provider)
            kept.credential = Credential(proxy_file=proxy.path)
            kept.renew_at, kept.ends = proxy.renew_at, proxy.ends
        elif reply.csr_wanted:
            reply = self._new_proxy(job, kept, kept.path)
            kept.credential = Credential(proxy_file=kept.path)
            kept.renew_at, kept.ends = self._times(reply.life_s)
        elif reply.token is not None:
            self._write(kept.path, reply.token)
            kept.credential = Credential(token=reply.token, token_file=kept.path)
            kept.renew_at, kept.ends = self._times(reply.life_s)
        else:
            kept.credential = None
            kept.renew_at, kept.ends = self._times(NO_LIFE_S)
        kept.kind, kept.covers = reply.kind, frozenset(reply.covers)
        logger.info(
            "job %d: %s for %s (%d in all) from %s", job.job_id, reply.kind.value, safe_url(kept.urls[0]),
            len(reply.covers), reply.provider or "the surroundings" if reply.ambient or reply.provider else "nobody",
        )  # fmt: skip

    def _ask(self, job: _Job, kept: _Kept, csr: Optional[str] = None) -> CredentialReply:
        request = CredentialRequest(
            job_id=job.job_id, urls=list(kept.urls), write=kept.write, payload=kept.payload, csr=csr
        )
        what = f"no credential for {safe_url(kept.urls[0])}"
        try:
            return self._server.credentials(request)
        except ServerAway as error:
            raise PilotageError(ErrorCode.COMMUNICATION_FAILED, f"{what}: {error}") from error
        except ServerError as error:
            raise PilotageError(ErrorCode.MISSING_CREDENTIALS, f"{what}: {error}") from error

    def _proxy_of(self, job: _Job, kept: _Kept, provider: str) -> _Proxy:
        """The proxy that all share, renewed when it is time."""
        with self._changed:
            proxy = self._proxies.setdefault(provider, _Proxy(self._folder / f"proxy-{provider}.pem"))
        with proxy.lock:
            if self._clock() >= proxy.renew_at:
                reply = self._new_proxy(job, kept, proxy.path)
                proxy.renew_at, proxy.ends = self._times(reply.life_s)
        return proxy

    def _new_proxy(self, job: _Job, kept: _Kept, path: Path) -> CredentialReply:
        # A library of several MB that few pilots need: most storages want tokens, or nothing.
        from common.x509 import new_request, proxy_file

        key, csr = new_request()
        reply = self._ask(job, kept, csr)
        try:
            self._write(path, proxy_file(reply.chain or "", key).rstrip("\n"))
        except ValueError as error:
            raise PilotageError(ErrorCode.MISSING_CREDENTIALS, f"the server's proxy cannot be used: {error}") from error
        return reply

    def _write(self, path: Path, text: str) -> None:
        """Replace a file; whose it was, if it was handed to another user, it stays."""
        try:
            owner = path.stat() if path.exists() else None
            if owner is None or owner.st_uid == os.geteuid():
                write_secret_file(path, text)
                return
            beside = path.with_name(f".{path.name}")
            write_secret_file(beside, text)
            os.chown(beside, owner.st_uid, owner.st_gid)
            beside.replace(path)
        except (OSError, UnicodeError) as error:
            raise PilotageError(
                ErrorCode.FILE_HANDLING_FAILED, f"{path}: a credential cannot be kept: {error}"
            ) from error

    def _times(self, life_s: float) -> tuple[float, float]:
        """When to renew what is good for ``life_s`` from now, and when it ends."""
        now = self._clock()
        return now + life_s * RENEW_AT * (1 - JITTER * self._rng.random()), now + life_s

    def _new_path(self) -> Path:
        with self._changed:
            return self._folder / f"token-{next(self._numbers)}"

    # ------------------------------------------------------------ the thread

    def _wake(self) -> None:
        """There is something to renew, perhaps sooner than what was known."""
        with self._changed:
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._renew, name="credentials", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _renew(self) -> None:
        while True:
            with self._changed:
                while not self._stopped and not self._due():
                    self._changed.wait(self._sleep_s())
                if self._stopped:
                    return
                due = self._due()
            for job, kept in due:
                self._renew_one(job, kept)

    def _all(self) -> list[tuple[_Job, _Kept]]:
        """What is renewed: nothing that the server has nothing for, that is asked again when it is needed."""
        return [(job, kept) for job in self._jobs.values() for kept in list(job.kept) if kept.credential is not None]

    def _due(self) -> list[tuple[_Job, _Kept]]:
        now = self._clock()
        return [(job, kept) for job, kept in self._all() if kept.renew_at <= now]

    def _sleep_s(self) -> Optional[float]:
        """Until the next is due; None: until somebody wakes the thread."""
        moments = [kept.renew_at for _, kept in self._all()]
        return max(0.0, min(moments) - self._clock()) if moments else None

    def _renew_one(self, job: _Job, kept: _Kept) -> None:
        with job.lock:
            if job.closed or self._clock() < kept.renew_at:
                return
            try:
                self._fetch(job, kept)
            except PilotageError as error:
                left_s = kept.ends - self._clock()
                logger.warning("job %d: a credential with %.0f s left is not renewed: %s", job.job_id, left_s, error)
                if left_s <= 0 and not kept.payload:
                    job.kept.remove(kept)
                kept.renew_at = self._clock() + max(1.0, min(left_s / 4, RETRY_S))


def _serves(kept: _Kept, url: str, write: bool) -> bool:
    """Whether a credential is for this. One that may write may read what it wrote."""
    return not kept.payload and (kept.write or not write) and kept.holds_for(url)


def of_kind(kind: CredentialKind, ambient: CredentialSource, url: str, write: bool) -> Credential:
    """What the surroundings have of what a storage wants."""
    if kind is CredentialKind.NONE:
        return Credential()
    found = ambient.for_url(url, write=write)
    if kind is CredentialKind.TOKEN:
        return Credential(token=found.token, token_file=found.token_file)
    return Credential(proxy_file=found.proxy_file) if kind is CredentialKind.PROXY else found


SCHEMES = {"dav": "http", "davs": "https", "xroot": "root", "xroots": "roots"}
"""Names of one protocol."""
PORTS = {"http": ":80", "https": ":443", "root": ":1094", "roots": ":1094"}


def plain(url: str) -> str:
    """A URL in the one form in which URLs of a place are compared: copytools write them in their own ways.

    >>> plain("davs://host:443/f?authz=x"), plain("xroot://host//f")
    ('https://host/f', 'root://host//f')
    """
    scheme, mark, rest = url.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    scheme = SCHEMES.get(scheme.lower(), scheme.lower())
    port = PORTS.get(scheme, "")
    return f"{scheme}{mark}{host.lower().removesuffix(port) if port else host}{slash}{path}"
