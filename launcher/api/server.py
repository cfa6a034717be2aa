"""The pages of a pod: /livez /readyz /metrics /status /autopsy, / for people; and what `logs` and `restart` ask.

The agent passes functions that give the answers. Connections and their limits are in `visitors.py`.

/livez is 200 whenever the event loop runs, even during an hour's wait for peers and while a model loads, because a
kubelet must not restart the pod for that. /status shows its details, and /autopsy and /logs anything, to those that
`access.py` admits. A route that changes anything sets ``acts`` in `ROUTES`, and is reached only through `access.acts`.
"""

from __future__ import annotations

import http
import json
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import parse_qs

from websockets.datastructures import Headers
from websockets.http11 import Response

from launcher.api import access
from launcher.api.answers import PlainAnswer, RankLines
from launcher.api.visitors import Visitors
from launcher.model import EMPTY


def _nobody(*_: object) -> PlainAnswer:
    return PlainAnswer(503, "this pod cannot answer that")


@dataclass(frozen=True)
class Pages:
    """What the pages show, and what they do, as functions."""

    ready: Callable[[], tuple[bool, str]]
    metrics: Callable[[], str]
    status: Callable[[], Mapping[str, Any]]
    secrets: Callable[[], Collection[bytes]] = tuple  #: whose status tokens are accepted; none: there is no token
    details: str = "loopback"  #: who reads details without a token: none, loopback or all
    host_network: Callable[[], bool] = lambda: False
    autopsy: Callable[[], str] = str  #: the whole text of the latest one; empty: there is none here
    restart: Callable[[str], PlainAnswer] = _nobody  #: by whom; a new epoch
    last_lines: Callable[[int], RankLines | PlainAnswer] = _nobody  #: of a rank


def listen(pages: Pages, sockets: Sequence[socket.socket], most: int) -> Visitors:
    """Serve on listening sockets (`network.listening`), at most ``most`` connections at a time."""

    def answer(method: str, target: str, headers: Headers, peer: str) -> Response:
        return respond(pages, target, headers, peer, method)

    return Visitors(answer, sockets, most)


def _livez(pages: Pages, asker: access.Asker) -> Response:
    return _reply(http.HTTPStatus.OK, "alive\n")


def _readyz(pages: Pages, asker: access.Asker) -> Response:
    ready, why = pages.ready()
    return _reply(http.HTTPStatus.OK if ready else http.HTTPStatus.SERVICE_UNAVAILABLE, f"{why}\n")


def _metrics(pages: Pages, asker: access.Asker) -> Response:
    return _reply(http.HTTPStatus.OK, pages.metrics(), "text/plain; version=0.0.4; charset=utf-8")


def _status(pages: Pages, asker: access.Asker) -> Response:
    secrets = pages.secrets()
    verdict = access.reads(asker, secrets, pages.details)
    if verdict.status == 401:
        return _reply(http.HTTPStatus.UNAUTHORIZED, json.dumps({"error": verdict.why}) + "\n", "application/json")
    status = dict(pages.status())
    if not verdict.ok:
        status = {**access.opened(status, bool(secrets)), "note": verdict.why, "token_opens": bool(secrets)}
    return _reply(http.HTTPStatus.OK, json.dumps(status) + "\n", "application/json")


def _autopsy(pages: Pages, asker: access.Asker) -> Response:
    verdict = access.reads(asker, pages.secrets(), pages.details)
    if not verdict.ok:
        return _reply(http.HTTPStatus(verdict.status), f"{verdict.why}\n")
    text = pages.autopsy()
    if not text:
        return _reply(http.HTTPStatus.NOT_FOUND, "no autopsy: no epoch ended by a hang, or this is not rank 0's pod\n")
    return _reply(http.HTTPStatus.OK, text)


def _page(pages: Pages, asker: access.Asker) -> Response:
    from launcher.api import page

    text, policy = page.load()
    safe = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}
    return _reply(http.HTTPStatus.OK, text, "text/html; charset=utf-8", more=safe)


def _logs(pages: Pages, asker: access.Asker) -> Response:
    """``GET /logs?rank=N``: an engine's lines are details, which a page of states and numbers does not show."""
    verdict = access.reads(asker, pages.secrets(), pages.details)
    if not verdict.ok:
        return _reply(http.HTTPStatus(verdict.status), f"{verdict.why}\n")
    said = parse_qs(asker.query).get("rank", [""])[-1]
    if not (said.isascii() and said.isdecimal() and len(said) <= 6):
        return _reply(http.HTTPStatus.BAD_REQUEST, "say which rank: /logs?rank=0\n")
    found = pages.last_lines(int(said))
    if isinstance(found, PlainAnswer):
        return _reply(http.HTTPStatus(found.status), f"{found.text}\n")
    return _reply(http.HTTPStatus.OK, json.dumps(asdict(found)) + "\n", "application/json")


def _restart(pages: Pages, asker: access.Asker) -> Response:
    done = pages.restart(asker.peer)
    return _reply(http.HTTPStatus(done.status), f"{done.text}\n")


@dataclass(frozen=True)
class Route:
    """One path. ``acts``: it changes something, so it takes POST and must pass `access.acts`."""

    answer: Callable[[Pages, access.Asker], Response]
    acts: bool = False


ROUTES: Mapping[str, Route] = {
    "/livez": Route(_livez),
    "/readyz": Route(_readyz),
    "/metrics": Route(_metrics),
    "/status": Route(_status),
    "/autopsy": Route(_autopsy),
    "/": Route(_page),
    "/logs": Route(_logs),
    "/restart": Route(_restart, acts=True),
}


def respond(
    pages: Pages,
    target: str,
    headers: Mapping[str, str],
    peer: str,
    method: str = "GET",
    routes: Mapping[str, Route] = ROUTES,
) -> Response:
    """The answer to one request."""
    path, _, query = target.partition("?")
    route = routes.get(path)
    if route is None:
        return _reply(http.HTTPStatus.NOT_FOUND, f"there are {' '.join(routes)}\n")
    asker = access.Asker(peer, headers, query)
    if route.acts:
        verdict = access.acts(asker, method, path.strip("/"), pages.secrets(), pages.details, pages.host_network())
        if not verdict.ok:
            return _reply(http.HTTPStatus(verdict.status), f"{verdict.why}\n", allow="POST")
    elif method != "GET":
        return _reply(http.HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes GET\n", allow="GET")
    return route.answer(pages, asker)


def _reply(
    status: http.HTTPStatus,
    text: str,
    kind: str = "text/plain; charset=utf-8",
    allow: str = "",
    more: Mapping[str, str] = EMPTY,
) -> Response:
    body = text.encode("utf-8", "backslashreplace")
    headers = Headers(
        {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Connection": "close",
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            **more,
        }
    )
    if status is http.HTTPStatus.METHOD_NOT_ALLOWED and allow:
        headers["Allow"] = allow
    return Response(status.value, status.phrase, headers, body)
