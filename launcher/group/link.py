"""The group's network: the only file of this room that opens a socket.

One WebSocket connection from each member to the leader, kept for life, without compression and without the library's
own pings (the protocol's pings carry the lease). What arrives is decoded and checked (`messages.py`) before anybody
sees it; with a secret, nothing is decoded before the peer has proven that it knows it (`proof.py`).

Strangers are to be expected on an open port. Whoever says no valid hello within a few seconds, sends too much, too fast
or something unreadable, is closed and, once a minute, named in the log. A reader that is too slow is closed too: the
leader never waits for a member's socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from http import HTTPStatus
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.http11 import Request, Response

from launcher.group import messages as m
from launcher.group import proof

HELLO_SECONDS = 10.0  #: a connection that has not said hello by then is closed
OPEN_SECONDS = 3.0  #: for TCP: an address that is silent costs so much
SHAKE_SECONDS = 10.0  #: for the handshake of one that answers: a leader to whom a thousand come at once is busy
UNREAD_BYTES = 4 << 20  #: a peer that leaves more than this unread is closed
BURST, PER_SECOND = 500, 100.0  #: messages that one member may send at once, and per second in the long run

# The library's own log would tell of every stranger; what matters of it is said by us.
_SILENT = logging.getLogger("launcher.link")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False
_SILENT.setLevel(logging.CRITICAL + 1)


class LinkError(Exception):
    """A connection could not be made or was refused before hello; the text is for people."""


# ---------------------------------------------------------------------------------------------------- the leader


class LeaderLink:
    """The leader's end: many connections, numbered from 1 (0 is rank 0's own, which needs no socket).

    ``heard(conn, message)`` and ``closed(conn, why)`` are called in the order of arrival; a connection that never said
    hello is never reported. ``stranger(address, what)`` tells of peers that are not members.
    """

    def __init__(
        self,
        group: str,
        secret: bytes | None,
        most: int,
        heard: Callable[[int, Any], None],
        closed: Callable[[int, str], None],
        stranger: Callable[[str, str], None],
        *,
        hello_seconds: float = HELLO_SECONDS,
    ) -> None:
        self._group = group
        self._secret = secret
        self._most = most
        self._heard = heard
        self._closed = closed
        self._stranger = stranger
        self._hello_seconds = hello_seconds
        self._conns: dict[int, ServerConnection] = {}
        self._open = 0
        self._next = 0
        self._server: Server | None = None
        self._named: dict[str, float] = {}

    async def listen(self, hosts: Sequence[str] | None, port: int) -> None:
        """Listen on ``port`` of these addresses; None: of all, IPv4 and IPv6. Raises OSError."""
        self._server = await serve(
            self._serve,
            list(hosts) if hosts else None,  # type: ignore[arg-type]  # asyncio takes several hosts
            port,
            compression=None,
            ping_interval=None,
            max_size=m.MAX_FROM_MEMBER,
            max_queue=4,  # messages of 96 KiB that wait to be read; those of peers that have not proven themselves, too
            open_timeout=self._hello_seconds,
            close_timeout=0.5,
            process_request=self._plain_request,
            logger=_SILENT,
            server_header=None,
            backlog=2048,
        )

    def say(self, conns: Sequence[int], message: Any) -> None:
        """Send one message, encoded once. Never waits; unknown connections are passed over."""
        there = [c for c in (self._conns.get(n) for n in conns) if c is not None]
        if not there:
            return
        broadcast(there, m.encode(message))
        for c in there:
            transport = c.transport
            if transport is not None and transport.get_write_buffer_size() > UNREAD_BYTES:
                transport.abort()

    def hang(self, conn: int) -> None:
        """Close a connection; ``closed`` will not be called for it."""
        c = self._conns.pop(conn, None)
        if c is not None:
            _in_background(c.close())

    async def close(self) -> None:
        """Send what is buffered, close all, stop listening."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._server.wait_closed(), 1.0)

    # ------------------------------------------------------------------------------------------------------------

    async def _serve(self, c: ServerConnection) -> None:
        self._open += 1
        self._next += 1
        number = self._next
        where = _peer(c)
        try:
            if self._open > self._most:
                self._name(where, f"more than {self._most} connections")
                return
            await asyncio.wait_for(self._prove(c), self._hello_seconds)
            hello = await asyncio.wait_for(c.recv(), self._hello_seconds)
            message = m.decode(hello, m.MEMBER_SAYS)
            if not isinstance(message, m.Hello):
                raise m.Malformed("the first word was not hello")
        except (asyncio.TimeoutError, m.Malformed, LinkError, ConnectionClosed) as error:
            what = "said no hello in time" if isinstance(error, asyncio.TimeoutError) else _words(error)
            self._name(where, what)
            return
        finally:
            if number not in self._conns:
                self._open -= 1
        self._open += 1
        await self._listen_to(c, number, message)

    async def _listen_to(self, c: ServerConnection, number: int, message: Any) -> None:
        self._conns[number] = c
        why = ""
        allowance, since = float(BURST), time.monotonic()
        try:
            self._heard(number, message)
            async for text in c:
                if number not in self._conns:
                    return  # given up: what it still says is nobody's
                now = time.monotonic()
                allowance, since = min(BURST, allowance + (now - since) * PER_SECOND) - 1, now
                if allowance < 0:
                    raise m.Malformed(f"more than {PER_SECOND:g} messages a second")
                self._heard(number, m.decode(text, m.MEMBER_SAYS))
            why = _close_words(c)
        except m.Malformed as error:
            why = f"it sent what is not the protocol: {error}"
            self._name(_peer(c), str(error))
        except ConnectionClosed as error:
            why = _words(error)
        finally:
            self._open -= 1
            if self._conns.pop(number, None) is not None:
                self._closed(number, why)

    async def _prove(self, c: ServerConnection) -> None:
        nonce = secrets.token_hex(16)
        await c.send(
            json.dumps({"is": "open", "protocol": m.PROTOCOL, "prove": self._secret is not None, "nonce": nonce})
        )
        if self._secret is None:
            return
        answer = _object(await c.recv(), "prove")
        theirs, mac = str(answer.get("nonce", ""))[:64], str(answer.get("mac", ""))[:128]
        if not proof.same(mac, proof.member_mac(self._secret, self._group, nonce, theirs)):
            raise LinkError("did not prove the group's secret (--token-file)")
        await c.send(json.dumps({"is": "proven", "mac": proof.leader_mac(self._secret, self._group, nonce, theirs)}))

    def _plain_request(self, c: ServerConnection, request: Request) -> Response | None:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return None
        self._name(_peer(c), "made a plain HTTP request")
        return c.respond(
            HTTPStatus.UPGRADE_REQUIRED,
            "This is the launcher's group port, for members only. /status is on the agent port.\n",
        )

    def _name(self, where: str, what: str) -> None:
        host = where.rpartition(":")[0]
        now = time.monotonic()
        if now - self._named.get(host, -1e9) < 60:
            return
        if len(self._named) > 1000:
            self._named.clear()
        self._named[host] = now
        self._stranger(where, what)


# ---------------------------------------------------------------------------------------------------- a member


class MemberLink:
    """A member's end: at most one connection at a time, made by :meth:`dial`.

    ``task`` runs a coroutine whose failure is not lost: what is no failure of the network is not tried again here.
    """

    def __init__(
        self,
        group: str,
        secret: bytes | None,
        port: int,
        resolve: Callable[[], Awaitable[Sequence[str]]],
        connected: Callable[[str], None],
        heard: Callable[[Any], None],
        closed: Callable[[str], None],
        failed: Callable[[str], None],
        task: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._group = group
        self._secret = secret
        self._port = port
        self._resolve = resolve
        self._connected = connected
        self._heard = heard
        self._closed = closed
        self._failed = failed
        self._run = task
        self._conn: ClientConnection | None = None
        self._task: asyncio.Task[None] | None = None

    def dial(self, delay: float) -> None:
        """After ``delay`` seconds resolve and connect, again and again until it works. ``failed`` tells of each try."""
        self.hang()
        self._task = self._run(self._dial(delay))

    def say(self, message: Any) -> None:
        """Send. Never waits; without a connection it is lost, as it would be on a broken one."""
        if self._conn is not None:
            broadcast([self._conn], m.encode(message))

    def hang(self) -> None:
        """Give the connection up, or the attempt at one; ``closed`` will not be called."""
        conn, self._conn = self._conn, None
        task, self._task = self._task, None
        if conn is not None:
            _in_background(conn.close())
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    # ------------------------------------------------------------------------------------------------------------

    async def _dial(self, delay: float) -> None:
        await asyncio.sleep(delay)
        pause = 0.1
        while True:
            conn = await self._try_all()
            if conn is not None:
                break
            # an address that refuses is often a leader that starts this second; one that is silent costs OPEN_SECONDS
            await asyncio.sleep(pause * (0.75 + secrets.randbelow(500) / 1000))
            pause = min(pause * 2, 1.5)
        await self._listen_to(conn)

    async def _try_all(self) -> ClientConnection | None:
        try:
            addresses = await self._resolve()
        except OSError as error:
            self._failed(str(error))
            return None
        for address in addresses:
            try:
                return await self._open(address)
            except (OSError, asyncio.TimeoutError, WebSocketException) as error:
                self._failed(f"{address} port {self._port}: {_words(error)}")
            except (LinkError, m.Malformed) as error:
                self._failed(f"{address} port {self._port} is not a leader that we can join: {error}")
        return None

    async def _open(self, address: str) -> ClientConnection:
        host = f"[{address}]" if ":" in address else address
        conn = await connect(
            f"ws://{host}:{self._port}/group",
            sock=await asyncio.wait_for(_connected(address, self._port), OPEN_SECONDS),
            compression=None,
            ping_interval=None,
            max_size=m.MAX_FROM_LEADER,
            open_timeout=SHAKE_SECONDS,
            close_timeout=0.5,
            proxy=None,
            logger=_SILENT,
            user_agent_header=None,
        )
        try:
            await asyncio.wait_for(self._prove(conn), SHAKE_SECONDS)
        except BaseException:
            _in_background(conn.close())
            raise
        return conn

    async def _prove(self, conn: ClientConnection) -> None:
        opening = _object(await conn.recv(), "open")
        if bool(opening.get("prove")) is not (self._secret is not None):
            raise LinkError(
                "it wants a proof of the secret and this pod has no --token-file"
                if self._secret is None
                else "it has no --token-file and this pod has one"
            )
        if self._secret is None:
            return
        theirs, nonce = str(opening.get("nonce", ""))[:64], secrets.token_hex(16)
        mac = proof.member_mac(self._secret, self._group, theirs, nonce)
        await conn.send(json.dumps({"is": "prove", "nonce": nonce, "mac": mac}))
        try:
            answer = _object(await conn.recv(), "proven")
        except ConnectionClosed:
            raise LinkError("it did not take our proof: another secret (--token-file) or another group") from None
        if not proof.same(str(answer.get("mac", ""))[:128], proof.leader_mac(self._secret, self._group, theirs, nonce)):
            raise LinkError("it does not know the group's secret (--token-file)")

    async def _listen_to(self, conn: ClientConnection) -> None:
        self._conn = conn
        self._connected(_local(conn))
        why = ""
        try:
            async for text in conn:
                if self._conn is not conn:
                    return
                self._heard(m.decode(text, m.LEADER_SAYS))
            why = _close_words(conn)
        except m.Malformed as error:
            why = f"the leader sent what is not the protocol: {error}"
            _in_background(conn.close())
        except ConnectionClosed as error:
            why = _words(error)
        if self._conn is conn:
            self._conn = None
            self._closed(why)


# ------------------------------------------------------------------------------------------------------- helpers


async def _connected(address: str, port: int) -> socket.socket:
    """A TCP connection to an IP address. Raises OSError."""
    found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)  # asks nobody
    family, kind, protocol, _, where = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


_pending: set[asyncio.Future[None]] = set()


def _in_background(closing: Awaitable[None]) -> None:
    """Closing takes a round trip; nobody waits for it."""
    task = asyncio.ensure_future(closing)
    _pending.add(task)
    task.add_done_callback(_pending.discard)


def _object(text: str | bytes, word: str) -> dict[str, Any]:
    try:
        body = json.loads(text) if len(text) <= 4096 else None
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or body.get("is") != word:
        raise m.Malformed(f"no {word!r} came")
    return body


def _words(error: BaseException) -> str:
    """What happened to a connection, for people."""
    if isinstance(error, ConnectionClosed):
        return _closed_words(error)
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return "no answer"
    if isinstance(error, ConnectionRefusedError):
        return "refused: nothing listens there yet"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).split("\n")[0][:200] or type(error).__name__


def _closed_words(error: ConnectionClosed) -> str:
    if error.rcvd is None and error.sent is None:
        return "without a goodbye"
    close = error.rcvd or error.sent
    return "" if close is None or close.code in (1000, 1001) else f"code {close.code} {close.reason}".strip()


def _close_words(c: ServerConnection | ClientConnection) -> str:
    return "" if c.close_code in (1000, 1001, None) else f"code {c.close_code}"


def _peer(c: ServerConnection) -> str:
    address = c.remote_address
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "an unknown address"


def _local(c: ClientConnection) -> str:
    address = c.local_address
    return str(address[0]) if isinstance(address, tuple) else ""
