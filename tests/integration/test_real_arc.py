"""The ARC backend against a real CE: what the CE does to workers, and what a crash of harvester leaves."""

from __future__ import annotations

import re
import stat
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomllib
from cryptography import x509

from common.clock import SystemClock
from common.states import WorkerState
from harvester.backends import arc_rest
from harvester.backends.arc import ArcBackend
from harvester.backends.arc_rest import Action, ArcRest, ArcUnreachable, Item
from harvester.backends.base import BackendError, LogKeeper, SubmitResult, WorkerRef
from harvester.config import HarvesterConfig, QueueConfig, check
from tests.contract.rigs_arc import ArcRig
from tests.harvester_world import config
from tests.integration.crash_matrix import Harvester, as_table, crash_matrix
from tests.services.arc import QUEUE as FORK
from tests.services.arc import ArcCe
from tests.services.base import wait_until
from tests.services.certificates import write_proxy

W = WorkerState
ADL = """<?xml version="1.0"?>
<ActivityDescription xmlns="http://www.eu-emi.eu/es/2010/12/adl">
<ActivityIdentification><Name>{{ mark }}</Name></ActivityIdentification>
<Application><Executable><Path>{{ programs[0] }}</Path></Executable><Output>stdout</Output><Error>stderr</Error></Application>
<Resources><QueueName>{{ submit.queue }}</QueueName></Resources>
<DataStaging>
{% for name in inputs %}<InputFile><Name>{{ name }}</Name></InputFile>{% endfor %}
<OutputFile><Name>stdout</Name></OutputFile><OutputFile><Name>stderr</Name></OutputFile>
</DataStaging></ActivityDescription>"""


@pytest.fixture
def rig(arc_ce: ArcCe, tmp_path: Path) -> Iterator[ArcRig]:
    """A rig; the jobs of all tests before are gone."""
    made = ArcRig(tmp_path, arc_ce)
    yield made
    made.close()


class Later(SystemClock):
    """A clock that is some time ahead."""

    def __init__(self, ahead_s: float) -> None:
        super().__init__()
        self.ahead_s = ahead_s

    def now(self) -> float:
        return super().now() + self.ahead_s


def rest_of(backend: ArcBackend) -> ArcRest:
    return backend._rest


def kept(ce: ArcCe, job: str, name: str) -> Path:
    """A file of what A-REX keeps of a job: its id in parts of three letters, and what is left."""
    parts = [job[start : start + 3] for start in (0, 3, 6)]
    return ce.folder / "control/jobs" / Path(*parts) / job[9:] / name


def names(rig: ArcRig) -> list[tuple[str, str]]:
    """Each job that the CE lists, with its name as its description says."""
    found = []
    for job in rest_of(rig.restarted()).list_jobs():
        with suppress(FileNotFoundError):
            mark = re.search(r"[0-9a-f]{32}", kept(rig.ce, job, "description").read_text())
            found.append((job, mark[0] if mark else ""))
    return found


def listed(rig: ArcRig, mark: str) -> list[str]:
    """The jobs that bear a name."""
    return [job for job, name in names(rig) if name == mark]


# ---------------------------------------------------------------- what a worker gets, and leaves


def test_what_a_worker_gets_and_leaves(rig: ArcRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig, "script", lambda how: {"good": 'cat "$1"; id -un; echo bad >&2', "bad": "exit 7"}[how])
    good, bad = rig.submit(rig.spec("good", COLOUR="green"), rig.spec("bad"))
    session = rig.ce.session(good.batch_id)
    assert stat.S_IMODE((session / "secret").stat().st_mode) == 0o600
    assert rig.until(good, W.FINISHED, W.FAILED).state is W.FINISHED
    ended = rig.until(bad, W.FINISHED, W.FAILED)
    assert (ended.state, ended.exit_code) == (W.FAILED, 7)
    assert "wrong exit code - 7" in ended.reason
    assert ended.host
    homes = {ref: rig.folder / "home" / ref.mark for ref in (good, bad)}
    assert rig.backend.fetch_logs(homes) == {}
    assert (homes[good] / "stdout").read_text().split() == ["pls_test-secret-value", "grid"]
    assert (homes[good] / "stderr").read_text() == "bad\n"
    assert not (homes[good] / "failed").exists()
    assert "LRMS error: (7)" in (homes[bad] / "failed").read_text()
    assert "fork_job" in (homes[bad] / "errors").read_text()
    assert f"jobname={bad.mark}" in (homes[bad] / "local").read_text()
    for name in ("description", "local", "errors"):
        assert b"pls_test" not in kept(rig.ce, good.batch_id, name).read_bytes()
    assert rig.backend.backlog({"queue": FORK}).running >= 0
    rig.backend.clean([good, bad])
    rig.backend.clean([good, bad])
    assert not list((rig.folder / "workers").iterdir())
    stranger = rig.backend.fetch_logs({good: rig.folder / "none"})
    assert stranger == {} or "nothing of it" in stranger[good.mark]


def test_a_killed_worker_is_told_as_such(rig: ArcRig) -> None:
    (stay,) = rig.submit(rig.spec())
    rig.until(stay, W.RUNNING)
    restarted = rest_of(rig.backend).ask(Action.RESTART, [stay.batch_id])
    assert "has not failed" in restarted[stay.batch_id].words
    assert rig.backend.kill([stay]) == {}
    ended = rig.until(stay, W.FAILED, W.CANCELLED)
    assert (ended.state, ended.native, ended.reason) == (W.CANCELLED, "KILLED", "ended on demand")


def test_a_failed_stage_in_is_told_in_words(rig: ArcRig) -> None:
    template = rig.folder / "own.j2"
    shipped = (Path(arc_rest.__file__).parents[1] / "templates/arc.xrsl.j2").read_text()
    absent = f'("data" "{rig.ce.url}/rest/1.1/no-such-thing")'
    template.write_text(shipped.replace("(inputFiles=", f"(inputFiles={absent}"))
    rig.submit_options = {"queue": FORK, "template": str(template)}
    (ref,) = rig.submit(rig.spec())
    ended = rig.until(ref, W.FAILED, W.FINISHED)
    assert (ended.state, ended.exit_code) == (W.FAILED, None)
    assert "data" in ended.reason.lower()


def test_descriptions_in_adl(rig: ArcRig) -> None:
    template = rig.folder / "own.j2"
    template.write_text(ADL)
    adl = {"queue": FORK, "template": str(template)}
    rig.backend.check_submit(adl)
    rig.submit_options = adl
    specs = [rig.spec("good"), rig.spec("good")]
    rig.submit_options = {"queue": FORK}
    first, other, second = rig.submit(specs[0], rig.spec("bad"), specs[1])
    for ref, state in ((first, W.FINISHED), (other, W.FAILED), (second, W.FINISHED)):
        assert rig.until(ref, W.FINISHED, W.FAILED).state is state


def test_version_1_0_of_the_interface(rig: ArcRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arc_rest, "VERSIONS", ("1.0",))
    rig.backend = rig.restarted()
    assert rest_of(rig.backend).version() == "1.0"
    good, stay = rig.submit(rig.spec("good"), rig.spec())
    assert rig.backend.find_by_marks([good.mark]) == {good.mark: good}
    rig.until(good, W.FINISHED)
    assert rig.backend.kill([stay]) == {}
    rig.until(stay, W.CANCELLED)


def test_bearer_tokens(rig: ArcRig) -> None:
    token = rig.folder / "token"
    token.touch(0o600)
    minted, _ = rig.ce.issuer.signer.mint(
        rig.ce.issuer.url, "robot", "any", ["compute.create"], 600, SystemClock().now()
    )
    token.write_text(minted)
    rig.options.update(proxy_file=None, token_file=str(token))
    rig.backend = rig.restarted()
    (ref,) = rig.submit(rig.spec("good"))
    rig.until(ref, W.FINISHED)
    token.chmod(0o644)
    with pytest.raises(BackendError, match="chmod 600"):
        rig.backend.status([ref])
    token.chmod(0o600)
    token.write_text("nobody-knows-it")
    with pytest.raises(BackendError, match="403"):
        rig.backend.status([ref])


# ---------------------------------------------------------------- half answers


def test_one_of_a_bulk_submission_is_refused(rig: ArcRig) -> None:
    fine = rig.spec()
    rig.submit_options = {"queue": "nowhere"}
    wrong = rig.spec()
    first, second = rig.backend.submit([wrong, fine])
    assert (first.result, second.result) == (SubmitResult.REFUSED, SubmitResult.ACCEPTED)
    assert "nowhere" in first.reason


def test_files_that_cannot_be_stored_leave_no_job(rig: ArcRig, monkeypatch: pytest.MonkeyPatch) -> None:
    create = ArcRest.create

    def full(self: ArcRest, *what: Any) -> list[Item]:
        items = create(self, *what)
        for item in items:
            rig.ce.session(item.job).chmod(0o500)
        return items

    monkeypatch.setattr(ArcRest, "create", full)
    spec = rig.spec()
    (outcome,) = rig.backend.submit([spec])
    assert outcome.result is SubmitResult.REFUSED
    assert "can't be stored" in outcome.reason
    monkeypatch.undo()
    assert rig.restarted().find_by_marks([spec.mark]) == {}
    (again,) = rig.submit(spec)
    assert rig.restarted().find_by_marks([spec.mark]) == {spec.mark: again}


def test_a_job_without_its_files_gets_them_when_it_is_looked_up(rig: ArcRig, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = ArcRest.upload

    def broken(self: ArcRest, job: str, name: str, source: Path) -> None:
        if name == "secret":
            raise ArcUnreachable("the connection broke")
        upload(self, job, name, source)

    monkeypatch.setattr(ArcRest, "upload", broken)
    spec = rig.spec("good")
    (outcome,) = rig.backend.submit([spec])
    assert outcome.result is SubmitResult.UNKNOWN
    monkeypatch.undo()
    later = rig.restarted()
    ref = later.find_by_marks([spec.mark])[spec.mark]
    rig.until(ref, W.FINISHED)
    (same,) = later.submit([spec])
    assert (same.result, same.batch_id) == (SubmitResult.ACCEPTED, ref.batch_id), "it is there already"
    assert len(listed(rig, spec.mark)) == 1


def test_a_job_of_the_same_name_that_came_late_is_ended(rig: ArcRig) -> None:
    spec = rig.spec()
    (first,) = rig.submit(spec)
    (rig.folder / "workers" / spec.mark / "sent").unlink()
    (second,) = rig.submit(spec)
    assert len(listed(rig, spec.mark)) == 2
    found = rig.restarted().find_by_marks([spec.mark])[spec.mark]
    other = {first.batch_id: second, second.batch_id: first}[found.batch_id]
    assert found.batch_id in (first.batch_id, second.batch_id)
    twin = WorkerRef("twin", other.batch_id)
    wait_until(lambda: rig.backend.status([twin])["twin"].state not in (W.SUBMITTED, W.RUNNING), "the twin ends")
    assert rig.restarted().find_by_marks([spec.mark]) == {spec.mark: found}


# ---------------------------------------------------------------- down, and credentials


def test_a_ce_that_is_down_changes_nothing(rig: ArcRig) -> None:
    stay, good = rig.submit(rig.spec(), rig.spec("good"))
    rig.until(good, W.FINISHED)
    rig.until(stay, W.RUNNING)
    with rig.ce.outage():
        for call in (
            lambda: rig.backend.status([stay]),
            lambda: rig.backend.find_by_marks([stay.mark]),
            lambda: rig.backend.kill([stay]),
            lambda: rig.backend.fetch_logs({good: rig.folder / "home"}),
            lambda: rig.backend.backlog({}),
        ):
            with pytest.raises(BackendError, match="refused"):
                call()
        rig.backend.clean([])
        (outcome,) = rig.backend.submit([rig.spec()])
        assert outcome.result is SubmitResult.UNKNOWN
    statuses = rig.backend.status([stay, good])
    assert statuses[good.mark].state is W.FINISHED
    assert rig.backend.find_by_marks([stay.mark, outcome.mark]) == {stay.mark: stay}
    assert statuses[stay.mark].state in (W.RUNNING, W.FAILED)


def delegated(rig: ArcRig, job: str) -> tuple[str, datetime]:
    """The delegation that a job has, and when what the CE holds of it ends."""
    names_of: list[str] = []

    def told() -> bool:
        """A-REX writes the file anew now and then: who looks just then finds nothing in it, or no file."""
        with suppress(FileNotFoundError):
            lines = kept(rig.ce, job, "local").read_text().splitlines()
            names_of[:] = [line.partition("=")[2] for line in lines if line.startswith("delegationid=")]
        return bool(names_of)

    wait_until(told, "A-REX tells of the job's delegation")
    (name,) = names_of
    rest = rest_of(rig.restarted())
    chain = rest._call("POST", rest._path("delegations", name), {"action": "get"}).content
    return name, x509.load_pem_x509_certificates(chain)[0].not_valid_after_utc


def test_one_delegation_for_all_is_renewed_before_its_end(rig: ArcRig) -> None:
    rig.options.update(delegation_s=1000.0, renew_before_s=400.0)
    rig.backend = rig.restarted()
    (first,) = rig.submit(rig.spec())
    rig.backend = rig.restarted()
    (second,) = rig.submit(rig.spec())
    name, ends = delegated(rig, first.batch_id)
    assert delegated(rig, second.batch_id) == (name, ends), "made once, for all"
    ArcBackend.create(rig.options, rig.folder, Later(300)).status([first])
    assert delegated(rig, first.batch_id) == (name, ends), "not yet due"
    ArcBackend.create(rig.options, rig.folder, Later(700)).status([first])
    renewed = delegated(rig, first.batch_id)
    assert renewed[0] == name
    assert timedelta(seconds=690) < renewed[1] - ends < timedelta(seconds=760)
    assert delegated(rig, second.batch_id) == renewed, "for all"


def test_a_proxy_that_ended_is_named(rig: ArcRig) -> None:
    proxy = rig.folder / "proxy.pem"
    write_proxy(rig.ce.person, proxy, timedelta(hours=-1))
    rig.options.update(proxy_file=str(proxy))
    rig.backend = rig.restarted()
    with pytest.raises(BackendError):
        rig.backend.status([WorkerRef("mark", "job")])
    write_proxy(rig.ce.person, proxy, timedelta(hours=1))
    (ref,) = rig.submit(rig.spec())
    _, ends = delegated(rig, ref.batch_id)
    assert ends <= datetime.now(timezone.utc) + timedelta(hours=1), "no longer than what it hangs on"
    rig.backend.kill([ref])


# ---------------------------------------------------------------- kill -9

INNER = ("harvester.backends.arc_rest:ArcRest.create", "harvester.backends.arc_rest:ArcRest.upload")


def test_kill_at_each_write_point_then_restart(arc_ce: ArcCe, tmp_path: Path) -> None:
    rig = ArcRig(tmp_path, arc_ce)

    def make_config(folder: Path) -> HarvesterConfig:
        queue = QueueConfig(
            backend="arc",
            options={**rig.options, "settle_s": 1.0, "uploads": 1, "workers_dir": str(folder / "workers")},
            submit={"queue": FORK},
            command=["/bin/sh", "-c", "exec sleep 300", "pilot", "{secret_file}"],
            max_workers=3,
            max_queued=3,
        )
        return config(folder, queue)

    def list_marks(folder: Path) -> Sequence[str]:
        return [name for _, name in names(rig)]

    def finish(folder: Path) -> None:
        rest = rest_of(rig.restarted())
        for action in (Action.KILL, Action.CLEAN):
            rest.ask(action, list(rest.list_jobs()))
        arc_ce.end_jobs()

    uploads: Counter[str] = Counter()

    def chosen(point: str) -> bool:
        """All points of the submission, but of the uploads (two for each of three workers) only the first and the last."""
        moment, call = point.split()
        uploads[moment] += call == "upload"
        return call in ("create", "backend.submit") or (call == "upload" and uploads[moment] in (1, 2, 6))

    rows = crash_matrix(
        tmp_path / "runs",
        make_config,
        list_marks,
        inner=INNER,
        cycles=1,
        chosen=chosen,
        finish=finish,
    )
    print(as_table(rows))
    assert {row.point for row in rows} >= {"before create", "after create", "before upload", "after upload"}
    assert not [row for row in rows if row.wrong], as_table(rows)


# ---------------------------------------------------------------- the how-to


def test_the_worked_configuration_of_the_how_to(rig: ArcRig) -> None:
    page = (Path(arc_rest.__file__).parents[2] / "docs/how-to/harvester-arc.md").read_text(encoding="utf-8")
    text = page.partition("```toml\n")[2].partition("```")[0]
    bundle = rig.folder / "bundle"
    bundle.write_text('#!/bin/sh\necho "$@"\n')
    for written, real in {
        "https://ce.example.org/arex": rig.ce.url,
        "/run/pilotage/robot.proxy": str(rig.ce.proxy),
        "/etc/grid-security/certificates": str(rig.ce.authorities),
        '"grid"': f'"{FORK}"',
        "/opt/pilotage/pilotage-pilot.run": str(bundle),
        "/var/lib/pilotage/grid-1": str(rig.folder / "state"),
    }.items():
        assert text.count(written) == 1, written
        text = text.replace(written, real)
    settings = check(msgspec.convert(tomllib.loads(text)["harvester"], HarvesterConfig))
    harvester = Harvester(settings, rig.folder)
    assert harvester.cycle.run(threading.Event()).problems == []
    workers = harvester.store.live()
    assert {worker.state for worker in workers} == {W.SUBMITTED}
    first = WorkerRef(workers[0].mark, workers[0].batch_id)
    (backend,) = harvester.backends
    assert rig.until(first, W.FINISHED, W.FAILED, backend=backend).state is W.FINISHED
    harvester.cycle.run(threading.Event())
    assert harvester.server.states(first.mark)[-1] == "finished"
    assert isinstance(backend, LogKeeper)
    assert backend.fetch_logs({first: rig.folder / "home"}) == {}
    assert f"pilot run --server https://pilotage.example.org:8443 --worker {first.mark}" in (
        (rig.folder / "home/stdout").read_text()
    )
    harvester.store.close()
