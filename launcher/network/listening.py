"""Sockets that listen, made before there is anybody to serve them: a port that is taken is known at once.

What connects meanwhile waits in the backlog.
"""

from __future__ import annotations

import contextlib
import errno
import socket

BACKLOG = 2048  #: the kernel takes at most net.core.somaxconn of it
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  #: no IPv6 on this machine


def bind(host: str | None, port: int) -> tuple[socket.socket, ...]:
    """Listen on ``port`` of ``host``; None: of all addresses, IPv4 and IPv6. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    made: list[socket.socket] = []
    refused: OSError | None = None
    with contextlib.ExitStack() as opened:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                one = opened.enter_context(socket.socket(family, kind, protocol))
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                one.bind(address)
                one.listen(BACKLOG)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                refused = error
            else:
                made.append(one)
        if not made and refused is not None:
            raise refused
        opened.pop_all()
    return tuple(made)
