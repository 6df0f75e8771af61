"""Transcripts of foreign clients, kept for people where PILOTAGE_TRANSCRIPTS names a folder."""

from __future__ import annotations

import os
from pathlib import Path


def keep(name: str, text: str) -> None:
    """Write a client's transcript to ``name``.txt in that folder; nothing without one."""
    folder = os.environ.get("PILOTAGE_TRANSCRIPTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.txt").write_text(text, encoding="utf-8")
