"""Sandboxes on the worker node: unpacked inside the job's folder or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import Callable, Optional

import pytest

from common.errors import ErrorCode, PilotageError
from common.wire import AssignedSandbox
from pilot import sandbox
from pilot.sandbox import unpack


def packed(*members: tuple[str, Optional[bytes], dict[str, object]]) -> bytes:
    """An archive of these members: name, content, and what else its header says."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content, more in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o644
            if content is not None:
                info.size = len(content)
            for key, value in more.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content or b""))
    return stream.getvalue()


def wanted(content: bytes) -> AssignedSandbox:
    return AssignedSandbox(hashlib.sha256(content).hexdigest(), len(content))


def link(target: str) -> dict[str, object]:
    return {"type": tarfile.SYMTYPE, "linkname": target}


def test_files_folders_and_links_inside_are_unpacked(tmp_path: Path) -> None:
    content = packed(
        ("lib/", None, {"type": tarfile.DIRTYPE}),
        ("lib/tool.py", b"print(1)", {}),
        ("./run.sh", b"#!/bin/sh\n", {"mode": 0o4777}),
        ("latest", None, link("lib")),
        ("lib/back", None, link("../run.sh")),
    )
    found = unpack(content, wanted(content), tmp_path)
    assert (tmp_path / "latest" / "tool.py").read_bytes() == b"print(1)"
    assert (tmp_path / "lib" / "back").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "run.sh").stat().st_mode & 0o7777 == 0o700
    assert (tmp_path / "lib" / "tool.py").stat().st_mode & 0o7777 == 0o600
    assert set(found.files) == {"lib", "run.sh", "latest"}


@pytest.mark.parametrize(
    "members",
    [
        [("/etc/passwd", b"x", {})],
        [("../out", b"x", {})],
        [("a/../../out", b"x", {})],
        [("out", None, link("/etc/passwd"))],
        [("out", None, link("../outside"))],
        [("a/out", None, link("../../outside"))],
        [("a/out", None, link("b/../../../outside"))],
        [("x", None, link(".")), ("y", None, link("x/x/x/../../.."))],
        [("s/f", b"x", {}), ("d", None, link("s")), ("d/file", b"x", {})],
        [("s/f", b"x", {}), ("d/file", b"x", {}), ("d", None, link("s"))],
        [("s/f", b"x", {}), ("d", None, link("s")), ("d/up", None, link("../../x"))],
        [("a", None, link("b")), ("a", b"x", {})],
        [("hard", None, {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"})],
        [("null", None, {"type": tarfile.CHRTYPE})],
        [("pipe", None, {"type": tarfile.FIFOTYPE})],
    ],
)
def test_what_could_reach_outside_is_refused_and_nothing_is_written(
    tmp_path: Path, members: list[tuple[str, Optional[bytes], dict[str, object]]]
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    content = packed(("first", b"x", {}), *members)
    with pytest.raises(PilotageError) as refused:
        unpack(content, wanted(content), folder)
    assert refused.value.code is ErrorCode.BAD_SANDBOX
    assert list(folder.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = packed(("zeros", b"\0" * 100_000, {}))
    with pytest.raises(PilotageError, match="more than 99999 bytes"):
        unpack(content, wanted(content), tmp_path, most_bytes=99_999)
    monkeypatch.setattr(sandbox, "MAX_MEMBERS", 2)
    content = packed(*[(f"f{n}", b"", {}) for n in range(3)])
    with pytest.raises(PilotageError, match="more than 2 members"):
        unpack(content, wanted(content), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spoil", [lambda c: c[:-1], lambda c: c + b"x", lambda c: b"\0" + c[1:]])
def test_a_damaged_sandbox_is_the_transfers_fault(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    content = packed(("a", b"x", {}))
    with pytest.raises(PilotageError) as refused:
        unpack(spoil(content), wanted(content), tmp_path)
    assert refused.value.code is ErrorCode.STAGE_IN_FAILED


@pytest.mark.parametrize(
    "content",
    [b"no archive", b"", b"\x1f\x8b\x08 broken", packed(("a", b"x" * 5000, {}))[:60]],
    ids=["text", "empty", "broken", "cut"],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(PilotageError) as refused:
        unpack(content, wanted(content), tmp_path)
    assert refused.value.code is ErrorCode.BAD_SANDBOX


def test_only_files_that_the_payload_changed_may_be_outputs(tmp_path: Path) -> None:
    content = packed(("same.txt", b"x", {}), ("changed.txt", b"x", {}), ("gone.txt", b"x", {}))
    found = unpack(content, wanted(content), tmp_path)
    assert found.unchanged(tmp_path) == {"same.txt", "changed.txt", "gone.txt"}
    (tmp_path / "changed.txt").write_text("longer")
    (tmp_path / "gone.txt").unlink()
    os.utime(tmp_path / "same.txt", ns=(1, (tmp_path / "same.txt").stat().st_mtime_ns))
    assert found.unchanged(tmp_path) == {"same.txt"}
