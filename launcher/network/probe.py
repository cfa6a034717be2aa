"""One bounded question to a server: does a port answer, what does a URL say.

Made of the standard library's client in a worker thread: light, and it holds nothing between questions. A URL is
``http://``, ``https://`` or ``http+unix://%2Fsocket/path`` (an engine with ``--uds``). Never raises: an answer is a
status and a body, and what went wrong otherwise is in words.

A question has a total time and a total size. The library's own limit is for each read: a server that sends a byte a
second would never meet it. So at the end of the time the connection is shut down, which ends whatever waits for it.
No proxy is ever used.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import http.client

REFUSED = "connection refused"
#: Errors of this side: no descriptor, memory, buffer or port is left to ask with. They say nothing about who was asked.
OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL, errno.EPERM, errno.EACCES)

MOST_BYTES = 4 << 20  #: of a body; a metrics page of a large engine is 200 KiB
SPARE = 0.5  #: seconds that a thread has to notice that its connection is shut
TOO_LATE = "no answer in time"


@dataclass(frozen=True)
class Reply:
    """``status`` 0: no HTTP answer came, ``error`` says why. ``ours``: the question could not be put."""

    status: int
    body: bytes = b""
    error: str = ""
    ours: bool = False

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def words(self) -> str:
        return self.error or f"HTTP {self.status}"


async def ask(
    url: str, timeout: float, *, insecure: bool = False, body: str | None = None, most: int = MOST_BYTES
) -> Reply:
    """GET ``url``, or POST ``body`` (JSON) to it. The whole answer comes within ``timeout`` seconds, or none does."""
    question = _Question(url, timeout, insecure, body, most)
    alarm = asyncio.get_running_loop().call_later(timeout, question.cut)
    try:
        return await asyncio.wait_for(asyncio.to_thread(question.ask), timeout + SPARE)
    except asyncio.TimeoutError:  # it hangs where no connection is to be shut: in a name that does not resolve
        return Reply(0, error=TOO_LATE)
    except RuntimeError as error:  # can't start new thread: the pod's limit of processes is reached
        return Reply(0, error=str(error), ours=True)
    finally:
        alarm.cancel()
        question.cut()


async def reachable(target: str, timeout: float) -> bool:
    """Whether ``host:port`` takes a connection."""
    host, _, port = target.rpartition(":")
    return port.isdecimal() and not await why_unreachable(host.strip("[]"), int(port), timeout)


NO_ANSWER = "no answer"  #: how the reason begins where nothing came back in time


async def why_unreachable(host: str, port: int, timeout: float) -> str:
    """Why an address takes no connection: ``no route to host``; empty where it does."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), timeout)
    except asyncio.TimeoutError:
        return f"{NO_ANSWER} within {timeout:g} s"
    except (OSError, ValueError) as error:  # ValueError: no name that DNS can have
        return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
    writer.close()
    return ""


class _Question:
    """One request and its answer."""

    def __init__(self, url: str, timeout: float, insecure: bool, body: str | None, most: int) -> None:
        self._url = url
        self._until = time.monotonic() + timeout
        self._insecure = insecure
        self._body = body
        self._most = most
        self._lock = threading.Lock()
        self._over = False
        self._handle: socket.socket | None = None  # of the connection's own socket, which TLS takes away

    def ask(self) -> Reply:
        try:
            reply = self._ask()
        except Exception as error:  # whatever a server makes the library raise is an answer of that server
            reply = Reply(0, error=_words(error), ours=getattr(error, "errno", None) in OURS)
        finally:
            with self._lock:
                late, self._over = self._over, True
                handle, self._handle = self._handle, None
            if handle is not None:
                handle.close()
        return Reply(0, error=TOO_LATE) if late else reply

    def cut(self) -> None:
        """The time is over, or nobody waits for the answer any more."""
        with self._lock:
            self._over = True
            if self._handle is not None:
                with contextlib.suppress(OSError):
                    self._handle.shutdown(socket.SHUT_RDWR)

    def _ask(self) -> Reply:
        from urllib.parse import unquote, urlsplit

        parts = urlsplit(self._url)
        target = parts.path + (f"?{parts.query}" if parts.query else "") or "/"
        left = max(0.001, self._until - time.monotonic())
        if parts.scheme == "http+unix":
            connection = _unix(unquote(parts.netloc), left, self._hold)
        else:
            connection = _tcp(parts.scheme, parts.hostname or "", parts.port, left, self._insecure, self._hold)
        try:
            headers = {"Content-Type": "application/json"} if self._body is not None else {}
            connection.request("GET" if self._body is None else "POST", target, self._body, headers)
            answer = connection.getresponse()
            body = answer.read(self._most + 1)
            if len(body) > self._most:
                return Reply(0, error=f"an answer of more than {self._most} bytes")
            return Reply(answer.status, body)
        finally:
            connection.close()

    def _hold(self, sock: socket.socket) -> socket.socket:
        """This is the connection."""
        with self._lock:
            if self._over:
                sock.close()
                raise TimeoutError
            self._handle = sock.dup()
        return sock


def _tcp(
    scheme: str,
    host: str,
    port: int | None,
    timeout: float,
    insecure: bool,
    hold: Callable[[socket.socket], socket.socket],
) -> http.client.HTTPConnection:
    import http.client

    if scheme != "https":
        plain = http.client.HTTPConnection(host, port, timeout=timeout)
        plain.sock = hold(socket.create_connection((plain.host, plain.port), timeout))
        return plain
    import ssl

    if insecure:  # the pod asks itself; the certificate names the service, not the loopback address
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # reads no CA: that costs more than the whole question
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context = ssl.create_default_context()
    secure = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
    sock = hold(socket.create_connection((secure.host, secure.port), timeout))
    try:
        secure.sock = context.wrap_socket(sock, server_hostname=secure.host)
    except BaseException:
        sock.close()
        raise
    return secure


def _unix(path: str, timeout: float, hold: Callable[[socket.socket], socket.socket]) -> http.client.HTTPConnection:
    import http.client

    connection = http.client.HTTPConnection("localhost", timeout=timeout)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(timeout)
        connection.sock.connect(path)
        hold(connection.sock)
    except BaseException:
        connection.sock.close()
        raise
    return connection


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return TOO_LATE
    if isinstance(error, ConnectionRefusedError):
        return REFUSED
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
