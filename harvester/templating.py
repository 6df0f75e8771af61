"""Job descriptions and submit files from templates (Jinja2): those shipped in ``harvester/templates`` or a queue's own.

==============  ===========================================================================
``mark``        the worker's mark
``queue``       the queue's name
``shape``       ``cores memory_mb disk_mb wall_s gpus``, of one node; what isn't known is none
``nodes``       how many nodes the worker has, with a pilot on each
``folder``      the worker's folder, by its path on harvester's machine
``submit``      the queue's ``submit`` options
``harvester``   the version of the harvester that submits
==============  ===========================================================================

A backend may give further names. A name that there isn't is an error, not an empty text.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from common.config import ConfigError
from common.plugins import version
from harvester.backends.base import WorkerSpec

_SHIPPED = files("harvester") / "templates"


def names_of(spec: WorkerSpec, folder: Path) -> dict[str, Any]:
    """What every template may use of a worker."""
    return {
        "mark": spec.mark,
        "queue": spec.queue,
        "shape": spec.shape,
        "nodes": spec.nodes,
        "folder": str(folder),
        "submit": spec.submit,
        "harvester": version(),
    }


class Template:
    """A template: the queue's ``own`` by its path, else the ``shipped`` one by its name.

    Raises ConfigError: it can't be read, or is no template; the text names it.
    """

    def __init__(self, shipped: str, own: str | None = None) -> None:
        self.name = own or shipped
        try:
            text = (Path(own) if own else _SHIPPED / shipped).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"template: {own}: {error}; name a file that harvester can read") from error
        try:
            self._template = _environment().from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"template: {self.name}, line {error.lineno}: {error.message}") from error

    def render(self, names: Mapping[str, Any]) -> str:
        """The text with ``names`` filled in. Raises ConfigError: it uses a name that there isn't, or fails otherwise."""
        try:
            return self._template.render(names)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
            known = ", ".join(sorted(names))
            raise ConfigError(f"template: {self.name}: {error}; known are {known}") from error


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    # What is made are job descriptions, not web pages: nothing is escaped for HTML.
    return jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
