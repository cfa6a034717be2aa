"""Which open connections of a local port are busy, from the kernel's socket diagnostics.

While a group drains, an engine may count no request as running while the last tokens are still on their way to a slow
client, and some engines count nothing at all. The kernel knows: sock_diag(7) lists this network namespace's TCP sockets
with their counters, and when each last received and last sent. Reading needs no privilege. None: this kernel (or a
sandbox like gVisor) does not tell.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
INET_DIAG_INFO = 2  # struct tcp_info
ESTABLISHED_TO_LAST_ACK = 0x3FA  # every state in which bytes may move: not SYN, LISTEN, TIME_WAIT, CLOSE
ESTABLISHED = 1
LATELY = 30.0  #: seconds
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI48s")
_MESSAGE = 72  # sizeof(struct inet_diag_msg)
_COOKIE = slice(44, 52)
_ATTRIBUTE = struct.Struct("=HH")
_BYTES = struct.Struct("=QQ")  # tcpi_bytes_acked, tcpi_bytes_received
_BYTES_AT = 120  # their place in struct tcp_info, since Linux 4.1
_AGES = struct.Struct("=IIII")  # tcpi_last_data_sent, _last_ack_sent, _last_data_recv, _last_ack_recv: ms ago
_AGES_AT = 44


@dataclass(frozen=True)
class Use:
    """What went over a connection."""

    moved: int = 0  #: bytes sent and received so far
    owes: bool = False  #: something was received, and nothing has been sent since: a request that waits for its answer
    sent: int = 0  #: bytes that were sent and have arrived
    established: bool = False  #: neither end has closed it
    sent_ago: float = float("inf")  #: seconds since something was sent


@dataclass(frozen=True)
class Requests:
    """What the connections of an API say of its requests."""

    answered: bool  #: bytes of an answer have reached a caller since the last look
    owed: bool  #: a caller waits for its answer, or has had a part of it lately: there may be more to come


Counters = dict[bytes, Use]  #: by the kernel's cookie of a connection


def counters(port: int) -> Counters | None:
    """The open connections to local ``port``."""
    try:
        return {**_of_family(socket.AF_INET, port), **_of_family(socket.AF_INET6, port)}
    except (OSError, struct.error, AttributeError):
        return None


def busy(before: Counters | None, now: Counters | None, or_owes: bool = False) -> bool:
    """Whether a connection that was open before has moved bytes since, or (if that is asked for) owes an answer.

    Short ones, such as our own, don't count.
    """
    pairs = ((one, (now or {}).get(cookie)) for cookie, one in (before or {}).items())
    return any(after is not None and (after.moved > one.moved or (or_owes and after.owes)) for one, after in pairs)


def requests(before: Counters | None, now: Counters | None) -> Requests | None:
    """What happened between two looks, on connections that were open at both: short ones, such as our own, don't count.

    What a caller sends is no progress: the kernel takes it in for a process that hangs. Nor is a connection on which
    one end has hung up: our own checks that timed out stay so until the engine gets to them. None: not known.
    """
    if now is None:
        return None
    answered = any(
        use.established and use.sent > before[cookie].sent for cookie, use in now.items() if before and cookie in before
    )
    owed = any(use.established and (use.owes or (use.sent and use.sent_ago < LATELY)) for use in now.values())
    return Requests(answered, owed)


def traffic(port: int | None) -> Callable[[bool], bool]:
    """A question: has an open connection to local ``port`` moved bytes since it was asked last?

    Asked with True: or does one wait for its answer? Where the engine counts its requests, that count is better: a
    connection may hold a request that will never be whole.
    """
    before: Counters | None = None

    def moved(or_owes: bool) -> bool:
        nonlocal before
        if port is None:
            return False
        earlier, before = before, counters(port)
        return busy(earlier, before, or_owes)

    return moved


def requests_on(port: int | None) -> Callable[[], Requests | None]:
    """A question: what do the connections to local ``port`` say of requests since it was asked last?"""
    before: Counters | None = None

    def asked() -> Requests | None:
        nonlocal before
        if port is None:
            return None
        earlier, before = before, counters(port)
        return requests(earlier, before)

    return asked


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
                    found[message[_COOKIE]] = _use(message)
                at += (size + 3) & ~3


def _use(message: bytes) -> Use:
    at = _MESSAGE
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == INET_DIAG_INFO and length >= _ATTRIBUTE.size + _BYTES_AT + _BYTES.size:
            acked, received = _BYTES.unpack_from(message, at + _ATTRIBUTE.size + _BYTES_AT)
            sent_ago, _, received_ago, _ = _AGES.unpack_from(message, at + _ATTRIBUTE.size + _AGES_AT)
            owes = received > 0 and (not acked or received_ago < sent_ago)  # the kernel's clock ticks every 1 to 10 ms
            return Use(int(acked) + int(received), owes, int(acked), message[1] == ESTABLISHED, sent_ago / 1000)
        at += max(4, (length + 3) & ~3)
    return Use()
