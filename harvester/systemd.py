"""The unit for systemd."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from common.config import ConfigError

SHIPPED = "pilotage-harvester.service"


def unit(user: str, config_file: str, state_dir: str) -> str:
    """The unit that is shipped, for this installation. Raises ConfigError for what would break its lines."""
    program = Path(sys.executable).with_name("pilotage")
    values = {"user": user, "config": config_file, "state_dir": state_dir, "program": str(program)}
    for name, value in values.items():
        if not value or not value.isprintable() or any(letter in value for letter in " %\"'\\$"):
            raise ConfigError(f"{name}: {value!r} can't stand in a unit; choose another without spaces and quotes")
    text = (files("harvester") / SHIPPED).read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text
