"""Asking a pod's launcher from outside of it: its /status and /logs, and what changes something (POST)."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any
from urllib.parse import urlsplit

from launcher.api.access import ACTION
from launcher.common.addresses import is_localhost
from launcher.common.text import printable
from launcher.errors import UnavailableError, UsageError
from launcher.group import proof
from launcher.network import http_client
from launcher.network.http_client import HttpAnswer
from launcher.settings import AGENT_PORT

SECONDS = 5.0  #: for the whole answer
LARGEST = 4 << 20  #: bytes of an answer that are read: 1,024 members take 200 KiB
FIX = "give the agent's port (--agent-port, 9471)"
SHOWN = 80  #: characters of a foreign answer that an error repeats


class NoAnswer(UnavailableError):
    """Nobody answers at this address now."""


def fetch(base: str, token_file: str | None) -> dict[str, Any]:
    """The /status object of the pod at ``base``, a URL. Raises NoAnswer, UnavailableError, UsageError, ConfigError.

    With ``token_file`` the token that is derived from the secret is sent, else that of LAUNCHER_STATUS_TOKEN.
    """
    reply = _ask(base, "/status", token_file)
    status = _object(base, "/status", reply)
    if reply.status == 401:
        raise UnavailableError(
            f"{base}/status: {printable(status.get('error'), 500)}", "see `launcher status-token --help`"
        )
    if reply.status != 200 or "phase" not in status:
        raise _foreign(base, "/status", reply)
    return status


def last_lines(base: str, rank: int, token_file: str | None) -> dict[str, Any]:
    """The /logs object of a rank. Raises UnavailableError with the pod's own words if there is none."""
    reply = _ask(base, f"/logs?rank={rank}", token_file)
    if reply.status != 200:
        raise _refused(base, "/logs", reply)
    return _object(base, "/logs", reply)


def act(base: str, action: str, token_file: str | None) -> str:
    """Have the pod do something; what it says. Raises UnavailableError with the pod's own words if it does not."""
    reply = _ask(base, f"/{action}", token_file, action)
    if reply.status != 202:
        raise _refused(base, f"/{action}", reply)
    return printable(reply.body.decode("utf-8", "replace").strip(), 500)


def base_url(url: str | None, port: int | None) -> str:
    """A pod's address as people give it (``10.0.0.7:9471``, a URL, or nothing: this pod), as a URL without a path."""
    base = (url or f"http://127.0.0.1:{port or AGENT_PORT}").rstrip("/")
    return base if "://" in base else f"http://{base}"


def _ask(base: str, path: str, token_file: str | None, action: str = "") -> HttpAnswer:
    headers = {ACTION: action} if action else {}
    token = _token(token_file)
    if token:
        headers["Authorization"] = f"Bearer {token}"
    where = base + path.partition("?")[0]
    try:
        return http_client.ask(base + path, SECONDS, LARGEST, headers, b"" if action else None)
    except http_client.TooLong:
        raise UnavailableError(f"{where} is not a launcher's: an answer without end", FIX) from None
    except http_client.NotHttp as error:
        raise UnavailableError(f"{where} is not a launcher's: {error}{_listener(base)}", FIX) from None
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else "no connection"
        if error.errno and error.strerror:
            why += f" ({error.strerror.lower()})"
        raise NoAnswer(
            f"{where}: {why}", "run it in the pod, or give --url http://POD_IP:9471; is the launcher running?"
        ) from None
    except (ValueError, RecursionError):
        raise UnavailableError(f"{where} is not a launcher's: no http URL", FIX) from None


def _object(base: str, path: str, reply: HttpAnswer) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(reply.body)
        if isinstance(found, dict):
            return found
    raise _foreign(base, path, reply)


def _refused(base: str, path: str, reply: HttpAnswer) -> UnavailableError:
    """A pod's launcher says no in one line; whatever else answers says something else."""
    words = reply.body.decode("utf-8", "replace").strip()
    if reply.server or "\n" in words or not words:  # a launcher names no server
        return _foreign(base, path, reply)
    if reply.status == 404 and words.startswith("there are "):
        return UnavailableError(f"{base}{path}: this launcher is older than this command", "ask in a pod that is newer")
    fix = "see `launcher status-token --help`" if reply.status in (401, 403) else ""
    return UnavailableError(printable(words, 500), fix)


def _foreign(base: str, path: str, reply: HttpAnswer) -> UnavailableError:
    """Not a launcher: say who answered, and what."""
    server = f" from {printable(reply.server, 40)!r}" if reply.server else ""
    body = printable(reply.body[: 4 * SHOWN].decode("utf-8", "replace").strip(), SHOWN)
    said = f": {body}" if body else ""
    return UnavailableError(
        f"{base}{path} is not a launcher's: HTTP {reply.status}{server}{_listener(base)}{said}", FIX
    )


def _listener(base: str) -> str:
    """Which process of this machine listens there, if it is this machine and the process can be seen."""
    with contextlib.suppress(ValueError):
        at = urlsplit(base)
        if at.hostname and is_localhost(at.hostname):
            from launcher.node import listener

            owner = listener.of(at.port or 80)
            return f", {owner}" if owner else ""
    return ""


def _token(token_file: str | None) -> str:
    if not token_file:
        token = os.environ.get("LAUNCHER_STATUS_TOKEN", "").strip()
        if not (token.isascii() and token.isprintable()):
            raise UsageError("LAUNCHER_STATUS_TOKEN is no token", "set it to what `launcher status-token` prints")
        return token
    return proof.status_token(proof.read_secret(token_file, f"--token-file {token_file}"))
