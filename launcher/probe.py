"""One bounded question to a server on this pod: does a port answer, what does a URL say.

Made of the standard library's client in a worker thread: light, and it holds nothing between questions. A URL is
``http://``, ``https://`` or ``http+unix://%2Fsocket/path`` (an engine with ``--uds``). Never raises: an answer is a
status and a body, and what went wrong otherwise is in words.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from launcher.data import dataclass

if TYPE_CHECKING:
    import http.client

MOST_BYTES = 4 << 20  #: of a body; a metrics page of a large engine is 200 KiB


@dataclass(frozen=True)
class Reply:
    """``status`` 0: no HTTP answer came, ``error`` says why."""

    status: int
    body: bytes = b""
    error: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def words(self) -> str:
        return self.error or f"HTTP {self.status}"


async def ask(url: str, timeout: float, *, insecure: bool = False, body: str | None = None) -> Reply:
    """GET ``url``, or POST ``body`` (JSON) to it."""
    try:
        return await asyncio.to_thread(_ask, url, timeout, insecure, body)
    except RuntimeError as error:  # can't start new thread: the pod's limit of processes is reached
        return Reply(0, error=str(error))


async def reachable(target: str, timeout: float) -> bool:
    """Whether ``host:port`` takes a connection."""
    host, _, port = target.rpartition(":")
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host.strip("[]"), int(port)), timeout)
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    return True


def _ask(url: str, timeout: float, insecure: bool, body: str | None) -> Reply:
    import http.client
    from urllib.parse import unquote, urlsplit

    try:
        parts = urlsplit(url)
        target = parts.path + (f"?{parts.query}" if parts.query else "") or "/"
        if parts.scheme == "http+unix":
            connection = _unix(unquote(parts.netloc), timeout)
        else:
            connection = _tcp(parts.scheme, parts.hostname or "", parts.port, timeout, insecure)
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request("GET" if body is None else "POST", target, body, headers)
            answer = connection.getresponse()
            return Reply(answer.status, answer.read(MOST_BYTES))
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Reply(0, error=_words(error))


def _tcp(scheme: str, host: str, port: int | None, timeout: float, insecure: bool) -> http.client.HTTPConnection:
    import http.client

    if scheme != "https":
        return http.client.HTTPConnection(host, port, timeout=timeout)
    import ssl

    if insecure:  # the pod asks itself; the certificate names the service, not the loopback address
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # reads no CA: that costs more than the whole question
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context = ssl.create_default_context()
    return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)


def _unix(path: str, timeout: float) -> http.client.HTTPConnection:
    import http.client

    connection = http.client.HTTPConnection("localhost", timeout=timeout)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(timeout)
    connection.sock.connect(path)
    return connection


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
