"""The lists in which a jobscript says which files it has processed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pilot.payload.safefile import UnsafeFileError, read_regular

DID_LISTS = ("pilotage-processed-dids.txt", "justin-processed-dids.txt")
PFN_LISTS = ("pilotage-processed-pfns.txt", "justin-processed-pfns.txt")
LIST_LIMIT = 16 * 1024 * 1024


@dataclass
class Processed:
    """DIDs and PFNs (or local paths) that the jobscript named as processed, each once, in its order; ``problems`` says
    which list could not be read, and why."""

    dids: list[str] = field(default_factory=list)
    pfns: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_processed(work_dir: Path) -> Processed:
    """Reads the lists in the payload's directory, without following links. A list that is not there is empty."""
    processed = Processed()
    for names, into in ((DID_LISTS, processed.dids), (PFN_LISTS, processed.pfns)):
        seen: set[str] = set()
        for name in names:
            for entry in _entries(work_dir, name, processed.problems):
                if entry not in seen:
                    seen.add(entry)
                    into.append(entry)
    return processed


def _entries(work_dir: Path, name: str, problems: list[str]) -> list[str]:
    try:
        text = read_regular(work_dir / name, LIST_LIMIT).decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    except UnsafeFileError as error:
        problems.append(f"{name} {error}: not read")
        return []
    except OSError as error:
        problems.append(f"{name}: {error.strerror}")
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]
