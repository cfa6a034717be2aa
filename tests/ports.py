"""Ports for what a test starts itself."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Sequence


def free_port(addresses: Sequence[str] = ("",)) -> int:
    """One that is free on every address (``""``: on all).

    It is below those that the kernel gives to outgoing connections, so that none of them takes it before we do.
    """
    for port in random.sample(range(16_000, 32_000), 1000):
        with contextlib.suppress(OSError):
            for address in addresses:
                with socket.socket() as free:
                    free.bind((address, port))
            return port
    raise AssertionError(f"no port is free on {', '.join(addresses)}")
