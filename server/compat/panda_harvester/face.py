"""The face of PanDA's Harvester: ``/api/v1/GROUP/VERB``, by GET or POST."""

from __future__ import annotations

from server.api.routing import Call, Handler, Raw, Role, Route, allow
from server.compat.face import Face
from server.compat.panda.verbs import of_vo
from server.compat.panda_harvester import commands, pilots, statistics, workers
from server.compat.panda_harvester.answers import refused
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound

API = "/api/v1"
_HARVESTER = allow(Role.HARVESTER)
VERBS: dict[str, Handler] = {
    "pilot/acquire_jobs": pilots.acquire_jobs,
    "pilot/update_jobs_bulk": pilots.update_jobs_bulk,
    "pilot/update_job": pilots.update_job,
    "pilot/get_job_status": pilots.job_status,
    "job/get_status": pilots.job_status,
    "harvester/heartbeat": commands.heard,
    "harvester/acquire_commands": commands.acquire_commands,
    "harvester/acknowledge_commands": commands.acknowledge_commands,
    "harvester/update_workers": workers.update_workers,
    "harvester/report_worker_statistics": workers.report_worker_statistics,
    "harvester/get_worker_statistics": workers.worker_statistics,
    "harvester/get_current_worker_id": workers.current_worker_id,
    "harvester/add_dialogs": commands.add_dialogs,
    "harvester/update_service_metrics": commands.heard,
    "metaconfig/get_resource_types": statistics.resource_types,
    "statistics/active_job_stats_by_site": statistics.by_site,
    "statistics/active_job_detailed_stats_by_site": statistics.in_detail,
}


def other(_: Dispatcher, call: Call) -> Raw:
    """Any other verb: those that would give a credential among them."""
    raise NotFound(f"there is no {call.path['group']}/{call.path['verb']} here")


METHODS = ("GET", "POST")
ROUTES = tuple(
    Route(method, f"{API}/{path}", _HARVESTER, of_vo(handler), f"PanDA Harvester's {path}", audited=False)
    for path, handler in (*VERBS.items(), ("{group}/{verb}", other))
    for method in METHODS
)

FACE = Face("panda_harvester", ROUTES, refused, below=(API,))
