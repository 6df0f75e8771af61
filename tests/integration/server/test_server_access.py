"""Access over the whole server: logins, revocation, bans, other issuers, the front end, isolation, limits, audit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from falcon.testing import Result, TestClient
from sqlalchemy import select

from common.clock import FrozenClock
from common.config import ConfigError
from common.states import WorkerState
from common.tokens import TokenIssuer
from common.wire import (
    BanKind,
    BanList,
    BanRequest,
    BanView,
    CodeLogin,
    LoginGrant,
    LoginRenewal,
    LoginWays,
    RevocationKind,
    RevocationList,
    RevocationRequest,
    RevocationView,
    TaskCommand,
    TaskView,
    Whoami,
    WorkerReport,
    WorkersReportRequest,
    WorkflowPage,
    WorkflowRequest,
    WorkflowView,
)
from server.access import logins
from server.access.identify import Access
from server.access.settings import FrontEnd, Limits, OidcIssuer, RoleLimit
from server.api.application import create_application
from server.config import ServerConfig
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid
from server.engine.access import Role
from server.store import access as access_store
from server.store.all_tables import metadata
from server.store.schema import event
from tests.integration.server.harness import KEY, Refused, Site, stage
from tests.oidc_provider import Provider

NONCE = "nonce-of-a-client"


def audit(site: Site) -> list[tuple[str, dict[str, Any]]]:
    """Who changed what."""
    with site.database.read() as connection:
        rows = connection.execute(select(event).where(event.c.kind == "AUDIT").order_by(event.c.id)).all()
    return [(row.subject_id, msgspec.json.decode(row.detail)) for row in rows]


def configured(site: Site, **config: Any) -> Site:
    """Another process of the same server, configured otherwise."""
    site.dispatcher = Dispatcher(site.database, site.issuer, ServerConfig(**config), site.clock)
    site.client = TestClient(create_application(site.dispatcher))
    return site


def later(site: Site, seconds: float) -> None:
    """Nothing but the time goes on."""
    assert isinstance(site.clock, FrozenClock)
    site.clock.advance(seconds)


def whoami(site: Site, token: str) -> Whoami:
    return site.call("GET", "/v1/whoami", None, Whoami, token)


def status(site: Site, token: str | None, path: str = "/v1/whoami", method: str = "GET", body: Any = None) -> int:
    return site.raw(method, path, body, token).status_code


def refused(site: Site, *call: Any) -> Refused:
    with pytest.raises(Refused) as error:
        site.call(*call)
    return error.value


# ---------------------------------------------------------------- the built-in issuer


def log_in(site: Site, name: str = "alice", roles: tuple[Role, ...] = (Role.USER,), nonce: str = NONCE) -> LoginGrant:
    code, _ = logins.invite(site.dispatcher, name, roles, ["dune"])
    return site.call("POST", "/v1/login", CodeLogin(code, nonce), LoginGrant, None)


def renew(site: Site, token: str) -> LoginGrant:
    return site.call("POST", "/v1/login:renew", LoginRenewal(token), LoginGrant, None)


def test_a_person_logs_in_with_a_code(site: Site) -> None:
    grant = log_in(site)
    who = whoami(site, grant.access_token)
    assert (who.name, who.roles, who.groups, who.proof) == ("alice", ["user"], ["dune"], "pilotage")
    assert who.expires == grant.expires == site.clock.now() + 3600
    assert audit(site) == [("alice", {"did": "log in"})]


def test_a_code_serves_once_but_a_lost_reply_costs_nothing(site: Site) -> None:
    code, _ = logins.invite(site.dispatcher, "alice", [Role.USER], [])
    first = site.call("POST", "/v1/login", CodeLogin(code, NONCE), LoginGrant, None)
    again = site.call("POST", "/v1/login", CodeLogin(code, NONCE), LoginGrant, None)
    assert again.refresh_token == first.refresh_token
    thief = CodeLogin(code, "nonce-of-a-thief-")
    assert refused(site, "POST", "/v1/login", thief, LoginGrant, None).status == 401
    renew(site, first.refresh_token)
    assert refused(site, "POST", "/v1/login", CodeLogin(code, NONCE), LoginGrant, None).status == 401
    assert len(audit(site)) == 1


def test_codes_that_are_not_good(site: Site) -> None:
    code, expires = logins.invite(site.dispatcher, "alice", [Role.USER], [])
    newer, _ = logins.invite(site.dispatcher, "alice", [Role.USER], [])
    for bad in (code, newer + "x", "plc_x", "x"):
        assert refused(site, "POST", "/v1/login", CodeLogin(bad, NONCE), LoginGrant, None).status == 401
    later(site, expires - site.clock.now())
    assert refused(site, "POST", "/v1/login", CodeLogin(newer, NONCE), LoginGrant, None).status == 401
    with pytest.raises(Invalid):
        logins.invite(site.dispatcher, "alice", [Role.PILOT], [])


def test_a_login_is_renewed_and_a_lost_reply_costs_nothing(site: Site) -> None:
    grant = log_in(site)
    later(site, 3700)
    assert status(site, grant.access_token) == 401
    second = renew(site, grant.refresh_token)
    assert renew(site, grant.refresh_token).refresh_token == second.refresh_token  # the reply was lost
    assert whoami(site, second.access_token).name == "alice"
    third = renew(site, second.refresh_token)
    assert whoami(site, third.access_token).name == "alice"


def test_a_token_that_was_replaced_long_ago_ends_the_login(site: Site) -> None:
    grant = log_in(site)
    second = renew(site, grant.refresh_token)
    later(site, 400)
    assert refused(site, "POST", "/v1/login:renew", LoginRenewal(grant.refresh_token), LoginGrant, None).status == 401
    assert refused(site, "POST", "/v1/login:renew", LoginRenewal(second.refresh_token), LoginGrant, None).status == 401
    with site.database.read() as connection:
        assert connection.execute(select(event.c.subject_id).where(event.c.kind == "LOGIN_REUSED")).scalar() == "alice"


def test_a_token_replaced_twice_ends_the_login_at_once(site: Site) -> None:
    grant = log_in(site)
    third = renew(site, renew(site, grant.refresh_token).refresh_token)
    for token in (grant.refresh_token, third.refresh_token):
        assert refused(site, "POST", "/v1/login:renew", LoginRenewal(token), LoginGrant, None).status == 401


def test_a_login_ends(site: Site) -> None:
    grant = log_in(site)
    site.call("POST", "/v1/logout", LoginRenewal(grant.refresh_token), None, None)
    site.call("POST", "/v1/logout", LoginRenewal(grant.refresh_token), None, None)  # repeated
    assert refused(site, "POST", "/v1/login:renew", LoginRenewal(grant.refresh_token), LoginGrant, None).status == 401
    idle = log_in(site, nonce="nonce-of-another-")
    later(site, 31 * 86400)
    assert refused(site, "POST", "/v1/login:renew", LoginRenewal(idle.refresh_token), LoginGrant, None).status == 401
    assert refused(site, "POST", "/v1/logout", LoginRenewal("plr_nonsense"), None, None).status == 401


def test_roles_change_with_the_next_renewal_and_a_forgotten_person_is_out(site: Site) -> None:
    grant = log_in(site)
    logins.invite(site.dispatcher, "alice", [Role.ADMIN], ["lhcb"])
    second = renew(site, grant.refresh_token)
    assert whoami(site, second.access_token).roles == ["admin"]
    assert whoami(site, second.access_token).groups == ["lhcb"]
    assert logins.forget(site.dispatcher, "alice")
    assert not logins.forget(site.dispatcher, "alice")
    assert refused(site, "POST", "/v1/login:renew", LoginRenewal(second.refresh_token), LoginGrant, None).status == 401


def test_secrets_of_logins_are_not_in_the_database(site: Site) -> None:
    code, _ = logins.invite(site.dispatcher, "alice", [Role.USER], [])
    grant = site.call("POST", "/v1/login", CodeLogin(code, NONCE), LoginGrant, None)
    secrets = (code, grant.refresh_token, grant.access_token, NONCE)
    with site.database.read() as connection:
        for table in metadata.sorted_tables:
            for row in connection.execute(select(table)):
                assert not any(secret in str(value) for value in row for secret in secrets)


# ---------------------------------------------------------------- revocation


def test_a_new_epoch_refuses_all_tokens_of_before(site: Site) -> None:
    site.world()
    site.submit(stage(count=2))
    pilot, user, grant = site.pilot(), site.token("user"), log_in(site)
    job = pilot.acquire()
    pilot.beat(job)
    site.turn("token_epoch", 1)
    later(site, 3)
    for token in (user, grant.access_token, site.token("admin")):
        assert status(site, token) == 401
    beat = site.raw("POST", "/v1/jobs:heartbeat", {"jobs": []}, pilot.grant.token)
    assert (beat.status_code, "revoked" in beat.text) == (401, True)
    # What is minted from now on counts, and so does a login, which is of the database.
    assert whoami(site, logins.mint_token(site.dispatcher, "root", ["admin"], 1e6)).roles == ["admin"]
    assert whoami(site, renew(site, grant.refresh_token).access_token).name == "alice"


def revoke(site: Site, kind: RevocationKind, value: object) -> RevocationView:
    return site.admin("POST", "/v1/revocations", RevocationRequest(kind, str(value), "lost"), RevocationView)


def test_the_tokens_of_a_person_are_revoked(site: Site) -> None:
    grant, other = log_in(site), log_in(site, "bob")
    revoke(site, RevocationKind.PERSON, "alice")
    assert status(site, grant.access_token) == 401
    assert refused(site, "POST", "/v1/login:renew", LoginRenewal(grant.refresh_token), LoginGrant, None).status == 401
    assert whoami(site, other.access_token).name == "bob"
    later(site, 2)
    assert whoami(site, log_in(site, nonce="nonce-of-another-").access_token).name == "alice"
    assert [each.value for each in site.admin("GET", "/v1/revocations", None, RevocationList).items] == ["alice"]


def test_one_token_is_revoked(site: Site) -> None:
    first, second = site.token("user"), site.token("user")
    revoke(site, RevocationKind.TOKEN, site.issuer.verify(first).token_id)
    assert (status(site, first), status(site, second)) == (401, 200)


def test_a_pilots_tokens_are_revoked(site: Site) -> None:
    site.world()
    site.submit(stage(count=2))
    bad, good = site.pilot(), site.pilot()
    revoke(site, RevocationKind.PILOT, bad.id)
    for path in ("/v1/jobs:acquire", "/v1/jobs:heartbeat"):
        assert site.raw("POST", path, {}, bad.grant.token).status_code == 401
    assert good.acquire()
    assert (
        refused(
            site, "POST", "/v1/revocations", {"kind": "pilot", "value": "x", "reason": ""}, None, site.token("admin")
        ).status
        == 400
    )


def test_another_process_knows_of_a_revocation_within_two_seconds(site: Site) -> None:
    other = TestClient(create_application(site.dispatcher))
    token = site.token("user")
    headers = {"Authorization": f"Bearer {token}"}
    assert other.simulate_get("/v1/whoami", headers=headers).status_code == 200
    revoke(site, RevocationKind.PERSON, "user")
    later(site, 2)
    assert other.simulate_get("/v1/whoami", headers=headers).status_code == 401


# ---------------------------------------------------------------- bans


def ban(site: Site, kind: BanKind, name: str, **more: Any) -> BanView:
    return site.admin("POST", "/v1/bans", BanRequest(kind, name, "mines coins", **more), BanView)


def test_a_banned_person_gets_nothing(site: Site) -> None:
    grant = log_in(site)
    made = ban(site, BanKind.USER, "alice")
    assert (made.author, made.reason) == ("admin", "mines coins")
    assert status(site, grant.access_token) == 403
    assert refused(site, "POST", "/v1/login:renew", LoginRenewal(grant.refresh_token), LoginGrant, None).status == 403
    code, _ = logins.invite(site.dispatcher, "alice", [Role.USER], [])
    assert refused(site, "POST", "/v1/login", CodeLogin(code, NONCE), LoginGrant, None).status == 403
    with site.database.read() as connection:
        assert access_store.bans(connection, site.clock.now()).users == {"alice"}
    lifted = site.raw("DELETE", "/v1/bans", token=site.token("admin"), query_string="kind=user&name=alice")
    assert lifted.status_code == 204
    assert whoami(site, grant.access_token).name == "alice"
    again = site.raw("DELETE", "/v1/bans", token=site.token("admin"), query_string="kind=user&name=alice")
    assert again.status_code == 404


def test_a_ban_may_end_by_itself(site: Site) -> None:
    token = site.token("user", "alice")
    ban(site, BanKind.USER, "alice", expires=site.clock.now() + 100)
    assert status(site, token) == 403
    later(site, 103)
    assert status(site, token) == 200
    assert site.admin("GET", "/v1/bans", None, BanList).items == []


def test_bans_of_hosts(site: Site) -> None:
    ban(site, BanKind.HOST, "N1.Example.org")
    ban(site, BanKind.HOST, "bad*.example.org")
    ban(site, BanKind.HOST, "bad*.example.org", expires=site.clock.now() + 1e6)  # changed, not doubled
    with site.database.read() as connection:
        found = access_store.bans(connection, site.clock.now())
    assert found.hosts == {"n1.example.org"}
    assert found.host_patterns == ("bad*.example.org",)
    assert found.bans_host("bad3.example.org")
    assert len(site.admin("GET", "/v1/bans", None, BanList).items) == 2


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"kind": "user", "name": "admin", "reason": ""}, 409),
        ({"kind": "host", "name": "*", "reason": ""}, 400),
        ({"kind": "host", "name": "*.*", "reason": ""}, 400),
        ({"kind": "user", "name": "x", "reason": "", "expires": 5.0}, 400),
        ({"kind": "queue", "name": "x", "reason": ""}, 400),
        ({"kind": "user", "name": "", "reason": ""}, 400),
        ({"kind": "user", "name": "a\nb", "reason": ""}, 400),
        ({"kind": "user", "name": "x"}, 400),
        ({"kind": "user", "name": "x", "reason": "", "until": 1}, 400),
    ],
)
def test_bans_that_make_no_sense(site: Site, body: dict[str, Any], code: int) -> None:
    assert site.raw("POST", "/v1/bans", body, site.token("admin")).status_code == code
    assert site.admin("GET", "/v1/bans", None, BanList).items == []


# ---------------------------------------------------------------- other issuers

MAPPING = """
[[grant]]
issuer = "iam"
group = "/dune/production"
groups = ["dune"]
roles = ["user", "production"]

[[person]]
name = "alice"
identities = ["iam:s-alice", "x509:/DC=org/CN=Alice"]
roles = ["user"]
groups = ["lhcb"]

[[person]]
name = "h7"
identities = ["iam:robot"]
roles = ["harvester"]
"""


NO_GROUPS: dict[str, Any] = {"wlcg.groups": []}


@pytest.fixture
def provider(site: Site) -> Iterator[Provider]:
    made = Provider(site.clock.now)
    yield made
    made.stop()


@pytest.fixture
def outside(site: Site, provider: Provider, tmp_path: Path) -> Site:
    """A server that takes the provider's tokens."""
    path = tmp_path / "people.toml"
    path.write_text(MAPPING)
    issuers = [OidcIssuer(label="iam", issuer=provider.url, audience=["pilotage"], client_id="cli")]
    return configured(site, oidc=issuers, mapping_file=str(path))


def test_people_of_another_issuer(outside: Site, provider: Provider) -> None:
    manager = whoami(outside, provider.token())
    assert (manager.name, manager.roles, manager.groups) == ("iam:s-1", ["production", "user"], ["dune"])
    assert (manager.proof, manager.expires) == ("iam", outside.clock.now() + 600)
    assert whoami(outside, provider.token("s-alice", **NO_GROUPS)).name == "alice"
    assert provider.calls["/jwks"] == 1
    ways = outside.call("GET", "/v1/login", None, LoginWays, None).issuers
    assert [(each.label, each.issuer, each.client_id, each.audience) for each in ways] == [
        ("iam", provider.url, "cli", "pilotage")
    ]


def test_roles_that_another_issuer_claims_count_for_nothing(outside: Site, provider: Provider) -> None:
    claims: dict[str, Any] = {
        "roles": ["admin"],
        "role": "admin",
        "groups": ["admin"],
        "epoch": 99,
        "wlcg.groups": ["admin", "/admin", "/dune"],
        "scope": "admin",
        "realm_access": {"roles": ["admin"]},
    }
    for subject in ("s-1", "admin", "alice", "pilot:1"):
        found = outside.raw("GET", "/v1/whoami", token=provider.token(subject, **claims))
        assert found.status_code == 403
        assert f"iam:{subject} has none" in found.text
    assert status(outside, provider.token("admin", **claims), "/v1/bans") == 403


def test_tokens_of_an_issuer_that_is_not_configured(outside: Site, provider: Provider) -> None:
    stranger = Provider(outside.clock.now)
    try:
        assert status(outside, stranger.token()) == 401
        # Nor one that says that it is of the configured issuer, or of the server itself.
        for issuer in (provider.url, "pilotage"):
            assert status(outside, stranger.token(iss=issuer)) == 401
        assert not stranger.calls
    finally:
        stranger.stop()


def test_the_built_in_issuers_key_signs_for_no_other(outside: Site, provider: Provider) -> None:
    forged = TokenIssuer(KEY, provider.url, outside.clock).mint("s-alice", ["admin"], 1e6)
    assert status(outside, forged) == 401


@pytest.mark.parametrize(
    "claims",
    [{"aud": "x"}, {"exp": 1}, {"nbf": 2_000_000_000}, {"iat": 2_000_000_000}, {"iss": "https://x.org"}, {"sub": None}],
)
def test_tokens_that_are_refused(outside: Site, provider: Provider, claims: dict[str, Any]) -> None:
    assert status(outside, provider.token(**claims)) == 401


@pytest.mark.parametrize(
    "token", ["a.b.c", "..", "e30.e30.", "eyJ.x.y", "W10.W10.AA", "x" * 20_000, "é.é.é", "a.b.c.d.e"]
)
def test_what_is_no_token(outside: Site, token: str) -> None:
    assert status(outside, token) == 401


def test_a_verified_token_is_remembered_but_not_beyond_its_end_nor_for_ever(outside: Site, provider: Provider) -> None:
    token = provider.token(exp=int(outside.clock.now()) + 200)
    assert status(outside, token) == 200
    provider.keys = {}
    provider.add_key("two")
    assert status(outside, token) == 200
    later(outside, 262)
    assert status(outside, token) == 401
    lasting = provider.token(kid="two", exp=int(outside.clock.now()) + 10**6)
    assert status(outside, lasting) == 200
    provider.keys = {}
    provider.add_key("three")
    later(outside, 3700)  # the keys are old, too
    assert status(outside, lasting) == 401


def test_a_remembered_token_is_refused_as_soon_as_its_bearer_is_banned_or_revoked(
    outside: Site, provider: Provider
) -> None:
    token = provider.token()
    assert status(outside, token) == 200
    ban(outside, BanKind.USER, "iam:s-1")
    assert status(outside, token) == 403
    outside.raw("DELETE", "/v1/bans", token=outside.token("admin"), query_string="kind=user&name=iam:s-1")
    assert status(outside, token) == 200
    revoke(outside, RevocationKind.TOKEN, "t-1")
    assert status(outside, token) == 401


def test_keys_that_cannot_be_had_are_no_reason_to_refuse(outside: Site, provider: Provider) -> None:
    provider.answers["/jwks"] = lambda: (503, {}, b"{}")
    result = outside.raw("GET", "/v1/whoami", token=provider.token())
    assert (result.status_code, result.headers["retry-after"]) == (503, "1")


def test_a_harvester_of_another_issuer_reports_as_itself_only(outside: Site, provider: Provider) -> None:
    outside.world()
    token = provider.token("robot")
    report = [WorkerReport("mark-0001", "q", WorkerState.PLANNED, secret_hash="0" * 64)]
    good = outside.raw("POST", "/v1/workers:report", WorkersReportRequest("h7", report), token)
    assert good.status_code == 200
    assert outside.raw("POST", "/v1/workers:report", WorkersReportRequest("h8", report), token).status_code == 403


def test_issuers_that_cannot_be_told_apart(site: Site, provider: Provider) -> None:
    one = OidcIssuer(label="a", issuer=provider.url, audience=["x"])
    for others in (
        [one, OidcIssuer(label="a", issuer="https://other.example.org", audience=["x"])],
        [one, OidcIssuer(label="b", issuer=provider.url, audience=["x"])],
    ):
        with pytest.raises(ConfigError):
            configured(site, oidc=others)
    with pytest.raises(ConfigError):
        Access(
            Dispatcher(site.database, TokenIssuer(KEY, provider.url, site.clock), ServerConfig(oidc=[one]), site.clock)
        )


# ---------------------------------------------------------------- the front end

SECRET = "f" * 40


@pytest.fixture
def fronted(site: Site, tmp_path: Path) -> Site:
    secret, mapping = tmp_path / "secret", tmp_path / "people.toml"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    mapping.write_text(
        MAPPING.replace('issuer = "iam"', 'issuer = "x509"')
        .replace('"iam:s-alice", ', "")
        .replace("iam:robot", "x509:/CN=r")
    )
    return configured(site, front_end=FrontEnd(secret_file=str(secret)), mapping_file=str(mapping))


def passed(site: Site, headers: dict[str, str], path: str = "/v1/whoami", **more: Any) -> Result:
    return site.client.simulate_get(path, headers=headers, **more)


def sealed(value: str) -> str:
    return f"{SECRET} {value} {SECRET}"


GOOD = {"X-Client-Verify": sealed("SUCCESS"), "X-Client-Subject": sealed("/DC=org/CN=Alice")}


def test_a_certificate_that_the_front_end_verified(fronted: Site) -> None:
    found = msgspec.json.decode(passed(fronted, GOOD).content, type=Whoami)
    assert (found.name, found.roles, found.groups, found.proof) == ("alice", ["user"], ["lhcb"], "x509")
    voms = {**GOOD, "X-Client-Subject": sealed("/CN=Bob"), "X-Client-Fqans": sealed("/dune/production")}
    found = msgspec.json.decode(passed(fronted, voms).content, type=Whoami)
    assert (found.name, found.roles, found.groups) == ("x509:/CN=Bob", ["production", "user"], ["dune"])
    assert passed(fronted, {**GOOD, "X-Client-Subject": sealed("/CN=Bob")}).status_code == 403
    assert passed(fronted, {**GOOD, "X-Client-Verify": sealed("NONE")}).status_code == 401
    ban(fronted, BanKind.USER, "alice")
    assert passed(fronted, GOOD).status_code == 403


def test_the_front_ends_headers_from_somebody_else(fronted: Site) -> None:
    for headers in (
        {"X-Client-Subject": "/DC=org/CN=Alice"},
        {"X-Client-Verify": "SUCCESS", "X-Client-Subject": "/DC=org/CN=Alice"},
        {**GOOD, "X-Client-Subject": "/DC=org/CN=Alice"},
        {**GOOD, "x_client_subject": "/DC=org/CN=Alice"},  # over WSGI the same header: the later one replaces
        {**GOOD, "X-Client-Fqans": "/dune/production"},
    ):
        for path in ("/v1/whoami", "/healthz"):
            assert passed(fronted, headers, path).status_code == 403, headers
        with_token = {**headers, "Authorization": f"Bearer {fronted.token('admin')}"}
        assert passed(fronted, with_token).status_code == 403
    assert passed(fronted, GOOD, remote_addr="10.1.2.3").status_code == 403


def test_a_token_goes_before_a_certificate(fronted: Site) -> None:
    headers = {**GOOD, "Authorization": f"Bearer {fronted.token('user', 'bob')}"}
    assert msgspec.json.decode(passed(fronted, headers).content, type=Whoami).name == "bob"
    assert passed(fronted, {**GOOD, "Authorization": "Bearer nonsense"}).status_code == 401


def test_without_a_front_end_its_headers_are_nobody(site: Site) -> None:
    assert passed(site, GOOD).status_code == 401
    assert passed(site, {"X-Client-Verify": "SUCCESS", "X-Client-Subject": "/DC=org/CN=Alice"}).status_code == 401


# ---------------------------------------------------------------- groups


def person(site: Site, name: str, role: str = "user", *groups: str) -> str:
    return site.issuer.mint(name, [role], 1e6, groups=list(groups))


def submit(site: Site, token: str, group: str | None = None, **more: Any) -> int:
    request = WorkflowRequest(name="w", stages=[stage(count=1, **more)], group=group)
    return site.call("POST", "/v1/workflows", request, WorkflowView, token).tasks[0].id


def test_isolation_hides_what_is_other_groups(site: Site) -> None:
    site.world()
    alice, bob, eve = person(site, "alice", "user", "dune"), person(site, "bob", "user", "dune"), person(site, "eve")
    shared, own = submit(site, alice, "dune"), submit(site, alice)
    site.agents()
    pilot = site.pilot()
    job = pilot.acquire()
    everything = {shared, own}

    def seen(token: str) -> set[int]:
        page = site.call("GET", "/v1/workflows", None, WorkflowPage, token)
        tasks = site.raw("GET", "/v1/tasks", token=token).json.get("items", [])
        assert {task.id for each in page.items for task in each.tasks} == {task["id"] for task in tasks}
        return {task["id"] for task in tasks}

    assert seen(eve) == seen(bob) == everything
    site.turn("isolation", "group")
    assert seen(alice) == seen(site.token("admin")) == everything
    assert seen(bob) == {shared}
    assert seen(eve) == set()
    paths = [f"/v1/tasks/{own}", f"/v1/tasks/{own}/units", f"/v1/tasks/{own}/outputs", f"/v1/tasks/{own}/why"]
    for path in paths:
        assert status(site, alice, path) == 200
        for token in (bob, eve):
            result = site.raw("GET", path, token=token)
            assert (result.status_code, result.json["type"]) == (404, "pilotage:not-found")
    jobs = {
        name: site.raw("GET", "/v1/jobs", token=token).json.get("items", [])
        for name, token in (("a", alice), ("e", eve))
    }
    assert ([each["id"] for each in jobs["a"]], jobs["e"]) == ([job.job_id], [])
    assert (status(site, alice, f"/v1/jobs/{job.job_id}"), status(site, eve, f"/v1/jobs/{job.job_id}")) == (200, 404)
    hidden = site.raw("GET", "/v1/jobs", token=eve, query_string=f"task={job.task_id}")
    assert hidden.status_code == 404
    assert status(site, eve, f"/v1/tasks/{own}:command", "POST", TaskCommand("kill")) == 404
    assert pilot.beat(job)  # pilots are no people
    later(site, 5)
    told = {}
    for name, token in (("alice", alice), ("bob", bob), ("eve", eve)):
        reply = site.raw("GET", "/v1/queues/q/why", token=token).json
        told[name] = {each["task_id"] for each in (*reply.get("refusals", []), *reply.get("matched", []))}
    waiting = everything - {job.task_id}
    assert told == {"alice": waiting, "bob": waiting & {shared}, "eve": set()}


def test_a_production_manager_commands_the_groups_tasks(site: Site) -> None:
    site.world()
    task = submit(site, person(site, "alice", "user", "dune"), "dune")
    path = f"/v1/tasks/{task}:command"
    for token in (person(site, "bob", "user", "dune"), person(site, "carol", "production", "lhcb")):
        assert status(site, token, path, "POST", TaskCommand("pause")) == 403
    manager = person(site, "dave", "production", "dune")
    assert site.call("POST", path, TaskCommand("pause"), TaskView, manager).state.value == "paused"


def test_nobody_submits_for_a_group_that_is_not_theirs(site: Site) -> None:
    site.world()
    with pytest.raises(Refused) as error:
        submit(site, person(site, "alice", "user", "dune"), "lhcb")
    assert (error.value.status, error.value.paths) == (403, ["$.group"])
    assert submit(site, person(site, "bob"), "lhcb")  # a small installation knows no groups
    site.turn("isolation", "group")
    with pytest.raises(Refused):
        submit(site, person(site, "bob"), "lhcb")
    assert submit(site, site.token("admin"), "lhcb")


def test_priorities_and_shares_of_production(site: Site) -> None:
    site.world()
    user, manager = person(site, "alice"), person(site, "bob", "production")
    with pytest.raises(Refused) as error:
        submit(site, user, priority=1000)
    assert (error.value.status, error.value.paths) == (403, ["$.stages[0].priority"])
    assert submit(site, manager, priority=1000)
    assert submit(site, user, priority=999)
    site.turn("production_shares", ["default"])
    with pytest.raises(Refused) as error:
        submit(site, user)
    assert error.value.paths == ["$.stages[0].share"]
    assert submit(site, manager)


@pytest.mark.parametrize(
    ("key", "value"),
    [("isolation", "on"), ("token_epoch", -1), ("token_epoch", 1.5), ("production_shares", "x"), ("login_s", 0)],
)
def test_settings_of_access_that_make_no_sense(site: Site, key: str, value: object) -> None:
    assert site.raw("PUT", f"/v1/settings/{key}", {"value": value}, site.token("admin")).status_code == 400


# ---------------------------------------------------------------- limits


def test_too_many_requests(site: Site) -> None:
    configured(site, limits=Limits(person=RoleLimit(1.0, 3.0), anybody=RoleLimit(1.0, 2.0, 1)))
    alice, bob = person(site, "alice"), person(site, "bob")
    assert [status(site, alice) for _ in range(4)] == [200, 200, 200, 429]
    result = site.raw("GET", "/v1/whoami", token=alice)
    assert (result.headers["retry-after"], result.json["type"]) == ("1", "pilotage:too-many-requests")
    assert status(site, bob) == 200
    assert [status(site, None, "/healthz") for _ in range(3)] == [200, 200, 429]
    # A caller that may not call a route spends as well.
    assert [status(site, bob, "/v1/bans") for _ in range(3)] == [403, 403, 429]
    later(site, 2)
    assert status(site, alice) == 200


def test_bodies_are_limited_by_role(site: Site) -> None:
    site.world()
    configured(site, limits=Limits(person=RoleLimit(0, 0, 2), anybody=RoleLimit(0, 0, 1), pilot=RoleLimit(0, 0, 1)))
    large = b'{"x": "' + b"a" * (1536 * 1024) + b'"}'
    pilot = site.pilot()
    assert site.raw("POST", "/v1/jobs:heartbeat", large, pilot.grant.token).status_code == 413
    assert site.raw("POST", "/v1/login", large).status_code == 413
    assert site.raw("POST", "/v1/workflows", large, site.token("user")).status_code == 400
    assert site.raw("POST", "/v1/workflows", large + large, site.token("user")).status_code == 413


# ---------------------------------------------------------------- audit


def test_every_change_by_a_person_is_on_record(site: Site) -> None:
    site.world()
    before = len(audit(site))
    assert before == 3  # site, storage and queue
    task = submit(site, person(site, "alice"))
    site.command(task, "pause", name="alice")
    ban(site, BanKind.HOST, "n1")
    site.raw("DELETE", "/v1/bans", token=site.token("admin"), query_string="kind=host&name=n1")
    found = audit(site)[before:]
    assert [(who, what["method"], what["route"]) for who, what in found] == [
        ("alice", "POST", "/v1/workflows"),
        ("alice", "POST", "/v1/tasks/{task_id}:command"),
        ("admin", "POST", "/v1/bans"),
        ("admin", "DELETE", "/v1/bans"),
    ]
    assert found[0][1]["made"] == 1
    assert found[1][1]["task_id"] == str(task)
    assert (found[2][1]["name"], found[3][1]["name"]) == ("n1", "n1")
    assert found[0][1]["address"] == "127.0.0.1"


def test_what_changed_nothing_is_not_on_record(site: Site) -> None:
    site.world()
    before = audit(site)
    task = site.submit(stage(count=2))[0]
    submitted = len(audit(site))
    assert submitted == len(before) + 1
    assert status(site, person(site, "eve"), f"/v1/tasks/{task}:command", "POST", TaskCommand("kill")) == 403
    assert status(site, site.token("user"), "/v1/workflows", "POST", {"name": "x"}) == 400
    assert status(site, site.token("user"), "/v1/tasks") == 200
    pilot = site.pilot()  # programs are not people
    pilot.beat(pilot.acquire())
    assert len(audit(site)) == submitted
