"""What a stranger, a bad leader, a file or an engine says can end a connection, and never a launcher."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from websockets.sync.server import ServerConnection, serve

from launcher.group import messages as m
from launcher.model import Cause, CauseKind, Epoch
from tests.e2e.group import LAUNCHER, Group, running
from tests.e2e.test_launcher_strangers import UPGRADE, masked, talk
from tests.ports import free_port

HUGE = (
    "1" + "0" * 400,
    "9" * 5000,
    "-1" + "0" * 400,
    "NaN",
    "Infinity",
    "1e400",
    "true",
    "null",
    "[[[[]]]]",
    '"\\ud800"',
)
BUG = ("Traceback", "a bug of the launcher")


def clean(group: Group) -> None:
    for rank in range(group.size):
        assert not any(word in group.output(rank) for word in BUG), group.words()


def hostile_hellos() -> list[bytes]:
    """A hello of a stranger with one field that cannot be read, in turns, and some that are no JSON."""
    text = m.encode(m.Hello("other", 99, 2, "stranger", "10.9.9.9", first_age=1.0, first_epoch=1))
    body = json.loads(text)
    found = []
    for name in ("quiet", "rank", "size", "attempt", "first_age", "first_epoch", "charges", "last_epoch", "died"):
        for value in HUGE:
            found.append(json.dumps({**body, name: "@"}).replace('"@"', value).encode())
    found.append(b"[" * 90_000)
    found.append(text[:-1].encode() + b',"quiet":1' + b"0" * 400 + b"}")
    found.append(b'{"is":"hello","is":' + text.encode() + b"}")
    return found


def test_no_hello_of_a_stranger_ends_a_serving_group(tmp_path: Path) -> None:
    with running(tmp_path, 2) as group:
        group.until_serving()
        with ThreadPoolExecutor(8) as strangers:
            list(strangers.map(lambda hello: talk(group, UPGRADE, masked(hello)), hostile_hellos()))
        assert group.serves() and group.epoch() == 1
        counted = re.search(r'launcher_connection_errors_total\{kind="protocol"\} (\d+)', group.ask(0, "/metrics").text)
        assert counted is not None and int(counted[1]) > 50
        assert 'launcher_connection_errors_total{kind="unexpected"} 0' in group.ask(0, "/metrics").text
        clean(group)


def hostile_leader(seen: list[str], script: list[str], connection: ServerConnection) -> None:
    """Says the opening, hears the hello, says its piece and waits until the member has left."""
    connection.send(json.dumps({"is": "open", "protocol": m.PROTOCOL, "prove": False, "nonce": "n"}))
    hello = m.decode(connection.recv(60), m.MEMBER_SAYS)
    connection.send(m.encode(m.Accepted("bad", 1)))
    seen.append(hello.incarnation)
    piece = script[len(seen) % len(script)]
    connection.send(piece.replace("OWN", hello.incarnation))
    try:
        while True:
            connection.recv(1)
    except Exception:
        return


def test_no_word_of_a_bad_leader_ends_a_member(tmp_path: Path) -> None:
    epoch, cause = Epoch(1, "bad"), Cause(CauseKind.EXITED, 0, "t")
    script = [
        json.dumps({"is": "rejected", "why": "w", "text": "t", "retry": "@"}).replace('"@"', HUGE[0]),
        json.dumps({"is": "ack", "good": "@", "mark": 1}).replace('"@"', HUGE[1]),
        json.dumps({"is": "news", "phase": "p", "wait": "@"}).replace('"@"', "NaN"),
        m.encode(m.Prepare(epoch, ("bad", "OWN"), ())),
        m.encode(m.Prepare(epoch, ("bad",), ("127.0.0.1",))),
        m.encode(m.Prepare(epoch, ("bad", "OWN"), ("127.0.0.1", "x"), "t", {"port": -1})),
        json.dumps({"is": "stop", "epoch": [1, "bad"], "cause": {}, "grace": 1e308}),
        m.encode(m.Stop(epoch, cause, 1e9)),
        "[" * 400_000,
        m.encode(m.Start(epoch, 99)),
    ]
    seen: list[str] = []
    with running(tmp_path, 2, "--lease", "1", start=False) as group:
        with serve(
            lambda connection: hostile_leader(seen, script, connection), group.addresses[0], group.group_port
        ) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            group.start(1)
            group.until("the member has come often", lambda: len(seen) > len(script), 120)
            server.shutdown()
            thread.join(60)
        assert group.processes[1].poll() is None
        group.start(0)
        group.until_serving(patience=120)
        clean(group)


@pytest.mark.parametrize("what", ["1970", "infinity", "deep", "folder", "fifo", "link"])
def test_no_state_file_keeps_a_group_from_forming(tmp_path: Path, what: str) -> None:
    state = tmp_path / "state"
    state.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for rank in range(2):
        path = state / f"launcher-rank-{rank}.json"
        body = {"incarnation": "old", "place": "elsewhere", "clean": True, "last": None, "first_failure": None}
        if what == "folder":
            (path / "within").mkdir(parents=True)
        elif what == "fifo":
            os.mkfifo(path)
        elif what == "link":
            path.symlink_to(victim)
            (state / f"launcher-rank-{rank}.new").symlink_to(victim)
        elif what == "deep":
            path.write_text("[" * 100_000)
        else:
            charges = [float("inf")] if what == "infinity" else [1.0, 2.0, 3.0]
            path.write_text(json.dumps({**body, "charges": charges, "first_at": charges[0], "first_epoch": 1}))
    with running(tmp_path, 2, "--state-dir", str(state)) as group:
        group.until_serving(patience=120)
        for rank in range(2):
            assert ("the state file is not used" in group.output(rank)) == (what != "1970")
            path = state / f"launcher-rank-{rank}.json"
            group.until("it is written", lambda p=path: p.is_file() and not p.is_symlink())  # type: ignore[misc]
            assert path.stat().st_mode & 0o777 == 0o600
            assert json.loads(path.read_text())["last"]
        clean(group)
    assert victim.read_text() == "mine"


ENGINE = """
import socket, sys, threading, time
mode, port, began = sys.argv[1], int(sys.argv[2]), time.monotonic()
def serve(one):
    try:
        path = one.recv(4096).split(b" ")[1]
        bad = time.monotonic() - began > 6
        if bad and mode == "drip" and path == b"/health":
            one.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 100000\\r\\n\\r\\n")
            while True:
                one.sendall(b"x")
                time.sleep(0.2)
        if bad and mode == "endless" and path == b"/health":
            one.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
            while True:
                one.sendall(b"x" * 65536)
        body = b"ok"
        if path == b"/metrics":
            odd = b"{" * 1000 + b"\\n\\xff\\n"
            body = b"running NaN\\nrunning{engine=\\"1\\"} " + b"9" * 5000 + b"\\ntokens +Inf\\n" + odd
        one.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    except (OSError, IndexError):
        pass
    finally:
        one.close()
listening = socket.create_server(("127.0.0.1", port))
while True:
    threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()
"""
ENGINE_FILE = """
name = "odd"

[ports]
api = {port}

[health]
path = "/health"
metrics = "http://127.0.0.1:{port}/metrics"
running = ["running"]
progress = ["tokens"]

[leader]
command = [{python}, {script}, {mode}, "{port}"]

[worker]
command = ["true"]
"""


@pytest.mark.parametrize(("mode", "why"), [("drip", "timed out after 5 s"), ("endless", "an answer of more than")])
def test_an_engine_whose_health_never_ends_is_not_well(tmp_path: Path, mode: str, why: str) -> None:
    """It answers well at first, so that it serves; what its metrics say is no number all the while."""
    port, agent = free_port(), free_port()
    script, file, log = tmp_path / "engine.py", tmp_path / "odd.toml", tmp_path / "log"
    script.write_text(ENGINE)
    words = {"python": sys.executable, "script": str(script), "mode": mode}
    file.write_text(ENGINE_FILE.format(port=port, **{name: json.dumps(text) for name, text in words.items()}))
    options = ("--agent-port", str(agent), "--max-restarts", "0", "--health-interval", "0.2")
    limits = ("--stop-grace", "1", "--unresponsive-timeout", "3")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("LAUNCHER_", "POD_"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(LAUNCHER), "run", "--engine-file", str(file), *options, *limits],
            env={**environ, "LAUNCHER_ADDRESS": "127.0.0.1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        process.wait(240)
    finally:
        process.terminate()
        process.wait(60)
    said = log.read_text(errors="replace")
    assert re.search(rf"GET /health failed for \d+ s \(.*{why}.*\) and no request made progress", said), said
    assert process.returncode == 75 and not any(word in said for word in BUG), said
