"""What the server needs of a description in either language; the text itself goes on as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit
from xml.etree import ElementTree

from common.wire.direct import Language
from server.compat.act import xrsl
from server.compat.act.xrsl import BadDescription
from server.dispatch.direct import MOST_NAME
from server.store.direct import Described

NAMELESS = "unnamed"
ADL = "ActivityDescription"


@dataclass(frozen=True)
class Read:
    """A description that can be handed in, and the files that must have been uploaded for it."""

    described: Described
    uploaded: frozenset[str]


def read(text: str) -> Read:
    """What a description says. Raises BadDescription."""
    start = text.lstrip()[:1]
    return _adl(text) if start == "<" else _xrsl(text)


def _xrsl(text: str) -> Read:
    found = xrsl.parse(text)
    if found.text("executable") in (None, ""):
        raise BadDescription("it has no executable")
    for name in ("delegationid", "action"):
        if name in found.attributes:
            raise BadDescription(f"{name} is not the user's to choose: leave it out")
    inputs = frozenset(name for name, source in found.pairs("inputfiles") if _is_local(source))
    stdout = found.text("stdout")
    stderr = found.text("stderr")
    if stderr is None and (found.text("join") or "").lower() in ("yes", "true"):
        stderr = stdout
    return Read(_described(text, Language.XRSL, found.text("jobname"), stdout, stderr), inputs)


def _described(text: str, language: Language, name: str | None, stdout: str | None, stderr: str | None) -> Described:
    if name is not None and (len(name) > MOST_NAME or not name.isprintable()):
        raise BadDescription(f"the job's name is longer than {MOST_NAME} characters, or no text")
    return Described(text, language, name or NAMELESS, stdout or None, stderr or None)


def _is_local(source: str) -> bool:
    """Whether a file comes from the client: its source is nothing, or a path there."""
    try:
        parts = urlsplit(source)
    except ValueError as error:
        raise BadDescription(f"the source {source[:100]!r} is no address") from error
    return parts.scheme in ("", "file") and not parts.netloc


def _adl(text: str) -> Read:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise BadDescription("a document type is not taken: leave it out")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise BadDescription(f"it is no XML: {error}") from error
    if _plain(root) != ADL:
        raise BadDescription(f"it is a {_plain(root)}: an {ADL} is expected")
    application = next(_children(root, "Application"), None)
    if application is None or not any(
        True for each in _children(application, "Executable") for _ in _children(each, "Path")
    ):
        raise BadDescription("it has no executable")
    inputs: set[str] = set()
    for staging in _children(root, "DataStaging"):
        for file in _children(staging, "InputFile"):
            sources = [_said(uri) for source in _children(file, "Source") for uri in _children(source, "URI")]
            if all(_is_local(each) for each in sources):
                inputs.update(_said(name) for name in _children(file, "Name"))
    name = next(
        (_said(each) for part in _children(root, "ActivityIdentification") for each in _children(part, "Name")), None
    )
    stdout = next((_said(each) for each in _children(application, "Output")), None)
    stderr = next((_said(each) for each in _children(application, "Error")), None)
    return Read(_described(text, Language.ADL, name, stdout, stderr), frozenset(inputs))


def _plain(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _children(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (each for each in element if _plain(each) == name)


def _said(element: ElementTree.Element) -> str:
    return (element.text or "").strip()
