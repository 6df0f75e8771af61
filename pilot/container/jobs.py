"""How one job's container is run: from the pilot's configuration, its queue and the job's image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Optional

from pilot.config import PilotConfig
from pilot.container.apptainer import SYSTEM_PATH, ContainerSettings, find_apptainer
from pilot.container.images import ImageStore, is_remote
from pilot.payload.folder import JobFolder
from pilot.supervised import SupervisedProcess


def job_container(
    config: PilotConfig,
    work_dir: Path,
    environ: Mapping[str, str],
    binds: Sequence[str],
    image: str,
    folder: JobFolder,
    on_pull: Optional[Callable[[SupervisedProcess], None]] = None,
) -> ContainerSettings:
    """The settings for the job in ``folder``; its image is pulled first if it has to be.

    ``work_dir`` is the pilot's own folder, ``environ`` its environment, ``binds`` the queue's; ``on_pull`` gets the process
    that pulls. Raises PilotageError: CONTAINER_NOT_INSTALLED, and those of :meth:`ImageStore.fetch`.
    """
    binary = find_apptainer(environ.get("PATH", SYSTEM_PATH), config.apptainer)
    private = (work_dir, *(Path(path) for path in (config.secret_file, config.image_cache) if path))
    image_path = image_store(config, work_dir, binary).fetch(image, folder.root, on_pull) if is_remote(image) else None
    return ContainerSettings(
        binary=binary,
        binds=tuple(binds),
        as_root=False if config.payload_users else None,
        private=private,
        image_path=image_path,
    )


def image_store(config: PilotConfig, work_dir: Path, binary: str) -> ImageStore:
    """Where this pilot keeps the images that it pulls with the Apptainer ``binary``."""
    return ImageStore(
        binary,
        Path(config.image_cache) if config.image_cache else work_dir / "images",
        limit_mb=config.image_cache_mb,
        timeout_s=config.image_timeout_s,
        max_age_s=config.image_max_age_s,
        http=tuple(config.http_registries),
    )
