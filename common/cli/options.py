"""Types of options that several commands share, to be given to click as ``type``."""

from __future__ import annotations

import click

from common.quantities import QuantityError, parse_duration, parse_size

MIB = 1024 * 1024


def size(value: str) -> int:
    """A size with a unit, in mebibytes, rounded up. Raises click.BadParameter."""
    if value.isdigit() and value != "0":
        raise click.BadParameter(f"{value!r} has no unit: write for example 512MiB or 2GB")
    try:
        return -(-parse_size(value) // MIB)
    except QuantityError as error:
        raise click.BadParameter(f"{value!r}: {error.remedy}") from error


def duration(value: str) -> int:
    """A duration in seconds, rounded up. Raises click.BadParameter."""
    try:
        return int(-(-parse_duration(value) // 1))
    except QuantityError as error:
        raise click.BadParameter(f"{value!r}: {error.remedy}") from error
