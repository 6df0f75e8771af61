"""The rig of ARC: workers on a real CE, whose batch system forks."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.clock import SystemClock
from harvester.backends.arc import ArcBackend
from harvester.backends.base import WorkerSpec
from tests.contract.backends import Rig
from tests.services.arc import QUEUE, ArcCe


class ArcRig(Rig):
    """Jobs take some seconds to come and go. ``backend`` uses the person's proxy, unless ``options`` name another credential."""

    deadline_s = 300.0

    def __init__(self, folder: Path, ce: ArcCe, options: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.ce = ce
        self.options = {
            "url": ce.url,
            "ca_file": str(ce.authorities),
            "proxy_file": str(ce.proxy),
            "timeout_s": 60.0,
            **(options or {}),
        }
        self.submit_options: dict[str, Any] = {"queue": QUEUE}
        self.backend: ArcBackend = self.restarted()

    def spec(self, how: str = "stay", mark: str | None = None, **environment: str) -> WorkerSpec:
        return replace(super().spec(how, mark, **environment), submit=self.submit_options)

    def restarted(self) -> ArcBackend:
        given = {name: value for name, value in self.options.items() if value is not None}
        return ArcBackend.create(given, self.folder, SystemClock())

    def passes(self) -> None:
        threading.Event().wait(0.2)

    def close(self) -> None:
        self.ce.end_jobs()
