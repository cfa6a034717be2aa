"""Connections to the agent port: any number of them, one request each, with bounds on all that they can cost.

The answers are made in `server.py`; this file knows sockets and bytes. Probes must get through whatever else comes. A
connection is answered as soon as its request is complete, so a kubelet's is open for a moment. Slow and idle ones cost
little (`common/acceptor.py`) and are closed in favour of newer ones (`common/places.py`). Expensive pages are made one
per iteration of the event loop, so that a thousand requests for /metrics do not delay a heartbeat.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

from websockets.datastructures import Headers
from websockets.http11 import Response

from launcher.common import tasks
from launcher.common.acceptor import MOST_HEAD, Acceptor, Incoming, adopt
from launcher.common.places import Places

REQUEST_SECONDS = 5.0  #: from the connection to the end of its request
ANSWER_SECONDS = 10.0  #: from then until the client has read the answer
LINGER_SECONDS = 1.0  #: for the client to close first, because a reset could lose the answer
MOST_HEADERS = 100
MOST_UNSENT = 16 << 20  #: bytes of all answers that are being sent
CHEAP = ("/livez", "/readyz")  #: answered at once

#: ``respond(method, target, headers, peer)``
Respond = Callable[[str, str, Headers, str], Response]

_BUFFER = memoryview(bytearray(64 * 1024))
_REQUEST_LINE = re.compile(r"([A-Z]{1,20}) ([!-~]{1,8000}) HTTP/1\.[01]")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_ONCE = ("Host", "Authorization", "Content-Length", "Transfer-Encoding")


class BadRequest(ValueError):
    """Not HTTP, or none of the kind that is accepted here."""


def parse(head: bytes) -> tuple[str, str, Headers]:
    """Method, target and headers of a request without its empty line. Raises BadRequest."""
    first, *lines = head.decode("latin-1").split("\r\n")
    found = _REQUEST_LINE.fullmatch(first)
    if found is None:
        raise BadRequest("the first line is not a request of HTTP/1.1")
    if len(lines) > MOST_HEADERS:
        raise BadRequest(f"more than {MOST_HEADERS} headers")
    headers = Headers()
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise BadRequest("a header cannot be read")
        headers[header[1]] = header[2].rstrip(" \t")
    for name in _ONCE:
        if len(headers.get_all(name)) > 1:
            raise BadRequest(f"more than one {name}")
    return found[1], found[2], headers


def answer_of(respond: Respond, head: bytes, peer: str) -> Response:
    """The answer to any bytes; a page that fails is answered too."""
    try:
        return respond(*parse(head), peer)
    except BadRequest as error:
        return plain(400, "Bad Request", f"{error}\n")
    except Exception as error:  # it costs this answer, not the agent
        return plain(500, "Internal Server Error", f"this page could not be made ({type(error).__name__})\n")


def plain(status: int, phrase: str, text: str, **more: str) -> Response:
    body = text.encode()
    headers = Headers(
        {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body)), "Connection": "close", **more}
    )
    return Response(status, phrase, headers, body)


class Visitors:
    """All connections to one port."""

    def __init__(self, respond: Respond, sockets: Sequence[socket.socket], most: int) -> None:
        self._respond = respond
        visits = max(2, min(256, most // 4))  # few, because a whole request is soon answered
        incoming = max(2, most - visits)
        self._incoming: Places[Incoming] = Places(incoming, max(2, incoming * 3 // 4))
        self._visits: Places[Visit] = Places(visits, max(2, visits * 3 // 4))
        self._waiting: deque[Visit] = deque()
        self._loop = asyncio.get_running_loop()
        self.turned_away = 0  #: connections closed without an answer
        self._acceptor = Acceptor(sockets, self._incoming, REQUEST_SECONDS, self._asked, self._refused, self._expel)

    def __len__(self) -> int:
        return len(self._incoming) + len(self._visits)

    def close(self) -> None:
        self._acceptor.close()
        for visit in list(self._visits):
            visit.cut()

    # -------------------------------------------------------------------------------------------------------------

    def _asked(self, incoming: Incoming) -> None:
        head, end, _ = incoming.head.partition(b"\r\n\r\n")
        whole = end and len(head) <= MOST_HEAD
        visit = Visit(incoming.host, head if whole else b"", self._complete, self._left)
        victim = self._visits.enter(visit, incoming.host)
        if victim is not None:
            self.turned_away += 1
            victim.cut()
        tasks.start(self._adopt(visit, incoming.sock))

    async def _adopt(self, visit: Visit, sock: socket.socket) -> None:
        await adopt(visit, sock)
        if visit.gone:
            self._left(visit)

    def _refused(self, address: str, why: str) -> None:
        self.turned_away += 1

    def _expel(self) -> None:
        victim = self._visits.expel()
        if victim is not None:
            self.turned_away += 1
            victim.cut()

    def _left(self, visit: Visit) -> None:
        self._visits.leave(visit)

    def _complete(self, visit: Visit) -> None:
        target = visit.head.split(b"\r\n", 1)[0].split(b" ")
        if len(target) > 1 and target[1].decode("latin-1").partition("?")[0] in CHEAP:
            self._answer(visit)
            return
        if not self._waiting:
            self._loop.call_soon(self._next)
        self._waiting.append(visit)

    def _next(self) -> None:
        while self._waiting:
            visit = self._waiting.popleft()
            if visit in self._visits:
                self._answer(visit)
                break
        if self._waiting:
            self._loop.call_soon(self._next)

    def _answer(self, visit: Visit) -> None:
        visit.answer(answer_of(self._respond, visit.head, visit.host))
        if visit.unsent and sum(one.unsent for one in self._visits) > MOST_UNSENT:
            slow = next(one for one in self._visits if one.unsent)
            self.turned_away += 1
            slow.cut()


class Visit(asyncio.BufferedProtocol):
    """A connection whose request (``head``; empty: not a request) has been read: it is answered and closed.

    ``complete`` is called once it can be answered.
    """

    def __init__(
        self, host: str, head: bytes, complete: Callable[[Visit], None], left: Callable[[Visit], None]
    ) -> None:
        self.host = host
        self.head = head
        self._complete = complete
        self._left = left
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answered = False
        self._doomed = False

    @property
    def gone(self) -> bool:
        """Whether it never got a transport."""
        return self._transport is None

    @property
    def unsent(self) -> int:
        """Bytes of the answer that the client has not read."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def answer(self, response: Response) -> None:
        """Send it, and close when it has been read."""
        self._answered = True
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(response.serialize())
        try:
            transport.write_eof()
        except OSError:  # the client has gone, and asyncio does not know yet
            transport.abort()
        self._within(ANSWER_SECONDS if self.unsent else LINGER_SECONDS)

    def cut(self) -> None:
        """Close at once."""
        self._doomed = True
        if self._transport is not None:
            self._transport.abort()

    def _within(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.cut)

    # ------------------------------------------------------------------------------------------- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._doomed:
            self.cut()
        else:
            self._within(REQUEST_SECONDS)
            self._complete(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """A body, or one more request: ignored, because there is one answer, which is on its way."""

    def eof_received(self) -> bool:
        return not self._answered  # a client may close its half after the request

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._left(self)
