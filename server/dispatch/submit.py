"""People submit workflows."""

from __future__ import annotations

import re
from collections.abc import Callable

from common.wire import WorkflowRequest, WorkflowView
from server.dispatch.belongings import belongings_problems, keep_belongings
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid
from server.engine.tagging import tag
from server.engine.workflows import check_workflow
from server.store import tagging, workflows, world
from server.store.database import Connection

Also = Callable[[Connection, WorkflowView], None]
"""Keeps what belongs to a new workflow, in the transaction that makes it."""


def submit(dispatcher: Dispatcher, owner: str, request: WorkflowRequest, also: Also | None = None) -> WorkflowView:
    """Keep a workflow; its units are made by an agent. The same ``request_id`` of a person gets the same workflow.

    Raises:
        Invalid: it names every field that is wrong; nothing is kept.
    """
    with dispatcher.database.read() as connection:
        places = world.load(connection)
        shares = {share.name for share in world.shares(connection)}
        rules = tagging.every(connection)
        problems = belongings_problems(dispatcher, connection, owner, request)
    plugins = dispatcher.plugins
    problems += check_workflow(request, places, shares, plugins.catalogs, plugins.stagers)
    if problems:
        raise Invalid(
            f"the workflow has {len(problems)} mistakes" if len(problems) > 1 else problems[0].message,
            [(problem.path, problem.message) for problem in problems],
        )
    scope = request.scope or default_scope(owner)
    request = tag(rules, owner, scope, request, shares)
    with dispatcher.database.write() as connection:
        workflow_id, new = None, False
        if request.request_id is not None:
            workflow_id = workflows.by_request(connection, owner, request.request_id)
        if workflow_id is None:
            workflow_id = workflows.add(connection, request, owner, scope, dispatcher.now())
            new = True
        view = workflows.view_workflow(connection, workflow_id)
        assert view is not None
        if new:
            ids = {task.stage: task.id for task in view.tasks}
            keep_belongings(connection, workflow_id, ids, request, dispatcher.now())
            if also is not None:
                also(connection, view)
    dispatcher.changed()
    return view


def default_scope(owner: str) -> str:
    """The DID scope of a person who names none."""
    return "user." + (re.sub(r"[^A-Za-z0-9._-]", "-", owner) or "nobody")
