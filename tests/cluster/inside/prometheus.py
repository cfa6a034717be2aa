"""As much of Prometheus' HTTP API as KEDA asks: /api/v1/query answers a number that can be set.

prometheus.py serve [--port N]     what a pod runs
prometheus.py set VALUE            in the same pod: a number, `nothing` (no series) or `down` (status 503)
prometheus.py asked                in the same pod: when it was asked, and for what, as JSON
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PORT = 9090
#: questions that are remembered
MOST = 10_000


class Source:
    """What the queries are answered with, and who asked."""

    def __init__(self) -> None:
        self.value = "0"
        self.asked: list[dict[str, object]] = []
        self.lock = threading.Lock()

    def answer(self, query: str) -> tuple[int, object]:
        with self.lock:
            self.asked = [*self.asked[-MOST:], {"at": time.time(), "query": query, "value": self.value}]
            value = self.value
        if value == "down":
            return 503, {"status": "error", "errorType": "unavailable", "error": "down, as it was told"}
        if not query:
            return 400, {"status": "error", "errorType": "bad_data", "error": "no query"}
        series = [] if value == "nothing" else [{"metric": {}, "value": [time.time(), value]}]
        return 200, {"status": "success", "data": {"resultType": "vector", "result": series}}

    def set(self, value: str) -> tuple[int, object]:
        if value not in ("nothing", "down"):
            try:
                float(value)
            except ValueError:
                return 400, {"error": f"{value!r} is neither a number nor nothing nor down"}
        with self.lock:
            self.value = value
        return 200, {"value": value}


def handler(source: Source) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            given = parse_qs(parts.query)
            if self.command == "POST":
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                given = {**given, **parse_qs(body)}
            if parts.path == "/api/v1/query":
                self.say(*source.answer(given.get("query", [""])[0]))
            elif parts.path == "/set" and self.command == "POST":
                self.say(*source.set(given.get("value", [""])[0]))
            elif parts.path == "/asked":
                self.say(200, source.asked)
            elif parts.path == "/-/ready":
                self.say(200, {})
            else:
                self.say(404, {"error": f"{parts.path} is not served"})

        do_POST = do_GET

        def say(self, status: int, found: object) -> None:
            body = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["serve", "set", "asked"])
    parser.add_argument("value", nargs="?", default="")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--host", default="0.0.0.0")
    given = parser.parse_args()
    if given.what == "serve":
        server = ThreadingHTTPServer((given.host, given.port), handler(Source()))
        print(f"serving on port {server.server_address[1]}", flush=True)
        server.serve_forever()
    path = f"http://127.0.0.1:{given.port}/"
    try:
        if given.what == "set":
            with urllib.request.urlopen(f"{path}set", f"value={given.value}".encode(), timeout=10) as answer:
                print(answer.read().decode())
        else:
            with urllib.request.urlopen(f"{path}asked", timeout=10) as answer:
                print(answer.read().decode())
    except urllib.error.HTTPError as error:
        sys.exit(error.read().decode())


if __name__ == "__main__":
    main()
