"""A relay between a member and its leader, as an attacker on the network would place one. Real sockets, threads.

It takes WebSocket frames apart and puts them together again, so that it can change what is said after the proof.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

#: What becomes of a text: who says it ("member" or "leader"), its number from that side (from 0), the text.
Edit = Callable[[str, int, bytes], list[bytes]]


def pass_on(side: str, number: int, text: bytes) -> list[bytes]:
    return [text]


class Relay:
    """Listens on ``host``:``port`` and connects each who comes to ``target``. ``edit`` may be set at any time."""

    def __init__(self, target: tuple[str, int], host: str, port: int = 0, edit: Edit = pass_on) -> None:
        self.edit = edit
        self.said: list[tuple[str, bytes]] = []
        self._target = target
        self._open: list[socket.socket] = []
        self._listener = socket.create_server((host, port))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                member, _ = self._listener.accept()
                try:
                    leader = socket.create_connection(self._target, 10)
                except OSError:
                    member.close()
                    continue
                leader.settimeout(None)
                self._open += [member, leader]
                for side, source, sink in (("member", member, leader), ("leader", leader, member)):
                    threading.Thread(target=self._forward, args=(side, source, sink), daemon=True).start()

    def _forward(self, side: str, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            reader = source.makefile("rb")
            while True:  # the request or the response
                line = reader.readline()
                sink.sendall(line)
                if line in (b"\r\n", b""):
                    break
            number = 0
            while True:
                opcode, payload = _read_frame(reader.read)
                texts = [payload]
                if opcode == 1:
                    self.said.append((side, payload))
                    texts = self.edit(side, number, payload)
                    number += 1
                for text in texts:
                    sink.sendall(_frame(opcode, text, masked=side == "member"))
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _read_frame(read: Callable[[int], bytes]) -> tuple[int, bytes]:
    def exactly(count: int) -> bytes:
        data = read(count)
        if len(data) < count:
            raise EOFError
        return data

    first, second = exactly(2)
    length = second & 0x7F
    if length > 125:
        length = int.from_bytes(exactly(2 if length == 126 else 8), "big")
    mask = exactly(4) if second & 0x80 else bytes(4)
    payload = exactly(length)
    return first & 0x0F, bytes(b ^ mask[i % 4] for i, b in enumerate(payload))


def _frame(opcode: int, payload: bytes, masked: bool) -> bytes:
    bit, length = 0x80 if masked else 0, len(payload)
    if length < 126:
        head = bytes((0x80 | opcode, bit | length))
    elif length < 1 << 16:
        head = bytes((0x80 | opcode, bit | 126)) + length.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, bit | 127)) + length.to_bytes(8, "big")
    return head + (bytes(4) if masked else b"") + payload
