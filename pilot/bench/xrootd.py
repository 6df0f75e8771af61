"""Stage-in and stage-out through an XRootD server, against what ``xrdcp`` itself does there, checksum included."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.checksums import file_checksum
from common.cli.demo_processes import DemoError
from common.errors import PilotageError
from pilot.staging import Destination, InputFile, OutputFile, Replica, StageInClient, StageOutClient

ROUNDS = 3
BLOCK = 64 << 20


@dataclass(frozen=True)
class Rates:
    """Bytes a second, medians of rounds in turn; ``ratio`` is the worse of the two directions."""

    in_mb_s: float
    out_mb_s: float
    xrdcp_in_mb_s: float
    xrdcp_out_mb_s: float

    @property
    def ratio(self) -> float:
        """Ours over that of ``xrdcp``."""
        return min(self.in_mb_s / self.xrdcp_in_mb_s, self.out_mb_s / self.xrdcp_out_mb_s)


def measure(url: str, size: int, folder: Path) -> Rates:
    """Copy a file of ``size`` bytes out to the prefix ``url`` and back, in turn by us and by ``xrdcp``.

    Raises:
        DemoError: ``xrdcp`` is not there, or a copy failed.
    """
    xrdcp = shutil.which("xrdcp")
    if xrdcp is None:
        raise DemoError("--xrootd: there is no xrdcp on the search path to compare with")
    source = folder / "source"
    _fill(source, size)
    checksum = str(file_checksum(source))
    seconds: dict[str, list[float]] = {"in": [], "out": [], "xrdcp in": [], "xrdcp out": []}
    for _ in range(ROUNDS):
        ours, theirs = f"{url}/{uuid.uuid4().hex}", f"{url}/{uuid.uuid4().hex}"
        with _timed(seconds["xrdcp out"]):
            _xrdcp(xrdcp, str(source), theirs)
        with _timed(seconds["out"]):
            _stage_out(source, ours, size, checksum)
        with _timed(seconds["xrdcp in"]):
            _xrdcp(xrdcp, theirs, str(folder / "theirs"))
        with _timed(seconds["in"]):
            _stage_in(ours, folder / "ours", size, checksum)
        StageOutClient(["xrootd"]).remove([ours, theirs])
        (folder / "theirs").unlink()
        shutil.rmtree(folder / "ours")
    mb_s = {name: size / 1e6 / statistics.median(each) for name, each in seconds.items()}
    return Rates(mb_s["in"], mb_s["out"], mb_s["xrdcp in"], mb_s["xrdcp out"])


@contextmanager
def _timed(found: list[float]) -> Iterator[None]:
    begun = time.monotonic()
    yield
    found.append(time.monotonic() - begun)


def _fill(path: Path, size: int) -> None:
    block = os.urandom(min(BLOCK, size))
    with path.open("wb") as file:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])


def _xrdcp(program: str, source: str, target: str) -> None:
    # Compared with the server's own checksum, as we do.
    argv = [program, "--nopbar", "--force", "--cksum", "adler32", source, target]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DemoError(f"--xrootd: xrdcp failed: {done.stderr.strip()[-500:]}")


def _stage_out(source: Path, url: str, size: int, checksum: str) -> None:
    # The checksum is known when a job's outputs are uploaded: it was recorded before.
    output = OutputFile("bench", source, size, checksum, [Destination("BENCH", url)])
    _must(StageOutClient(["xrootd"]).stage_out([output])[0].error)


def _stage_in(url: str, into: Path, size: int, checksum: str) -> None:
    file = InputFile("bench:file", size, checksum, [Replica("BENCH", url)])
    _must(StageInClient(["xrootd"]).stage_in([file], into)[0].error)


def _must(error: object) -> None:
    if isinstance(error, PilotageError):
        raise DemoError(f"--xrootd: {error}")
