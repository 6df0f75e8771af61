"""Images that come from a registry: pulled once on a node, shared by all jobs that want them.

Every image becomes a SIF file in one folder, named after its address; one process at a time pulls it, under a lock that
the kernel lets go of however that process ends (:mod:`pilot.container.pull`). An address with a digest means the same
image for ever; any other one is asked for again when the file is older than ``max_age_s``, and if that fails the old
file goes on being used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from common.errors import ErrorCode, PilotageError
from pilot.container import pull
from pilot.container.apptainer import REMOTE_SCHEMES, SYSTEM_PATH, own_words
from pilot.supervised import PayloadSpec, SupervisedProcess

logger = logging.getLogger(__name__)

FOR_EVER = 1e10
#: How much of what Apptainer said is looked through.
TAIL_BYTES = 65536
#: What the system's and the site's Apptainer may need to reach a registry: proxies and certificate authorities.
NETWORK_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")  # fmt: skip

#: What Apptainer says when a pull fails; the first that matches counts. Provoked in Apptainer 1.4.5.
PULL_MESSAGES: tuple[tuple[str, ErrorCode], ...] = (
    (r"(?i)no space left on device", ErrorCode.NO_LOCAL_SPACE),
    ((r"(?i)manifest[ _]unknown|name[ _]unknown|invalid reference|unable to parse image name|not found|"
     r"invalid layer mediatype|no extractable OCI/Docker tar layers|denied|unauthorized"),
     ErrorCode.IMAGE_NOT_FOUND),
)  # fmt: skip


@dataclass(frozen=True)
class ImageStore:
    """The node's images. ``binary``: Apptainer; ``folder``: where they are kept, this user's own; ``limit_mb``: how much
    they may take; ``timeout_s``: for one pull, the wait for another process that pulls the same image included;
    ``http``: registries (``host:port``) that are asked without TLS."""

    binary: str
    folder: Path
    limit_mb: int = 20_000
    timeout_s: float = 1800.0
    max_age_s: float = 86_400.0
    http: tuple[str, ...] = ()

    def fetch(
        self, address: str, scratch: Path, on_start: Optional[Callable[[SupervisedProcess], None]] = None
    ) -> Path:
        """The SIF file of the image at ``address``, pulled if need be; ``scratch`` is for the log of the pull.

        ``on_start`` gets the process that pulls, so that somebody can kill it. Raises PilotageError: IMAGE_NOT_FOUND,
        IMAGE_NOT_FETCHED (time-out, registry, network), NO_LOCAL_SPACE, MIDDLEWARE_IMPORT_FAILED (no spython),
        BAD_CONFIGURATION (a folder that others can write to), KILL_SIGNAL when the process was killed.
        """
        self._check_folder()
        name, max_age_s = image_name(address), self._max_age_s(address)
        image = self.folder / f"{name}.sif"
        try:
            if pull.is_fresh(image, max_age_s):
                pull.mark_used(image)
                return image
            self._pull(address, name, max_age_s, scratch, on_start)
            pull.mark_used(image)
        except FileNotFoundError as error:
            detail = (
                f"{address}: the image was removed from {self.folder} while it was wanted: give image_cache more room"
            )
            raise PilotageError(ErrorCode.NO_LOCAL_SPACE, detail) from error
        except OSError as error:
            raise PilotageError(ErrorCode.FILE_HANDLING_FAILED, f"{self.folder}: {error.strerror}") from error
        return image

    def _max_age_s(self, address: str) -> float:
        return FOR_EVER if "@sha256:" in address else self.max_age_s

    def _check_folder(self) -> None:
        """Whoever can write there can put another image in the place of one."""
        try:
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            status = self.folder.stat()
        except OSError as error:
            raise PilotageError(ErrorCode.MKDIR_FAILED, f"image_cache {self.folder}: {error.strerror}") from error
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
            detail = f"image_cache {self.folder}: it must belong to the pilot's user, and nobody else may write to it"
            raise PilotageError(ErrorCode.BAD_CONFIGURATION, detail)

    def _pull(
        self,
        address: str,
        name: str,
        max_age_s: float,
        scratch: Path,
        on_start: Optional[Callable[[SupervisedProcess], None]],
    ) -> None:
        log = scratch / "image-pull.log"
        logger.info("pulling image %s to %s", address, self.folder / f"{name}.sif")
        process = SupervisedProcess.start(self._spec(address, name, max_age_s, scratch, log))
        if on_start is not None:
            on_start(process)
        try:
            end = process.wait(self.timeout_s)
        except TimeoutError as error:
            process.kill("time-out", grace_s=0)
            process.wait()
            detail = f"{address}: not pulled within {self.timeout_s:g} s"
            raise PilotageError(ErrorCode.IMAGE_NOT_FETCHED, detail) from error
        if end.killed is not None:
            raise PilotageError(ErrorCode.KILL_SIGNAL, f"{address}: given up before it was pulled: {end.killed}")
        if not end.ok:
            raise pull_failure(address, end.exit_code, _tail(log))

    def _spec(self, address: str, name: str, max_age_s: float, scratch: Path, log: Path) -> PayloadSpec:
        """spython calls what it finds as ``singularity`` on the search path: that is made to be the Apptainer we want."""
        try:
            tools = scratch / "image-tools"
            tools.mkdir(mode=0o700, exist_ok=True)
            link = tools / "singularity"
            link.unlink(missing_ok=True)
            link.symlink_to(self.binary)
        except OSError as error:
            raise PilotageError(ErrorCode.SETUP_FAILED, f"{scratch}: {error.strerror}") from error
        order = {
            "address": address,
            "folder": str(self.folder),
            "name": name,
            "max_age_s": max_age_s,
            "limit_mb": self.limit_mb,
        }
        part = str(self.folder / f"{name}.part")
        env = {variable: os.environ[variable] for variable in NETWORK_VARIABLES if variable in os.environ}
        env |= {"PATH": f"{tools}:{SYSTEM_PATH}", "HOME": str(scratch), "LC_ALL": "C.UTF-8"}
        env |= {"APPTAINER_DISABLE_CACHE": "1", "APPTAINER_TMPDIR": part}
        if _registry(address) in self.http:
            env["APPTAINER_NOHTTPS"] = "1"
        argv = [sys.executable, "-I", pull.__file__, json.dumps(order), json.dumps(sys.path)]
        return PayloadSpec(argv=argv, cwd=scratch, stdout=log, stderr=log, env=env)


def image_name(address: str) -> str:
    """The name of an image's file: the end of its address for people, and what tells it from all others."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", address.rsplit("/", 1)[-1])[:60]
    return f"{plain}-{hashlib.sha256(address.encode()).hexdigest()[:24]}"


def is_remote(image: str) -> bool:
    """Whether the image has to be pulled."""
    return image.startswith(REMOTE_SCHEMES)


def pull_failure(address: str, exit_code: Optional[int], log: str) -> PilotageError:
    """What a failed pull means."""
    if exit_code == pull.NO_SPYTHON:
        detail = f"image {address} needs the Python package spython on the node: pip install 'pilotage[apptainer]'"
        return PilotageError(ErrorCode.MIDDLEWARE_IMPORT_FAILED, detail)
    said = own_words(log) or log.strip().splitlines()[-1:]
    words = said[-1] if said else f"exit code {exit_code}"
    for pattern, code in PULL_MESSAGES:
        if any(re.search(pattern, line) for line in said):
            return PilotageError(code, f"{address}: {words}")
    return PilotageError(ErrorCode.IMAGE_NOT_FETCHED, f"{address}: {words}")


def _registry(address: str) -> str:
    return address.partition("://")[2].partition("/")[0]


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - TAIL_BYTES))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
