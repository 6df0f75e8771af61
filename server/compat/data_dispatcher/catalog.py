"""The catalogue of the face: where files lie, and queries for clients that would ask MetaCat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from common.wire import FileSpec
from server.api.auth import Later
from server.api.routing import Call, Raw
from server.catalogs.base import Catalog, CatalogUnavailable, UnknownDataset
from server.compat.data_dispatcher import asked
from server.compat.data_dispatcher.asked import wrong
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid, TooLarge

AT_ONCE = 1000
"""Files that a catalogue is asked for at once."""
MOST_FOUND = 500_000
"""Files of an answer to a query."""
MOST_QUERY = 10_000


class CatalogAway(Later):
    """The catalogue does not answer now."""

    status = 503
    type = "pilotage:unavailable"
    title = "The catalogue does not answer now"


def _catalog(dispatcher: Dispatcher, name: str, remedy: str) -> tuple[str, Catalog]:
    configured = dispatcher.config.compat.data_dispatcher.catalog
    found = dispatcher.plugins.catalogs.get(configured)
    if found is None:
        raise wrong(name, remedy)
    return configured, found


def located(dispatcher: Dispatcher, dids: Sequence[str]) -> Iterator[FileSpec]:
    """Those of some files that the catalogue knows.

    Raises:
        Invalid: there is no catalogue, or it cannot be asked like this.
        CatalogAway: asking again may help.
    """
    if not dids:
        return
    remedy = "no catalogue says here where files lie: make the project virtual (-A virtual=true)"
    name, catalog = _catalog(dispatcher, "files", remedy)
    for first in range(0, len(dids), AT_ONCE):
        try:
            yield from catalog.locate(dids[first : first + AT_ONCE])
        except UnknownDataset as error:
            raise Invalid(f"catalogue {name}: {error}") from error
        except CatalogUnavailable as error:
            raise CatalogAway(f"catalogue {name}: {error}") from error


def query(dispatcher: Dispatcher, call: Call) -> Raw:
    """MetaCat's ``data/query``: the files that the catalogue finds for the text in the body."""
    try:
        text = call.body.plain().decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise wrong("query", "send UTF-8") from error
    if not 0 < len(text) <= MOST_QUERY:
        raise wrong("query", f"send a query of 1 to {MOST_QUERY} characters")
    odd = [name for name in ("summary", "save_as", "add_to", "namespace") if call.query.get(name)]
    if odd:
        raise wrong(odd[0], "this cannot be done here: send a plain query")
    name, catalog = _catalog(dispatcher, "query", "no catalogue answers queries here")
    with_meta = asked.flag(call, "with_meta", False)
    found: list[bytes] = []
    after: str | None = ""
    while after is not None:
        try:
            page = catalog.files(text, after)
        except UnknownDataset as error:
            raise Invalid(f"catalogue {name}: {error}") from error
        except CatalogUnavailable as error:
            raise CatalogAway(f"catalogue {name}: {error}") from error
        found += [msgspec.json.encode(_item(file, with_meta=with_meta)) for file in page.files]
        after = page.after
        if len(found) > MOST_FOUND:
            raise TooLarge(f"the query finds more than {MOST_FOUND} files: cut it into several projects")
    return Raw(b"[" + b", ".join(found) + b"]", "text/json")


def _item(file: FileSpec, *, with_meta: bool) -> dict[str, Any]:
    namespace, _, name = file.did.partition(":")
    kind, _, value = (file.checksum or "").partition(":")
    found = {
        "namespace": namespace,
        "name": name,
        "fid": file.did,
        "size": file.size,
        "checksums": {kind: value} if kind else {},
    }
    return {**found, "metadata": file.attributes} if with_meta else found
