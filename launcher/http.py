"""What a pod answers over HTTP, from the first second: /livez /readyz /metrics /status.

It knows nothing of the group: the agent hands it functions that give the answers. Connections and their limits are in
`visitors.py`; only GET exists.

/livez is 200 whenever the event loop turns, also while waiting for peers for an hour and while a model loads: a kubelet
must not kill for that. /readyz asks the agent. /status gives its details to loopback, and to bearers of the secret.
"""

from __future__ import annotations

import http
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from websockets.datastructures import Headers
from websockets.http11 import Response

from launcher.group.proof import same
from launcher.visitors import Visitors, plain

PUBLIC = ("phase", "rank", "size", "ready")


class Pages:
    """What is served, as functions without arguments."""

    def __init__(
        self,
        ready: Callable[[], tuple[bool, str]],
        metrics: Callable[[], str],
        status: Callable[[], Mapping[str, Any]],
        secret: str = "",
    ) -> None:
        self.ready = ready
        self.metrics = metrics
        self.status = status
        self.secret = secret  #: hex digest that bearers present; empty: everybody sees everything


def listen(pages: Pages, sockets: Sequence[socket.socket], most: int) -> Visitors:
    """Serve on sockets that listen already (`network.listening`), at most ``most`` connections at a time."""

    def answer(method: str, target: str, headers: Headers, peer: str) -> Response:
        if method != "GET":
            return plain(405, "Method Not Allowed", "only GET exists here\n", Allow="GET")
        return respond(pages, target, headers, peer)

    return Visitors(answer, sockets, most)


def respond(pages: Pages, target: str, headers: Mapping[str, str], peer: str) -> Response:
    """The answer to one GET."""
    path = urlsplit(target).path
    if path == "/livez":
        return _reply(http.HTTPStatus.OK, "alive\n")
    if path == "/readyz":
        ready, why = pages.ready()
        return _reply(http.HTTPStatus.OK if ready else http.HTTPStatus.SERVICE_UNAVAILABLE, f"{why}\n")
    if path == "/metrics":
        return _reply(http.HTTPStatus.OK, pages.metrics(), "text/plain; version=0.0.4; charset=utf-8")
    if path == "/status":
        status = dict(pages.status())
        if not _may_see(pages, headers, peer):
            status = {k: v for k, v in status.items() if k in PUBLIC}
            status["note"] = "details need `Authorization: Bearer ...` (see --token-file) or a request from the pod"
        return _reply(http.HTTPStatus.OK, json.dumps(status) + "\n", "application/json")
    return _reply(http.HTTPStatus.NOT_FOUND, "there are /livez /readyz /metrics /status\n")


def _may_see(pages: Pages, headers: Mapping[str, str], peer: str) -> bool:
    if not pages.secret or peer.startswith("127.") or peer in ("::1", "::ffff:127.0.0.1"):
        return True
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return scheme.lower() == "bearer" and same(token.strip(), pages.secret)


def _reply(status: http.HTTPStatus, text: str, kind: str = "text/plain; charset=utf-8") -> Response:
    body = text.encode("utf-8", "backslashreplace")
    headers = Headers(
        {"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close", "Cache-Control": "no-store"}
    )
    return Response(status.value, status.phrase, headers, body)
