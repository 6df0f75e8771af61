"""``pilotage bench pilot``, tiny: real server, real pilots; every figure is there and none is absurd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_every_figure_is_measured(tmp_path: Path) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PILOTAGE_")}
    done = subprocess.run(
        [sys.executable, "-m", "common.cli.main", "bench", "pilot", "--json", "--jobs", "3", "--payload-s", "0.2"],
        env={**own, "TMPDIR": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert 0.2 < found["job_p50_s"] <= found["job_max_s"] < 60.0
    assert 0.0 < found["gap_p50_s"] <= found["gap_max_s"] < 60.0
    assert 0.0 < found["failed_report_s"] < 60.0
    assert 0.0 < found["sigterm_s"] < 20.0, "whatever the machine does besides, a slot is left in time"
    assert 10.0 < found["rss_mb_1"] < 500.0 and 10.0 < found["rss_mb_8"] < 500.0
    assert 0.0 < found["watch_cpu_percent"] < 100.0
    assert found["breach_s"] > 0.0
    assert (found["xrootd_ratio"], found["container_gap_p50_s"]) == (None, None)
    assert found["conditions"]["jobs"] == 3
    assert not list(tmp_path.glob("pilotage-bench-*"))
