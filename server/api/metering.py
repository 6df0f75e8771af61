"""Counts and times each request, whatever became of it."""

from __future__ import annotations

import time
from typing import Any

import falcon

from server.metrics.watch import Watch

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metering:
    """Falcon middleware; routes are told by their templates, so that names in paths make no new series."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def process_request(self, req: falcon.Request, _: falcon.Response) -> None:
        """The request begins."""
        req.context.started = time.perf_counter()

    def process_response(self, req: falcon.Request, resp: falcon.Response, _: Any, __: bool) -> None:
        """The answer is made."""
        seconds = time.perf_counter() - req.context.started
        method = req.method if req.method in METHODS else "OTHER"
        self._watch.request(method, req.uri_template or "none", resp.status_code, seconds)
        if getattr(req.context, "database_failed", False):
            self._watch.database_error()
