"""Metrics for Prometheus and the dashboard for people: both for anybody, both may be switched off."""

from __future__ import annotations

from server.api.routing import Call, Raw, Role, Route, allow
from server.dashboard.page import CONTENT_TYPE as HTML
from server.dashboard.page import dashboard_page
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound
from server.dispatch.watching import metrics_page
from server.metrics.prometheus import CONTENT_TYPE

_ANYBODY = allow(Role.ANYBODY)


def _metrics(dispatcher: Dispatcher, _: Call) -> Raw:
    if not dispatcher.config.metrics:
        raise NotFound("metrics are switched off here: [server] metrics")
    return Raw(metrics_page(dispatcher), CONTENT_TYPE)


def _dashboard(dispatcher: Dispatcher, _: Call) -> Raw:
    if not dispatcher.config.dashboard:
        raise NotFound("the dashboard is switched off here: [server] dashboard")
    return Raw(dashboard_page(dispatcher), HTML)


ROUTES = [
    Route("GET", "/metrics", _ANYBODY, _metrics, "Metrics in Prometheus' format"),
    Route("GET", "/", _ANYBODY, _dashboard, "The dashboard, as HTML"),
]
