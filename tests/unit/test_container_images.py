"""The node's images: names, freshness, room, and what a failed pull means."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest

from common.errors import ErrorCode, PilotageError
from pilot.container import ImageStore, pull
from pilot.container.images import image_name, pull_failure


def sif(path: Path, size: int = 1000, age_s: float = 0.0, unused_s: float = 0.0) -> Path:
    """A file with the header of a SIF, all of it there."""
    head = struct.pack(
        "<32s10s3s3s16s8q", b"", b"SIF_MAGIC\0", b"01\0", b"02\0", b"", 0, 0, 0, 0, 0, 0, 128, size - 128
    )
    path.write_bytes(head.ljust(size, b"x"))
    now = time.time()
    os.utime(path, (now - unused_s, now - age_s))
    return path


def test_a_file_that_was_cut_is_no_image(tmp_path: Path) -> None:
    image = sif(tmp_path / "a.sif")
    assert pull.is_whole(image) and pull.is_fresh(image, 10)
    os.truncate(image, 999)
    assert not pull.is_whole(image) and not pull.is_fresh(image, 10)
    image.write_bytes(b"#!/bin/sh\n")
    assert not pull.is_whole(image)
    assert not pull.is_whole(tmp_path / "none.sif") and not pull.is_fresh(tmp_path / "none.sif", 10)


def test_an_image_is_fresh_by_the_time_of_its_pull_not_of_its_use(tmp_path: Path) -> None:
    image = sif(tmp_path / "a.sif", age_s=100)
    pull.mark_used(image)
    assert pull.is_fresh(image, 200) and not pull.is_fresh(image, 50)
    assert time.time() - image.stat().st_atime < 240


def test_the_longest_unused_images_make_room(tmp_path: Path) -> None:
    size = pull.MB // 2
    for name, unused_s in (("new", 0), ("older", 1000), ("oldest", 2000), ("locked", 3000)):
        sif(tmp_path / f"{name}.sif", size, unused_s=unused_s)
    (tmp_path / "dead.part").mkdir()
    (tmp_path / "alive.part").mkdir()
    with pull.locked(tmp_path / "locked.lock", wait=True), pull.locked(tmp_path / "alive.lock", wait=True):
        assert pull.make_room(tmp_path, 1) == ["oldest.sif", "older.sif", "dead.part"]
    assert sorted(path.name for path in tmp_path.glob("*.[sp]*")) == ["alive.part", "locked.sif", "new.sif"]


def test_an_image_that_was_just_used_stays_whatever_the_bound(tmp_path: Path) -> None:
    sif(tmp_path / "a.sif", pull.MB)
    assert pull.make_room(tmp_path, 0) == []


def test_names_of_images_say_what_they_are_and_differ() -> None:
    names = {image_name(address) for address in ("docker://a/b:1", "docker://c/b:1", "oras://a/b:1", "docker://a/b:2")}
    assert len(names) == 4 and all(name.startswith("b_") for name in names)
    assert "/" not in image_name("docker://x/../..") and len(image_name("docker://" + "y" * 5000)) < 100


@pytest.mark.parametrize(
    ("log", "code"),
    [
        ("FATAL:   While making image from oci registry: error fetching image to cache: failed to get checksum for docker://h/t/none:1: reading manifest 1 in h/t/none: manifest unknown", ErrorCode.IMAGE_NOT_FOUND),
        ("FATAL:   While pulling image from oci registry: error fetching image to cache: failed to get checksum for oras://h/t/none:1: GET http://h/v2/t/none/manifests/1: MANIFEST_UNKNOWN: manifest unknown; map[Tag:1]", ErrorCode.IMAGE_NOT_FOUND),
        ("FATAL:   While making image from oci registry: error fetching image to cache: failed to get checksum for docker://BAD: unable to parse image name docker://BAD: invalid reference format: repository name must be lowercase", ErrorCode.IMAGE_NOT_FOUND),
        ("FATAL:   While making image from oci registry: error fetching image to cache: while building SIF from layers: packer failed to pack: while unpacking rootfs: no extractable OCI/Docker tar layers found in this image", ErrorCode.IMAGE_NOT_FOUND),
        ('FATAL:   While making image from oci registry: error fetching image to cache: failed to get checksum for docker://h/x: pinging container registry h: Get "http://h/v2/": dial tcp 127.0.0.1:1: connect: connection refused', ErrorCode.IMAGE_NOT_FETCHED),
        ('FATAL:   While making image from oci registry: error fetching image to cache: failed to get checksum for docker://h/x: pinging container registry h: Get "https://h/v2/": http: server gave HTTP response to HTTPS client', ErrorCode.IMAGE_NOT_FETCHED),
        ("FATAL:   While pulling image from oci registry: error copying image out of cache: could not copy file: write /c/tmp-copy-1: no space left on device", ErrorCode.NO_LOCAL_SPACE),
        ("Traceback\nOSError: what came from docker://x is no whole image", ErrorCode.IMAGE_NOT_FETCHED),
        ("", ErrorCode.IMAGE_NOT_FETCHED),
    ],
)  # fmt: skip
def test_what_a_failed_pull_means(log: str, code: ErrorCode) -> None:
    failure = pull_failure("docker://h/x", 1, f"INFO: something\n{log}\n")
    assert failure.code is code and failure.detail.startswith("docker://h/x: ")


def test_without_spython_the_error_says_what_to_install() -> None:
    failure = pull_failure("docker://x", pull.NO_SPYTHON, "No module named 'spython'")
    assert failure.code is ErrorCode.MIDDLEWARE_IMPORT_FAILED and "pilotage[apptainer]" in failure.detail


def test_a_folder_of_images_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    """Whoever can write there can put another image in the place of one."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images").chmod(0o777)
    with pytest.raises(PilotageError, match="nobody else may write") as caught:
        ImageStore("/bin/false", tmp_path / "images").fetch("docker://x", tmp_path)
    assert caught.value.code is ErrorCode.BAD_CONFIGURATION
