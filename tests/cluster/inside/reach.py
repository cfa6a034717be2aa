"""Which of these TCP ports can be connected to from this pod: `reach.py HOST:PORT ...` prints JSON, port by port."""

from __future__ import annotations

import json
import socket
import sys


def reaches(target: str, timeout: float) -> bool:
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    print(json.dumps({target: reaches(target, 3.0) for target in sys.argv[1:]}))
