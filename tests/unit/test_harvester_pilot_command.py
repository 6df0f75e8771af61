"""How harvester starts a queue's pilots: by the file that was shipped, and with the address of a relay."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config import ConfigError
from harvester import config as harvester_config
from harvester.config import HarvesterConfig, QueueConfig, pilot_command

BUNDLE = "/cvmfs/example.org/pilotage-pilot.run"


def harvester(tmp_path: Path, queue: QueueConfig) -> HarvesterConfig:
    return HarvesterConfig(
        server_url="https://server.example.org", token_file="token", state_dir=str(tmp_path), queues={"q": queue}
    )


def test_a_bundle_takes_the_place_of_the_command() -> None:
    plain, bundled = pilot_command(QueueConfig()), pilot_command(QueueConfig(bundle=BUNDLE))
    assert bundled == [BUNDLE, *plain[1:]]


@pytest.mark.parametrize(
    ("queue", "words"),
    [
        (QueueConfig(bundle="pilotage.run"), r"\[harvester.queues.q\] bundle: 'pilotage.run' must be an absolute path"),
        (QueueConfig(bundle=BUNDLE, command=["p", "{secret_file}"]), "bundle: the command says already what to start"),
    ],
)
def test_a_bundle_that_cannot_be_is_refused(tmp_path: Path, queue: QueueConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        harvester_config.check(harvester(tmp_path, queue))
