"""The server's agents: looked at, switched on and off."""

from __future__ import annotations

from common.events import EventKind
from common.wire import AgentList, AgentSwitch, AgentView
from server.api.routing import Call, Role, Route, allow
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound
from server.store import agents, events


def _agents(dispatcher: Dispatcher, _: Call) -> AgentList:
    with dispatcher.database.read() as connection:
        return AgentList(agents.views(connection, dispatcher.now()))


def _switch(dispatcher: Dispatcher, call: Call) -> AgentView:
    name, wanted, now = call.path["name"], call.body.enabled, dispatcher.now()
    with dispatcher.database.write() as connection:
        known = {each.name: each for each in agents.views(connection, now)}
        if name not in known:
            raise NotFound(f"there is no agent {name!r}; known: {', '.join(known) or 'none, because none ever ran'}")
        if agents.switch(connection, name, wanted, call.caller.name, now):
            detail = {"enabled": wanted, "who": call.caller.name}
            events.add(connection, events.Event(now, EventKind.AGENT_SWITCHED, "agent", name, detail=detail))
        return next(each for each in agents.views(connection, now) if each.name == name)


ROUTES = [
    Route("GET", "/v1/agents", allow(Role.USER), _agents, "List the server's agents", reply=AgentList),
    Route(
        "PUT", "/v1/agents/{name}", allow(Role.ADMIN), _switch, "Switch an agent on or off", AgentSwitch, AgentView
    ),
]  # fmt: skip
