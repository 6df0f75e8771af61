"""Running payloads in containers."""

from __future__ import annotations

from pilot.container.apptainer import (
    ContainerCommand,
    ContainerSettings,
    check_image,
    container_command,
    diagnose_container_failure,
    find_apptainer,
)

__all__ = [
    "ContainerCommand",
    "ContainerSettings",
    "check_image",
    "container_command",
    "diagnose_container_failure",
    "find_apptainer",
]
