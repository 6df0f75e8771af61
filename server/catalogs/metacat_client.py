"""MetaCat, by its own client: what it answers and how it fails, in a few calls.

The client is a library for programs that a person starts: it keeps tokens in a file of a common folder, waits by sleeping
and verifies by the environment. So it gets our transport, one attempt a call; who calls here comes again by its own rules.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
import requests
from requests.utils import get_environ_proxies

from common.config import ConfigError
from common.endpoint import certificate_authorities, checked_url, is_private
from common.tokens import SecretFileError, read_secret_file

logger = logging.getLogger(__name__)

T = TypeVar("T")
Url = Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s?#]+$", max_length=2048)]
CALL_LIMIT_S = 1800.0
"""An answer that is not over by then is given up."""
BULK = 500
"""Files of one call."""


class MetaCatAccess(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to reach a MetaCat server. ``token_file`` (mode 0600) has a token as ``metacat auth export`` writes it; it is
    read at each call, so that it may be renewed. Queries of what everybody may read need none."""

    server_url: Url
    token_file: str | None = None
    ca_file: str | None = None
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0


class MetaCatDown(Exception):
    """No answer, or one that says "not now": asking again later may help, and nothing is known."""


class MetaCatDenied(Exception):
    """Our token is not there, too old, or may not do that: somebody must see to it."""


class MetaCatRefusal(Exception):
    """MetaCat's no to what was asked."""


class MetaCatExists(MetaCatRefusal):
    """What was to be made is there already."""


class MetaCat:
    """Calls one MetaCat server; threads may share it.

    Raises:
        ConfigError: metacat-client is not installed, or a token would travel in the open.
    """

    def __init__(self, access: MetaCatAccess) -> None:
        self._access = access
        self._url = checked_url(access.server_url)
        if access.token_file is not None and not is_private(self._url):
            raise ConfigError(f"{self._url}: a token for MetaCat goes over https only, but on this machine")
        self._verify: str | bool = certificate_authorities(access.ca_file) or True
        self._session = requests.Session()
        self._session.trust_env = False  # no .netrc; proxies are given to each call
        self._mutex = threading.Lock()
        try:
            self._client = self._make_client()
        except ImportError as error:
            raise ConfigError(f"MetaCat needs metacat-client: pip install 'pilotage[metacat]' ({error})") from error

    def query(self, mql: str, skip: int, limit: int) -> list[dict[str, Any]]:
        """Files that a query of MetaCat's language finds, with their metadata; of all, in the order of their ids, ``limit``
        after the first ``skip``."""
        part = f"({mql}) ordered skip {skip} limit {limit}"
        return _listed(self._call(self._client.query, part, with_metadata=True))

    def files(self, dids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Those of the files that are known, with their metadata, by DID."""
        found: dict[str, dict[str, Any]] = {}
        for part in parts_of(dids):
            records = self._call(self._client.get_files, [{"did": did} for did in part], True, False)
            found.update((f"{each.get('namespace')}:{each.get('name')}", each) for each in _listed(records))
        return found

    def has_dataset(self, did: str) -> bool:
        """Whether there is a dataset of that name."""
        return self._call(self._client.get_dataset, did) is not None

    def make_dataset(self, did: str) -> None:
        """Make a dataset; it is there afterwards, whoever made it."""
        try:
            self._call(self._client.create_dataset, did)
        except MetaCatExists:
            logger.debug("dataset %s was made by somebody else meanwhile", did)

    def declare(self, dataset: str, files: Sequence[Mapping[str, Any]]) -> None:
        """Declare files and put them into a dataset: all, or none. Raises MetaCatExists when one is there already."""
        self._call(self._client.declare_files, dataset, [dict(each) for each in files])

    def add_files(self, dataset: str, dids: Sequence[str]) -> None:
        """Put files into a dataset; those that are in it stay."""
        for part in parts_of(dids):
            self._call(self._client.add_files, dataset, [{"did": did} for did in part])

    def set_metadata(self, dids: Sequence[str], metadata: Mapping[str, Any]) -> None:
        """Set some fields of files' metadata; the others stay."""
        for part in parts_of(dids):
            self._call(self._client.update_file_meta, dict(metadata), dids=list(part))

    def retire(self, did: str) -> None:
        """Take a file out of sight; its name stays taken."""
        self._call(self._client.retire_file, did=did)

    def _call(self, what: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """A call of the client, its answer read to the end. Raises MetaCatDown, MetaCatDenied, MetaCatRefusal."""
        from metacat.webapi import webapi

        try:
            answer = what(*given, **named)
            return list(_in_time(answer)) if isinstance(answer, Iterator) else answer
        except webapi.WebAPIError as error:
            raise self._refused(error, webapi) from error
        except (requests.RequestException, OSError) as error:  # OSError: a certificate that cannot be read
            words = f"MetaCat at {self._url} does not answer: {type(error).__name__}: {error}"
            raise MetaCatDown(words[:1000]) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # The client, or we, stumble over an answer that is none of MetaCat's.
            words = f"MetaCat at {self._url} answers what cannot be read: {type(error).__name__}: {error}"
            raise MetaCatDown(words[:1000]) from error

    def _refused(self, error: Any, webapi: Any) -> Exception:
        words = f"MetaCat answers {error.StatusCode}: {_words(error)}"[:1500]
        if isinstance(error, webapi.AlreadyExistsError):
            return MetaCatExists(words)
        if isinstance(error, webapi.InvalidMetadataError):
            return MetaCatRefusal(words)
        if error.StatusCode in (401, 403):
            return MetaCatDenied(words)
        if error.StatusCode >= 500 or error.StatusCode in (408, 429):
            return MetaCatDown(words)
        return MetaCatRefusal(words)

    def _make_client(self) -> Any:
        from metacat.webapi import MetaCatClient
        from metacat.webapi.webapi import HTTPClient

        url, timeout_s, send = self._url, self._access.timeout_s, self._send

        class Client(MetaCatClient):  # type: ignore[misc]
            """The client without its token library, which would be a file in some folder."""

            def __init__(self) -> None:
                HTTPClient.__init__(self, url, None, timeout_s)

            def retry_request(self, method: str, url: str, timeout: object = None, **more: Any) -> requests.Response:
                return send(method, url, **more)

        return Client()

    def _send(self, method: str, url: str, *, headers: Mapping[str, str], **more: Any) -> requests.Response:
        wait = self._access.timeout_s
        return self._session.request(
            method, url, headers={**headers, **self._token(), "User-Agent": "pilotage"},
            timeout=(min(10.0, wait), wait), verify=self._verify, allow_redirects=False,
            proxies=get_environ_proxies(url), **more,
        )  # fmt: skip

    def _token(self) -> dict[str, str]:
        if self._access.token_file is None:
            return {}
        try:
            return {"X-Authentication-Token": read_secret_file(self._access.token_file)}
        except SecretFileError as error:
            raise MetaCatDenied(f"MetaCat's token: {error}") from error


def parts_of(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Sequences of at most :data:`BULK`."""
    return (items[start : start + BULK] for start in range(0, len(items), BULK))


def _in_time(items: Iterable[T]) -> Iterator[T]:
    end = time.monotonic() + CALL_LIMIT_S
    for item in items:
        if time.monotonic() > end:
            raise requests.Timeout(f"the answer is not over after {CALL_LIMIT_S:.0f} s")
        yield item


def _listed(answer: Any) -> list[dict[str, Any]]:
    try:
        return msgspec.convert(answer, list[dict[str, Any]])
    except msgspec.ValidationError as error:
        raise MetaCatDown(f"MetaCat answers what are no files: {error}") from error


def _words(error: Any) -> str:
    """What MetaCat says; its client's own way stumbles over some answers."""
    data = error.Data
    if isinstance(data, dict):
        details = [
            f"{field.get('name')}: {field.get('reason')}"
            for item in data.get("metadata_errors", ())
            if isinstance(item, dict)
            for field in item.get("metadata_errors", ())
            if isinstance(field, dict)
        ]
        return "; ".join(filter(None, [str(data.get("message") or ""), *details])) or str(error.Body)
    return str(getattr(error, "Message", "") or error.Body)
