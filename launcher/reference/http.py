"""HTTP/1.1 server for rank 0: size limits, keep-alive, pipelining, chunked event streams. Routes are in `leader.py`."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

from launcher.common.numbers import is_whole
from launcher.reference.chain import receive
from launcher.reference.reactor import READ, WRITE, Reactor

LARGEST_HEAD = 32 << 10
LARGEST_BODY = 1 << 20
LARGEST_BACKLOG = 4 << 20  #: unread bytes after which a client is disconnected
MOST_CONNECTIONS = 4096
PHRASES = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    411: "Length Required",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
PAUSE = 0.1  #: seconds without accept() after it failed for lack of descriptors


class Request:
    """A complete request."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes, old: bool) -> None:
        self.method, self.path, self.headers, self.body = method, path, headers, body
        self.old = old  #: HTTP/1.0: no chunks
        self.keep = headers.get("connection", "close" if old else "keep-alive").lower() != "close"


class Refused(Exception):
    """A request that is answered with an error: the status and the reason."""

    def __init__(self, status: int, why: str) -> None:
        self.status, self.why = status, why
        super().__init__(why)


class Server:
    """Accepts connections and passes complete requests to ``serve``."""

    def __init__(self, reactor: Reactor, listener: socket.socket, serve: Callable[[Request, Connection], None]) -> None:
        self.reactor, self.listener, self.serve = reactor, listener, serve
        self.connections: set[Connection] = set()
        self.closing = False
        self._listen()

    def close(self) -> None:
        """Stop accepting and close idle connections; the others close after their current request."""
        self.closing = True
        self.reactor.unwatch(self.listener.fileno())
        self.listener.close()
        for connection in list(self.connections):
            if not connection.busy:
                connection.close()

    def _listen(self) -> None:
        if not self.closing:
            self.reactor.watch(self.listener.fileno(), READ, self._accept)

    def _accept(self, _events: int) -> None:
        for _ in range(64):
            try:
                if len(self.connections) >= MOST_CONNECTIONS:
                    raise OSError("enough")
                sock, _address = self.listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # out of descriptors: without a pause the loop would spin
                self.reactor.unwatch(self.listener.fileno())
                self.reactor.after(PAUSE, self._listen)
                return
            self.connections.add(Connection(self, sock))


class Connection:
    """A client connection. Requests are served one at a time; pipelined ones wait in the buffer."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.server, self.sock = server, sock
        self.busy = False
        self.gone: Callable[[], None] | None = None  #: called if the client disconnects before its answer is complete
        self._request: Request | None = None
        self._in, self._out = bytearray(), bytearray()
        self._ending = False
        self._chunked = False
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._events = READ
        server.reactor.watch(sock.fileno(), READ, self._ready)

    # -------------------------------------------------------------------------------------------- answers

    def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        """Send a complete answer."""
        self._write(self._head(status, f"content-type: {kind}\r\ncontent-length: {len(body)}\r\n") + body)
        self._finished()

    def answer_json(self, status: int, value: object) -> None:
        self.answer(status, json.dumps(value).encode())

    def refuse(self, status: int, why: str) -> None:
        """Send an error in the OpenAI API's format."""
        error = {
            "message": why,
            "type": PHRASES[status].replace(" ", "").removesuffix("Error") + "Error",
            "code": status,
        }
        self.answer_json(status, {"error": error})

    def begin_stream(self) -> None:
        """Start a stream of server-sent events of unknown length."""
        request = self._request
        self._chunked = request is not None and not request.old
        framing = "transfer-encoding: chunked\r\n" if self._chunked else ""
        if request is not None and not self._chunked:
            request.keep = False
        self._write(self._head(200, "content-type: text/event-stream\r\ncache-control: no-cache\r\n" + framing))

    def event(self, data: str) -> None:
        """Send one server-sent event."""
        self._write(self._chunk(f"data: {data}\n\n".encode()))

    def end_stream(self) -> None:
        if self._chunked:
            self._write(b"0\r\n\r\n")
        self._finished()

    def break_off(self) -> None:
        """Close without the final chunk, so the client sees that the answer is incomplete."""
        self.gone = None
        self._ending = True
        if not self._out:
            self.close()

    def close(self) -> None:
        if self not in self.server.connections:
            return
        self.server.connections.discard(self)
        self.server.reactor.unwatch(self.sock.fileno())
        self.sock.close()
        gone, self.gone = self.gone, None
        if gone is not None:
            gone()

    def _head(self, status: int, fields: str) -> bytes:
        if self.server.closing and self._request is not None:
            self._request.keep = False
        keep = self._request is not None and self._request.keep
        connection = "keep-alive" if keep else "close"
        return f"HTTP/1.1 {status} {PHRASES[status]}\r\n{fields}connection: {connection}\r\n\r\n".encode()

    def _chunk(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data

    def _write(self, data: bytes) -> None:
        if self not in self.server.connections:
            return
        if not self._out:
            try:
                data = data[self.sock.send(data) :]
            except BlockingIOError:
                pass
            except OSError:
                self.close()
                return
        self._out += data
        if len(self._out) > LARGEST_BACKLOG:
            self.close()
        else:
            self._watch()

    def _finished(self) -> None:
        self.gone = None
        self.busy = False
        keep = self._request is not None and self._request.keep and not self.server.closing
        self._request = None
        self._chunked = False
        if not keep:
            self._ending = True
            if not self._out:
                self.close()
        elif self._in:
            self.server.reactor.after(0, self._next)

    # ------------------------------------------------------------------------------------------- requests

    def _ready(self, events: int) -> None:
        if events & WRITE and self._out:
            self._flush()
        if events & ~WRITE and self in self.server.connections:
            self._read()

    def _flush(self) -> None:
        try:
            del self._out[: self.sock.send(self._out)]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not self._out and self._ending:
            self.close()
        else:
            self._watch()

    def _read(self) -> None:
        data = receive(self.sock, 1 << 16)
        if data is None:
            return
        if not data:
            self.close()
            return
        self._in += data
        self._next()

    def _next(self) -> None:
        """Serve complete requests from the buffer, one after the other."""
        while not self.busy and not self._ending and self in self.server.connections:
            try:
                request = self._parse()
            except Refused as refused:
                self._request = None  # the stream is out of step: close after the answer
                self.refuse(refused.status, refused.why)
                return
            if request is None:
                break
            self._request, self.busy = request, True
            try:
                self.server.serve(request, self)
            except Refused as refused:
                self.refuse(refused.status, refused.why)
        self._watch()

    def _watch(self) -> None:
        """Poll for reading while the buffer has room, for writing while output is pending."""
        if self not in self.server.connections:
            return
        room = len(self._in) < LARGEST_HEAD + LARGEST_BODY
        events = (READ if room else 0) | (WRITE if self._out else 0)
        if events != self._events:
            self._events = events
            self.server.reactor.watch(self.sock.fileno(), events, self._ready)

    def _parse(self) -> Request | None:
        end = self._in.find(b"\r\n\r\n")
        if end < 0 or end > LARGEST_HEAD:
            if len(self._in) > LARGEST_HEAD:
                raise Refused(431, f"the request's head is larger than {LARGEST_HEAD} bytes")
            return None
        lines = self._in[:end].decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
            raise Refused(400, f"not an HTTP/1.1 request line: {lines[0][:80]!r}")
        headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon:
                raise Refused(400, f"not a header: {line[:80]!r}")
            headers[name.lower()] = value.strip()
        if "transfer-encoding" in headers:
            raise Refused(411, "send the body with a Content-Length")
        length = headers.get("content-length", "0")
        if not is_whole(length):
            raise Refused(400, f"Content-Length {length[:20]!r} is not a number")
        if len(length) > 12 or int(length) > LARGEST_BODY:
            raise Refused(413, f"the body is larger than {LARGEST_BODY} bytes")
        whole = end + 4 + int(length)
        if len(self._in) < whole:
            if headers.pop("expect", "").lower() == "100-continue" and len(self._in) == end + 4:
                self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return None
        body = bytes(self._in[end + 4 : whole])
        del self._in[:whole]
        return Request(words[0], words[1].partition("?")[0], headers, body, words[2] == "HTTP/1.0")
