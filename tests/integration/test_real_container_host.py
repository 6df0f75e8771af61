"""What the doctor says of a node's containers, with a real Apptainer on hosts that cannot, each in its own way."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pilot.container import Finding, Level, check_host, host
from tests.services.apptainer import Apptainer

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "containers.md"
CONFIGURATION = Path("/etc/apptainer/apptainer.conf")


def wrapped(folder: Path, script: str) -> str:
    """An Apptainer that runs as on another host."""
    program = folder / "apptainer"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_real_host_that_can_run_containers(apptainer: Apptainer) -> None:
    findings = by_name(check_host(apptainer.binary))
    assert findings["container"].level is Level.OK and apptainer.binary in findings["apptainer"].detail
    assert all(finding.remedy == "" for finding in findings.values() if finding.level is Level.OK)
    assert not [finding for finding in findings.values() if finding.level is Level.ERROR]
    assert ("user" in findings) == (os.geteuid() == 0)
    assert "user" not in by_name(check_host(apptainer.binary, accounts=("somebody",)))


def test_real_host_without_user_namespaces(apptainer: Apptainer, tmp_path: Path) -> None:
    inner = 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"'
    script = f"exec unshare -U -r sh -c '{inner}' sh {apptainer.binary} \"$@\""
    finding = by_name(check_host(wrapped(tmp_path, script)))["container"]
    assert finding.level is Level.ERROR and "CONTAINER_NO_USER_NAMESPACE" in finding.detail
    assert "user.max_user_namespaces" in finding.detail, "it says what to ask the admin for"


@pytest.mark.parametrize("kind", ["pid", "ipc"])
def test_real_host_where_a_namespace_is_not_given(apptainer: Apptainer, tmp_path: Path, kind: str) -> None:
    """Apptainer says nothing of it: the payload would see the pilot."""
    configuration = tmp_path / "apptainer.conf"
    configuration.write_text(CONFIGURATION.read_text().replace(f"allow {kind} ns = yes", f"allow {kind} ns = no"))
    script = f'exec {apptainer.binary} --config {configuration} "$@"'
    finding = by_name(check_host(wrapped(tmp_path, script)))[f"{kind}-namespace"]
    assert finding.level is Level.ERROR and f"allow {kind} ns = yes" in finding.remedy


def test_real_host_without_fuse(apptainer: Apptainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.os, "access", lambda path, _mode: path != "/dev/fuse")
    finding = by_name(check_host(apptainer.binary))["sif"]
    assert finding.level is Level.WARNING and "/dev/fuse" in finding.detail and "0666" in finding.remedy


def test_real_host_without_apptainer(tmp_path: Path) -> None:
    [finding] = check_host(path=str(tmp_path))
    assert finding.level is Level.ERROR and "install Apptainer" in finding.remedy
    [broken] = check_host(wrapped(tmp_path, "exit 3"))
    assert broken.level is Level.ERROR and "3" in broken.detail


def test_real_host_with_binds_that_cannot_be(apptainer: Apptainer) -> None:
    findings = [each for each in check_host(apptainer.binary, binds=["/tmp", "/no/such"]) if each.name == "binds"]
    assert ["/tmp" in findings[0].detail, "/no/such" in findings[1].detail] == [True, True]


def test_real_host_the_example_of_the_documentation_runs(apptainer: Apptainer) -> None:
    [example] = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    exec(compile(example, str(DOCS), "exec"), {})
