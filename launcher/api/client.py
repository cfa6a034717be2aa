"""Reading /status of another pod's launcher, for `launcher status` and the group's doctor."""

from __future__ import annotations

import json
import os
from typing import Any

from launcher.common.text import printable
from launcher.errors import UnavailableError, UsageError
from launcher.group import proof
from launcher.network import http_client

SECONDS = 5.0  #: for the whole answer
LARGEST = 4 << 20  #: bytes of an answer that are read: 1,024 members take 200 KiB


def fetch(base: str, token_file: str | None) -> dict[str, Any]:
    """The /status object of the pod at ``base``, a URL. Raises UnavailableError, UsageError, ConfigError.

    With ``token_file`` the token that is derived from the secret is sent, else that of LAUNCHER_STATUS_TOKEN.
    """
    headers = {}
    token = _token(token_file)
    if token:
        headers["Authorization"] = f"Bearer {token}"
    foreign = UnavailableError(f"{base}/status is not a launcher's", "give the agent's port (--agent-port, 9471)")
    try:
        reply = http_client.ask(f"{base}/status", SECONDS, LARGEST, headers)
        status = json.loads(reply.body)
    except http_client.TooLong:
        raise foreign from None
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else "no connection"
        raise UnavailableError(
            f"{base}/status: {why}", "run it in the pod, or give --url http://POD_IP:9471; is the launcher running?"
        ) from None
    except (ValueError, RecursionError):
        raise foreign from None
    if not isinstance(status, dict):
        raise foreign
    if reply.status == 401:
        raise UnavailableError(
            f"{base}/status: {printable(status.get('error'), 500)}", "see `launcher status-token --help`"
        )
    return status


def _token(token_file: str | None) -> str:
    if not token_file:
        token = os.environ.get("LAUNCHER_STATUS_TOKEN", "").strip()
        if not (token.isascii() and token.isprintable()):
            raise UsageError("LAUNCHER_STATUS_TOKEN is no token", "set it to what `launcher status-token` prints")
        return token
    return proof.status_token(proof.read_secret(token_file, f"--token-file {token_file}"))
