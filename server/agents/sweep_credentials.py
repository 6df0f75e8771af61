"""What the remover of abandoned outputs shows to storages: credentials for the folders of those jobs, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from common.tokens import create_secret_file
from common.wire import CredentialKind, OutputRole
from common.x509 import new_request, proxy_file
from server.access.providers import ProviderFailed
from server.dispatch.context import Dispatcher
from server.engine.credentials import File, Grant, Held, grant
from server.engine.world import World
from server.store.outputs import OutputRow

logger = logging.getLogger(__name__)


def write_credentials(dispatcher: Dispatcher, rows: Mapping[str, OutputRow], folder: Path) -> Path:
    """Fetch credentials for the URLs of ``rows`` into files of ``folder``; the file that lists them, for the remover.

    What a provider does not give now is left out: its files stay for the next time.
    """
    entries: list[dict[str, Any]] = []
    for granted in _grants(dispatcher.looks.get().world, rows):
        try:
            entries.append(_entry(dispatcher, granted, folder / f"credential-{len(entries)}"))
        except ProviderFailed as error:
            logger.warning("nothing can be swept from storage %s: %s", granted.storage, error)
    listed = folder / "credentials.json"
    listed.write_bytes(msgspec.json.encode(entries))
    return listed


def _grants(world: World, rows: Mapping[str, OutputRow]) -> Iterator[Grant]:
    """Each storage's, as many as it takes to cover all."""
    by_site: dict[str, list[str]] = {}
    for url, row in rows.items():
        by_site.setdefault(world.storages[row.storage].site, []).append(url)
    for site, left in by_site.items():
        files = [File(rows[url].storage, rows[url].path, rows[url].role == OutputRole.LOG.value) for url in left]
        while left:
            granted = grant(world, Held(site, outputs=files), left, write=True)
            if granted is not None and granted.endpoint.credential is not CredentialKind.AMBIENT:
                yield granted
            covers = () if granted is None else granted.covers
            left = [url for url in left[1:] if not url.startswith(covers)]


def _entry(dispatcher: Dispatcher, granted: Grant, place: Path) -> dict[str, Any]:
    endpoint, providers = granted.endpoint, dispatcher.providers
    entry: dict[str, Any] = {"covers": granted.covers, "kind": endpoint.credential.value}
    if endpoint.provider is None:
        return entry
    if endpoint.credential is CredentialKind.TOKEN:
        tokens = providers.tokens.get(endpoint.provider)
        if tokens is None:
            raise ProviderFailed(f"there is no [server.credentials.{endpoint.provider}] for tokens")
        create_secret_file(place, tokens.token(endpoint.audience, granted.scopes).content)
        return {**entry, "token_file": str(place)}
    proxies = providers.proxies.get(endpoint.provider)
    if proxies is None:
        raise ProviderFailed(f"there is no [server.credentials.{endpoint.provider}] for proxies")
    key, request = new_request()
    create_secret_file(place, proxy_file(proxies.proxy(request).content, key).rstrip("\n"))
    return {**entry, "proxy_file": str(place)}
