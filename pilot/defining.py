"""From an assignment to what the payload is told of it, and what it may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Optional

from common.wire import AssignedUnit, Assignment, Needs, PayloadLimits
from pilot.config import PilotConfig
from pilot.payload import InputFile, PayloadDefinition, PayloadUnit
from pilot.plugins import PluginCalls
from pilot.running import Rules
from pilot.slot import Part
from pilot.watch import JobLimits, payload_rules


@dataclass(frozen=True)
class Given:
    """What the pilot knows of a job beside its assignment. ``place`` answers what the payload opens for the DID of an input,
    ``paths`` are those of files on the slot's disk; ``program`` is the transformation; ``now`` in seconds since the epoch;
    ``credentials`` are variables for direct reading."""

    part: Part
    site: str
    now: float
    place: Callable[[str], str]
    paths: Mapping[str, Path]
    program: Optional[Path]
    credentials: Mapping[str, str]


def define_payload(
    assignment: Assignment, units: Sequence[AssignedUnit], plugin: PluginCalls, given: Given
) -> PayloadDefinition:
    """The payload on these units. Raises PilotageError when the plug-in does not want it."""
    requirements, program = assignment.requirements, assignment.transformation
    files = {unit.file.did: unit.file for unit in units if unit.file is not None}.values()
    return PayloadDefinition(
        job_id=str(assignment.job_id),
        task_id=str(assignment.task_id),
        jobscript=assignment.jobscript,
        command=assignment.command if program is None else program.parameters,
        transformation=given.program,
        processes=plugin.processes(),
        setup=plugin.setup(),
        rewrite=plugin.command,
        image=assignment.image,
        environment={**plugin.environment(), **assignment.environment},
        inputs=[InputFile(file.did, given.place(file.did)) for file in files],
        counters=[unit.counter for unit in units if unit.counter is not None],
        units=[_payload_unit(unit, given) for unit in units],
        secondary={
            name: [str(given.paths[file.did]) for file in files if file.did in given.paths]
            for name, files in assignment.secondary.items()
        },
        cores=requirements.cores,
        memory_mb=requirements.memory_mb,
        wall_s=requirements.wall_s,
        gpus=list(given.part.gpus),
        workflow_id=str(assignment.workflow_id),
        stage=assignment.stage,
        scope=assignment.scope,
        site=given.site,
        query=assignment.query,
        started_at=datetime.fromtimestamp(given.now, timezone.utc),
        secrets=assignment.secrets,
        credentials=dict(given.credentials),
    )


def _payload_unit(unit: AssignedUnit, given: Given) -> PayloadUnit:
    file = unit.file
    return PayloadUnit(
        unit.unit_id,
        did=None if file is None else file.did,
        path=None if file is None else given.place(file.did),
        first_event=unit.first_event,
        events=unit.events,
        counter=unit.counter,
        attributes={} if file is None else file.attributes,
    )


def payload_bounds(
    requirements: Needs,
    of_queue: Optional[PayloadLimits],
    config: PilotConfig,
    part: Part,
    plugin: PluginCalls,
    wall_left_s: Optional[float],
) -> Rules:
    """What the payload may use of its part of the slot, and for how long. Raises PilotageError when the plug-in fails."""
    rule = payload_rules(config, of_queue)
    looping_s = rule.looping_s if requirements.looping_s is None else float(requirements.looping_s)
    limits = JobLimits(
        memory_mb=int(requirements.memory_mb * rule.memory_factor) or None,
        disk_mb=part.disk_mb if requirements.disk_mb else None,
        stdout_mb=rule.stdout_mb or None,
        wall_s=wall_left_s,
        processes=rule.processes or None,
        looping_s=looping_s or None,
        idle_files=tuple(plugin.idle_files()),
    )
    return Rules(limits, rule.memory_grace_s, rule.wall_warning_s, config.core_limit_mb, part.gpus)
