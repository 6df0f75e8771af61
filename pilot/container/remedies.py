"""What to ask the admin of a node for when it cannot run containers: used by the doctor and by failed jobs alike."""

from __future__ import annotations

INSTALL = "ask the admin to install Apptainer (packages apptainer, squashfuse, fuse-overlayfs), or name it in [pilot] apptainer"
USER_NAMESPACES = (
    "ask the admin to allow unprivileged user namespaces: sysctl user.max_user_namespaces=15000, and, where the node has "
    "them, kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0; or to install the "
    "package apptainer-suid"
)
FUSE = (
    "ask the admin for the package squashfuse, the kernel module fuse and mode 0666 on /dev/fuse (or for apptainer-suid); "
    "image folders, as on CVMFS, need none of these"
)
NAMESPACES = "ask the admin to set 'allow {kind} ns = yes' in {file}: without it a payload sees the pilot's processes"
OTHER_PLATFORM = "the image is made for another kind of processor: build it for this node's, or ask for a platform tag"
RUNS_AS_ROOT = (
    "start pilots as an ordinary user, or give [pilot] payload_users: accounts that nobody else uses, one for each job "
    "side by side"
)
SPYTHON = (
    "install the Python package: pip install 'pilotage[apptainer]'; until then only images that are paths can be used"
)
TRY = "try what the message says by hand: apptainer exec --userns --containall FOLDER /bin/true"
