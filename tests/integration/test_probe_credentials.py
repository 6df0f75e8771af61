"""A probe's whole life with credentials: the pilot fetches tokens for what it probes, and a real storage verifies them."""

from __future__ import annotations

from common.wire import CredentialKind, Endpoint, KnownFile, ProbeRequest, ProbeTable, StorageSpec
from server.agents.probes import probe_sites
from tests.integration.test_storage_credentials import DATA, TOKEN, Issuing, issuing

__all__ = ["issuing"]


def test_real_xrootd_a_probe_shows_tokens_that_the_server_mints(issuing: Issuing) -> None:
    issuing.describe(issuing.storage, False, audience=issuing.storage.audience, **TOKEN)
    site, url = issuing.site, f"{issuing.storage.url}/data"
    token = Endpoint(url, audience=issuing.storage.audience, credential=CredentialKind.TOKEN, provider="wlcg")
    known = KnownFile(path="in/c.dat", size=len(DATA))
    for name, way in (("disk", token), ("bare", Endpoint(f"{url}/bare", credential=CredentialKind.NONE))):
        spec = StorageSpec(name=name, site="s", endpoints=[way], probe_file=known)
        site.admin("PUT", f"/v1/storages/{name}", spec)
    site.put_queue("q", copytools=["xrootd"], wall_s=1200, trusted=False)
    site.admin("POST", "/v1/probes", ProbeRequest("s"), ProbeTable)
    probe_sites(site.dispatcher)
    site.agents()
    log = issuing.run_pilot()
    table = site.user("GET", "/v1/probes", reply=ProbeTable)
    found = {(each.storage, each.operation.value): each.ok for each in table.results}
    assert found == {("disk", "read"): True, ("disk", "write"): True, ("bare", "read"): False, ("bare", "write"): False}
    given = issuing.given()
    assert given and not any(each["payload"] for each in given)
    scopes = {scope for each in given for scope in each["scopes"]}
    assert all(scope.partition(":")[2].startswith(("/data/pilotage-probes/s", "/data/in/c.dat")) for scope in scopes)
    assert not any(scope == "storage.modify:/data/in/c.dat" for scope in scopes)
    assert "eyJ" not in log, "a token in the pilot's log"
