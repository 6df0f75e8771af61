"""What an experiment may teach the pilot: one class with a method for each thing that the pilot asks.

Derive from :class:`PayloadPlugin`, override what differs, and name the class in the entry points of your distribution,
in the group ``pilotage.payloads``. A stage asks for it with ``plugin = "name"``, or a queue for all its stages that name
none. The pilot makes one object for each job and calls it from one thread at a time, so that it may keep things in
itself. Whatever a method raises ends the job with a numbered error, never the pilot:

* :class:`Refused`: the job cannot be right; its units fail without another attempt.
* :class:`~common.errors.PilotageError`: with the number that fits.
* anything else: 1430 PLUGIN_FAILED; other slots may try.

A plug-in runs inside the pilot, with the pilot's rights: only an admin can install one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

from common.errors import ErrorCode, PilotageError
from common.wire import AssignedFile, Assignment, Queue, SideProcess
from pilot.outputs import CollectedFile
from pilot.payload.diagnosis import Ending
from pilot.payload.messages import KnownMessage


class Refused(PilotageError):
    """This job cannot be run; ``detail`` says why, for the person who submitted it."""

    def __init__(self, detail: str) -> None:
        super().__init__(ErrorCode.REFUSED_BY_PLUGIN, detail)


@dataclass(frozen=True)
class PluginJob:
    """What a plug-in is told of its job. ``work`` is the payload's working directory on this machine, ``note`` writes a
    line into the job's log. What lies in ``work`` once the payload has run is not to be trusted: open it with
    :func:`pilot.payload.safefile.read_regular`."""

    assignment: Assignment
    queue: Queue
    work: Path
    note: Callable[[str], None]


class PayloadPlugin:
    """An experiment's view of jobs. Every method has a default that changes nothing; they are in the order in which they
    are called."""

    def check_node(self, queue: Queue) -> None:
        """Look at the node before the pilot asks for its first job: is /cvmfs there, a release, a service? What is raised
        makes the pilot leave with that reason. Only asked of the queue's plug-in."""

    def validate(self, job: PluginJob) -> None:
        """Look at the job before anything is fetched for it. Raise :class:`Refused` when it cannot be right."""

    def inputs(self, _job: PluginJob, files: Sequence[AssignedFile]) -> Sequence[AssignedFile]:
        """Which of the files beside the units (common and secondary input) to fetch, and in which order: leave out what
        the node has anyway. A file that is left out is not among those that the payload is told of."""
        return files

    def environment(self, _job: PluginJob) -> Mapping[str, str]:
        """Variables for the payload; those of the task win over them."""
        return {}

    def setup(self, _job: PluginJob) -> str:
        """Lines for ``/bin/sh``, in the payload's container if it has one, that are run in the same shell before the
        payload, and before each process around it: ``. /cvmfs/…/setup.sh``. Empty: no shell."""
        return ""

    def command(self, _job: PluginJob, argv: Sequence[str]) -> Sequence[str]:
        """The payload's command, of which placeholders are filled in already; the first word of a jobscript or a
        transformation is its path."""
        return argv

    def processes(self, job: PluginJob) -> Sequence[SideProcess]:
        """The processes around the payload; without a change those of the task."""
        return job.assignment.processes

    def idle_files(self, _job: PluginJob) -> Sequence[str]:
        """Patterns of names of files that change also while the payload does nothing, such as the log of a monitor: the
        pilot does not take their change for progress when it looks for payloads that hang."""
        return ()

    def messages(self) -> Sequence[KnownMessage]:
        """Messages that tell why a payload failed; they come before the pilot's own."""
        return ()

    def diagnose(self, _job: PluginJob, _ending: Ending) -> Optional[PilotageError]:
        """Why the payload failed, when the experiment knows better than the pilot; None when it does not. Only asked of
        payloads that failed; the payload's own exit code is reported beside it, whatever is answered."""
        return None

    def outputs(self, _job: PluginJob, files: Sequence[CollectedFile]) -> Sequence[CollectedFile]:
        """The outputs to upload, in that order: leave some out, or give them attributes. Raise to fail the job."""
        return files

    def metrics(self, _job: PluginJob) -> Mapping[str, Union[int, float]]:
        """What the payload told of itself, under the names of :class:`common.wire.Metrics`, such as ``events``."""
        return {}

    def redundant_files(self, _job: PluginJob) -> Sequence[str]:
        """Patterns of paths below the working directory that need not go into the log archive."""
        return ()

    def log_files(self, job: PluginJob) -> Sequence[str]:
        """Patterns of paths below the working directory that go into the log archive beside what it has anyway; without
        a change those of the task."""
        return job.assignment.log_files
