"""The face of PanDA's server for its users."""

from __future__ import annotations

from server.api.routing import Call, Raw, Role, Route, allow
from server.compat.face import Face, as_json
from server.compat.panda_client import commands, creds, files, jobs, show
from server.compat.panda_client.answers import done, refused
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound

_USER = allow(Role.USER)
_ANYBODY = allow(Role.ANYBODY)
_CONFIG = "_auth_config.json"


def _alive(_: Dispatcher, __: Call) -> Raw:
    return done(None, "alive")


def _attributes(_: Dispatcher, call: Call) -> Raw:
    """Who the server takes the caller for; nothing of its own surroundings."""
    person = call.caller
    known = {"REMOTE_USER": person.name, "GROUPS": ",".join(sorted(person.groups))}
    return done({"environment": known})


def _login(dispatcher: Dispatcher, call: Call) -> Raw:
    """Where the people of a VO log in. There is no secret in it: the client at the issuer has none."""
    name = call.path["name"]
    vo = name.removesuffix(_CONFIG)
    login = dispatcher.config.compat.panda_client.logins.get(vo)
    if login is None or not name.endswith(_CONFIG):
        raise NotFound("no login of that name is configured: [server.compat.panda_client.logins]")
    found = {
        "audience": login.audience or login.client_id,
        "client_id": login.client_id,
        "client_secret": "",
        "oidc_config_url": login.config_url,
        "vo": vo,
    }
    return as_json({**found, "jwt_profile": login.jwt_profile} if login.jwt_profile else found)


def _other(_: Dispatcher, call: Call) -> Raw:
    """A verb that nothing is done for."""
    raise NotFound(f"there is no {call.path['verb'][:60]} here: see docs/how-to/migrate-from-panda.md")


_TASK = "/api/v1/task/"
_JOB = "/api/v1/job/"
_FILE = "/api/v1/file_server/"
_CREDS = "/api/v1/creds/"

ROUTES = (
    Route("GET", "/api/v1/system/is_alive", _ANYBODY, _alive, "Whether the server answers"),
    Route("GET", "/api/v1/system/get_attributes", _USER, _attributes, "Who calls"),
    Route("GET", "/auth/{name}", _ANYBODY, _login, "Where people of a VO log in"),
    Route("POST", f"{_TASK}submit", _USER, commands.submit_task, "Submit a task"),
    Route("POST", f"{_TASK}kill", _USER, commands.kill, "Kill a task"),
    Route("POST", f"{_TASK}finish", _USER, commands.finish, "Finish a task"),
    Route("POST", f"{_TASK}retry", _USER, commands.retry, "Retry what failed of a task"),
    Route("POST", f"{_TASK}pause", _USER, commands.pause, "Pause a task"),
    Route("POST", f"{_TASK}resume", _USER, commands.resume, "Resume a task"),
    Route("POST", f"{_TASK}avalanche", _USER, commands.avalanche, "End the scouting of a task"),
    Route("POST", f"{_TASK}reactivate", _USER, commands.reactivate, "Retry what failed of a task"),
    Route("POST", f"{_TASK}increase_attempts", _USER, commands.increase_attempts, "More attempts for each unit"),
    Route("POST", f"{_TASK}change_priority", _USER, commands.change_priority, "Another priority"),
    Route(
        "POST",
        f"{_TASK}reload_input",
        _USER,
        commands.reload_input,
        "Refused: input is found at submission",
        audited=False,
    ),
    Route("GET", f"{_TASK}get_status", _USER, show.status, "The state of a task"),
    Route("GET", f"{_TASK}get_details", _USER, show.details, "A task with its datasets"),
    Route("GET", f"{_TASK}get_detailed_info", _USER, show.detailed, "A task with its counts"),
    Route("GET", f"{_TASK}get_parent_detailed_info", _USER, show.parent, "The parent of a task: none"),
    Route("GET", f"{_TASK}get_task_parameters", _USER, show.parameters, "The parameters of a task, as sent"),
    Route("GET", f"{_TASK}get_tasks_detailed_info_since", _USER, show.listed, "Tasks with filters"),
    Route("GET", f"{_TASK}get_tasks_modified_since", _USER, show.modified, "Tasks that are not over since then"),
    Route("GET", f"{_TASK}get_datasets_and_files", _USER, show.datasets_and_files, "Files of a task"),
    Route("GET", f"{_TASK}get_job_ids", _USER, jobs.ids_of_task, "The jobs of a task by number"),
    Route("GET", f"{_TASK}get_job_descriptions", _USER, jobs.of_task, "The jobs of a task"),
    Route("POST", f"{_JOB}get_description", _USER, jobs.descriptions, "Jobs by their numbers", audited=False),
    Route(
        "POST", f"{_JOB}get_description_incl_archive", _USER, jobs.descriptions, "Jobs by their numbers", audited=False
    ),
    Route("GET", f"{_JOB}get_metadata_for_analysis_jobs", _USER, jobs.metadata, "What jobs wrote of themselves"),
    Route("POST", f"{_JOB}kill", _USER, jobs.kill, "Refused: jobs are not killed one by one", audited=False),
    Route("POST", f"{_JOB}set_debug_mode", _USER, jobs.debug_mode, "Not needed", audited=False),
    Route("POST", f"{_FILE}upload_cache_file", _USER, files.upload, "Upload a sandbox"),
    Route("POST", f"{_FILE}validate_cache_file", _USER, files.validate, "Whether a sandbox is there", audited=False),
    Route(
        "POST",
        f"{_FILE}upload_file_recovery_request",
        _USER,
        files.recovery,
        "Refused: files are made again",
        audited=False,
    ),
    Route("POST", f"{_CREDS}set_user_secrets", _USER, creds.put, "Set a secret"),
    Route("GET", f"{_CREDS}get_user_secrets", _USER, creds.names, "The names of one's secrets"),
    *(
        Route(method, f"/api/v1/{group}/{{verb}}", _USER, _other, "Verbs that are not served", audited=False)
        for group in ("task", "job", "file_server", "creds", "workflow", "event")
        for method in ("GET", "POST")
    ),
)

FACE = Face("panda_client", ROUTES, refused, below=("/api/v1", "/auth"))
