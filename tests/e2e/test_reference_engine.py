"""The reference engine as real ranks on loopback addresses: right text, streams, and each way in which it can fail."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launcher.engines.reference import PROGRAM
from launcher.reference.tokens import chat_prompt, expected_text
from tests.ports import free_port

DEADLINE = 90.0


def until(what: str, true: Callable[[], Any], deadline: float = DEADLINE) -> Any:
    """Poll for a condition and give its value."""
    end = time.monotonic() + deadline
    while True:
        value = true()
        if value:
            return value
        assert time.monotonic() < end, f"not within {deadline} s: {what}"
        time.sleep(0.01)


class Ranks:
    """A whole engine: one process a rank, on 127.0.0.1, 127.0.0.2 and so on."""

    def __init__(self, folder: Path, size: int, *args: str, token: str = "1.test") -> None:
        self.size, self.folder = size, folder
        self.addresses = [f"127.0.0.{n + 1}" for n in range(size)]
        self.port, self.peer_port = free_port(["127.0.0.1"]), free_port(self.addresses)
        self.args, self.token = args, token
        self.began = time.monotonic()
        self.processes = [self.start(rank) for rank in range(size)]

    def start(self, rank: int, token: str | None = None) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-I", "-S", str(PROGRAM), "--rank", str(rank), "--size", str(self.size)]
        argv += ["--peers", ",".join(self.addresses), "--peer-port", str(self.peer_port), "--host", "127.0.0.1"]
        argv += ["--port", str(self.port), "--epoch-token", token or self.token, *self.args]
        with (self.folder / f"rank{rank}.log").open("ab") as output:
            return subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

    def log(self, rank: int) -> str:
        return (self.folder / f"rank{rank}.log").read_text()

    def request(self, method: str, path: str, body: object = None, timeout: float = DEADLINE) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            sent = body if isinstance(body, (str, type(None))) else json.dumps(body)
            connection.request(method, path, sent)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def healthy(self) -> bool:
        try:
            return self.request("GET", "/health", timeout=2)[0] == 200
        except OSError:
            return False

    def wait_healthy(self) -> float:
        """Wait until the engine serves; gives the seconds since its start."""
        until("healthy", self.healthy)
        return time.monotonic() - self.began

    def complete(self, prompt: str, tokens: int, **more: object) -> str:
        status, body = self.request("POST", "/v1/completions", {"prompt": prompt, "max_tokens": tokens, **more})
        assert status == 200, body
        return str(json.loads(body)["choices"][0]["text"])

    def metric(self, name: str) -> float:
        for line in self.request("GET", "/metrics")[1].splitlines():
            if line.startswith(f"reference:{name}{{"):
                return float(line.rpartition(" ")[2])
        raise AssertionError(name)

    def exit_code(self, rank: int, deadline: float = DEADLINE) -> int:
        return self.processes[rank].wait(deadline)

    def worker(self, rank: int) -> int:
        """Process id of a rank's first worker."""
        pid = self.processes[rank].pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0])

    def end(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """Starts engines and ends them after the test."""
    started: list[Ranks] = []

    def start(size: int, *args: str) -> Ranks:
        started.append(Ranks(tmp_path, size, *args))
        return started[-1]

    yield start
    for each in started:
        each.end()


@contextmanager
def streaming(ranks: Ranks, prompt: str, tokens: int) -> Iterator[http.client.HTTPResponse]:
    """A stream of tokens that has begun."""
    connection = http.client.HTTPConnection("127.0.0.1", ranks.port, timeout=DEADLINE)
    body = json.dumps({"prompt": prompt, "max_tokens": tokens, "stream": True})
    connection.request("POST", "/v1/completions", body)
    try:
        yield connection.getresponse()
    finally:
        connection.close()


def events(response: http.client.HTTPResponse) -> Iterator[str]:
    for line in response:
        if line.startswith(b"data: "):
            yield line[6:].decode().strip()


def streamed(ranks: Ranks, prompt: str, tokens: int) -> str:
    """The text of a whole stream."""
    with streaming(ranks, prompt, tokens) as response:
        found = list(events(response))
    assert found[-1] == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["text"] for event in found[:-1])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -------------------------------------------------------------------------------------------------- it works


@pytest.mark.parametrize(("size", "workers"), [(1, 1), (2, 1), (3, 2)])
def test_text_comes_from_every_worker(ranks: Callable[..., Ranks], size: int, workers: int) -> None:
    engine = ranks(size, "--workers", str(workers), "--token-seconds", "0")
    engine.wait_healthy()
    text = engine.complete("once upon a time", 40)
    assert text == expected_text("once upon a time", 40, size, workers)
    assert text != expected_text("once upon a time", 40, size * workers + 1)
    assert engine.metric("generation_tokens_total") == 40
    assert engine.metric("prompt_tokens_total") == 4


def test_chat_streams_and_bad_requests(ranks: Callable[..., Ranks]) -> None:
    engine = ranks(2, "--token-seconds", "0", "--served-model-name", "small,little")
    engine.wait_healthy()
    chat = {"model": "little", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 12}
    status, body = engine.request("POST", "/v1/chat/completions", chat)
    want = expected_text(chat_prompt([("user", "hello")]), 12, 2)
    assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, want)
    chat |= {"stream": True, "stream_options": {"include_usage": True}}
    body = engine.request("POST", "/v1/chat/completions", chat)[1]
    chunks = [line[6:] for line in body.splitlines() if line.startswith("data: ")]
    assert chunks[-1] == "[DONE]"
    *tokens, usage = (json.loads(chunk) for chunk in chunks[:-1])
    assert "".join(c["choices"][0]["delta"]["content"] for c in tokens) == want
    assert tokens[-1]["choices"][0]["finish_reason"] == "length"
    assert usage["usage"]["completion_tokens"] == 12
    assert [m["id"] for m in json.loads(engine.request("GET", "/v1/models")[1])["data"]] == ["small", "little"]
    for expected, method, path, sent in (
        (400, "POST", "/v1/completions", "{"),
        (400, "POST", "/v1/completions", "[" * 100_000),
        (400, "POST", "/v1/completions", "[1]"),
        (400, "POST", "/v1/completions", {"prompt": 7}),
        (400, "POST", "/v1/completions", {"prompt": "x", "max_tokens": 0}),
        (400, "POST", "/v1/completions", {"prompt": "x", "max_tokens": 10**9}),
        (400, "POST", "/v1/chat/completions", {"messages": [7]}),
        (404, "POST", "/v1/completions", {"prompt": "x", "model": "large"}),
        (404, "GET", "/nothing", None),
        (405, "GET", "/v1/completions", None),
        (413, "POST", "/v1/completions", "x" * 1_100_000),
    ):
        try:
            status, body = engine.request(method, path, sent)
        except ConnectionError:  # the answer came and the rest of a body that is too large found nobody
            assert expected == 413
            continue
        assert (status, json.loads(body)["error"]["code"]) == (expected, expected), (path, sent)


def test_one_connection_takes_many_requests_and_parts(ranks: Callable[..., Ranks]) -> None:
    engine = ranks(1, "--token-seconds", "0")
    engine.wait_healthy()
    body = b'{"prompt": "x", "max_tokens": 3}'
    one = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    with socket.create_connection(("127.0.0.1", engine.port), timeout=DEADLINE) as client:
        sent = one + one + b"GET /health HTTP/1.1\r\n\r\n"
        for start in range(0, len(sent), 7):
            client.sendall(sent[start : start + 7])
        got = b""
        while got.count(b"HTTP/1.1 200") < 3:
            data = client.recv(65536)
            assert data, got
            got += data
        assert got.decode().count(expected_text("x", 3, 1)) == 2
        client.sendall(b"nonsense\r\n\r\n")
        assert b"400" in client.recv(65536)
        assert client.recv(1) == b""


def test_200_concurrent_requests(ranks: Callable[..., Ranks], capsys: pytest.CaptureFixture[str]) -> None:
    engine = ranks(4, "--token-seconds", "0.01", "--max-num-seqs", "128")
    startup = engine.wait_healthy()
    began = time.monotonic()
    with ThreadPoolExecutor(200) as pool:
        texts = list(pool.map(lambda n: ask(n)(engine, f"prompt {n}", 20), range(200)))
    took = time.monotonic() - began
    assert texts == [expected_text(f"prompt {n}", 20, 4) for n in range(200)]
    assert engine.metric("num_requests_running") == engine.metric("num_requests_waiting") == 0
    with capsys.disabled():
        print(f"\nreference engine: size 4 healthy after {startup:.2f} s; 200 requests of 20 tokens in {took:.2f} s")


def ask(n: int) -> Callable[[Ranks, str, int], str]:
    """Every other request is a stream."""
    return streamed if n % 2 else Ranks.complete


def test_starts_within_its_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Best of several, against ``python -c pass`` in the same run."""

    def bare() -> float:
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        return time.monotonic() - began

    def serving() -> float:
        engine = Ranks(tmp_path, 1)
        try:
            return engine.wait_healthy()
        finally:
            engine.end()

    floor, took = min(bare() for _ in range(5)), min(serving() for _ in range(5))
    with capsys.disabled():
        print(f"\nreference engine: serving after {took * 1000:.0f} ms, python -c pass {floor * 1000:.0f} ms")
    assert took < floor + max(0.5, 40 * floor)  # the target is 0.15; this machine is shared, and slows down both


# --------------------------------------------------------------------------------------------- it fails well


def test_health_waits_for_the_whole_chain_and_for_the_start(ranks: Callable[..., Ranks]) -> None:
    engine = ranks(2, "--startup-seconds", "0.6")
    until("answers", lambda: _status(engine) == 503)
    assert engine.request("POST", "/v1/completions", {"prompt": "x"})[0] == 503
    assert engine.wait_healthy() >= 0.6


def _status(engine: Ranks) -> int:
    try:
        return engine.request("GET", "/health", timeout=2)[0]
    except OSError:
        return 0


def test_a_rank_of_another_epoch_does_not_join(ranks: Callable[..., Ranks], tmp_path: Path) -> None:
    engine = ranks(2)
    engine.wait_healthy()
    engine.processes[1].kill()
    engine.exit_code(0)
    engine.processes = [engine.start(0, "3.new"), engine.start(1, "2.old")]
    until("rank 0 is up", lambda: _status(engine) == 503)
    with pytest.raises(AssertionError):
        until("healthy", engine.healthy, 0.5)
    engine.processes[1].kill()
    engine.processes[1].wait()
    engine.processes[1] = engine.start(1, "3.new")
    engine.wait_healthy()


def test_a_probe_of_the_peer_port_harms_nothing(ranks: Callable[..., Ranks]) -> None:
    engine = ranks(2, "--token-seconds", "0")
    engine.wait_healthy()
    kept = []
    for address in engine.addresses:
        socket.create_connection((address, engine.peer_port), timeout=2).close()
        for _ in range(40):
            kept.append(socket.create_connection((address, engine.peer_port), timeout=2))
        kept[-1].sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert engine.complete("x", 10) == expected_text("x", 10, 2)
    for probe in kept:
        probe.close()


@pytest.mark.parametrize("victim", ["main", "worker"])
def test_a_killed_rank_ends_all_and_breaks_streams(ranks: Callable[..., Ranks], victim: str) -> None:
    engine = ranks(3)
    engine.wait_healthy()
    workers = [engine.worker(rank) for rank in range(3)]
    with ThreadPoolExecutor(1) as pool, streaming(engine, "x", 5000) as response:
        whole = pool.submit(engine.request, "POST", "/v1/completions", {"prompt": "y", "max_tokens": 5000})
        stream = events(response)
        next(stream)
        until("both run", lambda: engine.metric("num_requests_running") == 2)
        os.kill(engine.processes[2].pid if victim == "main" else workers[2], signal.SIGKILL)
        last = ""
        with suppress(http.client.IncompleteRead):
            for event in stream:
                last = event
        assert "error" in json.loads(last)
        assert whole.result()[0] == 500
    assert [engine.exit_code(rank) for rank in (0, 1)] == [1, 1]
    assert engine.exit_code(2) == (-signal.SIGKILL if victim == "main" else 1)
    until("no worker is left", lambda: not any(map(alive, workers)))


def test_ignored_loss_shows_with_the_next_request(ranks: Callable[..., Ranks]) -> None:
    """As vLLM's multiprocessing backend: healthy until somebody asks for something."""
    engine = ranks(3, "--on-peer-loss", "ignore")
    engine.wait_healthy()
    worker = engine.worker(1)
    engine.processes[1].kill()
    until("its worker is gone", lambda: not alive(worker))
    with pytest.raises(AssertionError):
        until("an end that nobody asked for", lambda: not engine.healthy(), 0.5)
    status, body = engine.request("POST", "/v1/completions", {"prompt": "x"})
    assert (status, "lost" in body) == (500, True)
    assert engine.exit_code(0) == 1
    assert engine.processes[2].poll() is None


def test_hung_loss_never_answers(ranks: Callable[..., Ranks]) -> None:
    engine = ranks(2, "--on-peer-loss", "hang")
    engine.wait_healthy()
    engine.processes[1].kill()
    engine.processes[1].wait()
    with pytest.raises(TimeoutError):
        engine.request("POST", "/v1/completions", {"prompt": "x"}, timeout=0.5)
    assert engine.healthy()


def test_a_hang_stops_tokens_and_nothing_else(ranks: Callable[..., Ranks]) -> None:
    engine = ranks(2, "--hang-after", "0.3", "--crash-ranks", "1")
    engine.wait_healthy()
    with streaming(engine, "x", 5000) as response:
        next(events(response))

        def stands() -> bool:
            before = engine.metric("generation_tokens_total")
            time.sleep(0.2)
            return engine.metric("generation_tokens_total") == before

        until("no token comes any more", stands)
        assert engine.healthy()
        assert engine.metric("num_requests_running") == 1
        assert [p.poll() for p in engine.processes] == [None, None]


def test_term_finishes_what_is_in_flight(ranks: Callable[..., Ranks]) -> None:
    engine = ranks(2, "--token-seconds", "0.01")
    engine.wait_healthy()
    idle = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=DEADLINE)
    idle.request("GET", "/health")
    idle.getresponse().read()
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(ask(n), engine, f"p{n}", 60) for n in range(20)]
        until("all run", lambda: engine.metric("num_requests_running") == 20)
        for rank in range(2):
            os.kill(engine.worker(rank), signal.SIGTERM)  # a TERM to the whole tree must not cut anything
        engine.processes[0].terminate()
        assert [a.result() for a in answers] == [expected_text(f"p{n}", 60, 2) for n in range(20)]
    assert [engine.exit_code(rank) for rank in (0, 1)] == [0, 0]
    assert not engine.healthy()
    idle.close()


def test_term_cuts_what_takes_too_long(ranks: Callable[..., Ranks]) -> None:
    engine = ranks(2, "--shutdown-timeout", "0.3")
    engine.wait_healthy()
    with streaming(engine, "x", 16000) as response:
        next(events(response))
        engine.processes[0].terminate()
        assert engine.exit_code(0, 5) == 0


def test_term_to_every_process_at_once(ranks: Callable[..., Ranks]) -> None:
    engine = ranks(3)
    engine.wait_healthy()
    for process in engine.processes:
        os.killpg(process.pid, signal.SIGTERM)
    assert engine.exit_code(0) == 0  # although it may see the others go first
    assert {engine.exit_code(rank) for rank in (1, 2)} <= {0, 1}  # 1: saw a neighbour go before its own TERM came


def test_ranks_that_ignore_term(ranks: Callable[..., Ranks]) -> None:
    engine = ranks(2, "--ignore-term", "--fault-ranks", "1")
    engine.wait_healthy()
    engine.processes[1].terminate()
    assert engine.complete("x", 30) == expected_text("x", 30, 2)
    engine.processes[0].terminate()
    assert engine.exit_code(0) == 0


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("--crash-after", "0.1", "--crash-code", "7"), 7),
        (("--crash-after", "0.1", "--crash-signal", "11"), -11),
        (("--crash-after", "0.1", "--crash-at", "startup", "--startup-seconds", "60"), 1),
        (("--crash-after", "0.1", "--crash-process", "worker"), 1),
        (("--exit-zero-after", "0.1"), 0),
    ],
)
def test_crashes_on_demand(ranks: Callable[..., Ranks], args: tuple[str, ...], code: int) -> None:
    engine = ranks(2, *args, "--fault-ranks", "1")
    assert engine.exit_code(1) == code
    assert "injected" in engine.log(1)
    if "--startup-seconds" not in args:
        assert engine.exit_code(0) == 1


def test_what_a_rank_can_leave_behind(ranks: Callable[..., Ranks]) -> None:
    engine = ranks(1, "--fork-daemon", "--shm-bytes", "4096", "--output-rate", "2000", "--orphans-live")
    engine.wait_healthy()
    log = until("all said", lambda: engine.log(0) if "line 100 " in engine.log(0) else "")
    daemon = int(re.findall(r"left daemon (\d+)", log)[0])
    shared = Path(re.findall(r"left (/dev/shm/\S+)", log)[0])
    worker = engine.worker(0)
    try:
        assert shared.stat().st_size == 4096
        assert os.getsid(daemon) != os.getsid(engine.processes[0].pid)
        for pid, title in ((daemon, "reference: daemon"), (worker, "reference: worker 0")):
            until("renamed", partial(renamed, pid, title))
            assert Path(f"/proc/{pid}/environ").read_bytes().strip(b"\0") == b""
        engine.processes[0].kill()
        engine.processes[0].wait()
        with pytest.raises(AssertionError):
            until("an end", lambda: not alive(worker) or not alive(daemon), 0.3)
        os.kill(daemon, signal.SIGTERM)
        assert alive(daemon)
    finally:
        os.kill(daemon, signal.SIGKILL)
        shared.unlink(missing_ok=True)  # a launcher beside this test may have cleaned up


def renamed(pid: int, title: str) -> bool:
    return Path(f"/proc/{pid}/cmdline").read_bytes().strip(b"\0") == title.encode()


def test_sleep_sickness_and_memory(ranks: Callable[..., Ranks]) -> None:
    engine = ranks(1, "--sleep-state", "--unhealthy-after", "0.8", "--memory-bytes", "50000000")
    engine.wait_healthy()
    assert engine.metric("sleeping") == 1
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(engine.complete, "x", 3)
        until("it waits", lambda: engine.metric("num_requests_waiting") == 1)
        assert engine.request("POST", "/wake_up")[0] == 200
        assert answer.result() == expected_text("x", 3, 1)
    until("sick", lambda: not engine.healthy())
    status = Path(f"/proc/{engine.processes[0].pid}/status").read_text()
    assert int(status.partition("VmRSS:")[2].split()[0]) > 50_000


def test_a_taken_port_is_said(ranks: Callable[..., Ranks]) -> None:
    engine = ranks(1)
    engine.wait_healthy()
    second = engine.start(0)
    assert second.wait(DEADLINE) == 1
    assert f"cannot listen on 127.0.0.1 port {engine.port}: Address already in use" in engine.log(0)


@pytest.mark.parametrize("by", ["read", "mmap"])
def test_weights_that_are_really_read(ranks: Callable[..., Ranks], tmp_path: Path, by: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("a.safetensors", "b.safetensors", "empty.safetensors"):
        (folder / name).write_bytes(bytes(0 if name.startswith("empty") else 40_000))
    slow = ("--load-rate", "100000", "--load-by", by, "--compile-seconds", "0.1", "--graph-seconds", "0.1")
    engine = ranks(2, "--model", str(folder), *slow)
    assert engine.wait_healthy() > 0.8
    for rank in range(2):
        lines = re.findall(r": (loading weights|compiling|capturing graphs)(: \d/3 files| took)", engine.log(rank))
        assert lines == [
            *(("loading weights", f": {n}/3 files") for n in range(3)),
            *((what, " took") for what in ("loading weights", "compiling", "capturing graphs")),
        ]


def test_weights_that_are_not_there(ranks: Callable[..., Ranks], tmp_path: Path) -> None:
    engine = ranks(1, "--model", str(tmp_path / "none"), "--load-rate", "1000")
    assert engine.exit_code(0) == 1
    assert "cannot load" in engine.log(0) and "No such file or directory" in engine.log(0)
