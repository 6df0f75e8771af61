"""Queue templates, and names of credentials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.config import ConfigError, load_config
from harvester.config import SECTION, HarvesterConfig, HarvesterSection, resolve


def made(tmp_path: Path, text: str) -> HarvesterConfig:
    path = tmp_path / "h.toml"
    head = f'[harvester]\nserver_url = "https://s.example.org"\ntoken_file = "t"\nstate_dir = "{tmp_path}"\n'
    path.write_text(head + text)
    return resolve(load_config(HarvesterSection, SECTION, [path], {}).value)


CHAIN = """
[harvester.templates.slurm]
backend = "fake"
max_workers = 100
options = {run_s = 5.0, refusal_rate = 0.5}
environment = {A = "1", B = "2"}
[harvester.templates.big]
template = "slurm"
nodes = 4
[harvester.templates.big.options]
run_s = 7.0
[harvester.queues.q]
template = "big"
max_workers = 3
environment = {B = "3"}
"""


def test_a_queue_inherits_through_a_chain_and_says_the_last_word(tmp_path: Path) -> None:
    queue = made(tmp_path, CHAIN).queues["q"]
    assert (queue.backend, queue.nodes, queue.max_workers) == ("fake", 4, 3)
    assert queue.options == {"run_s": 7.0, "refusal_rate": 0.5}
    assert queue.environment == {"A": "1", "B": "3"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[harvester.queues.q]\ntemplate = "slrum"\n[harvester.templates.slurm]\n', "did you mean 'slurm'"),
        ('[harvester.queues.q]\ntemplate = "x"\n', r"there are none: add a table \[harvester.templates.NAME\]"),
        ('[harvester.templates.a]\ntemplate = "b"\n[harvester.templates.b]\ntemplate = "a"\n', "circle: a -> b -> a"),
        ('[harvester.templates.a]\ntemplate = "a"\n', "circle: a -> a; break it"),
        ("[harvester.queues.q]\nmax_wrokers = 1\n", r"\[harvester.queues.q\] .*max_wrokers"),
        ("[harvester.queues.q]\nmax_workers = -1\n", r"\[harvester.queues.q\] .*max_workers"),
        (
            '[harvester.templates.t]\nnodes = 0\n[harvester.queues.q]\ntemplate = "t"\n',
            r"\[harvester.queues.q\].*nodes",
        ),
        ('[harvester.queues.q]\noptions = {t = "credential:x"}\n', r"add a table \[harvester.credentials.x\]"),
        ("", "queues: there is none"),
    ],
)
def test_what_is_wrong_is_named_with_the_remedy(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        made(tmp_path, text)


def test_a_credential_is_named_where_its_file_is_meant(tmp_path: Path) -> None:
    text = """
[harvester.credentials.ce]
kind = "file"
file = "/elsewhere"
[harvester.queues.q]
backend = "fake"
options = {deep = {token_file = "credential:ce"}, more = ["credential:ce", 1]}
submit = {proxy = "credential:ce"}
"""
    queue, file = made(tmp_path, text).queues["q"], f"{tmp_path}/credentials/ce"
    options: dict[str, Any] = queue.options
    assert options == {"deep": {"token_file": file}, "more": [file, 1]}
    assert queue.submit == {"proxy": file}


def test_only_queues_of_arc_take_direct_jobs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"direct: only queues of backend 'arc'"):
        made(tmp_path, '[harvester.queues.q]\nbackend = "fake"\ndirect = true\n')
    assert made(tmp_path, '[harvester.queues.q]\nbackend = "arc"\ndirect = true\n').queues["q"].direct
