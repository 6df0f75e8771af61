"""``jobReport.json``: what a payload says of itself in the form of ATLAS' transformations, which others write too.

The parts that are read (PanDA pilot, parsing of job reports)::

    {"exitCode": 0, "exitAcronym": "OK", "exitMsg": "...",
     "files": {"output": [{"subFiles": [{"name": "a.root", "nentries": 100, "file_guid": "...", "file_size": 5}]}]},
     "resource": {"executor": {"athena": {"nevents": 100}}, "transform": {"processedEvents": 100}}}

It is a payload's own word: nothing in it is believed that the pilot can see for itself, what is not understood is left
out with a warning, and no size or depth of it can do harm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from pilot.payload.safefile import UnsafeFileError, read_regular, untrusted_json

NAME = "jobReport.json"
MAX_SIZE = 4 * 1024 * 1024
MAX_FILES = 10_000
MAX_WORDS = 2000
MAX_EVENTS = 2**53


@dataclass(frozen=True)
class PayloadReport:
    """What the payload says: its exit code with acronym and message (None, empty: it says nothing), how many events it
    processed, attributes of its output files by name; ``problems`` are the parts that were not understood."""

    exit_code: Optional[int] = None
    acronym: str = ""
    message: str = ""
    events: Optional[int] = None
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Why it failed, in its own words; empty when it does not say."""
        if self.acronym in ("", "OK") and self.exit_code in (None, 0):
            return ""
        return ": ".join(part for part in (self.acronym, self.message) if part)


def read_job_report(work_dir: Path) -> Optional[PayloadReport]:
    """The report in the payload's directory, without following links; None when there is none."""
    try:
        said = untrusted_json(read_regular(work_dir / NAME, MAX_SIZE))
    except FileNotFoundError:
        return None
    except UnsafeFileError as error:
        return _not_used(f"{error}")
    except OSError as error:
        return _not_used(f"{error.strerror}")
    except (ValueError, RecursionError) as error:
        return _not_used(f"is no JSON: {error}"[:MAX_WORDS])
    if not isinstance(said, dict):
        return _not_used("is no JSON object")
    return PayloadReport(
        exit_code=_number(said.get("exitCode"), least=-(2**31)),
        acronym=_text(said.get("exitAcronym")),
        message=_text(said.get("exitMsg")),
        events=_events(_table(said.get("resource"))),
        files=dict(_files(_table(said.get("files")))),
    )


def _not_used(why: str) -> PayloadReport:
    return PayloadReport(problems=(f"{NAME} {why}: not used",))


def _files(said: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the attributes of each file, in both forms: with and without a list of subFiles."""
    count = 0
    for output in _list(said.get("output")):
        table = _table(output)
        for entry in _list(table.get("subFiles")) or [table]:
            name = _table(entry).get("name")
            if not isinstance(name, str) or count >= MAX_FILES:
                continue
            count += 1
            yield name.rpartition("/")[2], _attributes(_table(entry))


def _attributes(entry: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    events = _number(entry.get("nentries"))
    if events is not None:
        found["events"] = events
    guid = _text(entry.get("file_guid"))
    if guid:
        found["guid"] = guid
    return found


def _events(resource: Mapping[str, Any]) -> Optional[int]:
    """Processed events: those of the whole transformation, else of the step that saw the most."""
    whole = _number(_table(resource.get("transform")).get("processedEvents"))
    if whole is not None:
        return whole
    steps = [_number(_table(step).get("nevents")) for step in _table(resource.get("executor")).values()]
    return max((events for events in steps if events is not None), default=None)


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any, least: int = 0) -> Optional[int]:
    """A whole number in bounds; None for all else."""
    fine = isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_EVENTS
    return int(value) if fine else None


def _text(value: Any) -> str:
    """Printable text of bounded length; line breaks become blanks."""
    if not isinstance(value, str):
        return ""
    return "".join(letter if letter.isprintable() else " " for letter in value[:MAX_WORDS]).strip()
