"""Sockets that listen before there is a server."""

from __future__ import annotations

import socket

import pytest

from launcher.network.listening import bind


def test_what_connects_early_is_served_later() -> None:
    (listening,) = bind("127.0.0.1", 0)
    with listening, socket.create_connection(listening.getsockname(), timeout=5) as early:
        early.sendall(b"hello")
        served, _ = listening.accept()
        with served:
            assert served.recv(5) == b"hello"


def test_a_port_that_is_taken_is_an_error() -> None:
    (first,) = bind("127.0.0.1", 0)
    with first, pytest.raises(OSError, match="Address already in use"):
        bind("127.0.0.1", first.getsockname()[1])


def test_no_host_means_every_address() -> None:
    made = bind(None, 0)
    assert socket.AF_INET in {one.family for one in made}
    for one in made:
        one.close()
