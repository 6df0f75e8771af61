"""Apptainer: the command that runs a payload in an image, and what its messages mean.

Paths are the same inside and outside: the job's folders are bound at their own paths, so that every path that the
pilot hands to a payload (inputs, mailbox, replies of get-file) is valid in both. Bound are ``work``, ``mailbox`` and
``tmp`` for writing (``tmp`` as /tmp and /var/tmp too: Apptainer's own are small and in memory), ``bin`` for reading only,
and ``/cvmfs`` where there is one; nothing else of the host but what the queue's bind list names, which may not show the
pilot's folders (:mod:`pilot.container.binds`).

A pilot that is root and has no account for its payloads gives them root's user id in a user namespace: without any
capability, but the owner of root's files all the same. So /sys, which has files that take orders from their owner, is
left out, and those folders of /proc are read-only.

The payload's environment goes through ``APPTAINERENV_…`` variables of Apptainer's own process, so that it is never on a
command line, with ``--no-eval``, so that no shell expands ``$`` or backticks in its values; ``--containall`` keeps all
others out. A payload that a signal ends comes back as exit code 128 + signal.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from common.errors import SIGNAL_ERRORS, ErrorCode, PilotageError
from pilot.container.binds import check_binds, source_of
from pilot.container.remedies import FUSE, OTHER_PLATFORM, USER_NAMESPACES

if TYPE_CHECKING:  # pilot.payload imports this module
    from pilot.payload.folder import JobFolder

#: Image addresses that Apptainer fetches itself; anything else is a local path.
REMOTE_SCHEMES = ("docker://", "oras://", "library://", "https://")
#: The search path of Apptainer's own process, for its helpers (squashfuse, fuse-overlayfs).
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GPU_FLAGS = {"nvidia": "--nv", "amd": "--rocm"}
FATAL_EXIT = 255
CVMFS = Path("/cvmfs")
#: What of /proc the owner root may write to without any capability (as read-only paths in the OCI runtimes).
ROOTS_PROC = ("/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs")


@dataclass(frozen=True)
class ContainerSettings:
    """How this queue runs containers.

    ``binary``: absolute path of Apptainer; ``binds``: further binds of the queue, in Apptainer's syntax
    ``source[:destination[:ro]]``; ``userns``: ask for a user namespace (None: only as root, who needs it wherever
    root's capabilities are cut); ``as_root``: Apptainer itself runs as root (None: if the pilot does); ``private``: what no
    bind may show, besides the job's own surroundings; ``image_path``: where a pulled image lies.
    """

    binary: str
    binds: tuple[str, ...] = ()
    userns: Optional[bool] = None
    as_root: Optional[bool] = None
    private: tuple[Path, ...] = ()
    image_path: Optional[Path] = None


@dataclass(frozen=True)
class ContainerCommand:
    """What to execute on the host: ``argv`` with exactly the environment ``env``."""

    argv: list[str]
    env: dict[str, str]


def find_apptainer(path: str = SYSTEM_PATH, configured: Optional[str] = None) -> str:
    """The absolute path of Apptainer: the ``configured`` one, else the first on the search path ``path``.

    Raises PilotageError (CONTAINER_NOT_INSTALLED).
    """
    found = shutil.which(configured or "apptainer", path=path)
    if found is None:
        where = f"{configured} is no program" if configured else f"no apptainer on {path}"
        raise PilotageError(ErrorCode.CONTAINER_NOT_INSTALLED, f"{where}: install Apptainer, or drop the image")
    return str(Path(found).absolute())


def check_image(image: str) -> str:
    """Checks an image's path or address before it is used. Raises PilotageError (IMAGE_NOT_FOUND)."""
    if image.startswith(REMOTE_SCHEMES):
        return image
    if "://" in image:
        known = " ".join(REMOTE_SCHEMES)
        raise PilotageError(ErrorCode.IMAGE_NOT_FOUND, f"image {image!r}: unknown kind of address (known: {known})")
    if not image.startswith("/"):
        raise PilotageError(ErrorCode.IMAGE_NOT_FOUND, f"image {image!r}: give an absolute path or an address")
    try:
        Path(image).stat()
    except OSError as error:
        raise PilotageError(ErrorCode.IMAGE_NOT_FOUND, f"image {image}: {error.strerror}") from error
    return image


def container_command(
    settings: ContainerSettings,
    image: str,
    folder: JobFolder,
    argv: Sequence[str],
    environment: Mapping[str, str],
    gpu_vendor: Optional[str] = None,
) -> ContainerCommand:
    """The command that runs ``argv`` with ``environment`` in ``image``, in the job's ``work`` folder.

    HOME is the work folder, whatever ``environment`` says. Raises PilotageError (CONTAINER_BIND_FAILED) when the
    folder's path cannot be a bind, or a bind of the queue would show the pilot.
    """
    if re.search(r"[:,]", str(folder.root)):
        detail = f"the job's folder {folder.root} has ':' or ',' in its path: choose another scratch folder"
        raise PilotageError(ErrorCode.CONTAINER_BIND_FAILED, detail)
    check_binds(settings.binds, (*settings.private, folder.root.parent))
    as_root = os.geteuid() == 0 if settings.as_root is None else settings.as_root
    words = [settings.binary, "--silent", "exec", "--containall", "--pid", "--ipc", "--no-privs", "--no-eval"]
    words += ["--no-mount", "hostfs,sys" if as_root else "hostfs", "--no-home", "--home", str(folder.work)]
    if as_root if settings.userns is None else settings.userns:
        words.append("--userns")
    if gpu_vendor is not None:
        if gpu_vendor not in GPU_FLAGS:
            raise PilotageError(ErrorCode.CONTAINER_FAILED, f"no container support for GPUs of {gpu_vendor!r}")
        words.append(GPU_FLAGS[gpu_vendor])
    for bind in _binds(settings, folder, as_root, gpu_vendor is not None):
        words += ["--bind", bind]
    words += ["--pwd", str(folder.work), str(settings.image_path or image), *argv]
    env = {f"APPTAINERENV_{name}": value for name, value in environment.items() if name != "HOME"}
    env |= {
        "PATH": SYSTEM_PATH,
        "HOME": str(folder.root),
        "APPTAINER_CACHEDIR": str(folder.tmp),
        "APPTAINER_TMPDIR": str(folder.tmp),
    }
    return ContainerCommand(words, env)


def _binds(settings: ContainerSettings, folder: JobFolder, as_root: bool, gpus: bool) -> list[str]:
    """All binds in their order: the job's own come last, so that none of the queue's can lie over them."""
    first = [f"{folder.tmp}:/tmp", f"{folder.tmp}:/var/tmp"]
    if CVMFS.is_dir() and not any(source_of(bind) == CVMFS for bind in settings.binds):
        first.append(f"{CVMFS}:{CVMFS}:ro")
    if as_root:
        shown = [*ROOTS_PROC, "/sys"] if gpus else ROOTS_PROC  # ROCm and NCCL read of the devices in /sys
        first += [f"{path}:{path}:ro" for path in shown if Path(path).exists()]
    own = [str(folder.work), str(folder.mailbox), str(folder.tmp), f"{folder.bin}:{folder.bin}:ro"]
    return [*first, *settings.binds, *own]


#: What Apptainer says (its FATAL and ERROR lines) and what it means; the first that matches counts. Most sayings
#: were collected by provoking them in Apptainer 1.4.5; those about namespaces and squashfs also from its issue tracker.
MESSAGES: tuple[tuple[str, ErrorCode, str], ...] = (
    (r"image format not recognized", ErrorCode.CONTAINER_MOUNT_FAILED, ""),
    (r"could not open image", ErrorCode.IMAGE_NOT_FOUND, ""),
    (r"(?i)unable to handle \w+://.*(manifest unknown|not found|denied|unauthorized|name unknown|invalid reference)",
     ErrorCode.IMAGE_NOT_FOUND, ""),
    (r"(?i)unable to handle \w+://|error making http request", ErrorCode.CONTAINER_FAILED, ""),
    ((r"(?i)failed to create (user|mount) namespace|NEWUSER namespace|user namespace (is )?disabled|"
     r"setting user namespace mappings|writing uid_map|user namespaces? .*not permitted"),
     ErrorCode.CONTAINER_NO_USER_NAMESPACE, USER_NAMESPACES),
    (r"(?i)image's architecture", ErrorCode.CONTAINER_FAILED, OTHER_PLATFORM),
    (r"failed to open /dev/fuse|squashfuse(_ll)? (not found|failed to mount)|fuse: device not found|fusermount",
     ErrorCode.CONTAINER_MOUNT_FAILED, FUSE),
    (r"image driver mount failure|squashfuse|squashfs|can't mount image|while mounting image|loop device",
     ErrorCode.CONTAINER_MOUNT_FAILED, ""),
    (r"mount source .* doesn't exist|parsing bind path|destination .* doesn't exist in container|to mount list",
     ErrorCode.CONTAINER_BIND_FAILED, ""),
    (r"executable file not found in \$PATH|FATAL:\s+stat .*: no such file|exec .* failed:|permission denied$",
     ErrorCode.BAD_JOBSCRIPT, ""),
)  # fmt: skip
_OWN_LINE = re.compile(r"^(?:\x1b\[\d*m)*(FATAL:\s|ERROR\s*:)")


def diagnose_container_failure(exit_code: Optional[int], stderr_tail: str) -> Optional[PilotageError]:
    """What a container's exit code and the end of its stderr mean; None when it is the payload's own exit code.

    Apptainer's own failures end with 255 (1 before the container is set up) and a line of its own; a line that is in
    no row of :data:`MESSAGES` is CONTAINER_FAILED, if the exit code is 255. 128 + n is the payload's signal n.
    """
    if exit_code in (1, FATAL_EXIT):
        lines = own_words(stderr_tail)
        for pattern, code, remedy in MESSAGES:
            for line in lines:
                if re.search(pattern, line):
                    return PilotageError(code, f"{line}; {remedy}" if remedy else line)
        fatal = [line for line in lines if "FATAL:" in line]
        if exit_code == FATAL_EXIT and fatal:
            return PilotageError(ErrorCode.CONTAINER_FAILED, fatal[-1])
    if exit_code is not None and 128 < exit_code < FATAL_EXIT:
        number = exit_code - 128
        if number in set(signal.Signals):
            name = signal.Signals(number).name
            return PilotageError(SIGNAL_ERRORS.get(name, ErrorCode.KILL_SIGNAL), f"the payload was ended by {name}")
    return None


def own_words(text: str) -> list[str]:
    """The lines in which Apptainer says why it failed, without colours."""
    lines = [line for line in text.splitlines() if _OWN_LINE.match(line)]
    return [re.sub(r"\x1b\[\d*m", "", line).strip() for line in lines]
