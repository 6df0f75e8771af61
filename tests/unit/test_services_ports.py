"""Ports for the services that tests start."""

from __future__ import annotations

import socket

import pytest

from tests.services.base import hold_port


def test_a_port_that_is_held_is_for_its_server_alone() -> None:
    """Rucio's was once taken by somebody's connection while its database was made."""
    with hold_port() as held:
        address = held.getsockname()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(address)
        with socket.create_server(address) as server, socket.create_connection(address) as client:
            assert client.getpeername() == server.getsockname()
