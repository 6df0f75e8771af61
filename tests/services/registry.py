"""A real OCI registry (Docker's own, as Debian packages it) on loopback, without TLS, its images in a folder."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.services.apptainer import Apptainer
from tests.services.base import Service, free_port, require, run
from tests.services.install import install_packages, state_of

PACKAGE = "docker-registry"
_CONFIG = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {folder}/images}}
http:
  addr: 127.0.0.1:{port}
"""
_MEDIA = "application/vnd.docker."
_MANIFEST = _MEDIA + "distribution.manifest.v2+json"
_CONFIGURATION = _MEDIA + "container.image.v1+json"
_LAYER = _MEDIA + "image.rootfs.diff.tar.gzip"


def _present() -> bool:
    return shutil.which(PACKAGE) is not None


def status() -> str:
    """For the header of a test run: installed, to be installed, or unavailable with the reason."""
    return state_of(_present())


def install() -> None:
    """Install the registry when missing; raises ServiceUnavailable."""
    if not _present():
        install_packages("registry", [PACKAGE])


class Registry(Service):
    """An OCI registry."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.port = free_port()
        config = folder / "config.yml"
        config.write_text(_CONFIG.format(folder=folder, port=self.port))
        command = [PACKAGE, "serve", str(config)]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}
        super().__init__("registry", command, folder / "log", self._answers, env=environ, cwd=folder)
        self._session = requests.Session()
        self._session.trust_env = False

    @property
    def host(self) -> str:
        """Where it listens, as ``host:port``."""
        return f"127.0.0.1:{self.port}"

    def _answers(self) -> bool:
        try:
            return self._session.get(f"http://{self.host}/v2/", timeout=20).status_code == 200
        except requests.RequestException:
            return False

    def push_folder(self, name: str, image: Path) -> str:
        """Put an image folder there as a Docker image of one layer; returns the digest of its manifest."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
            archive.add(image, arcname=".")
        layer = packed.getvalue()
        unpacked = hashlib.sha256(gzip.decompress(layer)).hexdigest()
        configuration = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Env": ["PATH=/usr/bin:/bin", "FROM_IMAGE=yes"], "Cmd": ["/bin/sh"]},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{unpacked}"]},
            }
        ).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": self._blob(name, configuration, _CONFIGURATION),
                "layers": [self._blob(name, layer, _LAYER)],
            }
        ).encode()
        repository, _, tag = name.partition(":")
        url = f"http://{self.host}/v2/{repository}/manifests/{tag or 'latest'}"
        answer = self._session.put(url, data=manifest, headers={"Content-Type": _MANIFEST}, timeout=120)
        answer.raise_for_status()
        return answer.headers["Docker-Content-Digest"]

    def _blob(self, name: str, content: bytes, media: str) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        start = self._session.post(f"http://{self.host}/v2/{name.partition(':')[0]}/blobs/uploads/", timeout=120)
        start.raise_for_status()
        done = self._session.put(start.headers["Location"], params={"digest": digest}, data=content, timeout=240)
        done.raise_for_status()
        return {"mediaType": media, "size": len(content), "digest": digest}

    def push_sif(self, name: str, sif: Path, apptainer: Apptainer) -> None:
        """Put a SIF file there as it is, for ``oras://``."""
        run([apptainer.binary, "-q", "push", "--no-https", "--allow-unsigned", sif, f"oras://{self.host}/{name}"])


@pytest.fixture(scope="session")
def registry(services_folder: Path) -> Iterator[Registry]:
    """A running registry for the whole session."""
    require(install)
    server = require(lambda: Registry(services_folder / "registry"))
    try:
        server.start()
        yield server
    finally:
        server.stop()
