"""A server with aCT's face on, and a person who delegates to it, as the tests of direct jobs need them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Optional

from falcon.testing import Result

from common.clock import FrozenClock
from common.proxies import sign_proxy
from common.states import WorkerState
from common.wire.direct import (
    DirectAcquireReply,
    DirectAcquireRequest,
    DirectInstruction,
    DirectOrder,
    DirectOutcome,
    DirectPlace,
    DirectReport,
    DirectReportReply,
    DirectReportRequest,
    Language,
)
from server.compat.settings import ActSettings, Compat
from server.config import ServerConfig
from server.dispatch import direct
from server.engine.access import Caller, Role
from server.store import delegations
from server.store.delegations import ProxyRow
from server.store.direct import Described
from tests.integration.server.harness import Site
from tests.services.certificates import Authority, Issued

CLUSTER = "https://ce.example.org/grid"
PLACE = DirectPlace("q", "https://ce.example.org:443/arex", "grid")
HARVESTER = "harvester"
XRSL = '&(executable="/bin/sh")(arguments="run.sh")(jobname="{}")(stdout="out.txt")(stderr="err.txt")'
LIFE_S = 12 * 3600.0


def credential_of(person: Issued) -> str:
    """Certificate and key (PEM)."""
    return (person.certificate_pem + person.key_pem).decode()


class ActSite(Site):
    """A server whose people Alice and Bob are mapped; Carol has a certificate and is nobody here."""

    def __init__(self, url: str, folder: Path, authority: Authority) -> None:
        mapping = folder / "mapping.toml"
        mapping.write_text(
            "".join(
                f'[[person]]\nname = "{name.lower()}"\nidentities = ["x509:/DC=pilotage/CN={name}"]\nroles = ["user"]\n'
                for name in ("Alice", "Bob")
            )
        )
        compat = Compat(act=ActSettings(on=True, authorities=str(authority.folder)))
        config = ServerConfig(mapping_file=str(mapping), compat=compat, state_dir=str(folder))
        super().__init__(url, FrozenClock(time.time()), config)
        self.authority = authority
        self.people: dict[str, Issued] = {}

    def person(self, name: str) -> Issued:
        """A person's certificate, made once."""
        if name not in self.people:
            self.people[name] = self.authority.person(name)
        return self.people[name]

    def act(self, method: str, path: str, body: Any = None, token: Optional[str] = None, **more: Any) -> Result:
        """A call as ``act`` makes it."""
        return self.raw(method, path, body, token, **more)

    def begin(self, name: str) -> dict[str, str]:
        """The first half of delegating."""
        person = self.person(name)
        answer = self.act("POST", "/proxies", {"cert": person.certificate_pem.decode(), "chain": ""})
        assert answer.status_code == 200, answer.text
        return dict(answer.json)

    def delegate(self, name: str, life_s: float = LIFE_S) -> str:
        """Both halves; the token that is good for everything."""
        begun = self.begin(name)
        signed = sign_proxy(begun["csr"], credential_of(self.person(name)), life_s, self.dispatcher.now())
        answer = self.act("PUT", "/proxies", {"cert": signed.chain, "chain": ""}, begun["token"])
        assert answer.status_code == 200, answer.text
        return str(answer.json["token"])

    def known(self, name: str) -> str:
        """The same as :meth:`delegate` for whom it does not matter what lies behind the token: no key is made."""
        subject = f"/DC=pilotage/CN={name}"
        now = self.dispatcher.now()
        with self.database.write() as connection:
            if delegations.of_subject(connection, subject) is None:
                number = delegations.add(connection, "s", now + LIFE_S, now)
                delegations.prove(connection, ProxyRow(number, subject, b"", "s", now + LIFE_S))
        return self.issuer.mint(subject, [], LIFE_S, x509=subject, epoch=0)

    def serve(self) -> None:
        """A harvester serves the place."""
        self.world()
        self.acquire(0)

    def acquire(self, most: int = 100, name: str = HARVESTER) -> list[DirectOrder]:
        """A harvester's orders."""
        body = DirectAcquireRequest(name, [PLACE], most)
        token = self.token("harvester", name)
        return self.call("POST", "/v1/direct:acquire", body, DirectAcquireReply, token).jobs

    def report(self, *said: DirectReport, name: str = HARVESTER) -> list[DirectOutcome]:
        """What a harvester says of its runs."""
        body = DirectReportRequest(name, list(said))
        token = self.token("harvester", name)
        return self.call("POST", "/v1/direct:report", body, DirectReportReply, token).jobs

    def say(self, mark: str, state: WorkerState, **more: Any) -> DirectInstruction:
        """The same of one run, which must be accepted; what is to be done next."""
        (outcome,) = self.report(DirectReport(mark, state, **more))
        assert outcome.accepted, outcome.reason
        return outcome.instruction

    def hand_in(self, token: str, *names: str) -> list[int]:
        """Jobs, described."""
        made = self.act("POST", "/jobs", [{"clusterlist": [CLUSTER]}] * len(names), token).json
        ids = [each["id"] for each in made]
        body = [{"id": number, "desc": XRSL.format(name)} for number, name in zip(ids, names)]
        answer = self.act("PUT", "/jobs", body, token)
        assert [each.get("id") for each in answer.json] == ids, answer.text
        self.agents()
        return ids

    def run(self, token: str, name: str = "job") -> tuple[int, DirectOrder]:
        """A job that harvester was given."""
        (number,) = self.hand_in(token, name)
        order = next(each for each in self.acquire() if f'"{name}"' in each.description)
        return number, order

    def state(self, token: str, number: int) -> Optional[str]:
        """aCT's word for a job."""
        (found,) = self.act("GET", "/jobs", token=token, params={"id": str(number), "arc": "arcstate"}).json
        return found["a_arcstate"]  # type: ignore[no-any-return]

    def result(self, mark: str, path: str, content: bytes, name: str = HARVESTER) -> Result:
        """A file that a run left."""
        return self.raw(
            "PUT", f"/v1/direct/{mark}/results", content, self.token("harvester", name), params={"path": path}
        )


def direct_order(site: Site, harvester: str = HARVESTER, *, claimed: bool = True) -> Optional[DirectOrder]:
    """A direct job of somebody with a proxy of no use, in any site; the order that a harvester got, if it asked."""
    caller = Caller("u", frozenset({Role.USER}), proof="x509", subject="/CN=u")
    token = site.token("harvester", harvester)

    def acquire(most: int) -> list[DirectOrder]:
        body = DirectAcquireRequest(harvester, [PLACE], most)
        return site.call("POST", "/v1/direct:acquire", body, DirectAcquireReply, token).jobs

    acquire(0)
    now = site.dispatcher.now()
    with site.database.write() as connection:
        if delegations.of_subject(connection, "/CN=u") is None:
            number = delegations.add(connection, "s", now + LIFE_S, now)
            delegations.prove(connection, ProxyRow(number, "/CN=u", b"", "s", now + LIFE_S))
    number = direct.create(site.dispatcher, caller, [CLUSTER])
    direct.upload(site.dispatcher, caller, number, "run.sh", iter([b"echo"]))
    described = Described(XRSL.format("job"), Language.XRSL, "job", "out.txt", "err.txt")
    direct.describe(site.dispatcher, caller, number, described, {"run.sh"})
    site.agents()
    return acquire(100)[-1] if claimed else None
