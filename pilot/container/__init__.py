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
from pilot.container.binds import check_binds
from pilot.container.host import Finding, Level, check_host
from pilot.container.images import ImageStore, is_remote

__all__ = [
    "ContainerCommand",
    "ContainerSettings",
    "Finding",
    "ImageStore",
    "Level",
    "check_binds",
    "check_host",
    "check_image",
    "container_command",
    "diagnose_container_failure",
    "find_apptainer",
    "is_remote",
]
