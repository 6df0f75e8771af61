"""The payload's side of a job: its folder, its definition, what it may ask and say while it runs."""

from __future__ import annotations

from pilot.payload.definition import InputFile, PayloadDefinition, PayloadUnit
from pilot.payload.folder import JobFolder
from pilot.payload.mailbox import GetFileReply, GetFileRequest, GetFileStatus, Mailbox
from pilot.payload.prepare import prepare_payload
from pilot.payload.processed import Processed, read_processed

__all__ = [
    "GetFileReply",
    "GetFileRequest",
    "GetFileStatus",
    "InputFile",
    "JobFolder",
    "Mailbox",
    "PayloadDefinition",
    "PayloadUnit",
    "Processed",
    "prepare_payload",
    "read_processed",
]
