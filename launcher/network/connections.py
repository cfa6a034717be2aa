"""Which open connections of a local port move bytes, from the kernel's socket diagnostics.

While a group drains, an engine may count no request as running while the last tokens are still on their way to a slow
client. The kernel knows: sock_diag(7) lists this network namespace's TCP sockets with their counters. Reading needs no
privilege. None: this kernel (or a sandbox like gVisor) does not tell.
"""

from __future__ import annotations

import socket
import struct

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
INET_DIAG_INFO = 2  # struct tcp_info
ESTABLISHED_TO_LAST_ACK = 0x3FA  # every state in which bytes may move: not SYN, LISTEN, TIME_WAIT, CLOSE
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI48s")
_MESSAGE = 72  # sizeof(struct inet_diag_msg)
_COOKIE = slice(44, 52)
_ATTRIBUTE = struct.Struct("=HH")
_BYTES = struct.Struct("=QQ")  # tcpi_bytes_acked, tcpi_bytes_received
_BYTES_AT = 120  # their place in struct tcp_info, since Linux 4.1


Counters = dict[bytes, int]  #: the kernel's cookie of a connection -> bytes sent and received on it so far


def counters(port: int) -> Counters | None:
    """The open connections to local ``port``."""
    try:
        return {**_of_family(socket.AF_INET, port), **_of_family(socket.AF_INET6, port)}
    except (OSError, struct.error, AttributeError):
        return None


def moves(before: Counters | None, now: Counters | None) -> bool:
    """Whether a connection that was open before has moved bytes since. Short ones, such as our own, don't count."""
    return any((now or {}).get(cookie, 0) > count for cookie, count in (before or {}).items())


def _of_family(family: int, port: int) -> Counters:
    # A dump without a filter program lists all ports; ours are picked out here.
    query = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0, ESTABLISHED_TO_LAST_ACK, b"")
    length = _HEADER.size + len(query)
    header = _HEADER.pack(length, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
    found: Counters = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(1.0)
        netlink.send(header + query)
        while True:
            answer = netlink.recv(1 << 17)
            at = 0
            while at + _HEADER.size <= len(answer):
                size, kind, *_ = _HEADER.unpack_from(answer, at)
                if kind == NLMSG_DONE:
                    return found
                if kind == NLMSG_ERROR or size < _HEADER.size:
                    raise OSError("sock_diag was refused")
                message = answer[at + _HEADER.size : at + size]
                if message[4:6] == port.to_bytes(2, "big"):
                    found[message[_COOKIE]] = _bytes(message)
                at += (size + 3) & ~3


def _bytes(message: bytes) -> int:
    at = _MESSAGE
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == INET_DIAG_INFO and length >= _ATTRIBUTE.size + _BYTES_AT + _BYTES.size:
            acked, received = _BYTES.unpack_from(message, at + _ATTRIBUTE.size + _BYTES_AT)
            return int(acked) + int(received)
        at += max(4, (length + 3) & ~3)
    return 0
