"""``pilotage server token``: what is minted can be taken back."""

from __future__ import annotations

from click.testing import CliRunner

from common.cli.main import main


def test_no_token_outlives_its_revocation() -> None:
    found = CliRunner().invoke(main, ["server", "token", "--role", "user", "--subject", "ada", "--ttl", "366d"])
    assert found.exit_code == 2
    assert "--ttl" in found.output and "at most 365d" in found.output
