"""Talks to HTCondor for :mod:`harvester.backends.htcondor`, in a process of its own.

HTCondor's library keeps its configuration for the whole process, waits inside C code that nothing can interrupt, and looks
for its configuration in the environment. In a child each backend has settings of its own, and an answer that doesn't come
ends with the child. The kernel kills the child with its parent: nothing is submitted once harvester is gone.

Requests and answers are lines of JSON over the socket that the command line names. An answer is ``{"result": ...}``, or
``{"error": kind, "text": why}`` with the kinds of :data:`ERRORS`. Run by its path: it imports nothing of Pilotage's.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import socket
import sys
from typing import Any

PR_SET_PDEATHSIG = 1
ERRORS = ("unreachable", "refused")
"""``unreachable``: HTCondor gave no usable answer. ``refused``: it certainly did not take what it was given."""
REFUSALS = ("Failed to create job ad", "Failed to create cluster ad", "Failed to parse submit")
"""How the library begins when it gives a submission up before anything of it is committed."""

STALE = "SECMAN:2004"
"""In the library's text when a daemon that was restarted doesn't know the session of the last connection. It hasn't
heard the request then, and the next connection makes a session anew."""


class Refused(Exception):
    """A submission that was certainly not taken."""


class Condor:
    """The calls that the parent may make; each asks for the schedd's address anew, which changes with its restarts."""

    def __init__(self, settings: dict[str, Any]) -> None:
        # Imported by its name: it has no types, and harvester itself never loads it.
        self._library: Any = importlib.import_module("htcondor2")
        for name, value in settings["parameters"].items():
            self._library.param[name] = value
        self._pool: str | None = settings["pool"]
        self._name: str | None = settings["schedd"]
        self._address: str | None = settings["address"]

    def submit(self, description: str, items: list[dict[str, str]], spool: bool) -> dict[str, int]:
        """Submit one cluster with a job for each item; with ``spool``, upload its files."""
        schedd = self._schedd()
        try:
            submitted = schedd.submit(self._library.Submit(description), spool=spool, itemdata=iter(items))
        except (self._library.HTCondorException, ValueError, KeyError) as error:
            if str(error).startswith(REFUSALS):
                raise Refused(str(error)) from error
            raise
        if spool:
            schedd.spool(submitted)
        return {"cluster": submitted.cluster(), "first": submitted.first_proc(), "count": submitted.num_procs()}

    def query(self, constraint: str, projection: list[str]) -> list[dict[str, Any]]:
        """Jobs in the queue."""
        return [_plain(ad, projection) for ad in self._schedd().query(constraint, projection)]

    def history(self, constraint: str, projection: list[str], match: int) -> list[dict[str, Any]]:
        """Jobs that have left the queue, the latest first, at most ``match``."""
        return [_plain(ad, projection) for ad in self._schedd().history(constraint, projection, match=match)]

    def act(self, action: str, constraint: str, reason: str) -> dict[str, Any]:
        """``Remove``, ``RemoveX`` ... jobs; how many of them."""
        # As a pair: a mere text is lost on its way through the library (25.14).
        done = self._schedd().act(getattr(self._library.JobAction, action), constraint, reason=(reason, 0))
        return _plain(done, ["TotalSuccess", "TotalError", "TotalPermissionDenied"])

    def retrieve(self, constraint: str) -> None:
        """Bring what spooled jobs left to where they were submitted from."""
        self._schedd().retrieve(constraint)

    def totals(self, states: list[int]) -> list[int]:
        """How many jobs of all users the queue has in each of these job states."""
        found = dict.fromkeys(states, 0)
        for ad in self._schedd().query("true", ["JobStatus"], opts=self._library.QueryOpt.GroupBy):
            if ad.get("JobStatus") in found:
                found[ad["JobStatus"]] += int(ad.get("JobCount", 1))
        return [found[state] for state in states]

    def _schedd(self) -> Any:
        library = self._library
        if self._address is not None:
            place = library.classad.ClassAd({"MyAddress": self._address, "CondorVersion": library.version()})
            return library.Schedd(place)
        collector = library.Collector(self._pool)
        if self._name is not None:
            place = collector.locate(library.DaemonType.Schedd, self._name)
            if place is None:
                raise LookupError(
                    f"the pool knows no schedd {self._name!r} now; is it down, or misspelt in the option schedd?"
                )
            return library.Schedd(place)
        if self._pool is None:
            return library.Schedd(collector.locate(library.DaemonType.Schedd))
        places = collector.locateAll(library.DaemonType.Schedd)
        if len(places) != 1:
            names = ", ".join(str(place.get("Name")) for place in places) or "none"
            raise LookupError(f"the pool has these schedds: {names}; name one with the option schedd")
        return library.Schedd(places[0])


def _plain(ad: Any, names: list[str]) -> dict[str, Any]:
    """Those attributes of a ClassAd that have a value."""
    values = {name: ad.get(name) for name in names}
    return {name: value for name, value in values.items() if type(value) in (str, int, float, bool)}


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def _answer(condor: Condor, request: dict[str, Any]) -> dict[str, Any]:
    call = getattr(condor, request.pop("call"))
    try:
        try:
            return {"result": call(**request)}
        except Exception as error:
            if STALE not in str(error):
                raise
            return {"result": call(**request)}
    except Refused as error:
        return {"error": "refused", "text": str(error)}
    except Exception as error:  # noqa: BLE001 - the library raises what it likes; the parent makes one kind of it
        return {"error": "unreachable", "text": f"{error}" or type(error).__name__}


def main(descriptor: int, parent: int) -> None:
    """Serve requests until the parent closes the socket."""
    _die_with(parent)
    with socket.socket(fileno=descriptor) as channel, channel.makefile("rb") as lines:
        condor = Condor(json.loads(lines.readline()))
        for line in lines:
            channel.sendall(json.dumps(_answer(condor, json.loads(line))).encode() + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
