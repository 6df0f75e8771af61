"""The sub-command ``pilotage pilot``."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import NoReturn, Optional, Union

import click

from common.cli import load_section
from common.errors import ErrorCode, PilotageError
from common.log import UtcFormatter, setup_logging
from common.tokens import read_secret_file
from common.wire import PilotEnd, PilotRegistration
from pilot.agent import ExitCode
from pilot.arenas import share_arenas
from pilot.bundle.command import bundle
from pilot.client import HttpServer, ServerError
from pilot.config import PilotConfig, required
from pilot.deliver import Delivery, courier
from pilot.doctor import doctor
from pilot.local.command import run_local
from pilot.remove import remove
from pilot.stopping import catch_signals
from pilot.tails import TailHandler
from pilot.workdir import WorkDir
from pilot.workshop import Workshop, load_tools

logger = logging.getLogger(__name__)


@click.group(invoke_without_command=True)
@click.pass_context
def pilot(context: click.Context) -> None:
    """Run a pilot in this slot. It asks the server for jobs that fit, runs them, and reports.

    Exit codes of `run` (the default): 0 left in good order, 1 a mistake inside the pilot or a slot that cannot be used, 2
    wrong usage or configuration, 3 server never reached, 4 registration refused, 5 no longer accepted by the server, 143
    ended by SIGTERM or the like after reporting.
    """
    if context.invoked_subcommand is None:
        context.invoke(run)


@pilot.command()
@click.option("--server", "server_url", metavar="URL", help="The server's address.")
@click.option("--queue", metavar="NAME", help="Leave unless this is the worker's queue.")
@click.option("--worker", metavar="MARK", help="The mark of the worker that this pilot runs in.")
@click.option("--secret-file", metavar="FILE", help="A file of mode 0600 with the worker's secret.")
@click.option("--node", type=int, metavar="N", help="The number of this node in a worker of several.")
@click.option("--work-dir", metavar="DIR", help="The pilot's own folder; jobs run below it.")
@click.option("--ca-file", metavar="FILE", help="The certificate authorities to verify the server with.")
@click.option("--max-jobs", type=int, metavar="N", help="Take so many jobs and leave.")
@click.option("--lifetime", "lifetime_s", type=float, metavar="S", help="Take no more jobs after S seconds.")
@click.option("--idle-exit", "idle_exit_s", type=float, metavar="S", help="Leave after S seconds without a job.")
@click.option("--log-level", metavar="LEVEL", help="DEBUG, INFO, WARNING or ERROR.")
@click.option("--keep", is_flag=True, default=None, help="Keep the jobs' folders.")
@click.pass_context
def run(context: click.Context, /, **options: object) -> None:
    """Run jobs until there are no more. Options win over the configuration's section [pilot]."""
    share_arenas()
    config = load_section(context, PilotConfig, "pilot", options).value
    setup_logging(config.log_level)
    worker = required(config.worker, "worker", "--worker MARK")
    secret = read_secret_file(Path(required(config.secret_file, "secret_file", "--secret-file FILE")).expanduser())
    tail = TailHandler()
    logging.getLogger().addHandler(tail)
    server_url = required(config.server_url, "server_url", "--server URL").rstrip("/")
    server = HttpServer(server_url, ca_file=config.ca_file, secret=secret)
    try:
        work_dir = WorkDir(Path(config.work_dir).expanduser())
        log = logging.FileHandler(work_dir.log)
        log.setFormatter(UtcFormatter())
        logging.getLogger().addHandler(log)
        workshop = Workshop(config, server_url, server, work_dir, dict(os.environ), tail.text, server.clock_ahead_s)
        agent = workshop.agent(worker)
    except (PilotageError, OSError) as error:
        report_failed_start(server, worker, config.node, error)
        raise
    catch_signals(agent)
    code = agent.run()
    logger.info("pilot ends with exit code %d (%s)", code, code.name)
    workshop.close()
    server.close()
    if config.remove_work_dir and not config.keep:
        _remove(work_dir)
    work_dir.close()
    leave(code)


def _remove(work_dir: WorkDir) -> None:
    try:
        work_dir.remove()
    except (PilotageError, OSError) as error:
        logger.warning("%s stays: %s", work_dir.root, error)


@pilot.command("deliver")
@click.option("--work-dir", metavar="DIR", help="The folder of the pilot that left reports.")
@click.option("--ca-file", metavar="FILE", help="The certificate authorities to verify the server with.")
@click.pass_context
def deliver_reports(context: click.Context, /, **options: Optional[str]) -> None:
    """Deliver the final reports that a pilot could not deliver before it ended.

    Exit code 3 when some still wait because the server could not be reached.
    """
    config = load_section(context, PilotConfig, "pilot", options).value
    setup_logging(config.log_level)
    work_dir = WorkDir(Path(config.work_dir).expanduser())
    try:
        bearer = courier(work_dir.spool, config.ca_file, lambda: load_tools([], options=config.copytools))
        outcomes = {entry.job_id: bearer.deliver(entry) for entry in work_dir.spool.reports()}
        work_dir.spool.remove_idle_tokens()
    finally:
        work_dir.close()
    for job_id, outcome in outcomes.items():
        click.echo(f"job {job_id}: {outcome.value}")
    if Delivery.WAITING in outcomes.values():
        raise click.exceptions.Exit(ExitCode.UNREACHABLE)


pilot.add_command(remove)
pilot.add_command(doctor)
pilot.add_command(run_local)
pilot.add_command(bundle)


def report_failed_start(server: HttpServer, worker: str, node: int, error: Union[PilotageError, OSError]) -> None:
    """Tell the server why this pilot never began; best effort."""
    server.hurry()
    try:
        grant = server.register(PilotRegistration(worker, secrets.token_hex(16), socket.gethostname(), node))
        code = error.code if isinstance(error, PilotageError) else ErrorCode.SETUP_FAILED
        server.end(grant.pilot_id, PilotEnd(f"the pilot could not start: {error}"[:1000], int(code), str(error)))
    except ServerError as failed:
        logger.error("the server could not be told: %s", failed)


def leave(code: int) -> NoReturn:
    """End the process at once, whatever a thread still waits for: a transfer that hangs must not hold the slot."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
