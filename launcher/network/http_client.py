"""One GET or POST to a launcher or an engine, from a command: never through a proxy, bounded in time and size.

HTTP_PROXY and its kin are meant for what leaves the cluster. A proxy in between would see the status token, and could
answer in a pod's name. `probe.py` asks an engine from the event loop and uses no proxy either.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; no redirect is followed."""

    status: int
    body: bytes


class TooLong(OSError):
    """The answer is larger than the caller takes."""


def ask(
    url: str, timeout: float, most: int, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> Answer:
    """GET ``url``, or POST ``body``. All of it takes at most ``timeout`` seconds, and the answer ``most`` bytes.

    Raises OSError (TimeoutError, TooLong, ConnectionError) where there is no such answer, ValueError for a bad URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no http URL")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=timeout, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    late = threading.Event()

    def cut() -> None:  # a timeout of a socket is for each read, and a server may send a byte in each
        late.set()
        with contextlib.suppress(OSError, AttributeError):
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(timeout, cut)
    timer.daemon = True
    timer.start()
    try:
        connection.request("GET" if body is None else "POST", target, body, dict(headers or {}))
        with connection.getresponse() as reply:
            found = reply.read(most + 1)
            if late.is_set():
                raise TimeoutError("no answer in time")
            if len(found) > most:
                raise TooLong(f"the answer has more than {most} bytes")
            return Answer(reply.status, found)
    except (OSError, http.client.HTTPException) as error:
        if late.is_set():
            raise TimeoutError("no answer in time") from None
        if isinstance(error, http.client.HTTPException):
            raise ConnectionError(f"no HTTP answer ({type(error).__name__})") from None
        raise
    finally:
        timer.cancel()
        connection.close()
