"""What is kept of tasks and jobs."""

from __future__ import annotations

import hashlib

import msgspec

from common.wire import FilesInput, FileSpec, ReplicaSpec, StageSpec
from server.engine.naming import OutputName, output_did, parse_output_did
from server.engine.provenance import OutputOrigin, TaskOrigin, UnitOrigin, digest_of, job_document, task_document

ORIGIN = TaskOrigin(7, 3, "beam", "alice", "dune", "user.alice", {"a": "b"}, 100.0)
FILE = FileSpec(did="s:f", checksum="adler32:00000001", replicas=[ReplicaSpec("disk", "f")])


def spec(**more: object) -> StageSpec:
    given = {"name": "reco", "input": FilesInput([FILE] * 3), "jobscript": "#!/bin/sh\ntrue", **more}
    return StageSpec(**given)  # type: ignore[arg-type]


def test_a_task_is_told_with_its_script_and_without_its_list_of_files() -> None:
    document = task_document(ORIGIN, spec(image="/cvmfs/image", common_input=[FILE], environment={"A": "1"}))
    assert document["jobscript_sha256"] == hashlib.sha256(b"#!/bin/sh\ntrue").hexdigest()
    assert document["definition"]["jobscript"] == "#!/bin/sh\ntrue"
    assert document["definition"]["input"]["files"] == 3
    assert document["definition"]["environment"] == {"A": "1"}
    assert document["common_input"] == [{"did": "s:f", "checksum": "adler32:00000001"}]
    assert document["workflow"] == {"id": 3, "name": "beam", "labels": {"a": "b"}}
    assert (document["owner"], document["group"], document["image"]) == ("alice", "dune", "/cvmfs/image")
    # Defaults are told, too: they may change.
    assert document["requirements"]["memory_mb"] == 1000
    assert document["definition"]["max_attempts"] == 3
    assert document["definition"]["input"]["kind"] == "files"
    msgspec.json.encode(document)


def test_the_digest_tells_definitions_apart() -> None:
    one = digest_of(task_document(ORIGIN, spec()))
    assert one == digest_of(task_document(ORIGIN, spec()))
    assert one != digest_of(task_document(ORIGIN, spec(jobscript="#!/bin/sh\nfalse")))


def test_a_job_is_told_with_what_it_read_and_wrote_and_nothing_empty() -> None:
    unit = UnitOrigin(1, 0, "done", did="s:f", first_event=0, events=10)
    output = OutputOrigin("s:7.1.o", "o", "output", "confirmed", "disk", "p", 5, "adler32:00000001", None, {})
    document = job_document({"job": 1, "host": "node", "batch_id": None, "error_detail": ""}, [unit], [output])
    assert document == {
        "job": 1,
        "host": "node",
        "units": [{"id": 1, "seq": 0, "state": "done", "did": "s:f", "first_event": 0, "events": 10}],
        "outputs": [
            {"did": "s:7.1.o", "name": "o", "role": "output", "state": "confirmed", "storage": "disk", "path": "p",
             "size": 5, "checksum": "adler32:00000001"}
        ],
    }  # fmt: skip


def test_a_name_leads_back_to_its_job() -> None:
    for name in ("out.root", "1.2.3", ".hidden", "a b"):
        assert parse_output_did(output_did("user.a", 7, 1, name)) == OutputName("user.a", 7, 1, name)
    for other in ("user.a:file", "user.a:7.x.o", ":7.1.o", "s:7.1.", "s:7.1", "", "s:-7.1.o", "s:7.1²0.o"):
        assert parse_output_did(other) is None
