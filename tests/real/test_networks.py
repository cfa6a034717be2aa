"""Real engines over two pods whose network is IPv6 only, or has both families: the text is that of a single process.

One engine, IPv6 only, runs by default; all with -m real.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.test_networks_in_pods import LAUNCHER, V4, V6, Machines, machines
from tests.real import recipes
from tests.real.install import NotInstallable, engine
from tests.real.launched import PORT, engine_arguments

pytestmark = [
    pytest.mark.real,
    pytest.mark.pods,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"),
]
ASK = """
import json, sys, urllib.request as u
asked = u.Request(sys.argv[1], sys.argv[2].encode(), {"Content-Type": "application/json"})
print(json.load(u.build_opener(u.ProxyHandler({})).open(asked, timeout=300))["choices"][0]["text"])
"""


BOTH = (f"{V4}/24", f"{V6}/64")
KINDS = ("vllm-mp", "vllm-ray", "sglang")
NETWORKS = {"IPv6 only": ((f"{V6}/64",), V6), "IPv6 first": (BOTH, V6), "IPv4 first": (BOTH, V4)}
CASES = [
    # One of them in CI: each takes an engine's start.
    pytest.param(kind, *network, id=f"{kind}, {name}", marks=() if (kind, name) == ("vllm-mp", "IPv6 only") else slow)
    for slow in (pytest.mark.chaos,)
    for kind in KINDS
    for name, network in NETWORKS.items()
]


@pytest.mark.parametrize(("kind", "addresses", "own"), CASES)
def test_a_group_serves_on_the_pods_addresses(tmp_path: Path, kind: str, addresses: tuple[str, ...], own: str) -> None:
    name = kind.partition("-")[0]
    try:
        engine(name)
    except NotInstallable as error:
        pytest.skip(str(error))
    expected = recipes.expected_completion(name)
    leader = own.format(1)
    with machines(tmp_path, {"eth0": addresses}) as pair:
        for number in (1, 2):
            arguments = engine_arguments(kind)
            at = arguments.index("--")
            identity = ["--rank", str(number - 1), "--size", "2", "--leader", leader]
            words = [*arguments[:at], *identity, *arguments[at:]]
            environ = {**recipes.environment(name), "POD_IP": own.format(number)}
            pair.start_apart(number, LAUNCHER, *words, env=environ)
        until_serving(pair)
        host = f"[{leader}]" if ":" in leader else leader
        url = f"http://{host}:{PORT}/v1/completions"
        answer = pair.inside(2, sys.executable, "-c", ASK, url, json.dumps(recipes.REQUEST), seconds=400)
        assert answer.stdout.rstrip("\n") == expected, answer.stderr + pair.log(1).read_text()[-3000:]


def until_serving(pair: Machines) -> None:
    deadline = time.monotonic() + recipes.READY_SECONDS
    while time.monotonic() < deadline:
        text = pair.log(1).read_text(errors="replace")
        if "group runs" in text:
            return
        assert all(process.poll() is None for process in pair.running), text[-4000:]
        time.sleep(0.5)
    raise AssertionError(pair.log(1).read_text(errors="replace")[-4000:])
