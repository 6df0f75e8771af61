"""Which tests one process runs, when several run side by side (``pytest -n 2``)."""

from __future__ import annotations

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling

BATCH_SYSTEMS = frozenset(
    {
        "test_backends.py",
        "test_batch_systems.py",
        "test_real_act.py",
        "test_real_arc.py",
        "test_real_htcondor.py",
        "test_real_slurm.py",
    }
)
"""Files whose tests share batch systems that take a minute and a gigabyte to set up: one process runs them all."""


class FileScheduling(LoadScopeScheduling):
    """Each file to one process.

    Not ``--dist loadgroup``: xdist 3.8 writes the groups into the names of tests, where pytest 9 does not take them from, and
    deals out single tests then.
    """

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def scope_of(nodeid: str) -> str:
    """What stays together with a test: its file, or all that share batch systems."""
    file = nodeid.partition("::")[0]
    return "batch systems" if PurePosixPath(file).name in BATCH_SYSTEMS else file
