"""Lists that come in pages, read to their end."""

from __future__ import annotations

from typing import Any, Optional

from common.http import HttpClient

PAGE = 500


def all_of(http: HttpClient, path: str, page_type: Any, limit: int, **filters: Any) -> list[Any]:
    """The first ``limit`` items of a list; filters that are None are left out. Raises common.http.HttpError."""
    found: list[Any] = []
    after: Optional[int] = None
    asked = {name: value for name, value in filters.items() if value is not None}
    while len(found) < limit:
        params = {**asked, "limit": min(PAGE, limit - len(found)), **({"after": after} if after is not None else {})}
        page = http.call("GET", path, None, page_type, params=params)
        found += page.items
        after = page.next
        if after is None:
            break
    return found
