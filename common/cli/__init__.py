"""The command ``pilotage``: its frame, and the sub-commands of users, which only speak HTTP."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional, TypeVar

if TYPE_CHECKING:
    import click
    import msgspec

    from common.config import Loaded

    T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True)
class Frame:
    """What the options before the sub-command say."""

    config_file: Optional[Path] = None
    debug: bool = False


def config_paths(context: click.Context) -> list[Path]:
    """The configuration files of this run, the weakest first. Raises ConfigError."""
    from common.config import config_files

    frame = context.find_object(Frame) or Frame()
    return config_files(os.environ, frame.config_file)


def load_section(
    context: click.Context,
    section_type: type[T],
    section: str,
    overrides: Optional[Mapping[str, object]] = None,
) -> Loaded[T]:
    """The section in force for a sub-command, ``--config`` included; ``overrides`` are its own options.

    Raises ConfigError.
    """
    from common.config import load_config

    return load_config(section_type, section, config_paths(context), os.environ, overrides)
