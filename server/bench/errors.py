"""The benchmark's own error."""

from __future__ import annotations

import click


class BenchError(click.ClickException):
    """The benchmark cannot go on; the words are for the person who runs it."""
