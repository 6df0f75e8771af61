"""``pilotage bench harvester``, tiny: real files, a server over HTTP; every figure is there and none is absurd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_every_figure_is_measured(tmp_path: Path) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PILOTAGE_")}
    done = subprocess.run(
        [sys.executable, "-m", "common.cli.main", "bench", "harvester", "--json", "--workers", "180", "--queues", "3"],
        env={**own, "TMPDIR": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["workers"] == 180, "those that end are replaced"
    assert (found["submitted"], found["changed"]) == (3, 9), "one of sixty ends in each queue, one starts, one is new"
    assert 0.0 < found["cycle_s"] < 60.0
    assert 10.0 < found["rss_mb"] < 500.0
    assert found["first_cycle_s"] > 0.0 and found["fill_s"] > 0.0 and found["restart_s"] > 0.0
    assert (found["conditions"]["queues"], found["conditions"]["batch_systems"]) == (3, 3)
    assert not list(tmp_path.glob("pilotage-bench-*"))
