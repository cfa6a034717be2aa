"""Bytes on the connections of a port: real sockets, IPv4 and IPv6."""

from __future__ import annotations

import socket
import time

import pytest

from launcher.network.connections import Use, busy, counters


def listening(family: socket.AddressFamily, host: str) -> socket.socket:
    """On a port that no other test uses on another loopback address: connections are counted by their port."""
    for _ in range(50):
        server = socket.socket(family)
        try:
            server.bind((host, 0))
        except OSError:
            server.close()
            pytest.skip("this machine has no IPv6 loopback")
        server.listen()
        if not counters(server.getsockname()[1]):
            return server
        server.close()
    raise AssertionError("no port is free of other connections")


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_what_moves_on_a_port_is_counted_and_other_ports_are_not(family: socket.AddressFamily, host: str) -> None:
    with listening(family, host) as server:
        port = server.getsockname()[1]
        with socket.create_connection((host, port)) as client, server.accept()[0] as accepted:
            before = counters(port)
            assert before is not None and len(before) == 1
            assert not busy(before, counters(port)), "nothing moved"
            client.sendall(b"x" * 1000)
            assert len(accepted.recv(1000, socket.MSG_WAITALL)) == 1000
            received = counters(port)
            assert busy(before, received)
            time.sleep(0.02)  # the kernel tells when in milliseconds
            waits = counters(port)
            assert busy(received, waits, True) and not busy(received, waits), "a request that waits for its answer"
            accepted.sendall(b"y" * 500)
            assert len(client.recv(500, socket.MSG_WAITALL)) == 500
            answered = counters(port)
            assert busy(received, answered) and not busy(answered, counters(port), True)
            with socket.create_connection((host, port)) as short:
                short.sendall(b"z")
            assert not busy(received, {b"another": Use(5, True)}, True), "a connection that was not there before"
        assert counters(1) == {}


def test_what_cannot_be_told_does_not_move() -> None:
    assert not busy(None, {b"a": Use(1, True)}, True)
    assert not busy({b"a": Use(1, True)}, None, True)
