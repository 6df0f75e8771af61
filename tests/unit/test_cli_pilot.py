"""``pilotage show pilot``."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import responses
from click.testing import CliRunner

from common.cli import Frame
from common.cli.show import show
from common.wire import Gpu, NodeInfo, Offer, PilotView

URL = "http://server.test"


def shown(view: PilotView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> str:
    for name in ("XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    with responses.RequestsMock() as server:
        server.add("GET", f"{URL}/v1/pilots/7", body=msgspec.json.encode(view), content_type="application/json")
        result = CliRunner().invoke(show, ["pilot", "7", "--server", URL, *more], obj=Frame(config_file=None))
    assert result.exit_code == 0, result.output
    return result.output


def test_a_pilot_with_its_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = PilotView(
        id=7, worker="mark-1", queue="q", site="s", host="node1", version="1.2", state="ended", registered=1.7e9,
        end_reason="the slot cannot be used", log_tail="last words",
        offer=Offer(cores=2, gpus=[Gpu(vendor="nvidia", model="NVIDIA H200", memory_mb=143771)], tags=["linux"]),
        node_info=NodeInfo(cpu_model="AMD EPYC 7763", cpu_level="x86-64-v3", cores=64, threads=128, memory_mb=515000,
                           os="AlmaLinux 9.4", core_power=17.25, power_source="machine features hs23"),
    )  # fmt: skip
    text = shown(view, tmp_path, monkeypatch)
    for words in ("AMD EPYC 7763 x86-64-v3, 64 cores, 128 threads, 17.25 HS23 a core (machine features hs23)", "515000 MiB",
                  "NVIDIA H200 (143771 MiB)", "queue q, site s, host node1", "the slot cannot be used", "last words"):  # fmt: skip
        assert words in text
    assert '"cpu_level": "x86-64-v3"' in shown(view, tmp_path, monkeypatch, "--json")


def test_a_pilot_of_an_older_version_that_did_not_describe_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = PilotView(id=7, worker="mark-1", queue="q", site="s", state="active", registered=1.7e9)
    text = shown(view, tmp_path, monkeypatch)
    assert "active" in text and "CPU" not in text and "memory" not in text
