"""``pilotage server``: starts the web side and the agents, and mints tokens."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import socket
import ssl
import threading
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from common.cli import load_section
from common.errors import ErrorCode, PilotageError
from common.http import HttpClient, HttpError
from common.log import setup_logging
from common.quantities import parse_duration
from common.tokens import write_secret_file
from common.wire import Health
from server.access.logins import mint_token
from server.app import create_dispatcher, create_served_app, run_agents
from server.cli_people import user
from server.compat.faces import check_faces
from server.config import ServerConfig
from server.store.database import DatabaseUnavailable
from server.store.migrate import NewerDatabase, upgrade

logger = logging.getLogger(__name__)

ADMIN_TOKEN_S = 30 * 86400.0
"""Life of the token that is written at each start."""
MOST_TOKEN_S = 365 * 86400.0
"""Revocations are kept for a day longer."""
READY_S = 60.0
BACKLOG = 4096
"""Connections that wait to be taken; the kernel may allow fewer (``net.core.somaxconn``)."""
MOST_CONNECTIONS = 65_536
"""Of clients, to one web process."""
FEW_CONNECTIONS = 4096
"""With fewer a large fleet cannot be served."""
OWN_FILES = 512
"""Files that a web process opens for itself, as for the database."""
ROLES = ("user", "production", "admin", "harvester", "outside_worker", "foreign_pilot")


@click.group(invoke_without_command=True)
@click.option("--database", metavar="URL", help="sqlite:////path/file.db or postgresql+psycopg://… (default: SQLite).")
@click.option("--state-dir", type=click.Path(), help="Folder for the signing key, the admin's token and SQLite.")
@click.option("--host", help="Address to listen on (default 127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.")
@click.option("--agents-only", is_flag=True, help="Run the agents, and serve no requests.")
@click.option("--web-only", is_flag=True, help="Serve requests, and run no agents.")
@click.pass_context
def server(context: click.Context, /, agents_only: bool, web_only: bool, **options: object) -> None:
    """Run the dispatcher: web side and agents."""
    config = load_section(context, ServerConfig, "server", options).value
    context.obj = (context.obj, config)
    if context.invoked_subcommand is not None:
        return
    if agents_only and web_only:
        raise click.UsageError("--agents-only and --web-only exclude each other")
    setup_logging()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    prepare(config)
    if agents_only:
        run_agents(config, None)
    else:
        serve(config, with_agents=not web_only)


@server.command()
@click.option("--role", type=click.Choice(ROLES), multiple=True, required=True, help="What the bearer may do.")
@click.option("--subject", required=True, help="Who the bearer is; a harvester's token carries the harvester's name.")
@click.option("--group", multiple=True, help="A group that the bearer belongs to; may be repeated.")
@click.option("--ttl", default="30d", show_default=True, help="How long it is valid, such as 12h or 30d.")
@click.option("--output", type=click.Path(path_type=Path), help="File to write, mode 0600; else standard output.")
@click.pass_obj
def token(
    config: tuple[Any, ServerConfig],
    role: tuple[str, ...],
    subject: str,
    group: tuple[str, ...],
    ttl: str,
    output: Path | None,
) -> None:
    """Mint a token for a person or a program."""
    ttl_s = parse_duration(ttl)
    if ttl_s > MOST_TOKEN_S:
        raise click.BadParameter(f"{ttl}: at most 365d, so that a revocation outlives it", param_hint="--ttl")
    minted = mint_token(create_dispatcher(config[1]), subject, role, ttl_s, group)
    if output is None:
        click.echo(minted)
    else:
        write_secret_file(output, minted + "\n")


@server.command()
@click.pass_obj
def migrate(config: tuple[Any, ServerConfig]) -> None:
    """Bring the database to this version's schema."""
    click.echo("the schema was brought up to date" if prepare(config[1]) else "the schema is up to date")


server.add_command(user)


def prepare(config: ServerConfig) -> bool:
    """Make the state folder, the key, the schema and the admin's token; True if the schema changed.

    Raises:
        PilotageError: the database cannot be used; it says why.
    """
    state = Path(config.state_dir)
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _wrong("state_dir", f"{state}: {error.strerror}; choose a folder of your own") from error
    try:
        dispatcher = create_dispatcher(config)
        changed = upgrade(dispatcher.database)
    except (DatabaseUnavailable, NewerDatabase, ValueError) as error:
        raise PilotageError(ErrorCode.BAD_CONFIGURATION, f"[server] database: {error}") from error
    minted = mint_token(dispatcher, "admin", ["admin", "user"], ADMIN_TOKEN_S)
    write_secret_file(state / "admin.token", minted + "\n")
    dispatcher.database.close()
    return changed


def serve(config: ServerConfig, *, with_agents: bool) -> None:
    """Serve requests until told to end; with agents in a process beside."""
    from granian import Granian
    from granian.constants import Interfaces
    from granian.log import LogLevels

    _check_tls(config)
    check_faces(config.compat)
    port = _claim_port(config)
    web = Granian(
        target="pilotage",
        address=config.host,
        port=port,
        interface=Interfaces.WSGI,
        workers=config.web_processes,
        blocking_threads=config.web_threads,
        backlog=BACKLOG,
        # Of connections: a pilot keeps its own while it waits, and must not be in the way of others.
        backpressure=_allowed_connections(),
        log_level=LogLevels.error,
        ssl_cert=Path(config.tls_cert) if config.tls_cert else None,
        ssl_key=Path(config.tls_key) if config.tls_key else None,
        respawn_failed_workers=True,
        workers_kill_timeout=5,
    )
    agents: multiprocessing.process.BaseProcess | None = None
    stopping = threading.Event()
    if with_agents:
        context = multiprocessing.get_context("spawn")
        agents = context.Process(target=_agents, args=(config, os.getpid()), name="pilotage-agents")
        agents.start()
        threading.Thread(target=_watch, args=(agents, stopping), daemon=True).start()
    scheme = "https" if config.tls_cert else "http"
    announce = threading.Thread(target=_announce, args=(config, f"{scheme}://{config.host}:{port}"), daemon=True)
    web.on_startup(announce.start)
    loader = partial(_load, config, os.getpid())
    try:
        web.serve(target_loader=loader, wrap_loader=False)
    finally:
        # Asked before we end them ourselves: when they failed this is no good end, so that a keeper starts us again.
        agents_failed = agents is not None and bool(agents.exitcode)
        stopping.set()
        if agents is not None:
            agents.terminate()
            agents.join(15)
    if agents_failed:
        raise click.exceptions.Exit(1)


def _allowed_connections() -> int:
    """How many connections each web process may hold: as many as files may be open; that limit is raised if it can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + OWN_FILES
    files = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    allowed = files - OWN_FILES
    if allowed < FEW_CONNECTIONS:
        logger.warning(
            "only %d files may be open (ulimit -n): raise it, so that pilots can keep their connections", files
        )
    return max(1, allowed)


def _load(config: ServerConfig, parent: int) -> Any:
    setup_logging()
    return create_served_app(config, parent)


def _agents(config: ServerConfig, parent: int) -> None:
    setup_logging()
    run_agents(config, parent)


def _watch(agents: multiprocessing.process.BaseProcess, stopping: threading.Event) -> None:
    agents.join()
    if not stopping.is_set():
        logger.error("the agents' process ended with exit code %s; the server stops", agents.exitcode)
        os.kill(os.getpid(), signal.SIGTERM)


def _announce(config: ServerConfig, url: str) -> None:
    """Say that the server listens, once it answers."""
    client = HttpClient(url, ca_file=Path(config.tls_cert) if config.tls_cert else None, retries=10)
    try:
        client.call("GET", "/healthz", None, Health, total_s=READY_S)
    except HttpError as error:
        if not (config.tls_cert and _takes_connections(url)):
            logger.error("the server does not answer: %s", error)
            return
    finally:
        client.close()
    click.echo(f"listening on {url}", err=True)


def _takes_connections(url: str) -> bool:
    """Whether a server takes TLS connections, whoever it proves to be.

    Its certificate is for the name that clients use, and may be of an authority that only they know.
    """
    parts = urlsplit(url)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 443), READY_S) as plain:
            context.wrap_socket(plain).close()
    except OSError:
        return False
    return True


def _check_tls(config: ServerConfig) -> None:
    if bool(config.tls_cert) != bool(config.tls_key):
        raise _wrong("tls_cert, tls_key", "give both, or neither for plain HTTP")
    for key in ("tls_cert", "tls_key"):
        path = getattr(config, key)
        if path and not os.access(path, os.R_OK):
            raise _wrong(key, f"{path} cannot be read")


def _claim_port(config: ServerConfig) -> int:
    """The port to listen on. The web server shares ports, so one that is in use has to be noticed here."""
    try:
        with socket.create_server((config.host, config.port)) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        words = f"{config.host}:{config.port} cannot be listened on: {error.strerror or error}; choose another"
        raise _wrong("host, port", words) from error


def _wrong(key: str, words: str) -> PilotageError:
    return PilotageError(ErrorCode.BAD_CONFIGURATION, f"[server] {key}: {words}")
