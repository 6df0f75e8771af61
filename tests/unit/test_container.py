"""The Apptainer command and the meaning of Apptainer's messages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

import pytest

from common.errors import ErrorCode, PilotageError
from pilot.container import (
    ContainerCommand,
    ContainerSettings,
    apptainer,
    check_binds,
    check_image,
    container_command,
    diagnose_container_failure,
    find_apptainer,
)
from pilot.payload import JobFolder


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder.create(tmp_path, "1")


@pytest.fixture(autouse=True)
def no_cvmfs(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """These tests are the same with and without CVMFS on the machine."""
    place = tmp_path_factory.mktemp("host") / "cvmfs"
    monkeypatch.setattr(apptainer, "CVMFS", place)
    return place


def binds_of(command: ContainerCommand) -> list[str]:
    return [after for word, after in zip(command.argv, command.argv[1:]) if word == "--bind"]


def test_the_command_word_by_word(folder: JobFolder) -> None:
    settings = ContainerSettings("/bin/apptainer", binds=("/data:/data:ro",), userns=True, as_root=False)
    command = container_command(settings, "/img.sif", folder, ["sh", "-c", "x"], {"A": "$(id)", "HOME": "/h"}, "nvidia")
    work, box, tmp, tools = (str(path) for path in (folder.work, folder.mailbox, folder.tmp, folder.bin))
    assert command.argv == [
        "/bin/apptainer", "--silent", "exec", "--containall", "--pid", "--ipc", "--no-privs", "--no-eval",
        "--no-mount", "hostfs", "--no-home", "--home", work, "--userns", "--nv",
        "--bind", f"{tmp}:/tmp", "--bind", f"{tmp}:/var/tmp", "--bind", "/data:/data:ro",
        "--bind", work, "--bind", box, "--bind", tmp, "--bind", f"{tools}:{tools}:ro",
        "--pwd", work, "/img.sif", "sh", "-c", "x",
    ]  # fmt: skip
    assert command.env["APPTAINERENV_A"] == "$(id)" and "APPTAINERENV_HOME" not in command.env
    assert set(command.env) == {"APPTAINERENV_A", "PATH", "HOME", "APPTAINER_CACHEDIR", "APPTAINER_TMPDIR"}


def test_a_pulled_image_is_run_from_where_it_lies(folder: JobFolder) -> None:
    settings = ContainerSettings("a", image_path=Path("/images/x.sif"))
    words = container_command(settings, "docker://x", folder, ["x"], {}).argv
    assert "/images/x.sif" in words and "docker://x" not in words


def test_cvmfs_is_bound_for_reading_where_there_is_one(folder: JobFolder, no_cvmfs: Path) -> None:
    no_cvmfs.mkdir()
    assert f"{no_cvmfs}:{no_cvmfs}:ro" in binds_of(container_command(ContainerSettings("a"), "/i", folder, ["x"], {}))
    settings = ContainerSettings("a", binds=(f"{no_cvmfs}:/cvmfs",))
    bound = binds_of(container_command(settings, "/i", folder, ["x"], {}))
    assert [bind for bind in bound if str(no_cvmfs) in bind] == [f"{no_cvmfs}:/cvmfs"], "the queue's own word counts"


def test_what_a_payload_with_roots_user_id_could_give_orders_to_is_closed(folder: JobFolder) -> None:
    """As root in a user namespace, without any capability, a payload could write to /proc/sys/kernel/core_pattern."""
    command = container_command(ContainerSettings("a", as_root=True), "/i", folder, ["x"], {})
    assert "/proc/sys:/proc/sys:ro" in binds_of(command)
    assert command.argv[command.argv.index("--no-mount") + 1] == "hostfs,sys"
    with_gpus = container_command(ContainerSettings("a", as_root=True), "/i", folder, ["x"], {}, "amd")
    assert "/sys:/sys:ro" in binds_of(with_gpus) and "/sys:/sys:ro" not in binds_of(command)


@pytest.mark.parametrize(
    ("bind", "why"),
    [
        ("/", "pilot's own"),
        ("/proc:/p", "/proc"),
        ("/tmp", "/tmp"),
        ("/var:/data", "/var/tmp"),
        ("{home}:/h", "keep their files"),
        ("{jobs}", "pilot's own"),
        ("{jobs}/../jobs", "pilot's own"),
        ("{jobs}/job-7/work", "pilot's own"),
        ("{link}:/x", "pilot's own"),
        ("{secret}:/x", "pilot's own"),
        ("relative", "one absolute path"),
        ("/a,/b", "one absolute path"),
    ],
)
def test_no_bind_of_a_queue_shows_the_pilot(tmp_path: Path, bind: str, why: str) -> None:
    jobs, secrets = tmp_path / "pilot" / "jobs", tmp_path / "secrets"
    jobs.mkdir(parents=True)
    secrets.mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pilot")
    folder = JobFolder.create(jobs, "1")
    places = {"home": Path.home(), "jobs": jobs, "link": tmp_path / "link", "secret": secrets}
    settings = ContainerSettings("a", binds=(bind.format(**places),), private=(tmp_path / "pilot", secrets / "worker"))
    with pytest.raises(PilotageError, match=why) as caught:
        container_command(settings, "/i", folder, ["x"], {})
    assert caught.value.code is ErrorCode.CONTAINER_BIND_FAILED and "container_binds" in caught.value.detail


def test_folders_below_those_of_everybody_may_be_bound(tmp_path: Path) -> None:
    check_binds(["/opt", "/cvmfs:/cvmfs:ro", f"{tmp_path}/data", f"{Path.home()}/software:/s:ro"], [tmp_path / "pilot"])


@pytest.mark.parametrize(
    ("uid", "configured", "expected"),
    [(0, None, True), (1000, None, False), (0, False, False), (1000, True, True)],
)
def test_a_user_namespace_is_asked_for_by_root_or_by_configuration(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch, uid: int, configured: Optional[bool], expected: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    command = container_command(ContainerSettings("a", userns=configured), "/i", folder, ["x"], {})
    assert ("--userns" in command.argv) is expected


def test_gpus_choose_their_flag(folder: JobFolder) -> None:
    settings = ContainerSettings("a")
    assert "--rocm" in container_command(settings, "/i", folder, ["x"], {}, "amd").argv
    assert not {"--nv", "--rocm"} & set(container_command(settings, "/i", folder, ["x"], {}).argv)
    with pytest.raises(PilotageError, match="'intel'"):
        container_command(settings, "/i", folder, ["x"], {}, "intel")


def test_a_folder_that_cannot_be_a_bind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    folder = JobFolder.create(tmp_path / "a:b", "1")
    with pytest.raises(PilotageError, match="CONTAINER_BIND_FAILED"):
        container_command(ContainerSettings("a"), "/i", folder, ["x"], {})


def test_find_apptainer(tmp_path: Path) -> None:
    with pytest.raises(PilotageError, match="CONTAINER_NOT_INSTALLED"):
        find_apptainer(str(tmp_path))
    with pytest.raises(PilotageError, match="/no/apptainer is no program"):
        find_apptainer(configured="/no/apptainer")
    program = tmp_path / "apptainer"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_apptainer(str(tmp_path)) == str(program) == find_apptainer(configured=str(program))


def test_check_image(tmp_path: Path) -> None:
    for address in ("docker://a/b:1", "oras://r/x", str(tmp_path)):
        assert check_image(address) == address
    for bad in ("ftp://x", "http://x", "relative.sif", "", "--bind", str(tmp_path / "no.sif"), "docker:x"):
        with pytest.raises(PilotageError) as caught:
            check_image(bad)
        assert caught.value.code is ErrorCode.IMAGE_NOT_FOUND and repr(bad)[1:-1] in caught.value.detail


@pytest.mark.parametrize(
    ("exit_code", "line", "code"),
    [
        (255, "FATAL:   While checking container encryption: could not open image /x: failed to retrieve path for /x: lstat /x: no such file or directory", ErrorCode.IMAGE_NOT_FOUND),
        (255, "FATAL:   While checking container encryption: could not open image /x.sif: image format not recognized", ErrorCode.CONTAINER_MOUNT_FAILED),
        (255, "FATAL:   Unable to handle docker://h/n uri: failed to get checksum for docker://h/n: reading manifest latest in h/n: manifest unknown", ErrorCode.IMAGE_NOT_FOUND),
        (255, 'FATAL:   Unable to handle docker://h/n uri: failed to get checksum for docker://h/n: pinging container registry h: Get "https://h/v2/": dial tcp 127.0.0.1:1: connect: connection refused', ErrorCode.CONTAINER_FAILED),
        (255, 'FATAL:   Error making http request: Head "https://h/x.sif": dial tcp: connect: connection refused', ErrorCode.CONTAINER_FAILED),
        (255, "FATAL:   container creation failed: mount hook function failure: mount /n->/x error: while mounting /n: mount source /n doesn't exist", ErrorCode.CONTAINER_BIND_FAILED),
        (255, "FATAL:   While setting bind mount configuration: while parsing bind path: while getting bind path: zz is not a valid bind option", ErrorCode.CONTAINER_BIND_FAILED),
        (255, "FATAL:   container creation failed: image driver mount failure: image driver squashfuse_ll instance exited with error: squashfuse_ll exited: Something went wrong trying to read the squashfs image.", ErrorCode.CONTAINER_MOUNT_FAILED),
        (255, "FATAL:   container creation failed: mount /proc/self/fd/9->/s error: while mounting image /proc/self/fd/9: squashfuse_ll exited with status 255", ErrorCode.CONTAINER_MOUNT_FAILED),
        (1, "\x1b[91mERROR  : Failed to create user namespace: maximum number of user namespaces exceeded, check /proc/sys/user/max_user_namespaces", ErrorCode.CONTAINER_NO_USER_NAMESPACE),
        (1, "ERROR  : Failed to create mount namespace: mount namespace requires privileges, check Apptainer installation", ErrorCode.CONTAINER_NO_USER_NAMESPACE),
        (255, "FATAL:   container creation failed: image driver mount failure: image driver squashfuse_ll instance exited with error: squashfuse_ll exited: fuse: failed to open /dev/fuse: Permission denied", ErrorCode.CONTAINER_MOUNT_FAILED),
        (255, "FATAL:   While checking image: the image's architecture (arm64) could not run on the host's (amd64)", ErrorCode.CONTAINER_FAILED),
        (255, 'FATAL:   "nosuch": executable file not found in $PATH', ErrorCode.BAD_JOBSCRIPT),
        (255, "FATAL:   stat /bin/nosuch: no such file or directory", ErrorCode.BAD_JOBSCRIPT),
        (255, "FATAL:   exec /j/jobscript failed: fork/exec /j/jobscript: no such file or directory", ErrorCode.BAD_JOBSCRIPT),
        (255, "FATAL:   failed to set working directory: chdir /nowhere: no such file or directory", ErrorCode.CONTAINER_FAILED),
        (139, "", ErrorCode.SIGSEGV),
        (137, "", ErrorCode.KILL_SIGNAL),
    ],
)  # fmt: skip
def test_what_apptainer_says_becomes_a_numbered_error(exit_code: int, line: str, code: ErrorCode) -> None:
    failure = diagnose_container_failure(exit_code, f"some payload output\n{line}\n")
    assert failure is not None and failure.code is code
    assert "\x1b" not in failure.detail
    assert not line or failure.detail.split(";")[0].split(":")[-1] in line


@pytest.mark.parametrize(
    ("exit_code", "tail"),
    [
        (1, "FATAL:   my algorithm has failed"),
        (255, "nothing that Apptainer says; image not found, could not open image"),
        (3, "FATAL:   could not open image"),
        (0, ""),
        (None, ""),
        (200, ""),
    ],
)
def test_the_payloads_own_failures_stay_its_own(exit_code: Optional[int], tail: str) -> None:
    assert diagnose_container_failure(exit_code, tail) is None


def test_a_failure_of_the_node_says_what_to_ask_its_admin_for() -> None:
    fuse = diagnose_container_failure(255, "FATAL:   fuse: failed to open /dev/fuse: Permission denied")
    assert fuse is not None and "mode 0666 on /dev/fuse" in fuse.detail and "squashfuse" in fuse.detail
    namespace = diagnose_container_failure(1, "ERROR  : Failed to create user namespace: maximum number exceeded")
    assert namespace is not None and "user.max_user_namespaces" in namespace.detail
