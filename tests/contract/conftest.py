"""What all contract tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.backends import FakeRig, LocalRig
from tests.contract.rigs_arc import ArcRig
from tests.contract.rigs_htcondor import HtcondorRig
from tests.contract.rigs_slurm import PsijRig, SlurmRestRig, SlurmRig, SlurmSshRig
from tests.services.arc import ArcCe
from tests.services.certificates import Authority
from tests.services.htcondor import CondorPool
from tests.services.slurm import SlurmCluster
from tests.services.sshd import SshServer


@pytest.fixture(scope="session", autouse=True)
def trusted(authority: Authority) -> Iterator[None]:
    """Have the XRootD library in this process know the test run's authority: it looks once, at its first connection."""
    before = os.environ.get("X509_CERT_DIR")
    os.environ["X509_CERT_DIR"] = str(authority.folder)
    yield
    if before is None:
        del os.environ["X509_CERT_DIR"]
    else:
        os.environ["X509_CERT_DIR"] = before


@pytest.fixture
def fake_rig(tmp_path: Path) -> FakeRig:
    """Of a simulated batch system."""
    return FakeRig(tmp_path)


@pytest.fixture
def local_rig(tmp_path: Path) -> Iterator[LocalRig]:
    """Of processes of this machine."""
    made = LocalRig(tmp_path)
    yield made
    made.close()


@pytest.fixture
def arc_rig(arc_ce: ArcCe, tmp_path: Path) -> Iterator[ArcRig]:
    """Of a real ARC CE."""
    made = ArcRig(tmp_path, arc_ce)
    yield made
    made.close()


@pytest.fixture
def htcondor_rig(condor_pool: CondorPool, tmp_path: Path) -> Iterator[HtcondorRig]:
    """Of a real HTCondor pool."""
    made = HtcondorRig(condor_pool, tmp_path)
    yield made
    made.close()


@pytest.fixture
def slurm_rig(slurm: SlurmCluster, tmp_path: Path) -> Iterator[SlurmRig]:
    """Of a real Slurm cluster, by its commands."""
    made = SlurmRig(slurm, tmp_path)
    yield made
    made.close()


@pytest.fixture
def slurm_ssh_rig(slurm: SlurmCluster, sshd: SshServer, tmp_path: Path) -> Iterator[SlurmRig]:
    """Of a real Slurm cluster, behind ssh, as an ordinary user."""
    made = SlurmSshRig(slurm, tmp_path, sshd)
    yield made
    made.close()


@pytest.fixture
def slurm_rest_rig(slurm: SlurmCluster, tmp_path: Path) -> Iterator[SlurmRig]:
    """Of a real Slurm cluster, by its REST daemon."""
    made = SlurmRestRig(slurm, tmp_path)
    yield made
    made.close()


@pytest.fixture
def psij_rig(slurm: SlurmCluster, tmp_path: Path) -> Iterator[PsijRig]:
    """Of a real Slurm cluster, through PSI/J."""
    made = PsijRig(slurm, tmp_path)
    yield made
    made.close()
