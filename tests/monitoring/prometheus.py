"""A real Prometheus (Debian's package) for tests: found on PATH, or the tests that need it say what is missing.

with serving(folder, scrape={"launcher": [...]}) as prometheus:
    prometheus.query("up")
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.group import until
from tests.ports import free_port

PACKAGE = "prometheus"
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/bin", "/usr/local/bin"])

Sample = tuple[dict[str, str], float]  #: labels, value


def program(name: str) -> str | None:
    """``prometheus`` or ``promtool``; None where it is not installed."""
    return shutil.which(name, path=PATH)


def why_not() -> str | None:
    """Why these tests cannot run here, for a skip reason; None where they can."""
    missing = [name for name in ("prometheus", "promtool") if program(name) is None]
    return f"needs {' and '.join(missing)}: apt-get install {PACKAGE}" if missing else None


def promtool(*arguments: str) -> str:
    """Run promtool and return what it prints; an AssertionError where it fails."""
    command = [program("promtool") or "promtool", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"promtool {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


class Prometheus:
    """A server's HTTP API."""

    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str, **parameters: str | float) -> Any:
        """The `data` of an answer. Raises OSError where nobody answers, AssertionError for an error of the query."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("GET", f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
            body = json.loads(connection.getresponse().read())
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(str(error)) from None
        finally:
            connection.close()
        assert body["status"] == "success", f"{parameters}: {body.get('error')}"
        return body["data"]

    def query(self, expression: str, at: float | None = None) -> list[Sample]:
        """An instant query; ``at``: seconds since 1970, or now."""
        data = self.get("query", query=expression, **({} if at is None else {"time": at}))
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(one["metric"], float(one["value"][1])) for one in data["result"]]

    def ready(self) -> bool:
        try:
            return bool(self.get("query", query="1"))
        except OSError:
            return False


@contextlib.contextmanager
def serving(
    folder: Path, scrape: Mapping[str, Sequence[Mapping[str, Any]]] | None = None, interval: str = "1s"
) -> Iterator[Prometheus]:
    """A Prometheus over the blocks in ``folder``/data; ``scrape``: static_configs by job. It ends with the block."""
    jobs = [{"job_name": name, "static_configs": list(targets)} for name, targets in (scrape or {}).items()]
    config = {"global": {"scrape_interval": interval, "scrape_timeout": interval}, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        program("prometheus") or "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    try:
        server = Prometheus(port)

        def up() -> bool:
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            return server.ready()

        until("Prometheus answers", up)
        yield server
    finally:
        process.terminate()
        process.wait(60)
