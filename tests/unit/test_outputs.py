"""Outputs: what is picked up, and what is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.errors import ErrorCode
from common.wire import OutputPattern
from pilot.outputs import CollectedOutputs, OutputPolicy, collect_outputs

ALL = OutputPattern(pattern="*.root")


def collect(folder: Path, *patterns: OutputPattern, inputs: tuple[str, ...] = ()) -> CollectedOutputs:
    return collect_outputs(folder, patterns or (ALL,), inputs)


def test_files_are_matched_by_pattern_with_size_and_attributes(tmp_path: Path) -> None:
    (tmp_path / "b.root").write_bytes(b"12345")
    (tmp_path / "a.root").write_bytes(b"1")
    (tmp_path / "A.ROOT").write_bytes(b"")
    (tmp_path / ".hidden.root").write_bytes(b"")
    (tmp_path / "a.root.json").write_text('{"events": 7, "x": {"y": [1]}}')
    made = collect(tmp_path, ALL, OutputPattern(pattern="*"))
    assert [(file.name, file.size, file.pattern.pattern) for file in made.files] == [
        ("A.ROOT", 0, "*"),
        ("a.root", 1, "*.root"),
        ("b.root", 5, "*.root"),
    ]
    assert made.files[1].attributes == {"events": 7, "x": {"y": [1]}} and made.files[1].path == tmp_path / "a.root"
    assert made.error is None and made.warnings == []


def test_a_pattern_that_nothing_matches_fails_unless_it_is_optional(tmp_path: Path) -> None:
    made = collect(tmp_path, ALL, OutputPattern(pattern="*.log", optional=True))
    assert made.missing_patterns == ["*.root"]
    assert made.error == (ErrorCode.MISSING_OUTPUT, "no file matches '*.root'")


def test_inputs_and_processed_lists_are_no_outputs(tmp_path: Path) -> None:
    for name in ("in.root", "out.root", "justin-processed-dids.txt"):
        (tmp_path / name).write_text("x")
    made = collect(tmp_path, ALL, OutputPattern(pattern="*.txt", optional=True), inputs=("in.root",))
    assert [file.name for file in made.files] == ["out.root"]


def test_a_link_to_a_token_uploads_nothing(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "token").write_text("secret")
    (work / "out.root").symlink_to("../token")
    made = collect(work)
    assert made.files == [] and made.missing_patterns == []
    assert made.error == (ErrorCode.OUTPUT_NOT_REGULAR, "output 'out.root' is a link: it is not uploaded")


@pytest.mark.parametrize("kind", ["hard link", "fifo", "folder", "dangling", "inside"])
def test_only_regular_files_with_one_name_are_outputs(tmp_path: Path, kind: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "token").write_text("secret")
    out = work / "out.root"
    if kind == "hard link":
        os.link(tmp_path / "token", out)
    elif kind == "fifo":
        os.mkfifo(out)
    elif kind == "folder":
        out.mkdir()
    elif kind == "dangling":
        out.symlink_to("nowhere")
    else:
        (work / "real.txt").write_text("x")
        out.symlink_to("real.txt")
    made = collect(work)
    assert made.files == [] and [refused.code for refused in made.refused] == [ErrorCode.OUTPUT_NOT_REGULAR]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_file_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "out.root").write_text("x")
    os.chown(tmp_path / "out.root", 12345, -1)
    made = collect(tmp_path)
    assert made.files == [] and "another user" in made.refused[0].reason


def test_a_work_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "work").symlink_to("real")
    with pytest.raises(OSError):
        collect(tmp_path / "work")


def test_names_that_are_no_text_or_too_long_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a\nb.root").write_text("x")
    (tmp_path / os.fsdecode(b"\xff.root")).write_text("x")
    long = "x" * 251 + ".root"
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [*real(path), long])  # no file system here has such names
    codes = {refused.name: refused.code for refused in collect(tmp_path).refused}
    assert codes[long] is ErrorCode.NAME_TOO_LONG
    assert len(codes) == 3 and codes["'a\\nb.root'"] is ErrorCode.OUTPUT_NOT_REGULAR


@pytest.mark.parametrize("content", ["[1]", "{", "\xff", '"x"', "[" * 100_000, '{"a": "' + "x" * 1_000_000 + '"}'])
def test_metadata_that_is_no_small_json_object_is_a_warning(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.root").write_text("x")
    (tmp_path / "a.root.json").write_text(content, encoding="latin-1")
    made = collect(tmp_path)
    assert made.files[0].attributes == {} and len(made.warnings) == 1 and "a.root.json" in made.warnings[0]


def test_metadata_is_not_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "a.root").write_text("x")
    (tmp_path / "secret").write_text('{"token": 1}')
    (tmp_path / "a.root.json").symlink_to("secret")
    made = collect(tmp_path)
    assert made.files[0].attributes == {} and "is a link" in made.warnings[0]


def test_no_descriptors_leak(tmp_path: Path) -> None:
    (tmp_path / "a.root").write_text("x")
    os.link(tmp_path / "a.root", tmp_path / "b.root")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        collect(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("text", ['{"a": 1, "b": NaN}', '{"a": 99999999999999999999}', '{"a": "\\ud800"}'])
def test_metadata_that_cannot_be_handed_on_is_left_out(tmp_path: Path, text: str) -> None:
    """A number beyond 64 bits would have made the record of the outputs fail as a mistake of the pilot's."""
    (tmp_path / "a.root").write_text("x")
    (tmp_path / "a.root.json").write_text(text)
    made = collect(tmp_path)
    assert made.files[0].attributes == {} and "a.root.json is no JSON" in made.warnings[0]


# ---------------------------------------------------------------- limits, none at all, what the payload says of them


@pytest.mark.parametrize(("rule_mb", "queue_mb", "bound"), [(1, 0, 1), (0, 2, 2), (3, 2, 2), (1, 9, 1)])
def test_an_output_that_is_too_large_is_named_with_its_size_and_the_bound(
    tmp_path: Path, rule_mb: int, queue_mb: int, bound: int
) -> None:
    (tmp_path / "a.root").write_bytes(b"1")
    (tmp_path / "big.root").touch()
    os.truncate(tmp_path / "big.root", 4 * 2**20)
    made = collect_outputs(tmp_path, [OutputPattern(pattern="*.root", max_mb=rule_mb)], (), OutputPolicy(queue_mb))
    assert made.error == (
        ErrorCode.OUTPUT_TOO_LARGE,
        f"output 'big.root' has 4194304 bytes (4.0 MiB), allowed are {bound} MiB",
    )


def test_an_output_may_be_as_large_as_its_limit(tmp_path: Path) -> None:
    (tmp_path / "a.root").touch()
    os.truncate(tmp_path / "a.root", 2**20)
    assert collect_outputs(tmp_path, [OutputPattern(pattern="*.root", max_mb=1)]).error is None


def test_no_output_at_all_may_be_allowed_but_not_half_of_them(tmp_path: Path) -> None:
    patterns = [ALL, OutputPattern(pattern="*.hist")]
    policy = OutputPolicy(allow_none=True)
    assert collect_outputs(tmp_path, patterns, (), policy).error is None
    assert collect_outputs(tmp_path, patterns).error is not None
    (tmp_path / "a.root").write_text("x")
    assert collect_outputs(tmp_path, patterns, (), policy).error == (
        ErrorCode.MISSING_OUTPUT,
        "no file matches '*.hist'",
    )


def test_attributes_of_the_job_report_are_taken_unless_the_file_beside_says_otherwise(tmp_path: Path) -> None:
    for name in ("a.root", "b.root"):
        (tmp_path / name).write_text("x")
    (tmp_path / "b.root.json").write_text('{"events": 5}')
    policy = OutputPolicy(told={"a.root": {"events": 3, "guid": "A"}, "b.root": {"events": 3, "guid": "B"}})
    made = collect_outputs(tmp_path, [ALL], (), policy)
    assert [file.attributes for file in made.files] == [{"events": 3, "guid": "A"}, {"events": 5, "guid": "B"}]


def test_an_optional_output_without_events_is_left_out(tmp_path: Path) -> None:
    for name in ("a.root", "b.skim"):
        (tmp_path / name).write_text("x")
    patterns = [ALL, OutputPattern(pattern="*.skim", optional=True)]
    policy = OutputPolicy(told={"a.root": {"events": 0}, "b.skim": {"events": 0}})
    made = collect_outputs(tmp_path, patterns, (), policy)
    assert [file.name for file in made.files] == ["a.root"] and made.error is None
    assert made.warnings == ["output 'b.skim' has no events and is optional: left out"]


def test_a_core_dump_is_no_output_unless_it_is_asked_for(tmp_path: Path) -> None:
    for name in ("core.12", "core.root", "a.root"):
        (tmp_path / name).write_text("x")
    everything = OutputPattern(pattern="*")
    assert [file.name for file in collect(tmp_path, everything).files] == ["a.root", "core.root"]
    asked = collect(tmp_path, OutputPattern(pattern="core.*"))
    assert [file.name for file in asked.files] == ["core.12", "core.root"]
