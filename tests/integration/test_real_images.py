"""Images pulled by a real Apptainer from a real registry, once for all jobs of a node."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.errors import ErrorCode, PilotageError
from pilot.container import ContainerSettings, ImageStore, pull
from pilot.container.images import image_name
from pilot.payload import JobFolder, PayloadDefinition, prepare_payload
from pilot.supervised import PayloadEnd, SupervisedProcess
from tests.services.apptainer import Apptainer
from tests.services.base import require_module
from tests.services.images import demand_fuse, require
from tests.services.registry import Registry


@pytest.fixture
def store(apptainer: Apptainer, registry: Registry, tmp_path: Path) -> ImageStore:
    require_module("spython")
    return ImageStore(apptainer.binary, tmp_path / "images", timeout_s=240, http=(registry.host,))


@pytest.fixture
def docker_image(registry: Registry, busybox_image: Path) -> str:
    """The address of an image that nobody has pulled yet."""
    name = f"test/{uuid.uuid4().hex}:1"
    registry.push_folder(name, busybox_image)
    return f"docker://{registry.host}/{name}"


def scratch(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    path.mkdir()
    return path


def run(store: ImageStore, image: Path, tmp_path: Path, address: str, script: str) -> tuple[PayloadEnd, str]:
    folder = JobFolder.create(tmp_path, uuid.uuid4().hex)
    definition = PayloadDefinition("1", "2", command=["sh", "-c", script], image=address)
    settings = ContainerSettings(store.binary, image_path=image)
    spec = prepare_payload(folder, definition, {"PATH": os.environ["PATH"]}, settings)
    end = SupervisedProcess.start(spec).wait(240)
    return end, folder.stdout.read_text() + folder.stderr.read_text()


def test_real_images_from_docker_run_and_are_pulled_once(store: ImageStore, docker_image: str, tmp_path: Path) -> None:
    require(demand_fuse)
    image = store.fetch(docker_image, scratch(tmp_path, "first"))
    assert image.parent == store.folder and pull.is_whole(image)
    end, said = run(store, image, tmp_path, docker_image, "echo it is $FROM_IMAGE")
    assert end.ok and said == "it is yes\n", said
    assert store.fetch(docker_image, scratch(tmp_path, "second")) == image
    assert not list((tmp_path / "second").iterdir()), "an image that is there costs a job nothing: nothing was started"
    assert sorted(path.suffix for path in store.folder.iterdir()) == [".lock", ".sif"], "nothing else is left"


def test_real_images_from_oras_are_the_file_that_was_pushed(
    store: ImageStore, registry: Registry, apptainer: Apptainer, busybox_sif: Path, tmp_path: Path
) -> None:
    registry.push_sif("test/oras:1", busybox_sif, apptainer)
    image = store.fetch(f"oras://{registry.host}/test/oras:1", tmp_path)
    assert image.read_bytes() == busybox_sif.read_bytes()


def test_real_images_wanted_by_many_jobs_at_once_are_pulled_by_one(
    store: ImageStore, docker_image: str, tmp_path: Path
) -> None:
    folders = [scratch(tmp_path, f"job{number}") for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        images = set(threads.map(lambda folder: store.fetch(docker_image, folder), folders))
    assert len(images) == 1
    pulled = [folder for folder in folders if "Creating SIF file" in (folder / "image-pull.log").read_text()]
    assert len(pulled) == 1, "the others waited for it"


def test_real_images_with_a_tag_are_asked_for_again_and_kept_when_the_registry_is_away(
    store: ImageStore, registry: Registry, docker_image: str, busybox_image: Path, tmp_path: Path
) -> None:
    old = ImageStore(store.binary, store.folder, timeout_s=240, max_age_s=0, http=store.http)
    image = old.fetch(docker_image, scratch(tmp_path, "first"))
    first = image.stat().st_ino
    assert old.fetch(docker_image, scratch(tmp_path, "again")).stat().st_ino != first, "it was pulled anew"
    second = image.stat().st_ino
    with registry.outage():
        assert old.fetch(docker_image, scratch(tmp_path, "outage")).stat().st_ino == second
    assert "the old one is used" in (tmp_path / "outage" / "image-pull.log").read_text()
    assert pull.is_fresh(image, pull.RENEW_AGAIN_S), "not every job waits for a registry that is away"


def test_real_images_by_their_digest_are_never_asked_for_again(
    store: ImageStore, registry: Registry, busybox_image: Path, tmp_path: Path
) -> None:
    digest = registry.push_folder("test/fixed:1", busybox_image)
    address = f"docker://{registry.host}/test/fixed@{digest}"
    old = ImageStore(store.binary, store.folder, timeout_s=240, max_age_s=0, http=store.http)
    image = old.fetch(address, scratch(tmp_path, "first"))
    with registry.outage():
        assert old.fetch(address, scratch(tmp_path, "second")) == image


def test_real_images_half_pulled_are_never_used(store: ImageStore, docker_image: str, tmp_path: Path) -> None:
    image = store.fetch(docker_image, scratch(tmp_path, "first"))
    size = image.stat().st_size
    os.truncate(image, size // 2)
    part = image.with_suffix(".part")
    part.mkdir()
    (part / "image.sif").write_bytes(b"what a dead pull left")
    assert pull.is_whole(store.fetch(docker_image, scratch(tmp_path, "second")))
    assert not part.exists()


def test_real_images_that_cannot_be_had_say_why(store: ImageStore, registry: Registry, tmp_path: Path) -> None:
    cases = [
        (f"docker://{registry.host}/none:1", ErrorCode.IMAGE_NOT_FOUND, "manifest unknown"),
        (f"oras://{registry.host}/none:1", ErrorCode.IMAGE_NOT_FOUND, "manifest unknown"),
        ("docker://127.0.0.1:1/x:1", ErrorCode.IMAGE_NOT_FETCHED, "connection refused"),
        ("docker://BAD/x", ErrorCode.IMAGE_NOT_FOUND, "invalid reference"),
    ]
    for number, (address, code, words) in enumerate(cases):
        with pytest.raises(PilotageError, match=words) as caught:
            store.fetch(address, scratch(tmp_path, f"case{number}"))
        assert caught.value.code is code and address in caught.value.detail
    assert not list(store.folder.glob("*.sif")) and not list(store.folder.glob("*.part"))


@pytest.fixture
def silent_registry() -> Iterator[str]:
    """A server that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_real_images_of_a_silent_registry_time_out_and_leave_nothing(
    store: ImageStore, silent_registry: str, tmp_path: Path
) -> None:
    impatient = ImageStore(store.binary, store.folder, timeout_s=1.5, http=(silent_registry,))
    address = f"docker://{silent_registry}/x:1"
    began = time.monotonic()
    with pytest.raises(PilotageError, match="not pulled within 1.5 s") as caught:
        impatient.fetch(address, tmp_path)
    assert caught.value.code is ErrorCode.IMAGE_NOT_FETCHED and time.monotonic() - began < 60
    with pull.locked(store.folder / f"{image_name(address)}.lock", wait=False) as free:
        assert free, "whoever comes next does not wait for a dead pull"


def test_real_images_a_killed_job_does_not_wait_for_its_image(
    store: ImageStore, silent_registry: str, tmp_path: Path
) -> None:
    started: list[SupervisedProcess] = []
    begun = threading.Event()

    def on_start(process: SupervisedProcess) -> None:
        started.append(process)
        begun.set()

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(store.fetch, f"docker://{silent_registry}/x:1", tmp_path, on_start)
        assert begun.wait(120)
        started[0].kill("drain", 0)
        with pytest.raises(PilotageError, match="drain") as caught:
            waiting.result(120)
    assert caught.value.code is ErrorCode.KILL_SIGNAL
