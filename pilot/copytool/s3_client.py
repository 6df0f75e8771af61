"""boto3, imported when it is first used, and its clients: one for each store and pair of keys."""

from __future__ import annotations

import functools
import importlib
import threading
from pathlib import Path
from typing import Any, Optional

from common.errors import ErrorCode, PilotageError
from pilot.copytool.credentials import CredentialSource
from pilot.copytool.s3_place import Keys, Place, keys_from_file, keys_from_token

#: How long connecting may take, in seconds.
CONNECT_S = 15.0
#: Attempts of a single call, such as a part; those of whole files are the stager's.
CALL_ATTEMPTS = 3
#: Clients kept: one for each endpoint and pair of keys.
MOST_CLIENTS = 16


@functools.lru_cache(maxsize=4)
def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PilotageError(ErrorCode.MIDDLEWARE_IMPORT_FAILED, f"{name} cannot be imported: {error}") from error


def exceptions() -> Any:
    """Give the module ``botocore.exceptions``; :class:`PilotageError` ``MIDDLEWARE_IMPORT_FAILED``."""
    return _imported("botocore.exceptions")


class Clients:
    """The clients of one copytool; see there for the options. It may be used from several threads."""

    def __init__(
        self,
        source: CredentialSource,
        *,
        endpoint: Optional[str],
        keys_file: Optional[Path],
        region: str,
        ca: Optional[str],
        stall_s: float,
    ) -> None:
        self._source = source
        self._endpoint = endpoint
        self._keys_file = keys_file
        self._region = region
        self._ca = ca
        self._stall_s = stall_s
        self._session: Any = None
        self._clients: dict[tuple[Optional[str], Optional[Keys]], Any] = {}
        self._lock = threading.Lock()

    def client(self, url: str, place: Place, write: bool) -> Any:
        """Give a client for the store of a URL with the keys of the moment.

        Raises :class:`PilotageError` where the keys cannot be read, or boto3 cannot be imported.
        """
        if self._keys_file is not None:
            keys: Optional[Keys] = keys_from_file(self._keys_file)
        else:
            keys = keys_from_token(self._source.for_url(url, write=write).token)
        endpoint = place.endpoint or self._endpoint
        if self._endpoint and endpoint and self._endpoint.partition("://")[2] == endpoint.partition("://")[2]:
            endpoint = self._endpoint
        with self._lock:
            client = self._clients.get((endpoint, keys))
            if client is None:
                client = self._new_client(endpoint, keys)
                if len(self._clients) >= MOST_CLIENTS:
                    self._clients.pop(next(iter(self._clients)))
                self._clients[(endpoint, keys)] = client
        return client

    def _new_client(self, endpoint: Optional[str], keys: Optional[Keys]) -> Any:
        if self._session is None:
            self._session = _imported("boto3").session.Session(region_name=self._region)
        config = _imported("botocore.config").Config(
            connect_timeout=CONNECT_S,
            read_timeout=self._stall_s,
            retries={"mode": "standard", "total_max_attempts": CALL_ATTEMPTS},
            s3={"addressing_style": "path"} if endpoint else {},
            # The newer checksums are unknown to many stores; ours go along in any case.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return self._session.client(
            "s3",
            aws_access_key_id=keys.access if keys else None,
            aws_secret_access_key=keys.secret if keys else None,
            aws_session_token=keys.session if keys else None,
            endpoint_url=endpoint,
            config=config,
            verify=self._ca,
        )
