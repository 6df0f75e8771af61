"""``pilotage job peek``: look at a job while it runs."""

from __future__ import annotations

import threading
import time
from typing import Optional

import click

from common.cli import render
from common.cli.client import Client, client_options
from common.http import ProblemError
from common.wire import PeekAnswer, PeekKind, PeekRequest, PeekState, PeekView
from common.wire.peeks import MOST_LINES

WAIT_S = 15
"""How long one call waits."""
PAUSE_S = 0.5
"""A server whose waiting threads are all taken answers at once."""
OVER = 409


@click.group()
def job() -> None:
    """Look at single jobs while they run."""


@job.command()
@click.argument("job_id", metavar="JOB", type=click.IntRange(min=1))
@click.option(
    "--tail", "tail", metavar="[FILE]", is_flag=False, flag_value="stdout",
    help="The end of stdout, of stderr, or of a file below the payload's working directory.",
)  # fmt: skip
@click.option(
    "--ls", "ls", metavar="[DIR]", is_flag=False, flag_value="",
    help="What is in the payload's working directory, or in a folder below it.",
)  # fmt: skip
@click.option("--ps", "ps", is_flag=True, help="The payload's processes.")
@click.option("--du", "du", is_flag=True, help="What the job's folder occupies on disk.")
@click.option("--gdb", "gdb", metavar="PID", type=click.IntRange(min=1), help="The stacks of one of its processes.")
@click.option("--pilot-log", "pilot_log", is_flag=True, help="The end of the pilot's own log.")
@click.option("--lines", type=click.IntRange(1, MOST_LINES), default=50, show_default=True, help="Of a tail or a log.")
@click.option("--follow", is_flag=True, help="Go on with what is added to the file, until the job ends.")
@click.option("--wait", "wait_s", metavar="SECONDS", type=click.IntRange(min=0), default=300, show_default=True,
              help="Give up after so long without an answer.")  # fmt: skip
@client_options
def peek(
    client: Client,
    job_id: int,
    tail: Optional[str],
    ls: Optional[str],
    ps: bool,
    du: bool,
    gdb: Optional[int],
    pilot_log: bool,
    lines: int,
    follow: bool,
    wait_s: int,
) -> None:
    """Show what a running job does: its output, files, processes, stacks.

    The pilot answers with its next heartbeat; while you look, it beats every two seconds. Without an option, the end of
    the job's standard output is shown.
    """
    asked = [
        *([PeekRequest(kind=PeekKind.TAIL, path=tail, lines=lines)] if tail is not None else []),
        *([PeekRequest(kind=PeekKind.LS, path=ls)] if ls is not None else []),
        *([PeekRequest(kind=PeekKind.PS)] if ps else []),
        *([PeekRequest(kind=PeekKind.DU)] if du else []),
        *([PeekRequest(kind=PeekKind.GDB, pid=gdb)] if gdb is not None else []),
        *([PeekRequest(kind=PeekKind.PILOT_LOG, lines=lines)] if pilot_log else []),
    ]
    if len(asked) > 1:
        raise click.UsageError("ask for one thing at a time")
    request = asked[0] if asked else PeekRequest(kind=PeekKind.TAIL, path="stdout", lines=lines)
    if follow and request.kind is not PeekKind.TAIL:
        raise click.UsageError("--follow goes with --tail only")
    answer = _shown(client, _asked(client, job_id, request, wait_s), follow)
    while follow and answer.end is not None:
        request = PeekRequest(kind=PeekKind.TAIL, path=request.path, after=answer.end)
        try:
            view = _asked(client, job_id, request, wait_s)
        except ProblemError as error:
            if error.status != OVER:
                raise
            click.echo(error.problem.detail, err=True)
            return
        if view.state is PeekState.OVER:
            click.echo(f"job {job_id} is {view.job_state.value}", err=True)
            return
        answer = _shown(client, view, follow)


def _asked(client: Client, job_id: int, request: PeekRequest, wait_s: float) -> PeekView:
    """Ask, and wait for the answer. Raises click.ClickException when there is none."""
    path = f"/v1/jobs/{job_id}/peeks"
    view = client.http.call("POST", path, request, PeekView)
    ends = time.monotonic() + wait_s
    told, pause = False, threading.Event()
    while view.state is PeekState.WAITING:
        left_s = ends - time.monotonic()
        if left_s <= 0:
            raise click.ClickException(
                f"no answer yet: the pilot should be heard of within {view.due_s:.0f} s; ask again"
            )
        began = time.monotonic()
        params = {"wait_s": max(1, min(WAIT_S, int(left_s)))}
        view = client.http.call("GET", f"{path}/{view.peek_id}", None, PeekView, params=params)
        if view.state is PeekState.WAITING:
            if not told and view.due_s > 1:
                click.echo(f"waiting for the pilot: it should be heard of within {view.due_s:.0f} s", err=True)
                told = True
            pause.wait(max(0.0, PAUSE_S - (time.monotonic() - began)))
    return view


def _shown(client: Client, view: PeekView, goes_on: bool) -> PeekAnswer:
    """Print what came; what ``goes_on`` need not say that there is more. Raises click.ClickException when nothing did."""
    if client.as_json:
        render.print_json(view)
    if view.state is PeekState.OVER:
        words = f"job {view.job_id} is {view.job_state.value}: it ended before its pilot answered"
        raise click.ClickException(f"{words}; see pilotage show job {view.job_id}")
    if view.answer is None:
        raise click.ClickException("you have asked for something else meanwhile")
    if view.answer.error:
        raise click.ClickException(printable(view.answer.error))
    if not client.as_json:
        click.echo(printable(view.answer.text), nl=False)
        if view.answer.cut and not goes_on:
            click.echo("… there is more than is shown", err=True)
    return view.answer


def printable(text: str) -> str:
    """``text`` without what would command the terminal: a payload wrote it."""
    return "".join(each if each.isprintable() or each in "\n\t" else repr(each)[1:-1] for each in text)
