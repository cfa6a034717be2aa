"""Which process listens on a TCP port of this machine, as far as /proc shows it.

The kernel lists the listening sockets of this network namespace with their inodes (proc_pid_net(5)), and each process's
descriptors show the inodes that it holds. Processes of other users, and of other PID namespaces, cannot be seen.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

from launcher.node.tree import PROC, read

LISTEN = "0A"
#: bytes of one table that are read: with hostNetwork a node may have very many sockets
MOST_BYTES = 16 << 20


def of(port: int, address: str = "", proc: str = PROC) -> str:
    """``process 4711 (python3)``, which holds ``port`` of ``address`` (empty: of any); empty: it cannot be seen."""
    wanted = {f"socket:[{inode}]" for inode in _inodes(port, address, proc)}
    if not wanted:
        return ""
    for pid in sorted(int(name) for name in os.listdir(proc) if name.isdecimal()):
        if _holds(f"{proc}/{pid}/fd", wanted):
            found = read(pid, proc)
            return f"process {pid} ({found.comm})" if found is not None else ""
    return ""


def _inodes(port: int, address: str, proc: str) -> Iterator[str]:
    """Of the sockets that listen there. A wildcard holds the port of every address."""
    for table in ("tcp", "tcp6"):
        for line in _lines(f"{proc}/self/net/{table}"):
            fields = line.split()
            if len(fields) < 10 or fields[3] != LISTEN:
                continue
            host, _, number = fields[1].rpartition(":")
            try:
                there, at = _address(host), int(number, 16)
            except (ValueError, OSError):
                continue
            if at == port and (not address or there == address or there in ("0.0.0.0", "::")):
                yield fields[9]


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(MOST_BYTES).split("\n")[1:]
    except OSError:
        return []


def _address(text: str) -> str:
    """An address as the kernel writes it: words of 32 bits in the byte order of this machine, as hexadecimal."""
    words = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed)


def _holds(folder: str, wanted: set[str]) -> bool:
    try:
        names = os.listdir(folder)
    except OSError:  # another user's, or it has ended
        return False
    for name in names:
        try:
            if os.readlink(f"{folder}/{name}") in wanted:
                return True
        except OSError:  # closed by now
            continue
    return False
