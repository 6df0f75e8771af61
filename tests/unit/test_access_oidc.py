"""Tokens of other issuers: what is taken, and everything that must not be. The provider is real and speaks HTTP."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from common.clock import FrozenClock
from common.config import ConfigError
from common.oidc import (
    MAX_BYTES,
    OidcError,
    OidcHttp,
    checked_address,
    discover,
    finish_device_flow,
    renew,
    start_device_flow,
)
from common.tokens import TokenError
from server.access.keys import KeySet, KeysUnavailable, read_keys
from server.access.oidc import ForeignToken, Issuer
from server.access.settings import OidcIssuer
from tests.oidc_provider import Provider, reply


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture
def provider(clock: FrozenClock) -> Iterator[Provider]:
    made = Provider(clock.now)
    yield made
    made.stop()


def issuer_of(provider: Provider, clock: FrozenClock, **more: Any) -> Issuer:
    return Issuer(OidcIssuer(**{"label": "iam", "issuer": provider.url, "audience": ["pilotage"], **more}), clock)


@pytest.fixture
def issuer(provider: Provider, clock: FrozenClock) -> Issuer:
    return issuer_of(provider, clock)


def header_of(token: str) -> dict[str, Any]:
    part = token.split(".")[0]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return found


def verify(issuer: Issuer, token: str) -> ForeignToken:
    return issuer.verify(token, header_of(token))


def part(document: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


# ---------------------------------------------------------------- what is taken


def test_a_token_of_the_wlcg_profile(provider: Provider, issuer: Issuer) -> None:
    found = verify(issuer, provider.token())
    assert (found.identity.label, found.identity.subject) == ("iam", "s-1")
    assert found.identity.groups == {"/dune", "/dune/production"}
    assert found.identity.scopes == {"openid", "compute.create"}
    assert found.token_id == "t-1"


def test_another_claim_may_list_the_groups(provider: Provider, clock: FrozenClock) -> None:
    issuer = issuer_of(provider, clock, groups_claim="groups")
    assert verify(issuer, provider.token(groups=["a", 5, "", "b"])).identity.groups == {"a", "b"}
    assert verify(issuer, provider.token(groups="admin")).identity.groups == set()


def test_one_of_several_audiences_is_enough(provider: Provider, issuer: Issuer) -> None:
    assert verify(issuer, provider.token(aud=["other", "pilotage"])).identity.subject == "s-1"


def test_an_elliptic_key(provider: Provider, issuer: Issuer) -> None:
    provider.add_key("ec", "EC")
    assert verify(issuer, provider.token(kid="ec", algorithm="ES256")).identity.subject == "s-1"


def test_a_token_without_the_name_of_its_key_is_taken_when_there_is_only_one(
    provider: Provider, issuer: Issuer, clock: FrozenClock
) -> None:
    token = provider.token(kid=None)
    assert verify(issuer, token).identity.subject == "s-1"
    provider.add_key("two")
    with pytest.raises(TokenError, match="no such key"):
        verify(issuer_of(provider, clock), token)


# ---------------------------------------------------------------- what is not


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"iss": "https://other.example.org"}, "issuer"),
        ({"aud": "somebody-else"}, "udience"),
        ({"aud": None}, "aud"),
        ({"aud": []}, "aud"),
        ({"exp": None}, "exp"),
        ({"sub": None}, "sub"),
        ({"sub": ""}, "subject"),
        ({"sub": "a\nb"}, "subject"),
        ({"sub": "x" * 500}, "subject"),
        ({"sub": 5}, "ubject"),
        ({"exp": "soon"}, "exp is no moment"),
        ({"exp": True}, "exp is no moment"),
        ({"exp": 1e400}, "not valid|no moment"),
    ],
)
def test_claims_that_are_refused(provider: Provider, issuer: Issuer, claims: dict[str, Any], words: str) -> None:
    with pytest.raises(TokenError, match=words):
        verify(issuer, provider.token(**claims))


@pytest.mark.parametrize(
    ("offsets", "good"),
    [
        ({"exp": -59}, True),
        ({"exp": -61}, False),
        ({"nbf": 59}, True),
        ({"nbf": 61}, False),
        ({"iat": 61}, False),
        ({"iat": 59}, True),
    ],
)
def test_times(provider: Provider, issuer: Issuer, clock: FrozenClock, offsets: dict[str, int], good: bool) -> None:
    claims: dict[str, Any] = {name: int(clock.now()) + offset for name, offset in offsets.items()}
    token = provider.token(**claims)
    if good:
        assert verify(issuer, token).identity.subject == "s-1"
        return
    with pytest.raises(TokenError):
        verify(issuer, token)


def test_an_unsigned_token(provider: Provider, issuer: Issuer) -> None:
    claims = provider.claims()
    for algorithm in ("none", "None", "NONE", "nOnE", ""):
        for signature in ("", "AAAA"):
            with pytest.raises(TokenError, match="does not sign in that way"):
                verify(issuer, f"{part({'alg': algorithm, 'kid': 'one'})}.{part(claims)}.{signature}")


def test_a_token_signed_with_the_public_key_as_a_shared_secret(provider: Provider, issuer: Issuer) -> None:
    public = provider.keys["one"].public_key()
    formats = (serialization.PublicFormat.SubjectPublicKeyInfo, serialization.PublicFormat.PKCS1)
    secrets = [public.public_bytes(serialization.Encoding.PEM, each) for each in formats]
    secrets.append(json.dumps(provider.jwk("one")).encode())
    for secret in secrets:
        signed = f"{part({'alg': 'HS256', 'kid': 'one'})}.{part(provider.claims())}"
        mac = base64.urlsafe_b64encode(hmac.digest(secret, signed.encode(), hashlib.sha256)).decode().rstrip("=")
        with pytest.raises(TokenError, match="does not sign in that way"):
            verify(issuer, f"{signed}.{mac}")


def test_an_algorithm_that_the_issuer_does_not_use(provider: Provider, issuer: Issuer, clock: FrozenClock) -> None:
    token = provider.token(algorithm="RS512")
    with pytest.raises(TokenError, match="does not sign in that way"):
        verify(issuer, token)
    # Nor when it is allowed, as the key says what it is for.
    with pytest.raises(TokenError, match="no such key"):
        verify(issuer_of(provider, clock, algorithms=["RS256", "RS512"]), token)


def test_somebody_elses_key_under_the_same_name(provider: Provider, issuer: Issuer) -> None:
    stranger = Provider(provider.clock)
    try:
        with pytest.raises(TokenError, match="ignature"):
            verify(issuer, provider.token(key=stranger.keys["one"]))
    finally:
        stranger.stop()


def test_keys_that_the_token_brings_along_are_not_looked_at(provider: Provider, issuer: Issuer) -> None:
    stranger = Provider(provider.clock)
    try:
        tricks: tuple[dict[str, Any], ...] = (
            {"jwk": stranger.jwk("one")},
            {"jku": f"{stranger.url}/jwks"},
            {"x5u": f"{stranger.url}/jwks"},
        )
        for headers in tricks:
            for kid in ("one", "evil"):
                with pytest.raises(TokenError):
                    verify(issuer, provider.token(kid=kid, key=stranger.keys["one"], headers=headers))
        assert not stranger.calls
    finally:
        stranger.stop()


@pytest.mark.parametrize("kid", ["../../etc/passwd", "one' OR '1'='1", "http://127.0.0.1/", "x" * 10_000, "", "one\0"])
def test_names_of_keys_are_only_names(provider: Provider, issuer: Issuer, kid: str) -> None:
    with pytest.raises(TokenError):
        verify(issuer, provider.token(kid="one", headers={"kid": kid}))
    assert set(provider.calls) <= {"/.well-known/openid-configuration", "/jwks"}


def test_a_name_of_a_key_that_is_no_text(provider: Provider, issuer: Issuer) -> None:
    good = provider.token()
    for kid in (5, ["one"], {"a": 1}, True):
        with pytest.raises(TokenError, match="no name of a key"):
            issuer.verify(good, {"alg": "RS256", "kid": kid})


def test_extensions_and_other_kinds_of_tokens(provider: Provider, issuer: Issuer) -> None:
    good = provider.token()
    extra: tuple[dict[str, Any], ...] = (
        {"crit": ["exp"]},
        {"crit": []},
        {"b64": True},
        {"typ": "logout+jwt"},
        {"typ": 5},
    )
    for more in extra:
        with pytest.raises(TokenError):
            issuer.verify(good, {**header_of(good), **more})
    assert verify(issuer, provider.token(headers={"typ": "at+jwt"})).identity.subject == "s-1"


def test_a_token_whose_claims_were_changed(provider: Provider, issuer: Issuer) -> None:
    head, _, signature = provider.token().split(".")
    with pytest.raises(TokenError, match="ignature"):
        verify(issuer, f"{head}.{part(provider.claims('admin'))}.{signature}")


@pytest.mark.parametrize("algorithms", [["HS256"], ["none"], ["RS256", "HS512"], ["ES256K"], ["rs256"]])
def test_algorithms_that_cannot_be_configured(provider: Provider, clock: FrozenClock, algorithms: list[str]) -> None:
    with pytest.raises(ConfigError, match="algorithms"):
        issuer_of(provider, clock, algorithms=algorithms)


@pytest.mark.parametrize(
    "address",
    ["http://iam.example.org", "ftp://x", "https://", "https://u:p@iam.example.org", "iam.example.org", "https://a b"],
)
def test_issuers_that_cannot_be_configured(provider: Provider, clock: FrozenClock, address: str) -> None:
    with pytest.raises(ConfigError, match="issuer"):
        issuer_of(provider, clock, issuer=address)


@pytest.mark.parametrize("label", ["x509", "pilotage", "pilot"])
def test_labels_that_are_taken(provider: Provider, clock: FrozenClock, label: str) -> None:
    with pytest.raises(ConfigError, match="label"):
        issuer_of(provider, clock, label=label)


# ---------------------------------------------------------------- keys come and go


def test_the_keys_are_fetched_once(provider: Provider, issuer: Issuer) -> None:
    for _ in range(5):
        verify(issuer, provider.token())
    assert provider.calls["/jwks"] == 1


def test_a_new_key_is_fetched_when_a_token_names_it_but_not_for_every_stranger(
    provider: Provider, issuer: Issuer, clock: FrozenClock
) -> None:
    verify(issuer, provider.token())
    stranger = provider.keys["one"]
    clock.advance(31)
    for number in range(50):  # a flood of tokens with names of keys that do not exist
        with pytest.raises(TokenError, match="no such key"):
            verify(issuer, provider.token(kid=f"no-{number}", key=stranger))
    assert provider.calls["/jwks"] == 2
    provider.add_key("two")
    with pytest.raises(TokenError, match="no such key"):
        verify(issuer, provider.token(kid="two"))
    clock.advance(31)
    assert verify(issuer, provider.token(kid="two")).identity.subject == "s-1"
    assert provider.calls["/jwks"] == 3


def test_a_key_that_is_gone_no_longer_counts_once_the_keys_are_fetched_again(
    provider: Provider, issuer: Issuer, clock: FrozenClock
) -> None:
    token = provider.token(exp=int(clock.now()) + 10**6)
    verify(issuer, token)
    provider.keys = {}
    provider.add_key("two")
    clock.advance(3601)
    with pytest.raises(TokenError, match="no such key"):
        verify(issuer, token)


def outage() -> tuple[int, dict[str, str], bytes]:
    return reply({"error": "down"}, 503)


def test_an_outage_keeps_the_old_keys_for_a_while(provider: Provider, issuer: Issuer, clock: FrozenClock) -> None:
    token = provider.token(exp=int(clock.now()) + 10**6)
    verify(issuer, token)
    provider.answers["/jwks"] = outage
    clock.advance(3601)
    for _ in range(20):
        assert verify(issuer, token).identity.subject == "s-1"
    assert provider.calls["/jwks"] == 2  # and the issuer is left alone
    clock.advance(86_400)
    with pytest.raises(KeysUnavailable):
        verify(issuer, token)
    del provider.answers["/jwks"]
    clock.advance(11)
    assert verify(issuer, token).identity.subject == "s-1"


@pytest.mark.parametrize(
    "document", [{"keys": []}, {}, {"keys": "x"}, {"keys": [{"kty": "oct", "k": "AAAA", "kid": "one"}]}, []]
)
def test_a_key_set_without_keys_does_not_replace_one_with_keys(
    provider: Provider, issuer: Issuer, clock: FrozenClock, document: object
) -> None:
    token = provider.token(exp=int(clock.now()) + 10**6)
    verify(issuer, token)
    provider.answers["/jwks"] = lambda: reply(document)
    clock.advance(3601)
    assert verify(issuer, token).identity.subject == "s-1"


def test_an_issuer_that_was_never_reached(provider: Provider, issuer: Issuer, clock: FrozenClock) -> None:
    provider.answers["/.well-known/openid-configuration"] = outage
    for _ in range(5):
        with pytest.raises(KeysUnavailable):
            verify(issuer, provider.token())
    assert provider.calls["/.well-known/openid-configuration"] == 1
    provider.answers.clear()
    clock.advance(11)
    assert verify(issuer, provider.token()).identity.subject == "s-1"


def test_only_one_thread_fetches_and_no_other_waits_for_it(clock: FrozenClock, provider: Provider) -> None:
    begun, go = threading.Event(), threading.Event()

    def fetch() -> dict[str, Any]:
        begun.set()
        assert go.wait(120)
        return provider.jwks()

    keys = KeySet(fetch, clock, refresh_s=3600, unknown_key_s=30, keep_s=86_400)
    found: list[object] = []
    first = threading.Thread(target=lambda: found.append(keys.find("one", "RS256")))
    first.start()
    assert begun.wait(120)
    with pytest.raises(KeysUnavailable):
        keys.find("one", "RS256")
    go.set()
    first.join(120)
    assert found[0] is not None
    assert keys.find("one", "RS256") is found[0]


def test_keys_that_are_left_out(provider: Provider) -> None:
    provider.add_key("weak", bits=1024)
    good = provider.jwk("one")
    bad: list[Any] = [
        provider.jwk("weak"),
        {**good, "kid": "enc", "use": "enc"},
        {**good, "kid": "sign", "key_ops": ["sign"]},
        {**good, "kid": 5},
        {**good, "kid": "x" * 300},
        {**good, "kid": "hs", "alg": "HS256"},
        {**good, "kid": "broken", "n": "!"},
        {"kty": "oct", "kid": "oct", "k": "c2VjcmV0", "alg": "HS256"},
        {"kty": ["RSA"]},
        "text",
        None,
    ]
    found = read_keys({"keys": [*bad, good]})
    assert [key.kid for key in found] == ["one"]
    with pytest.raises(OidcError):
        read_keys({"keys": [good] * 65})


def test_two_keys_of_the_same_name_are_no_key(provider: Provider, clock: FrozenClock) -> None:
    document = {"keys": [provider.jwk("one"), {**provider.jwk("one"), "alg": "RS256"}]}
    keys = KeySet(lambda: document, clock, refresh_s=3600, unknown_key_s=30, keep_s=86_400)
    assert keys.find("one", "RS256") is None


# ---------------------------------------------------------------- discovery


def test_metadata_of_another_issuer(provider: Provider) -> None:
    for found in ("https://evil.example.org", f"{provider.url}/", None, [provider.url]):
        answer = {**provider.metadata(), "issuer": found}
        provider.answers["/.well-known/openid-configuration"] = lambda answer=answer: reply(answer)  # type: ignore[misc]
        with pytest.raises(OidcError, match="metadata of"):
            discover(OidcHttp(), provider.url)


def test_a_redirect_is_not_followed(provider: Provider, clock: FrozenClock) -> None:
    stranger = Provider(clock.now)
    try:
        for path in ("/.well-known/openid-configuration", "/jwks"):
            for status in (301, 302, 307, 308):
                target = f"{stranger.url}{path}"
                provider.answers = {path: lambda s=status, t=target: reply({}, s, Location=t)}  # type: ignore[misc]
                with pytest.raises(KeysUnavailable):
                    verify(issuer_of(provider, clock), provider.token())
        assert not stranger.calls
    finally:
        stranger.stop()


def test_keys_at_an_address_that_is_not_https(provider: Provider) -> None:
    for address in ("http://keys.example.org/jwks", "file:///etc/passwd", "https://u@x.org/", "", None, 5):
        answer = {**provider.metadata(), "jwks_uri": address}
        provider.answers["/.well-known/openid-configuration"] = lambda answer=answer: reply(answer)  # type: ignore[misc]
        with pytest.raises(OidcError):
            discover(OidcHttp(), provider.url)


def test_an_answer_that_is_too_large(provider: Provider) -> None:
    provider.answers["/jwks"] = lambda: reply({"keys": [], "pad": "x" * (MAX_BYTES + 1)})
    with pytest.raises(OidcError, match="more than"):
        OidcHttp().get_json(f"{provider.url}/jwks")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'"x"', b"{" * 100_000, b"\xff"])
def test_an_answer_that_is_no_object(provider: Provider, body: bytes) -> None:
    provider.answers["/jwks"] = lambda: (200, {}, body)
    with pytest.raises(OidcError):
        OidcHttp().get_json(f"{provider.url}/jwks")


def test_addresses() -> None:
    for good in ("https://iam.example.org/x", "http://127.0.0.1:8080", "http://localhost/"):
        assert checked_address(good) == good
    for bad in ("http://iam.example.org", "https://a\n.org", "javascript:alert(1)", "", None, 5, "https://[::1"):
        with pytest.raises(OidcError):
            checked_address(bad)


# ---------------------------------------------------------------- the device flow


def test_the_device_flow(provider: Provider) -> None:
    http, waits = OidcHttp(), list[float]()
    metadata = discover(http, provider.url)
    code = start_device_flow(http, metadata, "client", ["openid", "wlcg.groups"], "pilotage")
    assert (code.user_code, code.verification_uri) == ("ABCD-EFGH", f"{provider.url}/verify")
    assert "device-code-1" not in repr(code)
    provider.pending = 3
    tokens = finish_device_flow(http, metadata, "client", code, waits.append)
    assert tokens.refresh_token == "refresh-1"
    assert tokens.access_token not in repr(tokens)
    assert waits == [1.0] * 4
    assert provider.forms[0] == {"client_id": "client", "scope": "openid wlcg.groups", "audience": "pilotage"}
    assert provider.forms[-1]["device_code"] == "device-code-1"
    assert renew(http, metadata.token_endpoint, "client", "refresh-1").access_token


@pytest.mark.parametrize(
    ("error", "words"), [("access_denied", "refused"), ("expired_token", "in time"), ("invalid_grant", "invalid_grant")]
)
def test_a_device_flow_that_ends_otherwise(provider: Provider, error: str, words: str) -> None:
    http = OidcHttp()
    metadata = discover(http, provider.url)
    code = start_device_flow(http, metadata, "client", [], "")
    provider.answers["/token"] = lambda: reply({"error": error}, 400)
    with pytest.raises(OidcError, match=words):
        finish_device_flow(http, metadata, "client", code, lambda _: None)


def test_a_device_flow_slows_down_and_gives_up(provider: Provider) -> None:
    http, waits = OidcHttp(), list[float]()
    metadata = discover(http, provider.url)
    code = start_device_flow(http, metadata, "client", [], "")
    provider.answers["/token"] = lambda: reply({"error": "slow_down"}, 400)
    with pytest.raises(OidcError, match="in time"):
        finish_device_flow(http, metadata, "client", code, waits.append)
    assert waits[:3] == [1.0, 6.0, 11.0]
    assert 600 <= sum(waits) < 700


def test_what_an_issuer_says_cannot_steer_a_terminal(provider: Provider) -> None:
    http = OidcHttp()
    metadata = discover(http, provider.url)
    device = {"device_code": "d", "user_code": "A\x1b[2JB", "verification_uri": f"{provider.url}/v"}
    provider.answers["/device"] = lambda: reply(device)
    assert "\x1b" not in start_device_flow(http, metadata, "client", [], "").user_code
    device["verification_uri"] = "https://x.org/\x1b[2J"
    with pytest.raises(OidcError):
        start_device_flow(http, metadata, "client", [], "")
    provider.answers["/device"] = lambda: reply({"error": "x", "error_description": "\x1b[2J"}, 400)
    with pytest.raises(OidcError) as error:
        start_device_flow(http, metadata, "client", [], "")
    assert "\x1b" not in str(error.value)


def test_a_key_file_is_no_place_for_this(tmp_path: Path) -> None:
    """The authorities of an issuer that cannot be read are told at once."""
    with pytest.raises(Exception, match="ca_file"):
        OidcHttp(tmp_path / "missing.pem")
