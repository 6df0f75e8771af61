"""Tell people that their workflow is over: notices go into an outbox first, and from there until they arrive."""

from __future__ import annotations

import logging
import smtplib
import ssl
from collections.abc import Callable
from email.message import EmailMessage
from email.utils import formatdate
from pathlib import Path

import msgspec
import requests

from common.plugins import version
from common.tokens import read_secret_file
from common.wire import NoticeChannel, NotifySpec
from server.dispatch.context import Dispatcher
from server.engine.notices import body, mail_text, next_attempt, notify_problem, signature
from server.store import events, notices, workflows
from server.store.notices import Notice

logger = logging.getLogger(__name__)

PURPOSE = "webhooks"


class NotDelivered(Exception):
    """A notice that did not arrive, and why."""


Deliver = Callable[[Dispatcher, Notice], None]


def write_notices(dispatcher: Dispatcher) -> int:
    """Put notices of workflows that are over into the outbox; of how many workflows."""
    with dispatcher.database.read() as connection:
        over = notices.over(connection)
    written = 0
    for workflow_id, specs in over:
        with dispatcher.database.write() as connection:
            view = workflows.view_workflow(connection, workflow_id)
            now = dispatcher.now()
            text = msgspec.json.encode(body(view, now)).decode() if view is not None else ""
            written += notices.write(connection, workflow_id, [(spec, text) for spec in specs if text], now)
    return written


def deliver_notices(dispatcher: Dispatcher) -> int:
    """Try to deliver the notices whose time has come; how many arrived.

    One may arrive twice after a crash; its number goes with it, so that the receiver can tell.
    """
    with dispatcher.database.read() as connection:
        due = notices.due(connection, dispatcher.now())
    arrived = 0
    for notice in due:
        problem = _try(dispatcher, notice)
        now = dispatcher.now()
        with dispatcher.database.write() as connection:
            if not problem:
                notices.delivered(connection, notice.id, now)
                arrived += 1
                continue
            again = next_attempt(notice.attempts + 1, now)
            notices.failed(connection, notice.id, problem, again, now)
            if again is None:
                detail = {"target": notice.target, "error": problem[:500]}
                event = events.Event(now, "NOTICE_GIVEN_UP", "workflow", notice.workflow_id, detail=detail)
                events.add(connection, event)
    return arrived


def _try(dispatcher: Dispatcher, notice: Notice) -> str:
    """Deliver one; why not, if not."""
    # Asked anew: the admin may have taken a host from the list since the workflow was submitted.
    problem = notify_problem(NotifySpec(notice.channel, notice.target), dispatcher.config.notices)
    if problem:
        return problem
    try:
        _WAYS[notice.channel](dispatcher, notice)
    except NotDelivered as error:
        logger.warning("notice %d to %s: %s", notice.id, notice.target, error)
        return str(error)
    return ""


def _post(dispatcher: Dispatcher, notice: Notice) -> None:
    """Call a webhook: signed, no redirect followed, no proxy or password taken from the environment."""
    content = notice.body.encode()
    timestamp = int(dispatcher.now())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"pilotage/{version()}",
        "Pilotage-Delivery": str(notice.id),
        "Pilotage-Timestamp": str(timestamp),
        "Pilotage-Signature": signature(webhook_key(dispatcher), timestamp, content),
    }
    timeout = dispatcher.config.notices.timeout_s
    try:
        with requests.Session() as session:
            session.trust_env = False
            with session.post(
                notice.target, data=content, headers=headers, timeout=timeout, allow_redirects=False, stream=True
            ) as response:
                status = response.status_code
    except requests.RequestException as error:
        raise NotDelivered(f"{type(error).__name__}: {error}") from error
    if not 200 <= status < 300:
        raise NotDelivered(f"answered {status}")


def webhook_key(dispatcher: Dispatcher) -> bytes:
    """What webhooks are signed with: the configured secret, else one derived from the server's own key."""
    file = dispatcher.config.notices.webhook_secret_file
    return read_secret_file(Path(file)).encode() if file else dispatcher.issuer.derived_key(PURPOSE)


def _mail(dispatcher: Dispatcher, notice: Notice) -> None:
    config = dispatcher.config.notices
    message = EmailMessage()
    subject, text = mail_text(msgspec.json.decode(notice.body))
    message["Subject"] = subject
    message["From"] = config.mail_from
    message["To"] = notice.target
    message["Date"] = formatdate(dispatcher.now())
    domain = config.mail_from.rpartition("@")[2] or "localhost"
    message["Message-ID"] = f"<pilotage-{notice.id}-{int(notice.created)}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text)
    try:
        with smtplib.SMTP(config.smtp_host, config.smtp_port, timeout=config.timeout_s) as server:
            if config.smtp_starttls:
                server.starttls(context=ssl.create_default_context())
            server.send_message(message)
    except (smtplib.SMTPException, OSError) as error:
        raise NotDelivered(f"{type(error).__name__}: {error}") from error


_WAYS: dict[NoticeChannel, Deliver] = {NoticeChannel.WEBHOOK: _post, NoticeChannel.EMAIL: _mail}
