"""Variables that a Kubernetes Service leaves in every pod of its namespace and that look like settings.

A Service called ``launcher`` injects LAUNCHER_PORT=tcp://10.0.0.1:80 beside LAUNCHER_SERVICE_HOST, and one called
``launcher-group`` LAUNCHER_GROUP_PORT; a Service called ``vllm`` breaks vLLM by VLLM_PORT=tcp://... (vllm#34199).
Source: kubernetes.io, "Service / Environment variables".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_URL = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)
_OURS = re.compile(
    r"LAUNCHER_(?:[A-Z0-9_]+_)??"  # LAUNCHER_GROUP_... is of a Service called launcher-group
    r"(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
# Of other services' variables only those are taken away that an engine reads as a setting: the rest may be in use.
_ENGINES = (
    "VLLM_PORT",
    "VLLM_HOST_PORT",
    "VLLM_DP_MASTER_PORT",
    "VLLM_NIXL_SIDE_CHANNEL_PORT",
    "VLLM_MOONCAKE_BOOTSTRAP_PORT",
    "SGLANG_PORT",
    "MASTER_PORT",
    "RAY_PORT",
)


def strip(env: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The environment without them, and a warning for each Service whose variable would have been read as a setting.

    What is taken out must be unset for the engine too: it is the difference of the two mappings.
    """
    ours = {n for n, v in env.items() if n.startswith("LAUNCHER_") and (_OURS.fullmatch(n) or _URL.match(v))}
    engines = {n for n in _ENGINES if _URL.match(env.get(n, ""))}
    warnings = [_warning(n, env[n], "ignored") for n in sorted(ours) if n.endswith("_PORT") and _URL.match(env[n])]
    warnings += [_warning(n, env[n], "unset, since the engine would read it as a setting") for n in sorted(engines)]
    return {n: v for n, v in env.items() if n not in ours | engines}, tuple(warnings)


def looks_like_a_setting(name: str) -> bool:
    """Whether a Service's variable of this name (``VLLM_PORT``) would be read as a setting."""
    return name in _ENGINES or name.startswith("LAUNCHER_")


def _warning(name: str, value: str, done: str) -> str:
    service = name.removesuffix("_PORT").lower().replace("_", "-")
    return (
        f"{name}={value} comes from a Service called {service}: {done}; "
        "set enableServiceLinks: false in the pod's spec, or rename the Service"
    )
