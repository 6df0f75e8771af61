"""The profile ``idle`` of the benchmark, tiny."""

from __future__ import annotations

from pathlib import Path

from tests.integration.server.test_server_bench import bench, place, run

__all__ = ["place"]
"""A fixture."""


def test_the_profile_idle(tmp_path: Path, place: list[str]) -> None:
    found = run(
        *(tmp_path, place, "--profile", "idle", "--scale", "0.02", "--seconds", "3", "--warm-up", "1"),
        *("--tasks", "10", "--buckets", "40", "--queues", "20"),
    )
    assert (found["errors"], found["duplicates"], found["wrong_in_database"]) == (0, 0, 0)
    assert (found["conditions"]["idle_pilots"], found["conditions"]["new_units"]) == (200, 400)
    assert found["conditions"]["ready_units"] == 0
    assert 0 < found["idle_requests_per_s"] <= found["idle_requests_max_per_s"]
    assert 0 < found["first_start_s"] <= found["busy_90_s"]
    assert found["details"]["busy"] >= found["details"]["busy_wanted"] == 180
    assert found["claims_per_s"] is None


def test_the_fleet_cannot_be_kept(tmp_path: Path) -> None:
    done = bench(tmp_path, "--profile", "idle", "--database", f"sqlite:///{tmp_path / 'kept.db'}", "--keep")
    assert done.returncode == 1
    assert "--keep" in done.stderr
    assert not list(tmp_path.glob("kept*"))
