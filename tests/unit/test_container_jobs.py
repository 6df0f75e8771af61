"""From a pilot's configuration to the container of one job."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ErrorCode, PilotageError
from pilot.config import PilotConfig
from pilot.container.jobs import image_store, job_container
from pilot.payload import JobFolder


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    (tmp_path / "jobs").mkdir()
    return JobFolder.create(tmp_path / "jobs", "1")


@pytest.fixture
def program(tmp_path: Path) -> str:
    """An Apptainer that can do nothing."""
    path = tmp_path / "apptainer"
    path.write_text("#!/bin/sh\necho 'FATAL:   no network' >&2\nexit 255\n")
    path.chmod(0o755)
    return str(path)


def test_a_local_image_needs_no_pull_and_the_pilots_folders_are_private(
    folder: JobFolder, program: str, tmp_path: Path
) -> None:
    config = PilotConfig(apptainer=program, secret_file="/etc/pilotage/secret", image_cache="/cache")
    settings = job_container(config, tmp_path, {}, ["/data:/data:ro"], "/images/a.sif", folder)
    assert (settings.binary, settings.binds, settings.image_path) == (program, ("/data:/data:ro",), None)
    assert settings.private == (tmp_path, Path("/etc/pilotage/secret"), Path("/cache"))
    assert settings.as_root is None, "as the pilot is"


def test_apptainer_is_no_root_when_payloads_have_accounts(folder: JobFolder, program: str, tmp_path: Path) -> None:
    config = PilotConfig(apptainer=program, payload_users=["a"])
    assert job_container(config, tmp_path, {}, [], "/images/a.sif", folder).as_root is False


def test_images_are_kept_in_the_pilots_folder_unless_it_is_told_where(program: str, tmp_path: Path) -> None:
    config = PilotConfig(image_cache_mb=5, image_timeout_s=7, http_registries=["h:1"])
    store = image_store(config, tmp_path, program)
    assert (store.folder, store.limit_mb, store.timeout_s, store.http) == (tmp_path / "images", 5, 7, ("h:1",))
    assert image_store(PilotConfig(image_cache="/cache"), tmp_path, program).folder == Path("/cache")


def test_an_image_that_cannot_be_pulled_fails_the_job_with_its_address(
    folder: JobFolder, program: str, tmp_path: Path
) -> None:
    pytest.importorskip("spython")
    with pytest.raises(PilotageError, match="docker://h/x: FATAL:   no network") as caught:
        job_container(PilotConfig(apptainer=program), tmp_path, {}, [], "docker://h/x", folder)
    assert caught.value.code is ErrorCode.IMAGE_NOT_FETCHED and caught.value.info.retry
