"""Notices that a workflow is over: who may be told, what they are told, when it is tried again."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from common.states import TaskState
from common.wire import NoticeChannel, NotifySpec, WorkflowView

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
FIRST_WAIT_S = 30.0
LONGEST_WAIT_S = 3600.0
MOST_ATTEMPTS = 24
"""With these waits a receiver may be away for nearly a day."""
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\Z")


class NoticeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Section ``[server.notices]``: how people are told that a workflow is over. Nothing is sent unless it is set up."""

    webhook_hosts: list[str] = []
    """Hosts that may be called, such as ``hooks.example.org`` or ``hooks.example.org:8443``; a name that begins with a
    dot stands for all below it. No other host is called, whatever a workflow names."""
    webhook_http: bool = False
    """Whether plain http is allowed, for a receiver on the same machine."""
    webhook_secret_file: str = ""
    """File with the secret that webhooks are signed with; without one the server derives it from its signing key."""
    smtp_host: str = ""
    """Mail server; without one no mail is sent."""
    smtp_port: Port = 25
    smtp_starttls: bool = True
    """Whether the connection to the mail server must be encrypted."""
    mail_from: str = ""
    """Address that mails come from."""
    mail_domains: list[str] = []
    """Domains that may be written to; empty: all."""
    timeout_s: float = 10.0
    """How long a delivery may take."""


def notify_problem(spec: NotifySpec, config: NoticeConfig) -> str:
    """Why nobody can be told so, if so."""
    return (
        _mail_problem(spec.target, config)
        if spec.channel == NoticeChannel.EMAIL
        else webhook_problem(spec.target, config)
    )


def webhook_problem(url: str, config: NoticeConfig) -> str:
    """Why this URL is not called, if so: only hosts that the configuration names are."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"this is no URL: {error}"
    if any(letter.isspace() or not letter.isprintable() for letter in url):
        return "this is no URL: it has spaces or other letters that none may have"
    if parts.scheme != "https" and not (parts.scheme == "http" and config.webhook_http):
        return "give an https URL"
    if parts.username is not None or parts.password is not None or not parts.hostname:
        return "give a URL with a host and without a user"
    host = parts.hostname.lower()
    names = {host, f"{host}:{port}"} if port is not None else {host}
    default = {"http": 80, "https": 443}[parts.scheme]
    for allowed in (each.lower() for each in config.webhook_hosts):
        if allowed.startswith(".") and host.endswith(allowed) and port in (None, default):
            return ""
        # A name without a port stands for the usual one only.
        if allowed in names and (":" in allowed or port in (None, default)):
            return ""
    known = ", ".join(config.webhook_hosts) or "none"
    return f"the server does not call {host}{'' if port is None else f':{port}'}; hosts that it may call: {known}"


def _mail_problem(address: str, config: NoticeConfig) -> str:
    if not config.smtp_host or not config.mail_from:
        return "this server sends no mail: use a webhook, or ask its admin for smtp_host and mail_from"
    if not _ADDRESS.match(address):
        return "this is no address for mail"
    domain = address.rpartition("@")[2].lower()
    if config.mail_domains and domain not in {each.lower() for each in config.mail_domains}:
        return f"the server writes to {', '.join(config.mail_domains)} only"
    return ""


def next_attempt(attempts: int, now: float) -> float | None:
    """When to try again after so many failed attempts; None: never. 30 s, 1 min, 2 min … 1 h."""
    if attempts >= MOST_ATTEMPTS:
        return None
    return now + min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(attempts - 1, 20))


def outcome(states: Sequence[TaskState]) -> str:
    """How a workflow ended, in a word: as its tasks if they agree, else ``finished`` when some have done something."""
    found = set(states)
    if len(found) == 1:
        return next(iter(found)).value
    return "finished" if found & {TaskState.DONE, TaskState.FINISHED} else "failed"


def body(view: WorkflowView, now: float) -> dict[str, Any]:
    """What is told of a workflow that is over."""
    return {
        "event": "workflow-over",
        "time": now,
        "workflow": {
            "id": view.id,
            "name": view.name,
            "owner": view.owner,
            "labels": view.labels,
            "state": outcome([task.state for task in view.tasks]),
            "tasks": [
                {
                    "id": task.id,
                    "stage": task.stage,
                    "state": task.state.value,
                    "reason": task.state_reason,
                    "units": task.units,
                }
                for task in view.tasks
            ],
        },
    }


def mail_text(told: dict[str, Any]) -> tuple[str, str]:
    """Subject and text of a mail that tells the same."""
    workflow = told["workflow"]
    name = "".join(letter if letter.isprintable() else " " for letter in workflow["name"])
    subject = f"Workflow {workflow['id']} ({name}) is {workflow['state']}"
    lines = [f"Workflow {workflow['id']}, {name}, of {workflow['owner']} is over: {workflow['state']}.", ""]
    for task in workflow["tasks"]:
        units = ", ".join(f"{n} {state}" for state, n in sorted(task["units"].items())) or "no units"
        reason = f" ({task['reason']})" if task["reason"] else ""
        lines.append(f"  task {task['id']} {task['stage']}: {task['state']}{reason}; {units}")
    return subject, "\n".join([*lines, "", f"pilotage show workflow {workflow['id']}", ""])


def signature(key: bytes, timestamp: int, content: bytes) -> str:
    """What the header ``Pilotage-Signature`` of a webhook carries: HMAC-SHA256 over the time, a dot and the body."""
    return "sha256=" + hmac.new(key, f"{timestamp}.".encode() + content, hashlib.sha256).hexdigest()
