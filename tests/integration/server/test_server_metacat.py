"""MetaCat, by its real client against a stand-in server: what queries find, what outputs become there, and every way in
which it may fail in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest

from common.config import ConfigError
from common.errors import ErrorCode
from common.states import JobState
from common.tokens import write_secret_file
from common.wire import DatasetInput, FileSpec, OutputPattern, Registration, ReplicaSpec
from server.agents.registrar import carry_on
from server.catalogs import metacat as metacat_module
from server.catalogs.base import CatalogUnavailable, UnknownDataset
from server.catalogs.metacat import MetaCatCatalog, MetaCatOptions
from server.catalogs.metacat_registrar import MetaCatRegistrar, MetaCatRegistrarOptions
from server.catalogs.registration import Answer, FakeRegistrar, Outcome, OutputFile, Place, Registrar, Unavailable
from server.config import ServerConfig
from server.plugins import Plugins
from server.store import registrations
from tests.integration.server.harness import Pilot, Site, files, stage, states
from tests.services.metacat import MetaCatWorld, Reply, metacat_server
from tests.transcripts import keep

TOKEN = "eyJhbGciOiJIUzI1NiJ9.stand.in"
DONE = Answer(Outcome.DONE)
MQL = "files from data:raw where core.run_type='dc4' limit 10"


@pytest.fixture
def world() -> MetaCatWorld:
    return MetaCatWorld(token=TOKEN)


@pytest.fixture
def access(world: MetaCatWorld, tmp_path: Path) -> Iterator[dict[str, Any]]:
    write_secret_file(tmp_path / "metacat.token", TOKEN)
    with metacat_server(world) as url:
        yield {"server_url": url, "token_file": str(tmp_path / "metacat.token"), "timeout_s": 5.0}


# ---------------------------------------------------------------- input


@pytest.fixture
def catalogs(access: dict[str, Any], tmp_path: Path) -> ServerConfig:
    """MetaCat, and a list of where the files of these tests lie."""
    names = ["a", "b", *(f"f{number}" for number in range(3)), *(f"f{number:02d}" for number in range(25))]
    lines = [f"data:{name} disk:data/{name}" for name in names]
    (tmp_path / "places.txt").write_text("\n".join(lines), encoding="utf-8")
    places = {"plugin": "file-list", "folder": str(tmp_path), "index": "places.txt"}
    ours = {**access, "attributes": ["core.runs"], "plugin": "metacat", "replicas": "places"}
    return ServerConfig(catalogs={"metacat": ours, "places": places})


def everything(catalog: Any, query: str) -> list[FileSpec]:
    found: list[FileSpec] = []
    after: Optional[str] = ""
    while after is not None:
        page = catalog.files(query, after)
        found += page.files
        after = page.after
    return found


def test_a_query_finds_files_with_all_that_is_known_of_them(world: MetaCatWorld, catalogs: ServerConfig) -> None:
    about = {"core.run_type": "dc4", "core.event_count": 250, "core.runs": [39350], "core.secret": 1}
    world.add("data:raw", "data:a", 1000, about, adler32="CC737EB", md5="0" * 32)
    world.add("data:raw", "data:b", 2000, {"core.run_type": "dc4", "core.event_count": "many"}, md5="A" * 32)
    world.add("data:raw", "data:other", 3000, {"core.run_type": "cosmics"})
    world.add("data:raw", "data:is-lost", 4000, {"core.run_type": "dc4"}, crc32="x")
    catalog = Plugins(catalogs).catalogs["metacat"]
    assert everything(catalog, MQL) == [
        FileSpec(
            did="data:a", size=1000, events=250, checksum="adler32:0cc737eb", attributes={"core.runs": [39350]},
            replicas=[ReplicaSpec("disk", "data/a")],
        ),
        FileSpec(did="data:b", size=2000, checksum="md5:" + "a" * 32, replicas=[ReplicaSpec("disk", "data/b")]),
        FileSpec(did="data:is-lost", size=4000, replicas=[]),
    ]  # fmt: skip
    assert world.calls == ["query"]
    (named,) = catalog.locate(["data:a", "data:nobody-knows"])
    assert (named.did, named.size, named.replicas) == ("data:a", 1000, [ReplicaSpec("disk", "data/a")])


def test_many_files_cost_a_query_a_page(
    world: MetaCatWorld, catalogs: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metacat_module, "PAGE", 10)
    for number in range(25):
        world.add("data:raw", f"data:f{number:02d}", 1)
    catalog = Plugins(catalogs).catalogs["metacat"]
    assert [each.did for each in everything(catalog, "files from data:raw")] == [f"data:f{n:02d}" for n in range(25)]
    assert world.calls == ["query"] * 3


def test_without_another_catalogue_files_lie_where_the_configuration_says(
    world: MetaCatWorld, access: dict[str, Any]
) -> None:
    world.add("data:raw", "data:a", 1)
    catalog = MetaCatCatalog(MetaCatOptions(**access, storage="eos", path="dune/{namespace}/x/{name}"))
    (found,) = everything(catalog, "files from data:raw")
    assert found.replicas == [ReplicaSpec("eos", "dune/data/x/a")]


@pytest.mark.parametrize("query", ["find me something", "files from data:none"])
def test_a_query_that_metacat_does_not_take_is_the_users(
    world: MetaCatWorld, catalogs: ServerConfig, query: str
) -> None:
    with pytest.raises(UnknownDataset, match="MetaCat answers 400"):
        Plugins(catalogs).catalogs["metacat"].files(query, "")


@pytest.mark.parametrize(
    "reply",
    [
        (500, "Internal error"), (503, "busy"), (429, "slowly"), (403, {"message": "no"}), (401, "who?"), (0, None),
        (200, "no JSON"), (200, b'\x1e{"namespace": "data", "na'), (200, [1, 2]), (200, b"\x1e[]\n"), (400, ["odd"]),
    ],
    ids=str,
)  # fmt: skip
def test_a_metacat_that_fails_is_asked_again_later_and_not_waited_for(
    world: MetaCatWorld, catalogs: ServerConfig, reply: Reply
) -> None:
    world.add("data:raw", "data:a", 1)
    world.judge = lambda _call, when: reply if when == "before" else None
    begun = time.monotonic()
    kind = UnknownDataset if reply[0] == 400 else CatalogUnavailable
    with pytest.raises(kind, match="MetaCat"):
        Plugins(catalogs).catalogs["metacat"].files("files from data:raw", "")
    assert world.calls == ["query"] and time.monotonic() - begun < 30.0


def test_a_metacat_that_is_slow_or_away_is_given_up(world: MetaCatWorld, access: dict[str, Any]) -> None:
    world.add("data:raw", "data:a", 1)
    release = threading.Event()

    def slowly(_call: str, _when: str) -> None:
        release.wait(120.0)

    world.judge = slowly
    catalog = MetaCatCatalog(MetaCatOptions(**{**access, "timeout_s": 0.3}, storage="d"))
    with pytest.raises(CatalogUnavailable, match="Timeout"):
        catalog.files("files from data:raw", "")
    release.set()
    away = MetaCatCatalog(MetaCatOptions(**{**access, "server_url": "http://127.0.0.1:9/app"}, storage="d"))
    with pytest.raises(CatalogUnavailable, match="does not answer"):
        away.files("files from data:raw", "")


def test_a_name_that_cannot_be_a_files_is_told(world: MetaCatWorld, catalogs: ServerConfig) -> None:
    world.add("data:raw", "data:a/b", 1)
    with pytest.raises(UnknownDataset, match="data:a/b"):
        Plugins(catalogs).catalogs["metacat"].files("files from data:raw", "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "give either replicas"),
        ({"replicas": "x", "storage": "y"}, "give either replicas"),
        ({"replicas": "none"}, "'none' is no catalogue of this server"),
        ({"storage": "x", "server_url": "http://metacat.example.org/app"}, "https only"),
        ({"storage": "x", "nonsense": 1}, "nonsense"),
    ],
)
def test_a_wrong_section_stops_the_server_with_the_field(
    access: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    lists = {"plugin": "file-list"}
    with pytest.raises(Exception, match=words) as caught:
        Plugins(ServerConfig(catalogs={"metacat": {**access, "plugin": "metacat", **changes}, "lists": lists}))
    assert isinstance(caught.value, ConfigError) or "https" in words


def test_a_dataset_of_metacat_becomes_units(site: Site, world: MetaCatWorld, catalogs: ServerConfig) -> None:
    for number in range(3):
        world.add("data:raw", f"data:f{number}", 7, {"core.event_count": 5})
    site.world()
    site.dispatcher.plugins = Plugins(catalogs)
    (task,) = site.submit(stage(given=DatasetInput(catalog="metacat", query="files from data:raw limit 2")))
    site.agents()
    assert [(unit.did, unit.size, unit.events) for unit in site.units(task)] == [("data:f0", 7, 5), ("data:f1", 7, 5)]
    job = site.pilot().acquire()
    assert job.query == "files from data:raw limit 2"


# ---------------------------------------------------------------- outputs


def output(name: str, *datasets: str, **more: Any) -> OutputFile:
    places = tuple(Place(f"usertests:{each}") for each in datasets or ("all", "all-DISK"))
    given = OutputFile(f"usertests:{name}", "DISK", f"p/{name}", "", 4096, "adler32:0cc737eb", 12, {}, places)
    return replace(given, **more)


def registrar(access: dict[str, Any], inner: Optional[Registrar] = None, **options: Any) -> MetaCatRegistrar:
    made = MetaCatRegistrar(MetaCatRegistrarOptions(**access, **options))
    made.replicas = inner
    return made


def test_a_file_is_declared_with_what_is_known_of_it(world: MetaCatWorld, access: dict[str, Any]) -> None:
    world.add("data:raw", "data:in1", 1)
    world.add("data:raw", "data:in2", 1)
    attributes = {
        "metadata": {"core.run_type": "dc4", "dune.campaign": {"deep": [1]}, "nodot": 1, "dune.output_status": "mine"},
        "parents": [{"did": "data:in2"}, {"namespace": "data", "name": "in1"}, {"did": 7}, "x", {"fid": "y"}],
    }
    file = output("o.root", "all", "all-DISK", "all.000001", attributes=attributes, parents=("data:in1", "data:gone"))
    assert registrar(access).register([file]) == [DONE]
    record = world.files["usertests:o.root"]
    assert (record["size"], record["checksums"]) == (4096, {"adler32": "0cc737eb"})
    assert record["metadata"] == {
        "core.run_type": "dc4", "dune.campaign": {"deep": [1]}, "core.event_count": 12, "dune.output_status": "uploaded",
    }  # fmt: skip
    parents = [world.files["data:in1"]["fid"], world.files["data:in2"]["fid"]]
    assert record["parents"] == parents, "the job's, and the jobscript's; what MetaCat does not know is left out"
    assert all(world.datasets[f"usertests:{name}"] == [file.did] for name in ("all", "all-DISK", "all.000001"))


def test_plain_attributes_are_metadata_if_they_have_a_dot(world: MetaCatWorld, access: dict[str, Any]) -> None:
    assert registrar(access).register([output("o", attributes={"core.a": 1, "b": 2}, events=None)]) == [DONE]
    assert world.files["usertests:o"]["metadata"] == {"core.a": 1, "dune.output_status": "uploaded"}


def test_the_status_goes_from_recorded_over_uploaded_to_confirmed(world: MetaCatWorld, access: dict[str, Any]) -> None:
    seen: list[list[str]] = []

    class Replicas(FakeRegistrar):
        def register(self, files: Any) -> Any:
            seen.append([world.files[each.did]["metadata"]["dune.output_status"] for each in files])
            return super().register(files)

    inner = Replicas()
    ours, files = registrar(access, inner), [output("a"), output("b")]
    assert ours.register(files) == [DONE] * 2
    assert seen == [["recorded"] * 2], "the replicas are registered between"
    assert set(inner.files) == {"usertests:a", "usertests:b"}
    assert ours.confirm(files) == [DONE] * 2
    for name in ("a", "b"):
        told = [status for did, status in world.history if did == f"usertests:{name}"]
        assert told == ["recorded", "uploaded", "confirmed"]


@pytest.mark.parametrize("number", [1, 50, 500])
def test_calls_per_file_stay_far_below_eight(world: MetaCatWorld, access: dict[str, Any], number: int) -> None:
    ours = registrar(access)
    ours.register([output("first")])  # datasets are made once
    world.calls.clear()
    files = [output(f"f{n}", parents=("data:none",)) for n in range(number)]
    assert ours.register(files) == [DONE] * number and ours.confirm(files) == [DONE] * number
    per_file = len(world.calls) / number
    keep(f"metacat-calls-{number}", f"{number} files: {len(world.calls)} calls {world.calls}, {per_file:g} a file\n")
    assert len(world.calls) == 5 + (number >= 500), world.calls
    assert per_file <= 8


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("fault", [(0, None), (500, "oops"), (503, "busy")], ids=["hangs up", "500", "503"])
def test_a_crash_between_any_two_calls_leaves_nothing_half_done(
    world: MetaCatWorld, access: dict[str, Any], when: str, fault: Reply
) -> None:
    files = [output("a"), output("b", "all")]
    number = 0
    while True:
        world.__init__(token=TOKEN)  # type: ignore[misc]
        count = iter(range(1000))

        def judge(_call: str, moment: str, count: Iterator[int] = count, at: int = number) -> Optional[Reply]:
            return fault if moment == when and next(count) == at else None

        world.judge = judge
        try:
            answers = registrar(access).register(files)
        except Unavailable:
            answers = []
        if next(count) <= number:
            break  # there were fewer calls than that: no fault was met
        assert answers == [] or DONE not in answers
        assert registrar(access).register(files) == [DONE] * 2, "another process comes again"
        statuses = {did: world.files[did]["metadata"]["dune.output_status"] for did in world.files}
        assert statuses == {"usertests:a": "uploaded", "usertests:b": "uploaded"}
        assert {name: sorted(each) for name, each in world.datasets.items()} == {
            "usertests:all": ["usertests:a", "usertests:b"], "usertests:all-DISK": ["usertests:a"],
        }  # fmt: skip
        number += 1
    assert number >= 7


def test_what_is_declared_by_half_is_completed_and_confirmed_files_stay_so(
    world: MetaCatWorld, access: dict[str, Any]
) -> None:
    world.add("usertests:all", "usertests:a", 4096, {"dune.output_status": "recorded"}, adler32="cc737eb")
    world.add("usertests:another", "usertests:b", 4096, {"dune.output_status": "confirmed"})
    assert registrar(access).register([output("a"), output("b"), output("c")]) == [DONE] * 3
    status = {did: each["metadata"]["dune.output_status"] for did, each in world.files.items()}
    assert status == {"usertests:a": "uploaded", "usertests:b": "confirmed", "usertests:c": "uploaded"}
    for name in ("all", "all-DISK"):
        assert sorted(world.datasets[f"usertests:{name}"]) == ["usertests:a", "usertests:b", "usertests:c"]


@pytest.mark.parametrize("other", [{"size": 1}, {"checksums": {"adler32": "00000001"}}])
def test_another_file_of_the_name_is_refused_and_left_alone(
    world: MetaCatWorld, access: dict[str, Any], other: dict[str, Any]
) -> None:
    world.add("usertests:all", "usertests:a", 4096, adler32="0cc737eb")
    world.files["usertests:a"].update(other)
    first, second = registrar(access).register([output("a"), output("b")])
    assert first.outcome is Outcome.REFUSED and "another file" in first.words and second == DONE
    assert registrar(access).withdraw([output("a")]) == [DONE] and not world.files["usertests:a"]["retired"]


def test_bad_metadata_of_one_file_costs_that_one(world: MetaCatWorld, access: dict[str, Any]) -> None:
    files = [output(f"f{n}", attributes={"bad.field": 1} if n == 3 else {}) for n in range(7)]
    answers = registrar(access).register(files)
    assert [each.outcome for each in answers].count(Outcome.DONE) == 6
    assert answers[3].outcome is Outcome.REFUSED and "bad.field: unknown" in answers[3].words
    assert "usertests:f3" not in world.files


def test_datasets_that_cannot_be_made_refuse_their_files(world: MetaCatWorld, access: dict[str, Any]) -> None:
    strange = output("a", datasets=(Place("nobody:x"),))
    first, second = registrar(access).register([strange, output("b")])
    assert first.outcome is Outcome.REFUSED and "Namespace not found" in first.words and second == DONE


def test_a_dataset_that_was_removed_is_made_again(world: MetaCatWorld, access: dict[str, Any]) -> None:
    ours = registrar(access)
    assert ours.register([output("a")]) == [DONE]
    del world.datasets["usertests:all-DISK"]
    assert ours.register([output("b")])[0].outcome is Outcome.AGAIN
    assert ours.register([output("b")]) == [DONE]


def test_logs_are_declared_only_where_they_have_a_dataset(world: MetaCatWorld, access: dict[str, Any]) -> None:
    log, inner = output("log.tgz", datasets=()), FakeRegistrar()
    assert registrar(access, inner).register([log]) == [DONE]
    assert world.calls == [] and "usertests:log.tgz" in inner.files
    assert registrar(access, inner).confirm([log]) == [DONE] and world.calls == []
    assert registrar(access, other_dataset="usertests:logs").register([log]) == [DONE]
    assert world.datasets["usertests:logs"] == ["usertests:log.tgz"]


def test_what_the_catalogue_of_replicas_says_counts(world: MetaCatWorld, access: dict[str, Any]) -> None:
    inner = FakeRegistrar()
    words = {"usertests:a": Answer(Outcome.REFUSED, "no scope"), "usertests:b": Answer(Outcome.AGAIN, "busy")}
    inner.judge = lambda _call, file: words.get(file.did)
    answers = registrar(access, inner).register([output("a"), output("b"), output("c")])
    assert answers == [words["usertests:a"], words["usertests:b"], DONE]
    status = {did: each["metadata"]["dune.output_status"] for did, each in world.files.items()}
    assert status == {"usertests:a": "recorded", "usertests:b": "recorded", "usertests:c": "uploaded"}
    inner.away = True
    with pytest.raises(Unavailable):
        registrar(access, inner).register([output("d")])


def test_withdrawn_files_are_retired_in_both_catalogues(world: MetaCatWorld, access: dict[str, Any]) -> None:
    inner = FakeRegistrar()
    ours = registrar(access, inner)
    ours.register([output("a")])
    for _ in range(2):
        assert ours.withdraw([output("a"), output("never-declared")]) == [DONE] * 2
    assert world.files["usertests:a"]["retired"] and inner.files == {}


def test_a_token_that_is_wrong_or_not_there_waits_for_the_admin(
    world: MetaCatWorld, access: dict[str, Any], tmp_path: Path
) -> None:
    world.token = "another"
    with pytest.raises(Unavailable, match="401"):
        registrar(access).register([output("a")])
    (tmp_path / "metacat.token").unlink()
    with pytest.raises(Unavailable, match="token"):
        registrar(access).register([output("a")])
    write_secret_file(tmp_path / "metacat.token", "another")
    assert registrar(access).register([output("a")]) == [DONE], "a renewed token is taken at once"


# ---------------------------------------------------------------- in the server


@pytest.fixture
def registering(site: Site, access: dict[str, Any]) -> Site:
    """A site whose storage wants its files registered by the server, in MetaCat and a catalogue of replicas."""
    config = {"metacat": {**access, "plugin": "metacat", "replicas": "fake"}, "fake": {"plugin": "fake"}}
    site.dispatcher.plugins = Plugins(ServerConfig(registrar="metacat", registrars=config))
    site.world(storages=())
    site.put_storage("disk", registration=Registration.SERVER)
    return site


def step(site: Site) -> int:
    """One run of the agent."""
    with site.database.read() as connection:
        waiting = registrations.due(connection, site.clock.now(), 100)
    return carry_on(site.dispatcher, site.dispatcher.plugins.registrars["metacat"], waiting) if waiting else 0


def held(site: Site, world: MetaCatWorld) -> tuple[int, Pilot, int, str]:
    """A task on a file, whose job is confirmed and waits: task, pilot, job, the DID of its output."""
    (task,) = site.submit(stage(given=files("in"), outputs=[OutputPattern("*", dataset="mine-{workflow}")]))
    pilot = site.pilot()
    job = pilot.acquire()
    request = pilot.success(job, "o.root")
    assert job.units[0].file is not None
    world.add("data:raw", job.units[0].file.did, 1)
    world.namespaces.add(request.outputs[0].did.partition(":")[0])
    pilot.finish(job, request)
    return task, pilot, job.job_id, request.outputs[0].did


def test_an_output_is_confirmed_only_when_its_job_has_ended(registering: Site, world: MetaCatWorld) -> None:
    site = registering
    task, _, job, did = held(site, world)
    (unit,) = site.units(task)
    assert step(site) == 1
    assert site.job(job).state is JobState.FINISHED and states(site.units(task)) == {"done": 1}
    record = world.files[did]
    assert record["metadata"]["dune.output_status"] == "uploaded"
    assert record["parents"] == [world.files[str(unit.did)]["fid"]]
    world.judge = lambda _call, _when: (503, "busy")
    assert step(site) == 0, "it is told later"
    world.judge = lambda _call, _when: None
    site.clock.advance(3600)
    assert step(site) == 1 and record["metadata"]["dune.output_status"] == "confirmed"
    assert step(site) == 0
    assert sorted(world.datasets)[1:] == [name for name in sorted(world.datasets) if "mine-" in name]
    site.check_counts()


def test_a_job_that_is_killed_while_it_waits_is_never_confirmed(registering: Site, world: MetaCatWorld) -> None:
    site = registering
    task, _, job, did = held(site, world)
    world.judge = lambda call, _when: (503, "busy") if call == "update_file_meta" else None
    assert step(site) == 0 and world.files[did]["metadata"]["dune.output_status"] == "recorded"
    site.command(task, "kill")
    world.judge = lambda _call, _when: None
    for _ in range(4):
        site.clock.advance(3600)
        step(site)
    assert site.job(job).state is JobState.CANCELLED
    assert world.files[did]["retired"] and world.files[did]["metadata"]["dune.output_status"] == "recorded"


def test_a_refusal_fails_the_job_and_retires_its_files(registering: Site, world: MetaCatWorld) -> None:
    site = registering
    _, _, job, did = held(site, world)
    fake = site.dispatcher.plugins.registrars["fake"]
    assert isinstance(fake, FakeRegistrar)
    fake.judge = lambda call, _file: Answer(Outcome.REFUSED, "no") if call == "register" else None
    for _ in range(3):
        site.clock.advance(3600)
        step(site)
    assert site.job(job).error_code == ErrorCode.OUTPUTS_NOT_REGISTERED and world.files[did]["retired"]


def test_registrars_that_name_no_other_are_refused_at_the_start(access: dict[str, Any]) -> None:
    for name in ("metacat", "none"):
        sections = {"metacat": {**access, "plugin": "metacat", "replicas": name}}
        with pytest.raises(ConfigError, match="there is no other registrar"):
            Plugins(ServerConfig(registrars=sections))
