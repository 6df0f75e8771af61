"""The profile ``reserve`` of the benchmark, tiny."""

from __future__ import annotations

from pathlib import Path

from tests.integration.server.test_server_bench import place, run

__all__ = ["place"]
"""A fixture."""


def test_the_profile_reserve(tmp_path: Path, place: list[str]) -> None:
    found = run(tmp_path, place, "--profile", "reserve", "--scale", "0.002", "--web-processes", "1")
    assert (found["errors"], found["duplicates"], found["wrong_in_database"]) == (0, 0, 0)
    assert set(found["pairs_per_s"]) == {"1000", "2000"}
    assert all(figure > 0 for figure in found["pairs_per_s"].values())
    assert found["pairs_ratio"] > 0
