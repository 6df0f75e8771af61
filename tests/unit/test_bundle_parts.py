"""The bundle's two first steps: the start script that finds a Python, and the unpacking that trusts no folder."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from common.errors import PilotageError
from pilot.bundle import boot
from pilot.bundle.wheels import wheels

HERE = os.uname().machine
THIS = f"{sys.version_info[0]}.{sys.version_info[1]}"
SCRIPT = (Path(boot.__file__).with_name("start.sh")).read_text(encoding="utf-8")
TOOLS = ("uname", "sort", "sh", "cat")


class Node:
    """A node whose search path holds a few tools and what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.environment = {"PATH": str(self.bin), "MODULESHOME": "/nowhere", "LMOD_PKG": "/nowhere"}
        for tool in TOOLS:
            path = next(path for path in (Path("/usr/bin") / tool, Path("/bin") / tool) if path.exists())
            (self.bin / tool).symlink_to(path)
        self.file = folder / "pilotage.run"

    def program(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def python(self, name: str) -> Path:
        """This very Python: asked as a candidate it answers for itself, started it says by which name."""
        return self.program(
            name, f'case " $* " in *" -c "*) exec {sys.executable} "$@" ;; esac\necho "{name} $$ $*"\nexit 7'
        )

    def start(self, *words: str, arch: str = HERE, pythons: str = THIS) -> subprocess.Popen[str]:
        text = SCRIPT.replace("@ARCH@", arch).replace("@PYTHONS@", pythons).replace("@VERSION@", "1.0")
        self.file.write_bytes(text.encode() + b"PK\x03\x04\xff\x00'\"`$(")
        self.file.chmod(0o755)
        return subprocess.Popen(
            [self.file, *words], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_the_start_script_becomes_the_python_that_it_finds(node: Node) -> None:
    node.python("python3")
    started = node.start("pilot", "two words", "")
    output, _ = started.communicate(timeout=180)
    assert output == f"python3 {started.pid} -I -X utf8 {node.file} pilot two words \n"
    assert started.returncode == 7


def test_a_named_python_comes_first_and_a_numbered_one_before_python3(node: Node) -> None:
    node.python("python3")
    node.python(f"python{THIS}")
    assert node.start().communicate()[0].startswith(f"python{THIS} ")
    node.environment["PILOTAGE_PYTHON"] = str(node.python("ours"))
    assert node.start().communicate()[0].startswith("ours ")


def test_a_shim_that_runs_nothing_is_passed_over(node: Node) -> None:
    node.program(f"python{THIS}", "echo no such version >&2; exit 127")
    node.python("python3")
    assert node.start().communicate()[0].startswith("python3 ")


def test_a_named_python_that_is_not_there_is_told_and_another_taken(node: Node) -> None:
    node.python("python3")
    node.environment["PILOTAGE_PYTHON"] = "/nowhere/python"
    output, told = node.start().communicate()
    assert output.startswith("python3 ")
    assert "PILOTAGE_PYTHON" in told and "/nowhere/python: does not run here" in told


def test_a_node_without_a_python_is_told_what_was_tried_and_what_to_do(node: Node) -> None:
    nothing = node.start()
    _, told = nothing.communicate()
    assert nothing.returncode == 1
    assert f"this file runs on {THIS}" in told and "there is no python3 on the search path" in told
    node.python("python3")
    old = node.start(pythons="3.94 3.95")
    _, told = old.communicate()
    assert old.returncode == 1
    full = ".".join(map(str, sys.version_info[:3]))
    assert f"{node.bin}/python3: is Python {full}, and this file is for 3.94, 3.95" in told
    assert "name one by PILOTAGE_PYTHON" in told


def test_a_python_without_all_of_its_library_will_not_do(node: Node) -> None:
    poor = "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n: None if n == '_ssl' else f(n)"
    node.program(
        "python3",
        f'shift 2; question=$2; shift 2; exec {sys.executable} -I -S -c "{poor}\n$question" "$@"',
    )
    _, told = node.start().communicate()
    assert "without its modules _ssl: install all of it" in told


def test_an_environment_module_brings_a_python(node: Node) -> None:
    loaded = node.bin.parent / "loaded"
    loaded.mkdir()
    node.python("python3").rename(loaded / "python3")
    init = node.bin.parent / "init"
    init.mkdir()
    (init / "sh").write_text(f'module() {{ [ "$2" = ours ] && PATH={loaded}:$PATH; }}\n')
    node.environment |= {"MODULESHOME": str(init.parent), "PILOTAGE_PYTHON_MODULE": "ours"}
    assert node.start().communicate()[0].startswith("python3 ")


def test_a_file_for_another_machine_says_so(node: Node) -> None:
    node.python("python3")
    wrong = node.start(arch="sparc")
    _, told = wrong.communicate()
    assert wrong.returncode == 1
    assert f"this file is for sparc and this node is {HERE}" in told


# ---------------------------------------------------------------- unpacking

CONTENT = {"a.py": b"A = 1\n", "deep/er/tool": b"#!/bin/sh\n", "deep/empty": b""}


@pytest.fixture
def archive(tmp_path: Path) -> str:
    path = tmp_path / "archive"
    with zipfile.ZipFile(path, "w") as packed:
        for number, content in enumerate(CONTENT.values()):
            packed.writestr(f"blobs/{number}", content)
    return str(path)


FILES: dict[str, list[Any]] = {
    name: [len(content), name.endswith("tool"), f"blobs/{number}"]
    for number, (name, content) in enumerate(CONTENT.items())
}


def cache_of(tmp_path: Path) -> str:
    return boot.own_folder(str(tmp_path / "cache"))


def content_of(tree: str) -> dict[str, bytes]:
    return {path.relative_to(tree).as_posix(): path.read_bytes() for path in Path(tree).rglob("*") if path.is_file()}


def test_it_is_unpacked_once_and_for_this_user_alone(tmp_path: Path, archive: str) -> None:
    tree = boot.ready(archive, "build", FILES, cache_of(tmp_path))
    assert content_of(tree) == CONTENT
    assert Path(tree).stat().st_mode & 0o777 == 0o700
    assert os.access(f"{tree}/deep/er/tool", os.X_OK) and not os.access(f"{tree}/a.py", os.X_OK)
    first = Path(tree).stat().st_ino
    assert boot.ready("/no/archive", "build", FILES, cache_of(tmp_path)) == tree
    assert Path(tree).stat().st_ino == first


@pytest.mark.parametrize("harm", ["gone", "short", "folder gone"])
def test_what_a_cleaner_or_a_full_disk_took_is_unpacked_again(tmp_path: Path, archive: str, harm: str) -> None:
    tree = Path(boot.ready(archive, "build", FILES, cache_of(tmp_path)))
    if harm == "short":
        (tree / "a.py").write_bytes(b"")
    else:
        (tree / ("a.py" if harm == "gone" else "deep/er/tool")).unlink()
    assert content_of(boot.ready(archive, "build", FILES, cache_of(tmp_path))) == CONTENT
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["build"]


def test_starts_side_by_side_all_get_a_whole_tree(tmp_path: Path, archive: str) -> None:
    cache, found, gate = cache_of(tmp_path), [], threading.Barrier(8)

    def start() -> None:
        gate.wait()
        found.append(content_of(boot.ready(archive, "build", FILES, cache)))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 8
    assert [path.name for path in Path(cache).iterdir()] == ["build"]


def test_a_folder_that_others_could_have_prepared_is_not_used(tmp_path: Path, archive: str) -> None:
    planted = tmp_path / "planted"
    planted.mkdir()
    (tmp_path / "link").symlink_to(planted)
    with pytest.raises(boot.Unusable, match="not a folder"):
        boot.own_folder(str(tmp_path / "link"))
    planted.chmod(0o777)
    with pytest.raises(boot.Unusable, match="others may write there"):
        boot.own_folder(str(planted))
    with pytest.raises(boot.Unusable, match="put another folder in its place"):
        boot.own_folder(str(planted / "below"))
    planted.chmod(0o1777)  # as /tmp is
    assert boot.own_folder(str(planted / "below"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of somebody else")
def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(0o700)
    os.chown(theirs, 12345, 12345)
    with pytest.raises(boot.Unusable, match="belongs to somebody else"):
        boot.own_folder(str(theirs))


def test_the_next_place_is_taken_when_one_will_not_do(
    tmp_path: Path, archive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.write_text("in the way")
    with pytest.raises(boot.Unusable, match="PILOTAGE_BUNDLE_CACHE.*\n.*bad: it is not a folder"):
        boot.unpacked(archive, "build", FILES, {"PILOTAGE_BUNDLE_CACHE": str(bad)})
    monkeypatch.setattr(boot, "places", lambda _environ: [str(bad), str(good)])
    assert boot.unpacked(archive, "build", FILES, {}) == f"{good}/build"


def test_the_batch_systems_scratch_is_the_first_place() -> None:
    name = f"pilotage-bundle-{os.geteuid()}"
    found = boot.places({"TMPDIR": "/scratch", "HOME": "/home/u"})
    assert found == [f"/scratch/{name}", f"/tmp/{name}", f"/var/tmp/{name}", "/home/u/.cache/pilotage-bundle"]
    assert boot.places({"PILOTAGE_BUNDLE_CACHE": "/named", "TMPDIR": "/scratch"}) == ["/named"]


def test_leftovers_of_killed_starts_and_old_builds_go(tmp_path: Path, archive: str) -> None:
    cache = Path(cache_of(tmp_path))
    for name, age_s in ((".new-old", 2 * boot.ABANDONED_S), (".new-now", 0), ("old", 2 * boot.UNUSED_S), ("used", 60)):
        (cache / name).mkdir()
        os.utime(cache / name, (cache.stat().st_mtime - age_s,) * 2)
    boot.ready(archive, "build", FILES, str(cache))
    assert sorted(path.name for path in cache.iterdir()) == [".new-now", "build", "used"]


@pytest.mark.parametrize(
    ("libc", "words"),
    [
        ("glibc 2.28", ""),
        ("glibc 2.31", ""),
        ("glibc 2.17", "has glibc 2.17"),
        (None, "is not glibc"),
        ("musl 1", "musl"),
    ],
)
def test_a_c_library_that_is_too_old_is_told_before_anything_is_loaded(libc: str | None, words: str) -> None:
    told = boot.too_old(libc, [2, 28])
    assert (words in told and "need glibc 2.28 or newer" in told) if words else told == ""


def test_kept_wheels_that_lack_something_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "x86_64-3.11"
    folder.mkdir()
    with pytest.raises(PilotageError, match=r"lacks wheels for .*msgspec.*: remove the folder"):
        wheels("x86_64", "3.11", [], folder)
