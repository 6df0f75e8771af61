"""Tokens that are tampered with, secrets in files, and keys that several processes make at once."""

from __future__ import annotations

import base64
import json
import logging
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import jwt
import pytest

from common.clock import FrozenClock
from common.errors import ErrorCode, PilotageError
from common.log import UtcFormatter, mask
from common.tokens import (
    LEEWAY_S,
    SecretFileError,
    TokenError,
    TokenIssuer,
    discover_token,
    hash_secret,
    load_or_create_key,
    new_secret,
    read_secret_file,
    write_secret_file,
)

KEY = b"k" * 64
NOW = 1_700_000_000.0


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock(NOW)


@pytest.fixture
def issuer(clock: FrozenClock) -> TokenIssuer:
    return TokenIssuer(KEY, "pilotage", clock)


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def payload(**changes: Any) -> dict[str, Any]:
    claims = {"iss": "pilotage", "sub": "p", "roles": [], "iat": int(NOW), "exp": int(NOW) + 60, "jti": "j"}
    claims.update(changes)
    return {name: value for name, value in claims.items() if value is not None}


def signed(claims: dict[str, Any], key: bytes = KEY, algorithm: str = "HS256") -> str:
    return jwt.encode(claims, key, algorithm=algorithm)


def test_what_is_minted_is_verified(issuer: TokenIssuer) -> None:
    claims = issuer.verify(issuer.mint("pilot:7", ["pilot"], 600, queue="Q1", shape={"cores": 8}))
    assert (claims.subject, claims.roles, claims.expires) == ("pilot:7", ["pilot"], NOW + 600)
    assert claims.extra == {"queue": "Q1", "shape": {"cores": 8}}
    assert claims.token_id != issuer.verify(issuer.mint("pilot:7", ["pilot"], 600)).token_id


def test_a_claim_with_a_fixed_meaning_cannot_be_chosen(issuer: TokenIssuer) -> None:
    with pytest.raises(ValueError, match="exp, iss"):
        issuer.mint("p", [], 60, exp=1e12, iss="me")


def test_a_token_expires_after_the_leeway_and_may_be_renewed_for_a_while(
    issuer: TokenIssuer, clock: FrozenClock
) -> None:
    token = issuer.mint("p", ["pilot"], 60)
    clock.advance(60 + LEEWAY_S - 1)
    issuer.verify(token)
    clock.advance(1)
    with pytest.raises(TokenError, match="expired") as caught:
        issuer.verify(token)
    assert caught.value.expired
    clock.advance(99)
    assert issuer.verify(token, allow_expired_for_s=100).subject == "p"
    clock.advance(1)
    with pytest.raises(TokenError, match="expired"):
        issuer.verify(token, allow_expired_for_s=100)


def test_a_clock_that_was_set_back_turns_no_pilot_away(issuer: TokenIssuer) -> None:
    """It once killed all payloads: every token seemed to come from the future."""
    assert issuer.verify(signed(payload(iat=int(NOW + 3600)))).subject


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_token_that_was_tampered_with_is_refused(issuer: TokenIssuer, position: int) -> None:
    parts = issuer.mint("p", ["pilot"], 60).split(".")
    changed = part(payload(roles=["admin"])) if position == 1 else "A" + parts[position][1:].swapcase()
    tampered = ".".join([*parts[:position], changed, *parts[position + 1 :]])
    with pytest.raises(TokenError, match="not valid") as caught:
        issuer.verify(tampered)
    assert not caught.value.expired


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "HS512", "RS256", "ES256", ""])
def test_no_other_algorithm_is_accepted(issuer: TokenIssuer, algorithm: str) -> None:
    body = part(payload(roles=["admin"]))
    for signature in ("", issuer.mint("p", [], 60).rpartition(".")[2]):
        with pytest.raises(TokenError):
            issuer.verify(f"{part({'alg': algorithm, 'typ': 'JWT'})}.{body}.{signature}")
    with pytest.raises(TokenError):
        issuer.verify(signed(payload(), algorithm="HS512"))


def test_a_token_of_another_key_or_issuer_is_refused(issuer: TokenIssuer, clock: FrozenClock) -> None:
    for other in (TokenIssuer(b"x" * 32, "pilotage", clock), TokenIssuer(KEY, "elsewhere", clock)):
        with pytest.raises(TokenError, match="not valid"):
            issuer.verify(other.mint("p", ["admin"], 60))


@pytest.mark.parametrize("name", ["iss", "sub", "exp", "iat", "jti", "roles"])
def test_every_claim_is_required(issuer: TokenIssuer, name: str) -> None:
    with pytest.raises(TokenError):
        issuer.verify(signed(payload(**{name: None})))


@pytest.mark.parametrize(
    "changes",
    [{"exp": True}, {"exp": "soon"}, {"exp": float("inf")}, {"exp": float("nan")}, {"exp": [1]}]
    + [{"iat": "now"}, {"iat": float("-inf")}, {"roles": "admin"}, {"roles": [1]}, {"roles": {"admin": 1}}],
)
def test_claims_of_the_wrong_type_are_refused(issuer: TokenIssuer, changes: dict[str, Any]) -> None:
    with pytest.raises(TokenError, match="not valid"):
        issuer.verify(signed(payload(**changes)))


def test_any_garbage_is_a_token_error(issuer: TokenIssuer) -> None:
    nested = base64.urlsafe_b64encode(b"[" * 5001).decode()
    for token in ("", ".", "..", "a.b.c", "é.é.é", "\ud800", "x" * 100_000, f"{nested}.e30.eHg", f"{part([])}.e30.x"):
        with pytest.raises(TokenError):
            issuer.verify(token)


def test_an_error_never_shows_the_token(issuer: TokenIssuer) -> None:
    token = signed(payload(), key=b"o" * 32)
    with pytest.raises(TokenError) as caught:
        issuer.verify(token)
    assert token.rpartition(".")[2] not in str(caught.value)


def test_a_short_key_is_refused(clock: FrozenClock) -> None:
    with pytest.raises(ValueError, match="at least 32"):
        TokenIssuer(b"k" * 31, "pilotage", clock)


# --- keys and secrets -------------------------------------------------------------------------------------------------


def _load(path: Path, barrier: Any, keys: Any) -> None:
    barrier.wait()
    keys.put(load_or_create_key(path))


def test_processes_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for round_number in range(10):
        path = tmp_path / f"key-{round_number}"
        barrier, keys = context.Barrier(6), context.Queue()
        processes = [context.Process(target=_load, args=(path, barrier, keys)) for _ in range(6)]
        for process in processes:
            process.start()
        found = {keys.get(timeout=120) for _ in processes}
        for process in processes:
            process.join(120)
        assert found == {load_or_create_key(path)}
        assert path.stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 10, "no temporary file may stay"


def test_the_key_is_random_and_stays(tmp_path: Path) -> None:
    first = load_or_create_key(tmp_path / "a")
    assert len(first) == 32
    assert load_or_create_key(tmp_path / "a") == first
    assert load_or_create_key(tmp_path / "b") != first


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620, 0o700])
def test_a_key_or_secret_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    load_or_create_key(path)
    path.chmod(mode)
    for read in (load_or_create_key, read_secret_file):
        with pytest.raises(SecretFileError, match=f"chmod 600 {path}"):
            read(path)
    path.chmod(0o400)
    load_or_create_key(path)


@pytest.mark.parametrize("content", ["", "\n", "not hex", "abcd", "é"])
def test_a_file_without_a_key_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(SecretFileError) as caught:
        load_or_create_key(path)
    assert str(path) in str(caught.value)
    assert "not hex" not in str(caught.value)


def test_a_secret_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    previous = os.umask(0)
    try:
        write_secret_file(path, "new")
    finally:
        os.umask(previous)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_secret_file(path) == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_secret_file(tmp_path / "folder", "x")
    with pytest.raises(UnicodeEncodeError):
        write_secret_file(tmp_path / "other", "é")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_missing_secret_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(SecretFileError, match=str(path)) as caught:
            read_secret_file(path)
        assert caught.value.code is ErrorCode.BAD_CONFIGURATION


def test_secrets_differ_and_are_known_by_their_hash() -> None:
    first, second = new_secret(), new_secret()
    assert first != second
    assert len(first) >= 43
    assert hash_secret("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- discovery --------------------------------------------------------------------------------------------------------


def test_the_order_of_discovery(tmp_path: Path) -> None:
    def file(name: str) -> str:
        write_secret_file(tmp_path / name, f"{name}.token")
        return str(tmp_path / name)

    runtime = f"bt_u{os.geteuid()}"
    file(runtime)
    environ = {
        "PILOTAGE_TOKEN_FILE": file("pilotage"),
        "BEARER_TOKEN": " inline.token\n",
        "BEARER_TOKEN_FILE": file("wlcg"),
        "XDG_RUNTIME_DIR": str(tmp_path),
    }
    assert discover_token(file("explicit"), environ) == "explicit.token"
    for name, token in [
        ("PILOTAGE_TOKEN_FILE", "pilotage.token"),
        ("BEARER_TOKEN", "inline.token"),
        ("BEARER_TOKEN_FILE", "wlcg.token"),
        ("XDG_RUNTIME_DIR", f"{runtime}.token"),
    ]:
        assert discover_token(None, environ) == token
        del environ[name]


def test_a_named_token_file_must_be_there_and_private(tmp_path: Path) -> None:
    path = tmp_path / "token"
    for name in ("PILOTAGE_TOKEN_FILE", "BEARER_TOKEN_FILE"):
        with pytest.raises(PilotageError, match="cannot be read"):
            discover_token(None, {name: str(path)})
    path.write_text("t")
    path.chmod(0o644)
    with pytest.raises(PilotageError, match="chmod 600"):
        discover_token(path, {})


def test_a_token_with_odd_characters_is_refused_and_not_shown(tmp_path: Path) -> None:
    for text in ("two words", "line\nX-Evil: 1", "a\x00b"):
        with pytest.raises(SecretFileError) as caught:
            discover_token(None, {"BEARER_TOKEN": text})
        assert text not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_token_that_somebody_else_left_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / f"bt_u{os.geteuid()}"
    write_secret_file(path, "planted.by.another")
    os.chown(path, 12345, -1)
    assert discover_token(None, {"XDG_RUNTIME_DIR": str(tmp_path)}) != "planted.by.another"


# --- the log ----------------------------------------------------------------------------------------------------------


def test_the_log_masks_whatever_looks_like_a_secret(issuer: TokenIssuer) -> None:
    token, secret = issuer.mint("p", [], 60), new_secret()
    texts = [
        f"Authorization: Bearer {secret}",
        f"header {{'Authorization': 'bearer {token}'}}",
        f"token {token} was refused",
        f"root://h//f?authz=Bearer%20{token}&x=1",
        f"https://h/f?access_token={secret[4:]}&x=1",
        f"the secret {secret} is spent",
        f"postgresql://user:{secret}@db/pilotage",
        f"postgresql://user:{secret[4:]}@db/pilotage",
    ]
    for text in texts:
        masked = mask(text)
        assert secret[4:] not in masked
        assert token[10:] not in masked
        assert "***" in masked
    plain = "job 17 of task 3: 200 units, root://host:1094//store/file.root bearer of news"
    assert mask(plain) == plain


def test_an_entry_is_in_utc_and_its_traceback_is_masked(issuer: TokenIssuer) -> None:
    token = issuer.mint("p", [], 60)
    try:
        raise ValueError(token)
    except ValueError:
        record = logging.LogRecord("a.b", logging.ERROR, __file__, 1, "it %s", ("broke",), sys.exc_info())
    record.created = 1_700_000_000.5
    text = UtcFormatter().format(record)
    assert text.startswith("2023-11-14T22:13:20.500Z ERROR a.b: it broke\nTraceback")
    assert token not in text
