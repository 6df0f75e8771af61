"""The messages: strict ones name what they don't know, tolerant ones ignore it, and all of them survive a trip."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import inspect

from common import wire
from common.wire import Checksum, Did, Message, Metrics, Name, Strict
from server.api.routes import ROUTES
from server.api.routing import Route

QUICK = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))

MESSAGES: list[type[msgspec.Struct]] = [
    kind
    for kind in vars(wire).values()
    if isinstance(kind, type) and issubclass(kind, (Strict, Message)) and kind not in (Strict, Message)
]


def is_strict(kind: type) -> bool:
    return bool(kind.__struct_config__.forbid_unknown_fields)


STRICT = [pytest.param(kind, id=kind.__name__) for kind in MESSAGES if is_strict(kind)]
SPEC_LISTS = {"SiteList", "QueueList", "StorageList", "ShareList"}  # for admins' tools, which edit what they get
TOLERANT = [
    pytest.param(kind, id=kind.__name__) for kind in MESSAGES if not is_strict(kind) and kind.__name__ not in SPEC_LISTS
]

# ---------------------------------------------------------------- any message, made from its definition

JSON = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5) | st.lists(st.integers(0, 3), max_size=2)
PATTERNS: dict[str, st.SearchStrategy[str]] = {}


def strings(info: inspect.StrType) -> st.SearchStrategy[str]:
    if info.pattern is not None:
        return PATTERNS.setdefault(info.pattern, st.from_regex(info.pattern, alphabet=string.printable)).filter(
            lambda text: (info.min_length or 0) <= len(text) <= (info.max_length or 10**6)
        )
    return st.text(min_size=info.min_length or 0, max_size=min(info.max_length or 70, (info.min_length or 0) + 20))


def values(info: inspect.Type) -> st.SearchStrategy[Any]:
    simple: dict[type[inspect.Type], Callable[[Any], st.SearchStrategy[Any]]] = {
        inspect.AnyType: lambda _: JSON,
        inspect.NoneType: lambda _: st.none(),
        inspect.BoolType: lambda _: st.booleans(),
        inspect.StrType: strings,
        inspect.IntType: lambda t: st.integers(-(2**31) if t.ge is None else t.ge, 2**31 if t.le is None else t.le),
        inspect.FloatType: lambda t: st.floats(
            0.5 if t.gt is not None else t.ge if t.ge is not None else -1e12, 1e12 if t.le is None else t.le
        ),
        inspect.EnumType: lambda t: st.sampled_from(t.cls),
        inspect.LiteralType: lambda t: st.sampled_from(t.values),
        inspect.ListType: lambda t: st.lists(values(t.item_type), min_size=t.min_length or 0, max_size=3),
        inspect.DictType: lambda t: st.dictionaries(values(t.key_type), values(t.value_type), max_size=2),
        inspect.UnionType: lambda t: st.one_of([values(each) for each in t.types]),
        inspect.StructType: structs,
    }
    return simple[type(info)](info)


def structs(info: inspect.StructType) -> st.SearchStrategy[Any]:
    def build() -> st.SearchStrategy[Any]:
        required = {f.name: values(f.type) for f in info.fields if f.required}
        optional = {f.name: values(f.type) for f in info.fields if not f.required}
        return st.fixed_dictionaries(required, optional=optional).map(lambda given: info.cls(**given))

    return st.deferred(build)


def any_of(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    return values(inspect.type_info(kind))


def objects(value: Any, info: inspect.Type, path: str = "$") -> Iterator[tuple[str, dict[str, Any], type]]:
    """Each JSON object in ``value`` that is a struct by its definition, with its path."""
    if isinstance(info, inspect.UnionType):
        structs = [each for each in info.types if isinstance(each, inspect.StructType)]
        tagged = [each for each in structs if isinstance(value, dict) and each.tag == value.get("kind")]
        for each in tagged or info.types:
            yield from objects(value, each, path)
    elif isinstance(info, inspect.StructType) and isinstance(value, dict):
        yield path, value, info.cls
        for field in info.fields:
            if field.name in value:
                yield from objects(value[field.name], field.type, f"{path}.{field.name}")
    elif isinstance(info, inspect.ListType) and isinstance(value, list):
        for number, item in enumerate(value):
            yield from objects(item, info.item_type, f"{path}[{number}]")


# ---------------------------------------------------------------- every message


@pytest.mark.parametrize("kind", [*STRICT, *TOLERANT])
def test_a_message_survives_the_trip(kind: type[msgspec.Struct]) -> None:
    @QUICK
    @given(any_of(kind))
    def check(message: msgspec.Struct) -> None:
        sent = wire.encode(message)
        assert msgspec.json.decode(sent, type=kind) == message
        assert wire.encode(msgspec.json.decode(sent, type=kind)) == sent

    check()


@pytest.mark.parametrize("kind", STRICT)
def test_what_a_person_sends_may_hold_no_unknown_field_at_any_depth(kind: type[msgspec.Struct]) -> None:
    @QUICK
    @given(any_of(kind), st.data())
    def check(message: msgspec.Struct, data: st.DataObject) -> None:
        sent = msgspec.to_builtins(message)
        path, place, _ = data.draw(st.sampled_from(list(objects(sent, inspect.type_info(kind)))))
        place["colour"] = "red"
        with pytest.raises(msgspec.ValidationError, match="unknown field `colour`") as caught:
            msgspec.convert(sent, kind)
        assert path == "$" or str(caught.value).endswith(f"- at `{path}`")

    check()


@pytest.mark.parametrize("kind", TOLERANT)
def test_what_programs_send_may_hold_fields_of_a_later_version(kind: type[msgspec.Struct]) -> None:
    @QUICK
    @given(any_of(kind))
    def check(message: msgspec.Struct) -> None:
        sent = msgspec.to_builtins(message)
        for _, place, owner in list(objects(sent, inspect.type_info(kind))):
            if not is_strict(owner):
                place["colour"] = "red"
        assert msgspec.convert(sent, kind) == message

    check()


def parts(info: inspect.Type, seen: set[type]) -> set[type]:
    """Every struct that a message may hold, itself included."""
    if isinstance(info, inspect.StructType) and info.cls not in seen:
        seen.add(info.cls)
        for field in info.fields:
            parts(field.type, seen)
    for inner in (*getattr(info, "types", ()), getattr(info, "item_type", None), getattr(info, "value_type", None)):
        if inner is not None:
            parts(inner, seen)
    return seen


def test_what_programs_send_holds_nothing_strict() -> None:
    server_says = [wire.PilotGrant, wire.AcquireReply, wire.HeartbeatReply, wire.DemandReply, wire.RecordReply]
    held = {kind.__name__ for each in server_says for kind in parts(inspect.type_info(each), set())}
    assert held & {kind.__name__ for kind in MESSAGES if is_strict(kind)} == set()


@pytest.mark.parametrize("kind", STRICT)
def test_what_a_person_sends_holds_nothing_tolerant(kind: type[msgspec.Struct]) -> None:
    assert all(is_strict(part) for part in parts(inspect.type_info(kind), set()))


@pytest.mark.parametrize("kind", [*STRICT, *TOLERANT])
def test_defaults_are_not_shared_between_messages(kind: type[msgspec.Struct]) -> None:
    given_fields = {f.name: None for f in inspect.type_info(kind).fields if f.required}  # type: ignore[attr-defined]
    first, second = kind(**given_fields), kind(**given_fields)
    for field in msgspec.structs.fields(kind):
        value = getattr(first, field.name)
        if isinstance(value, (list, dict, set)):
            assert value is not getattr(second, field.name)


@pytest.mark.parametrize("kind", [*STRICT, *TOLERANT])
def test_every_message_is_explained(kind: type[msgspec.Struct]) -> None:
    # A page or a list of something needs no more words than its name has.
    assert kind.__doc__ or kind.__name__.endswith(("Page", "List"))


# ---------------------------------------------------------------- names, DIDs, checksums


def accepted(text: Any, kind: Any) -> bool:
    try:
        msgspec.convert(text, kind)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", ["a", "A9", "CERN-PROD_1", "a.b+c-d_e", "0", "x" * 255])
def test_a_name(name: str) -> None:
    assert accepted(name, Name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-a",
        ".a",
        "..",
        "_a",
        "a b",
        "a/b",
        "a\n",
        "\na",
        "a\nb",
        "a:b",
        "a,b",
        "@a",
        "é",
        "a\x00",
        "x" * 256,
        1,
        None,
    ],
)
def test_what_is_no_name(name: Any) -> None:
    assert not accepted(name, Name)


@pytest.mark.parametrize("did", ["a:b", "user.alice:run 1.root", "mc:x:y", "s:" + "n" * 509, "s:ümlaut"])
def test_a_did(did: str) -> None:
    assert accepted(did, Did)


@pytest.mark.parametrize(
    "did",
    ["", "ab", "a:", ":b", "a:b\n", "a:b\nc", "a\n:b", "a b:c", "a: b", "a:b/c", "a/b:c", "a:b\x00", "a:\tb", "s:" + "n" * 510],
)  # fmt: skip
def test_what_is_no_did(did: str) -> None:
    assert not accepted(did, Did)


@pytest.mark.parametrize("checksum", ["adler32:0a1b2c3d", "md5:" + "0" * 32, "sha256:" + "f" * 64])
def test_a_checksum(checksum: str) -> None:
    assert accepted(checksum, Checksum)


@pytest.mark.parametrize(
    "checksum",
    [
        "0a1b2c3d",
        "adler32:0A1B2C3D",
        "adler32:0a1b2c3",
        "adler32:0a1b2c3d0",
        "adler32:0a1b2c3d\n",
        " adler32:0a1b2c3d",
        "adler32:" + "0" * 32,
        "md5:0a1b2c3d",
        "md5:" + "g" * 32,
        "sha256:" + "f" * 63,
        "crc32:0a1b2c3d",
        "adler32:",
        "",
    ],
)
def test_what_is_no_checksum(checksum: str) -> None:
    assert not accepted(checksum, Checksum)


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        (wire.OutputPattern, {"pattern": "out.root\n"}),
        (wire.OutputRecord, {"name": "out.root\n", "size": 1, "checksum": "adler32:0a1b2c3d"}),
        (wire.Endpoint, {"url": "file:///data\n"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_line_end_at_the_end_is_refused(kind: type[msgspec.Struct], sent: dict[str, Any]) -> None:
    assert not accepted(sent, kind)


# ---------------------------------------------------------------- errors that name the field

FILE = {"did": "s:a", "replicas": [{"storage": "SE", "path": "a"}]}
STAGE = {"name": "s", "input": {"kind": "single"}, "command": ["true"]}
QUEUE = {"name": "Q", "site": "S"}
STORAGE = {"name": "SE", "site": "S", "endpoints": [{"url": "file:///data"}]}


def workflow(**fields: Any) -> dict[str, Any]:
    return {"name": "w", "stages": [{**STAGE, **fields}]}


def files(**fields: Any) -> dict[str, Any]:
    return workflow(input={"kind": "files", "files": [FILE, {**FILE, **fields}]})


def test_the_samples_are_good() -> None:
    for sample, kind in ((workflow(), wire.WorkflowRequest), (files(), wire.WorkflowRequest)):
        assert accepted(sample, kind)
    assert accepted(QUEUE, wire.QueueSpec) and accepted(STORAGE, wire.StorageSpec)


@pytest.mark.parametrize(
    ("kind", "sent", "where"),
    [
        (wire.WorkflowRequest, {"name": "w", "stages": []}, "$.stages"),
        (wire.WorkflowRequest, {"name": "w", "stages": [STAGE] * 101}, "$.stages"),
        (wire.WorkflowRequest, {"name": "w\n", "stages": [STAGE]}, "$.name"),
        (wire.WorkflowRequest, {"name": "w"}, "stages"),
        (wire.WorkflowRequest, workflow(input={"kind": "magic"}), "$.stages[0].input.kind"),
        (wire.WorkflowRequest, workflow(input={}), "$.stages[0].input"),
        (wire.WorkflowRequest, workflow(command=[]), "$.stages[0].command"),
        (wire.WorkflowRequest, workflow(command="true"), "$.stages[0].command"),
        (wire.WorkflowRequest, workflow(jobscript="#!" + "x" * 1_000_000), "$.stages[0].jobscript"),
        (wire.WorkflowRequest, workflow(files_per_job=0), "$.stages[0].files_per_job"),
        (wire.WorkflowRequest, workflow(files_per_job=2**31), "$.stages[0].files_per_job"),
        (wire.WorkflowRequest, workflow(max_attempts=0), "$.stages[0].max_attempts"),
        (wire.WorkflowRequest, workflow(max_attempts=101), "$.stages[0].max_attempts"),
        (wire.WorkflowRequest, workflow(priority=10_001), "$.stages[0].priority"),
        (wire.WorkflowRequest, workflow(priority=-10_001), "$.stages[0].priority"),
        (wire.WorkflowRequest, workflow(max_distance=101), "$.stages[0].max_distance"),
        (wire.WorkflowRequest, workflow(requirements={"cores": 0}), "$.stages[0].requirements.cores"),
        (wire.WorkflowRequest, workflow(requirements={"cores": True}), "$.stages[0].requirements.cores"),
        (wire.WorkflowRequest, workflow(requirements={"cores": "2"}), "$.stages[0].requirements.cores"),
        (wire.WorkflowRequest, workflow(requirements={"memory_mb": -1}), "$.stages[0].requirements.memory_mb"),
        (wire.WorkflowRequest, workflow(requirements={"gpus": {"count": 0}}), "$.stages[0].requirements.gpus.count"),
        (wire.WorkflowRequest, workflow(outputs=[{"pattern": "a/b"}]), "$.stages[0].outputs[0].pattern"),
        (wire.WorkflowRequest, workflow(outputs=[{"pattern": ""}]), "$.stages[0].outputs[0].pattern"),
        (wire.WorkflowRequest, workflow(environment={"A": 1}), "$.stages[0].environment"),
        (wire.WorkflowRequest, workflow(input={"kind": "counter", "count": -1}), "$.stages[0].input.count"),
        (wire.WorkflowRequest, workflow(input={"kind": "counter", "count": 10_000_001}), "$.stages[0].input.count"),
        (wire.WorkflowRequest, files(did="nocolon"), "$.stages[0].input.files[1].did"),
        (wire.WorkflowRequest, files(size=-1), "$.stages[0].input.files[1].size"),
        (wire.WorkflowRequest, files(size=2**62 + 1), "$.stages[0].input.files[1].size"),
        (wire.WorkflowRequest, files(checksum="adler32:xyz"), "$.stages[0].input.files[1].checksum"),
        (wire.WorkflowRequest, files(replicas=[]), "$.stages[0].input.files[1].replicas"),
        (wire.WorkflowRequest, files(replicas=[{"storage": "SE", "path": ""}]), "files[1].replicas[0].path"),
        (wire.QueueSpec, {**QUEUE, "status": "sleepy"}, "$.status"),
        (wire.QueueSpec, {**QUEUE, "cores": -1}, "$.cores"),
        (wire.SiteSpec, {"name": "S", "distances": {"SE": 102}}, "$.distances"),
        (wire.SiteSpec, {"name": "S", "distances": {"SE": -1}}, "$.distances"),
        (wire.StorageSpec, {**STORAGE, "endpoints": []}, "$.endpoints"),
        (wire.StorageSpec, {**STORAGE, "endpoints": [{"url": "/data"}]}, "$.endpoints[0].url"),
        (wire.StorageSpec, {**STORAGE, "endpoints": [{"url": "file:///", "activities": ["eat"]}]}, "activities[0]"),
        (wire.ShareSpec, {"name": "a", "weight": 0}, "$.weight"),
        (wire.ShareSpec, {"name": "a", "weight": -1}, "$.weight"),
        (wire.AcquireRequest, {"request_id": "short", "offer": {}}, "$.request_id"),
        (wire.AcquireRequest, {"request_id": "x" * 65, "offer": {}}, "$.request_id"),
        (wire.PilotRegistration, {"worker": "w", "nonce": "x" * 7}, "$.nonce"),
        (wire.RecordRequest, {"outputs": []}, "$.outputs"),
        (wire.FinishRequest, {"state": "resting"}, "$.state"),
        (wire.FinishRequest, {"state": "failed", "log_tail": "x" * 65_537}, "$.log_tail"),
        (wire.UnitsReleaseRequest, {"units": [{"unit_id": 1, "outcome": "eaten"}]}, "$.units[0].outcome"),
        (wire.WorkersReportRequest, {"harvester": "h", "workers": [{"mark": "m" * 8, "queue": "Q"}]}, "workers[0]"),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(kind: type[msgspec.Struct], sent: dict[str, Any], where: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(msgspec.json.encode(sent), type=kind)
    assert where in str(caught.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_weight_is_a_number(number: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(f'{{"name": "a", "weight": {number}}}', type=wire.ShareSpec)


def test_a_field_at_its_default_is_not_sent() -> None:
    assert wire.encode(wire.OutputPattern("*.root")) == b'{"pattern":"*.root"}'
    assert wire.encode(wire.HeartbeatReply()) == b"{}"


def unbounded(kind: inspect.Type, trail: str, above: frozenset[type] = frozenset()) -> Iterator[str]:
    """The whole numbers somewhere in ``kind`` that may be as large as anybody likes."""
    if isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.IntType):
        if kind.le is None or kind.ge is None:
            yield trail
    elif isinstance(kind, inspect.StructType):
        # What a job measured is kept as it was told: a strange figure must not cost the report that it is in.
        if kind.cls not in {*above, Metrics}:
            for each in kind.fields:
                yield from unbounded(each.type, f"{kind.cls.__name__}.{each.name}", above | {kind.cls})
    elif isinstance(kind, (inspect.ListType, inspect.SetType, inspect.VarTupleType)):
        yield from unbounded(kind.item_type, trail, above)
    elif isinstance(kind, inspect.UnionType):
        for part in kind.types:
            yield from unbounded(part, trail, above)
    elif isinstance(kind, inspect.DictType):
        yield from unbounded(kind.value_type, trail, above)


@pytest.mark.parametrize(
    "route", [each for each in ROUTES if each.request is not None], ids=lambda each: f"{each.method} {each.path}"
)
def test_every_number_that_is_sent_has_bounds(route: Route) -> None:
    """An ``exit_code`` of 10**30 reached the database and was a mistake inside the server."""
    assert list(unbounded(inspect.type_info(route.request), route.path)) == []
