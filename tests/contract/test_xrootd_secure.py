"""The XRootD copytool with credentials, against servers that want them: what ends, what is exchanged, what is kept apart."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Optional

import pytest

from common.errors import ErrorCode
from pilot.copytool import TransferOutcome, TransferRequest, load_copytool
from pilot.copytool.credentials import Credential
from tests.contract.storages_secure import SecureStorage, Source, TokenStorage, proxy_storage, token_storage
from tests.services.base import wait_until
from tests.services.certificates import Authority, write_proxy
from tests.services.faulty_proxy import FaultyProxy
from tests.services.xrootd_secure import PERSON

NEVER = threading.Event()
DATA = bytes(range(256)) * 8192  # 2 MiB
LIFE_S = 4
"""Of a token that ends while a transfer lasts: the transfer has to begin before."""


@pytest.fixture
def tokens(request: pytest.FixtureRequest) -> TokenStorage:
    return token_storage(request)


@pytest.fixture
def proxies(request: pytest.FixtureRequest) -> SecureStorage:
    return proxy_storage(request)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "out").write_bytes(DATA)
    yield folder


def out(storage: SecureStorage, job: Path, name: str = "f") -> TransferOutcome:
    request = TransferRequest(storage.url(name), job / "out", None, None, "test:f", 60.0)
    return storage.tool.copy_out([request], cancel=NEVER)[0]


def back(storage: SecureStorage, job: Path, url: str) -> TransferOutcome:
    return storage.tool.copy_in([TransferRequest(url, job / "in", None, None, "test:f", 60.0)], cancel=NEVER)[0]


def code(outcome: TransferOutcome) -> Optional[ErrorCode]:
    return None if outcome.error is None else outcome.error.code


def test_an_expired_token_is_told_and_a_fresh_one_works_at_once(tokens: TokenStorage, job: Path) -> None:
    tokens.give(-100)
    assert code(out(tokens, job)) is ErrorCode.STAGE_OUT_AUTHENTICATION
    url = tokens.put("g", DATA)
    assert code(back(tokens, job, url)) is ErrorCode.STAGE_IN_AUTHENTICATION
    tokens.give()
    assert code(out(tokens, job)) is None and code(back(tokens, job, url)) is None


def test_an_expired_proxy_likewise(proxies: SecureStorage, job: Path, authority: Authority) -> None:
    file = proxies.source.credential.proxy_file
    assert file is not None
    person = authority.person(PERSON)
    file.unlink()
    write_proxy(person, file, timedelta(hours=-1))
    assert code(out(proxies, job)) is ErrorCode.STAGE_OUT_AUTHENTICATION
    file.unlink()
    write_proxy(person, file)  # renewed in place, as the pilot does it
    os.utime(file, ns=(1, 1))
    assert code(out(proxies, job)) is None


def test_nothing_to_show_is_refused(tokens: TokenStorage, proxies: SecureStorage, job: Path) -> None:
    for storage in (tokens, proxies):
        storage.source.credential = Credential()
        assert code(out(storage, job)) is ErrorCode.STAGE_OUT_AUTHENTICATION


def test_a_token_to_read_does_not_write(tokens: TokenStorage, job: Path) -> None:
    url = tokens.put("f", DATA)
    tokens.give(600, "read")
    assert code(back(tokens, job, url)) is None
    assert code(out(tokens, job, "g")) is ErrorCode.STAGE_OUT_AUTHENTICATION
    error = tokens.tool.remove([url], cancel=NEVER)[0]
    assert error is not None and error.code is ErrorCode.STAGE_OUT_AUTHENTICATION
    assert tokens.path("f").exists()


def test_jobs_on_one_server_do_not_share_a_connection(tokens: TokenStorage, job: Path) -> None:
    """The library serves all URLs of a server by one connection, and so by the credential of whoever came first."""
    mine = tokens.put("f", DATA)
    assert code(back(tokens, job, mine)) is None
    other = Source(Credential())
    stranger = load_copytool("xrootd", credentials=other)
    request = TransferRequest(mine, job / "in", None, None, "test:f", 60.0)
    refused = [code(stranger.copy_in([request], cancel=NEVER)[0])]
    kept = tokens.source.credential
    other.credential = tokens.give(600, "create")  # which does not open files for reading
    refused.append(code(stranger.copy_in([request], cancel=NEVER)[0]))
    assert refused == [ErrorCode.STAGE_IN_AUTHENTICATION] * 2
    tokens.source.credential = kept
    assert code(back(tokens, job, mine)) is None


def test_stage_out_outlives_its_token(tokens: TokenStorage, job: Path) -> None:
    with FaultyProxy(tokens.server.port) as line:
        line.up.rate = 400_000
        tokens.give(LIFE_S)
        first, begun = tokens.source.credential, time.monotonic()
        url = tokens.url("f").replace(f":{tokens.server.port}/", f":{line.port}/")
        done: list[TransferOutcome] = []
        request = TransferRequest(url, job / "out", None, None, "test:f", 60.0)
        thread = threading.Thread(target=lambda: done.extend(tokens.tool.copy_out([request], cancel=NEVER)))
        thread.start()
        wait_until(lambda: line.up.passed > 300_000, "the transfer is under way")
        tokens.give()  # the pilot renews ahead of time, in the middle of it
        asked = len(tokens.source.asked)
        thread.join()
    assert [code(outcome) for outcome in done] == [None] and tokens.path("f").read_bytes() == DATA
    assert time.monotonic() - begun > LIFE_S, "it was over before its token"
    assert len(tokens.source.asked) > asked, "checksum and rename were asked for with the token that had ended"
    assert tokens.source.credential != first


def test_stage_in_outlives_its_token(tokens: TokenStorage, job: Path) -> None:
    tokens.put("f", DATA)
    with FaultyProxy(tokens.server.port) as line:
        line.down.rate = 400_000
        tokens.give(LIFE_S)
        begun = time.monotonic()
        url = tokens.url("f").replace(f":{tokens.server.port}/", f":{line.port}/")
        done = back(tokens, job, url)
    assert code(done) is None and (job / "in").read_bytes() == DATA
    assert time.monotonic() - begun > LIFE_S


def test_no_token_is_logged_or_told(tokens: TokenStorage, job: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = tokens.give(600, "read").token
    assert token is not None
    outcome = out(tokens, job)
    back(tokens, job, tokens.url("absent"))
    assert outcome.error is not None
    signature = token.rpartition(".")[2]
    assert signature not in caplog.text and signature not in str(outcome.error)
    assert "token-" not in str(outcome.error)


def test_what_is_asked_for_are_the_urls_that_the_server_named(tokens: TokenStorage, job: Path) -> None:
    url = tokens.url("two words é.root")
    request = TransferRequest(f"{url}?x=1", job / "out", None, None, "test:f", 60.0)
    assert code(tokens.tool.copy_out([request], cancel=NEVER)[0]) is None
    folder = url.rpartition("/")[0]
    assert all(asked.startswith(f"{folder}/") and "?" not in asked for asked, _ in tokens.source.asked)
    assert (url, True) in tokens.source.asked and all(write for _, write in tokens.source.asked)
    part = next(asked for asked, _ in tokens.source.asked if asked.endswith(".part"))
    assert part.rpartition("/")[0] == folder


def test_a_path_that_no_url_can_hold(tokens: TokenStorage, job: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd &folder"
    odd.mkdir()
    tokens.source.credential = Credential("t", None, odd / "token")
    assert code(out(tokens, job)) is ErrorCode.MISSING_CREDENTIALS
