"""Pilots fetch credentials for storages: what each gets, what it is refused, and what is written down of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional

import jwt
import msgspec
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from common.clock import FrozenClock
from common.config import ConfigError
from common.tokens import write_secret_file
from common.wire import (
    CredentialKind,
    CredentialReply,
    CredentialRequest,
    Endpoint,
    EventPage,
    StorageSpec,
)
from common.x509 import new_request, proxy_file
from server.config import ServerConfig
from tests.integration.server.harness import Pilot, Refused, Site, files, stage
from tests.oidc_provider import Provider, reply
from tests.unit.test_x509_proxies import Authority

ISSUER = "https://pilotage.example.org:8443"
URL = "root://disk:1094//data/"
TOKEN = {
    "credential": CredentialKind.TOKEN,
    "provider": "wlcg",
    "audience": "https://disk:1094",
    "token_prefix": "/data",
}


class World(Site):
    """A site with one storage, and the files that providers need."""

    def __init__(self, url: str, folder: Path, sections: dict[str, dict[str, Any]], **endpoint: Any) -> None:
        state = folder / "state"
        state.mkdir(exist_ok=True)
        config = ServerConfig(state_dir=str(state), credentials=sections)
        super().__init__(url, FrozenClock(time.time()), config)
        self.say_up()
        self.world()
        spec = StorageSpec(name="disk", site="s", endpoints=[Endpoint(URL.rstrip("/"), **endpoint)])
        self.admin("PUT", "/v1/storages/disk", spec)

    def ask(self, pilot: Pilot, job_id: int, *urls: str, **more: Any) -> CredentialReply:
        request = CredentialRequest(job_id=job_id, urls=[URL + url for url in urls], **more)
        return pilot.post(f"/v1/pilots/{pilot.id}/credentials", request, CredentialReply)

    def refused(self, pilot: Pilot, job_id: int, *urls: str, **more: Any) -> int:
        with pytest.raises(Refused) as error:
            self.ask(pilot, job_id, *urls, **more)
        return error.value.status

    def events_of(self, kind: str) -> list[dict[str, Any]]:
        page = self.call("GET", "/v1/events?kind=" + kind, None, EventPage, self.token("admin"))
        return [event.detail for event in page.items]

    def call(self, method: str, path: str, body: Any, reply: Any, token: Optional[str]) -> Any:
        route, _, query = path.partition("?")
        if not query:
            return super().call(method, path, body, reply, token)
        return msgspec.json.decode(self.raw(method, route, body, token, query_string=query).content, type=reply)


Make = Callable[..., World]


@pytest.fixture
def make(url: str, tmp_path: Path) -> Iterator[Make]:
    made: list[World] = []

    def build(sections: dict[str, dict[str, Any]], **endpoint: Any) -> World:
        made.append(World(url, tmp_path, sections, **endpoint))
        return made[-1]

    yield build
    for each in made:
        each.database.close()


MINTED = {"wlcg": {"kind": "minted", "issuer": ISSUER, "life_s": 600}}


def working(world: World, *names: str) -> tuple[Pilot, int]:
    """A pilot with a job over files."""
    world.submit(stage(given=files(*names or ("a", "b")), files_per_job=10))
    pilot = world.pilot()
    return pilot, pilot.acquire().job_id


def verified(world: World, token: str) -> dict[str, Any]:
    """What a token says to a storage that fetches the issuer's keys as it should."""
    document = world.raw("GET", "/.well-known/openid-configuration").json
    assert document["issuer"] == ISSUER and document["jwks_uri"].startswith(f"{ISSUER}/")
    keys = jwt.PyJWKSet.from_dict(world.raw("GET", document["jwks_uri"].removeprefix(ISSUER)).json)
    key = next(each for each in keys.keys if each.key_id == jwt.get_unverified_header(token)["kid"])
    claims: dict[str, Any] = jwt.decode(token, key.key, algorithms=["ES256"], audience=TOKEN["audience"], issuer=ISSUER)
    return claims


def test_a_token_for_the_files_of_a_job(make: Make) -> None:
    world = make(MINTED, **TOKEN)
    pilot, job = working(world)
    found = world.ask(pilot, job, "d/a", "d/b", "d/z")
    assert (found.kind, found.life_s, found.ambient) == (CredentialKind.TOKEN, 600, False)
    assert found.covers == [URL + "d/a", URL + "d/b"]
    claims = verified(world, found.token or "")
    assert claims["scope"] == "storage.read:/d/a storage.read:/d/b"
    assert claims["wlcg.ver"] == "1.0" and claims["exp"] - claims["iat"] == 600
    told = world.events_of("CREDENTIAL_GIVEN")
    assert [each["number"] for each in told] == [claims["jti"]]
    assert found.token and found.token not in str(told)


def test_a_pilot_gets_nothing_that_its_jobs_do_not_need(make: Make) -> None:
    world = make(MINTED, **TOKEN)
    pilot, job = working(world)
    assert world.refused(pilot, job, "d/z") == 422
    assert world.refused(pilot, job, "d/a", write=True) == 422
    assert world.refused(pilot, job, "d/a", write=True, payload=True) == 422
    assert world.refused(pilot, job + 1, "d/a") == 404
    other = world.pilot()
    assert world.refused(other, job, "d/a") == 404
    with pytest.raises(Refused) as error:
        request = CredentialRequest(job_id=job, urls=[URL + "d/a"])
        other.post(f"/v1/pilots/{pilot.id}/credentials", request, CredentialReply)
    assert error.value.status == 403
    assert world.events_of("CREDENTIAL_GIVEN") == []


def test_writing_begins_with_the_record_and_ends_with_the_job(make: Make) -> None:
    world = make(MINTED, **TOKEN)
    world.submit(stage(given=files("a", "b"), files_per_job=10))
    pilot = world.pilot()
    job = pilot.acquire()
    place = pilot.record(job, "x", "y").destinations[0].urls[0].removeprefix(URL)
    found = world.ask(pilot, job.job_id, place, write=True)
    folder = place.rpartition("/")[0]
    words = verified(world, found.token or "")["scope"].split()
    assert words == [f"storage.{word}:/{folder}" for word in ("read", "create", "modify")]
    assert found.covers == [f"{URL}{folder}/"]
    pilot.fail(job, 1305)
    again = world.ask(pilot, job.job_id, place, write=True)  # to take it away
    assert verified(world, again.token or "")["scope"].split()[-1] == f"storage.modify:/{place}"
    assert world.refused(pilot, job.job_id, "d/a") == 410


def test_what_became_visible_is_not_touched_any_more(make: Make) -> None:
    world = make(MINTED, **TOKEN)
    world.submit(stage(given=files("a"), files_per_job=10))
    pilot = world.pilot()
    job = pilot.acquire()
    request = pilot.success(job, "x")
    place = request.outputs[0].url.removeprefix(URL)
    pilot.finish(job, request)
    assert world.refused(pilot, job.job_id, place, write=True) == 410
    assert world.refused(pilot, job.job_id, place) == 410


@pytest.mark.parametrize("wanted", [*CredentialKind])
def test_storages_without_a_provider_are_the_pilots_own_business(make: Make, wanted: CredentialKind) -> None:
    world = make({}, credential=wanted)
    pilot, job = working(world)
    found = world.ask(pilot, job, "d/a")
    assert (found.kind, found.token, found.chain) == (wanted, None, None)
    assert found.ambient == (wanted is not CredentialKind.NONE)
    assert not world.ask(pilot, job, "d/a", payload=True).ambient, "a payload was pointed to the pilot's own"
    assert world.raw("GET", "/v1/jwks").status_code == 404


def test_a_proxy_for_a_key_that_the_pilot_proves(make: Make, tmp_path: Path) -> None:
    authority = Authority()
    write_secret_file(tmp_path / "robot.pem", authority.credential)
    section = {"robot": {"kind": "proxy", "credential_file": str(tmp_path / "robot.pem"), "life_s": 3600}}
    world = make(section, credential=CredentialKind.PROXY, provider="robot", payload_provider="robot")
    pilot, job = working(world)
    first = world.ask(pilot, job, "d/a")
    assert (first.csr_wanted, first.chain, first.provider) == (True, None, "robot")
    key, request = new_request()
    found = world.ask(pilot, job, "d/a", csr=request)
    assert found.life_s == 3600 and URL in found.covers
    subject = x509.load_pem_x509_certificates((found.chain or "").encode())[0].subject
    assert [each.value for each in subject.get_attributes_for_oid(NameOID.COMMON_NAME)][0] == "Robot"
    assert proxy_file(found.chain or "", key).count("-----BEGIN") == 3
    assert world.refused(pilot, job, "d/a", csr="nonsense") == 422
    assert world.refused(pilot, job, "d/a", csr=request, payload=True) == 503, "a payload got a proxy that writes"
    (tmp_path / "robot.pem").unlink()
    assert world.refused(pilot, job, "d/a", csr=request) == 503
    assert world.refused(pilot, job, "d/a", csr=request) == 503
    told = world.events_of("CREDENTIAL_FAILED")
    assert len(told) == 1 and "read_only = true" in told[0]["error"], "each failure of many is told once in a while"


def test_tokens_from_another_issuer(make: Make, tmp_path: Path) -> None:
    write_secret_file(tmp_path / "secret", "s3cret&more")
    provider = Provider(time.time)
    section = {
        "kind": "oidc",
        "issuer": provider.url,
        "client_id": "pilotage",
        "client_secret_file": str(tmp_path / "secret"),
    }
    try:
        world = make({"wlcg": section}, **TOKEN)
        pilot, job = working(world)
        answers: dict[str, Any] = {"scope": "storage.read:/d/a"}
        provider.answers["/token"] = lambda: reply(
            {"access_token": provider.token(**answers), "expires_in": 900, "token_type": "Bearer"}
        )
        found = world.ask(pilot, job, "d/a")
        assert found.life_s == 900 and found.token
        assert provider.forms[-1] == {
            "grant_type": "client_credentials", "scope": "storage.read:/d/a", "audience": TOKEN["audience"],
        }  # fmt: skip
        for scope, words in (("storage.read:/", "grants more"), ("openid", "grants more"), ("", "does not grant")):
            answers["scope"] = scope
            with pytest.raises(Refused, match=words) as error:
                world.ask(pilot, job, "d/a")
            assert error.value.status == 503
            assert "s3cret" not in str(error.value)
        provider.answers["/token"] = lambda: reply({"error": "invalid_client"}, 401)
        with pytest.raises(Refused, match="invalid_client"):
            world.ask(pilot, job, "d/a")
        assert len(world.events_of("CREDENTIAL_FAILED")) == 1
    finally:
        provider.stop()


def test_a_token_in_exchange_for_another(make: Make, tmp_path: Path) -> None:
    write_secret_file(tmp_path / "secret", "s")
    write_secret_file(tmp_path / "subject", "robots-own-token")
    provider = Provider(time.time)
    try:
        section = {
            "kind": "oidc", "issuer": provider.url, "client_id": "p", "client_secret_file": str(tmp_path / "secret"),
            "subject_token_file": str(tmp_path / "subject"),
        }  # fmt: skip
        world = make({"wlcg": section}, **TOKEN)
        pilot, job = working(world)
        provider.answers["/token"] = lambda: reply({"access_token": "opaque", "expires_in": 60})
        assert world.ask(pilot, job, "d/a").token == "opaque"
        form = provider.forms[-1]
        assert form["grant_type"].endswith(":token-exchange") and form["subject_token"] == "robots-own-token"
    finally:
        provider.stop()


def test_sections_and_storages_that_cannot_be(make: Make, tmp_path: Path) -> None:
    (tmp_path / "open.pem").write_text("x")
    (tmp_path / "open.pem").chmod(0o644)
    for section, words in (
        ({"kind": "magic"}, r"\[server.credentials.x\]"),
        ({"kind": "minted", "issuer": ISSUER, "lief_s": 1}, "lief_s"),
        ({"kind": "proxy", "credential_file": str(tmp_path / "open.pem")}, "others may read it"),
    ):
        with pytest.raises(ConfigError, match=words):
            make({"x": section})
    with pytest.raises(Refused, match="nobody gives a token as 'nobody'") as error:
        make(MINTED, credential=CredentialKind.TOKEN, provider="nobody", audience="x")
    assert error.value.paths == ["$.endpoints[0].provider"]
    for field, more in (
        ("provider", {"provider": "wlcg"}),
        ("payload_provider", {**TOKEN, "payload_provider": "wlcg"}),
        ("audience", {"credential": CredentialKind.PROXY, "audience": "x"}),
        ("audience", {**TOKEN, "audience": ""}),
        ("token_prefix", {"token_prefix": "/x"}),
    ):
        with pytest.raises(Refused) as error:
            make(MINTED, **more)
        assert error.value.paths == [f"$.endpoints[0].{field}"]


def test_the_issuers_key_outlives_the_server(make: Make, tmp_path: Path) -> None:
    keys = [make(MINTED, **TOKEN).raw("GET", "/v1/jwks").json for _ in range(2)]
    assert keys[0] == keys[1]
    found = tmp_path / "state" / "storage-tokens-wlcg.key"
    assert found.stat().st_mode & 0o777 == 0o600
