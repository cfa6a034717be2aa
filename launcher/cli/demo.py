"""`./run.sh demo`: two ranks on loopback find each other, form a group, answer a request, and say what happened.

It runs `launcher local --size 2 --engine reference` and watches it; all that it prints comes from /status and from the
completion. With --kill it also kills a rank's engine and shows the group recovering.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from launcher.network import http_client
from launcher.node import reexec

DEADLINE = 120.0  #: seconds for each step; long, so that a busy machine does not fail the demo
ADDRESSES = ("127.0.0.1", "127.0.0.2")  #: of the two ranks
LARGEST = 4 << 20  #: the largest answer, in bytes
PROMPT = "a group of two ranks"


def main() -> int:
    options = argparse.ArgumentParser(prog="./run.sh demo", description=__doc__.split("\n")[0])
    options.add_argument("--kill", action="store_true", help="also kill -9 rank 1's engine and watch the group return")
    options.add_argument("--verbose", action="store_true", help="print what the ranks print, too")
    chosen = options.parse_args()
    with tempfile.NamedTemporaryFile("w+", prefix="launcher-demo-", suffix=".log") as log:
        try:
            return _demo(chosen.kill, None if chosen.verbose else log)
        except KeyboardInterrupt:
            return 130
        except TimeoutError as error:
            log.seek(0)
            print(f"\nthe demo failed: {error}. The ranks printed:\n{log.read()}", file=sys.stderr)
            return 1


def _demo(kill: bool, log: Any) -> int:
    with _held_ports(4) as ports:
        return _show(kill, log, *ports)


def _show(kill: bool, log: Any, api: int, agent: int, group: int, peers: int) -> int:
    print("Two ranks on this machine: rank 0 on 127.0.0.1, rank 1 on 127.0.0.2, the embedded reference engine.\n")
    began = time.monotonic()
    command = [reexec.python(), "-m", "launcher", "local", "--size", "2", "--engine", "reference"]
    command += ["--port", str(api), "--agent-port", str(agent), "--group-port", str(group)]
    command += ["--master-port", str(peers), "--drain-settle", "0.5s"]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        status = _until_ready(process, agent, 1, began)
        _tell_phases(status)
        text, seconds = _complete(api)
        print(f"  completion     {seconds:6.2f} s   {PROMPT!r} -> {text!r}, each token made by both ranks")
        if kill:
            _kill_and_return(process, agent, api, status)
        leaving = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(DEADLINE)
        print(f"  stop           {time.monotonic() - leaving:6.2f} s   both drained and left, exit code {code}")
        print(
            f"\nDone in {time.monotonic() - began:.1f} s. Next: ./run.sh plan --engine vllm --model M --tp 8 --size 2"
        )
        return code
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(DEADLINE)


def _tell_phases(status: dict[str, Any]) -> None:
    words = {
        "setup": "the launcher started; what it must know of this node was found",
        "gathering": "rank 0 waited until rank 1 was there and alike",
        "preparing": "all ranks were told of the epoch and can run it",
        "starting": "the engine started on both ranks until it was healthy",
        "running": "serving",
    }
    phases = status["timeline"]
    for phase in phases:
        said = words.get(phase["phase"], "")
        if phase["phase"] != "running":
            print(f"  {phase['phase']:<12} {phase['seconds']:8.2f} s   {said}")
    total = sum(p["seconds"] for p in phases if p["phase"] != "running")
    print(f"  {'serving':<12} {total:8.2f} s   after the start of rank 0: epoch {status['epoch']}, {_members(status)}")


def _members(status: dict[str, Any]) -> str:
    return ", ".join(f"rank {m['rank']} at {m['address']}" for m in status["members"])


def _kill_and_return(process: subprocess.Popen[bytes], agent: int, api: int, status: dict[str, Any]) -> None:
    pid = _engine_pid(process, agent)
    print(f"  kill -9                   process {pid}, the engine of rank 1")
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    status = _until_ready(process, agent, status["epoch"] + 1, time.monotonic())
    failure = status["first_failure"]
    print(f"  back           {time.monotonic() - killed:6.2f} s   epoch {status['epoch']} serves; the cause it keeps:")
    print(f"                            rank {failure['rank']}: {failure['text']}")
    text, seconds = _complete(api)
    print(f"  completion     {seconds:6.2f} s   {text!r} again")


def _engine_pid(process: subprocess.Popen[bytes], agent: int) -> int:
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        pids: list[int] = next((m["engine_pids"] for m in _get(agent)["members"] if m["rank"] == 1), [])
        if pids:
            return int(pids[0])
        time.sleep(0.1)
    raise TimeoutError("rank 1 never told its processes")


def _until_ready(process: subprocess.Popen[bytes], agent: int, epoch: int, since: float) -> dict[str, Any]:
    while time.monotonic() - since < DEADLINE:
        if process.poll() is not None:
            raise TimeoutError(f"the group ended with exit code {process.returncode}")
        status = _get(agent)
        if status.get("ready") and status["epoch"] >= epoch:
            return status
        time.sleep(0.05)
    raise TimeoutError(f"the group was not serving within {DEADLINE:g} s")


def _get(agent: int) -> dict[str, Any]:
    try:
        status: dict[str, Any] = json.loads(http_client.ask(f"http://127.0.0.1:{agent}/status", 5.0, LARGEST).body)
        return status
    except (OSError, ValueError):
        return {}


def _complete(api: int) -> tuple[str, float]:
    body = json.dumps({"model": "reference", "prompt": PROMPT, "max_tokens": 6}).encode()
    url, kind = f"http://127.0.0.1:{api}/v1/completions", {"Content-Type": "application/json"}
    began = time.monotonic()
    reply = http_client.ask(url, DEADLINE, LARGEST, kind, body)
    return str(json.loads(reply.body)["choices"][0]["text"]).strip(), time.monotonic() - began


@contextlib.contextmanager
def _held_ports(count: int) -> Iterator[list[int]]:
    """Ports on both ranks' loopback addresses that no other process can get while the demo runs.

    The kernel chooses them, and this process keeps them bound but does not listen. It sets SO_REUSEADDR, as the ranks'
    servers do, so these can listen there, also after a restart, while the kernel gives the ports to nobody else.
    """
    with contextlib.ExitStack() as held:
        found: list[int] = []
        for _ in range(100 * count):
            sockets = contextlib.ExitStack()
            port = 0
            try:
                for address in ADDRESSES:
                    one = sockets.enter_context(socket.socket())
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    one.bind((address, port))
                    port = one.getsockname()[1]
            except OSError:  # taken on the second address: release the first
                sockets.close()
                continue
            held.enter_context(sockets)
            found.append(port)
            if len(found) == count:
                yield found
                return
        raise TimeoutError(f"no {count} ports are free on {' and '.join(ADDRESSES)}")


if __name__ == "__main__":
    sys.exit(main())
