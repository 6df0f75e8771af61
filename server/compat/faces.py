"""All faces, and which of them an installation shows."""

from __future__ import annotations

from server.compat.act.face import FACE as ACT
from server.compat.data_dispatcher.face import FACE as DATA_DISPATCHER
from server.compat.face import Face
from server.compat.panda.face import FACE as PANDA
from server.compat.panda_client.face import FACE as PANDA_CLIENT
from server.compat.panda_harvester.face import FACE as PANDA_HARVESTER
from server.compat.settings import Compat

FACES: tuple[Face, ...] = (
    ACT,
    DATA_DISPATCHER,
    PANDA,
    PANDA_CLIENT,
    PANDA_HARVESTER,
)
"""Each has a section of its name in ``[server.compat]``, with ``on``."""


def faces_of(config: Compat, known: tuple[Face, ...] = FACES) -> list[Face]:
    """Those that are turned on."""
    return [face for face in known if getattr(config, face.name).on]


def check_faces(config: Compat) -> None:
    """Raises ConfigError: a face that is turned on could serve nobody with these settings."""
    for face in faces_of(config):
        face.check(config)
