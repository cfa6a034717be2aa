"""Where an engine's API listens and how its health is checked, read from the user's engine arguments.

vLLM and SGLang both serve with uvicorn and name their options alike. FastAPI's root path does not move the routes (a
prefix is stripped if it is there), so it changes nothing here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from launcher.common.addresses import from_inside, host_port, is_localhost
from launcher.engines.arguments import given, last
from launcher.errors import ConfigError
from launcher.model import Gate, Health
from launcher.settings import Settings

LISTENING = ("--host", "--uds", "--ssl-keyfile", "--ssl-certfile", "--ssl-cert-reqs", "--root-path")


@dataclass(frozen=True)
class OptionNames:
    """The metric names of an engine. With labels, as in ``a{b="c"}``, only samples that have them count."""

    running: tuple[str, ...]
    waiting: tuple[str, ...]
    progress: tuple[str, ...]
    sleeping: tuple[str, ...] = ()


def base_url(args: Sequence[str], bind: str, port: int) -> str:
    """``http(s)://host:port`` that reaches the API from inside the pod; ``http+unix://%2Fpath`` for a socket."""
    uds = last(args, "--uds")
    if uds:
        return "http+unix://" + quote(uds, safe="")
    host = from_inside(last(args, "--host") or bind)
    address = "127.0.0.1" if host == "localhost" else host  # asked of no resolver
    return f"{'https' if is_tls(args) else 'http'}://{host_port(address, port)}"


def is_tls(args: Sequence[str]) -> bool:
    return any(last(args, name) is not None for name in ("--ssl-certfile", "--ssl-keyfile"))


def asks_client_certificate(args: Sequence[str]) -> bool:
    """Whether mTLS is required (ssl.CERT_REQUIRED is 2): the launcher has no certificate, so it cannot ask."""
    return last(args, "--ssl-cert-reqs") == "2"


def health(
    args: Sequence[str],
    bind: str,
    port: int,
    names: OptionNames,
    model: str | None,
    *,
    timeout: float = 5.0,
    dead: int = 0,
) -> Health:
    """How to check this engine. Everything is None where a client certificate is required.

    An API with a key gets no canary; /health and /metrics stay open in both engines.
    """
    if asks_client_certificate(args):
        return Health()
    base = base_url(args, bind, port)
    body = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0}
    return Health(
        url=base + "/health",
        metrics_url=base + "/metrics",
        running=names.running,
        waiting=names.waiting,
        progress=names.progress,
        sleeping=names.sleeping,
        canary_url=None if needs_key(args) else base + "/v1/completions",
        canary_body="" if needs_key(args) else json.dumps({k: v for k, v in body.items() if v is not None}),
        insecure=is_tls(args),
        timeout=timeout,
        outside=port if _everywhere(args, bind) else 0,
        dead=dead,
    )


def _everywhere(args: Sequence[str], bind: str) -> bool:
    """Whether the API listens on all addresses: no other was given, and it is no Unix socket."""
    return last(args, "--uds") is None and (last(args, "--host") or bind) in ("", "0.0.0.0", "::")


def gate(health: Health) -> Gate:
    """A server is ready when its health endpoint answers 200; one that cannot be asked, when it runs."""
    return Gate("http", health.url) if health.url else Gate()


def needs_key(args: Sequence[str]) -> bool:
    """Whether the API requires a key."""
    return any(g.name == "--api-key" for g in given(args))


def refuse_silent(args: Sequence[str], without_http: Sequence[str]) -> None:
    """Raises ConfigError for an engine without an HTTP API: the launcher could not tell when it serves or hangs.

    ``without_http``: options of this engine that leave no HTTP API, such as ``--grpc`` or ``--api-server-count 0``.
    """
    for entry in without_http:
        name, _, value = entry.partition(" ")
        for option in given(args):
            if option.name == name and (not value or option.value == value):
                raise ConfigError(
                    f"'-- {entry}': the engine then has no HTTP endpoint, so the launcher could tell neither when it "
                    "serves nor that it hangs",
                    f"leave {entry} out",
                )


def notes(settings: Settings) -> tuple[str, ...]:
    """Warnings about what cannot be checked, and why."""
    args = settings.engine_args
    if asks_client_certificate(args):
        return ("--ssl-cert-reqs 2 asks for a client certificate: the launcher cannot ask the engine's health",)
    host = last(args, "--host") or ""
    if is_localhost(host):
        return (f"'-- --host {host}': no Service and no other pod reaches the engine's API; leave it out",)
    if needs_key(args) and settings.canary_interval:
        return (f"{settings.said('canary_interval')} has no effect: --api-key would refuse the canary",)
    return ()
