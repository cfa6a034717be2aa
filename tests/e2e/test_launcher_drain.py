"""SIGTERM: nothing in flight is cut, only those who were told to go exit, with 0, and the others gather again."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launcher.reference.tokens import expected_text
from tests.e2e.group import Group, fetch, running
from tests.lifetimes import Ends

pytestmark = pytest.mark.timing

Print = pytest.CaptureFixture[str]
DRAIN = ("--drain-settle", "0.5", "--grace", "20", "--restart-backoff", "0.3", "--lease", "3")
#: An engine that cuts its requests the moment it gets TERM: nothing but the launcher's drain can keep them whole.
BRUSQUE = ("--shutdown-timeout", "0")


class Stream:
    """A request whose tokens come one by one, read in a thread of its own."""

    def __init__(self, group: Group, prompt: str, tokens: int) -> None:
        self.wanted = expected_text(prompt, tokens, group.size, group.workers)
        self.text, self.ended, self.begun = "", False, threading.Event()
        self._connection = http.client.HTTPConnection(group.addresses[0], group.port, timeout=120)
        self._body = json.dumps({"prompt": prompt, "max_tokens": tokens, "stream": True})
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self.begun.wait(120)

    def _read(self) -> None:
        try:
            self._connection.request("POST", "/v1/completions", self._body)
            for line in self._connection.getresponse():
                data = line.decode().strip().removeprefix("data: ")
                if data == "[DONE]":
                    self.ended = True
                elif data.startswith('{"error"'):
                    return
                elif data:
                    self.text += json.loads(data)["choices"][0]["text"]
                    self.begun.set()
        finally:
            self._connection.close()

    def check(self) -> None:
        self._thread.join(60)
        assert (self.ended, self.text) == (True, self.wanted)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_pod_is_told_to_go(tmp_path: Path, rank: int) -> None:
    """The group drains; that pod exits with 0; the other stops its engine, keeps its process and gathers again."""
    with running(tmp_path, 2, *DRAIN, "--", "--token-seconds", "0.1") as group:
        group.until_serving()
        stream = Stream(group, "a long answer", 40)
        group.terminate(rank)
        group.until("not ready", lambda: group.ask(0, "/readyz").status == group.ask(1, "/readyz").status == 503)
        assert group.phase(0) == "draining"
        group.complete("served while draining", 2)
        stream.check()
        assert group.code(rank) == 0
        other = 1 - rank
        group.until("the other gathers", lambda: group.phase(other) in ("gathering", "seeking") and not group.engines())
        assert group.processes[other].poll() is None
        assert group.status(other)["first_failure"] is None
        group.restart(rank)
        assert group.until_serving(after=1) == 2
        assert group.status(other)["restarts"] == 0
        assert "launcher: first failure" not in group.output(0) + group.output(1)


def test_all_pods_are_told_to_go_at_once(tmp_path: Path) -> None:
    """Scale-down: streams finish, and every pod exits with 0."""
    with running(tmp_path, 3, *DRAIN, "--", "--token-seconds", "0.1", *BRUSQUE) as group:
        group.until_serving()
        streams = [Stream(group, f"request {n}", 20 + n) for n in range(5)]
        group.terminate()
        for stream in streams:
            stream.check()
        assert group.codes() == [0, 0, 0]
        assert not group.engines()
        for rank in range(3):
            assert "ERROR" not in group.output(rank)
            assert group.termination(rank) == ""


def test_workers_end_only_after_the_leaders_engine(tmp_path: Path) -> None:
    """Rank 0's engine takes all its time to end; of the workers one would end at TERM, one takes no notice of it.

    No engine here ends because another has, so every end is the launcher's doing. The second worker is
    as SGLang's are.
    """
    own = ("--drain-settle", "0.2", "--grace", "8", "--stop-grace", "1")
    engine = ("--ignore-term", "--fault-ranks", "0,2", "--on-peer-loss", "hang")
    with running(tmp_path, 3, *own, "--", *engine) as group, Ends() as ends:
        group.until_serving()
        engines = [[proc.key for proc in group.engine(rank)] for rank in range(3)]
        assert [len(engine) for engine in engines] == [2, 2, 2]
        for key in (key for engine in engines for key in engine):
            ends.watch(key)
        group.terminate()
        assert group.codes() == [0, 0, 0]
        ends.last(30)
        leader, *workers = [[ends.at[key] for key in engine] for engine in engines]
        assert max(leader) <= min(min(worker) for worker in workers), (leader, workers, group.words())
        assert all("ERROR" not in group.output(rank) for rank in range(3))


def test_alone_with_a_request_in_flight(tmp_path: Path) -> None:
    with running(tmp_path, 1, *DRAIN, "--", "--token-seconds", "0.1") as group:
        group.until_serving()
        stream = Stream(group, "alone", 20)
        group.terminate()
        stream.check()
        assert group.code(0) == 0


def test_the_grace_is_an_end(tmp_path: Path) -> None:
    """A request that would take longer than the grace is cut in time for the engine to be stopped before KILL."""
    with running(tmp_path, 2, "--drain-settle", "0", "--grace", "3", "--", "--token-seconds", "0.5") as group:
        group.until_serving()
        stream = Stream(group, "endless", 1000)
        began = time.monotonic()
        group.terminate()
        assert group.codes() == [0, 0]
        assert time.monotonic() - began > 1
        assert not stream.ended
        group.until_said("drain cut short by the grace", 0)


def test_a_second_sigterm_stops_at_once(tmp_path: Path) -> None:
    with running(tmp_path, 2, "--drain-settle", "60", "--grace", "600", "--", "--token-seconds", "0.5") as group:
        group.until_serving()
        Stream(group, "endless", 1000)
        group.terminate()
        group.until_phase("draining")
        group.terminate(1)
        assert group.codes() == [0, 0]
        group.until_said("second SIGTERM: stopping now", 1)


def test_another_way_to_say_it(tmp_path: Path) -> None:
    with running(tmp_path, 1, "--drain-settle", "0") as group:
        group.until_serving()
        group.processes[0].send_signal(signal.SIGQUIT)
        assert group.code(0) == 0


def test_told_to_go_while_waiting(tmp_path: Path) -> None:
    """No engine runs: everybody exits at once, and those who remain miss whoever left."""
    with running(tmp_path, 3, start=False) as group:
        group.start(1)
        group.until_phase("seeking", 1)
        group.terminate(1)
        assert group.code(1) == 0
        group.start(0)
        group.start(2)
        group.until("two are there", lambda: group.status(0).get("waiting_for") == "waiting for rank 1")
        group.terminate(2)
        assert group.code(2) == 0
        group.until("one is there", lambda: group.status(0).get("waiting_for") == "waiting for ranks 1, 2")
        group.terminate(0)
        assert group.code(0) == 0


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.chaos)])
def test_told_to_go_while_starting(tmp_path: Path, rank: int) -> None:
    with running(tmp_path, 2, "--restart-backoff", "0.3", "--", "--startup-seconds", "60") as group:
        group.until_phase("starting")
        group.until("engines started", lambda: len(group.engines()) == 4)
        group.terminate(rank)
        assert group.code(rank) == 0
        group.until("nothing runs", lambda: not group.engines())
        group.until("the other waits", lambda: group.phase(1 - rank) in ("gathering", "seeking"))
        assert "ERROR" not in group.output(rank)


@pytest.mark.parametrize("moment", ["running", "a request in flight", "hurried", "starting", "backing off"])
def test_a_new_leader_waits_for_no_lease_of_one_that_left_in_good_order(tmp_path: Path, moment: str) -> None:
    """Only the leader's pod is deleted; the next one remembers nothing. With a lease this long a fence would show."""
    slow = ("--startup-seconds", "4") if moment == "starting" else ()
    options = ("--drain-settle", "0", "--lease", "100", "--restart-backoff", "90" if moment == "backing off" else "0.3")
    with running(tmp_path, 3, *options, "--", *slow) as group:
        if moment == "starting":
            group.until("engines started", lambda: len(group.engines()) == 6)
        else:
            group.until_serving()
        if moment == "backing off":
            for _ in range(8):  # until the pause is long enough to be seen
                if group.phase(0) == "backoff":
                    break
                with contextlib.suppress(IndexError, ProcessLookupError, StopIteration):
                    os.kill(group.root(1), signal.SIGKILL)
                time.sleep(0.5)
            group.until_phase("backoff", 0)
        stream = Stream(group, "one more answer", 20) if moment == "a request in flight" else None
        group.terminate(0)
        if moment == "hurried":
            time.sleep(0.1)
            group.terminate(0)
        assert group.code(0) == 0
        if stream is not None:
            stream.check()
        before = len(group.output(0))
        group.restart(0)
        left = time.monotonic()
        group.until_serving()
        again = time.monotonic() - left
        assert "fenced" not in [visit["phase"] for visit in group.status(0)["timeline"]], group.words()
        assert "lease" not in group.output(0)[before:], group.output(0)
        print(f"{moment}: serving {again:.1f} s after the new leader's start")


def test_told_to_go_at_any_moment_of_the_start(tmp_path: Path) -> None:
    """From the first millisecond on, whatever it does just then: it exits with 0 and leaves nothing."""
    with running(tmp_path, 1, "--drain-settle", "0", start=False) as group:
        for delay in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4):
            process = group.start(0)
            time.sleep(delay)
            os.kill(process.pid, signal.SIGTERM)
            code = group.code(0)
            assert code == 0 or (code == 143 and not group.output(0)), (delay, code, group.output(0))
            assert not group.engines()
            group.output_path(0).write_text("")


def test_an_engine_that_ignores_term_is_ended_all_the_same(tmp_path: Path) -> None:
    with running(tmp_path, 2, "--drain-settle", "0", "--grace", "4", "--", "--ignore-term") as group:
        group.until_serving()
        group.terminate()
        assert group.codes() == [0, 0]
        assert not group.engines()


def test_a_failure_while_draining_ends_the_wait(tmp_path: Path) -> None:
    with running(tmp_path, 2, "--drain-settle", "60", "--grace", "600", "--restart-backoff", "0.3") as group:
        group.until_serving()
        group.terminate(1)
        group.until_phase("draining")
        os.kill(group.root(1), signal.SIGKILL)
        assert group.code(1) == 0
        group.until_phase("gathering", 0)
        assert group.status(0)["restarts"] == 0


@pytest.mark.parametrize("total", [150, pytest.param(1000, marks=pytest.mark.chaos)])
def test_a_drain_under_load_cuts_nothing(tmp_path: Path, capsys: Print, total: int) -> None:
    """50 requests a second, a third of them streams; the last 50 come when SIGTERM was sent, as endpoints lag.

    The settling time is shorter than what is in flight then: streams of 4 to 6 s hold the drain open.
    """
    settle = ("--drain-settle", "0.5", "--grace", "60")
    with running(tmp_path, 2, *settle, "--", "--token-seconds", "0.02", *BRUSQUE) as group:
        group.until_serving()
        served = [0]

        def ask(n: int) -> None:
            prompt = f"request {n}"
            if n % 3 == 0:
                Stream(group, prompt, 20).check()
            else:
                answer = fetch(group.addresses[0], group.port, "/v1/completions", {"prompt": prompt, "max_tokens": 10})
                assert answer.status == 200, answer
                assert json.loads(answer.body)["choices"][0]["text"] == expected_text(prompt, 10, 2)
            served[0] += 1

        with ThreadPoolExecutor(64) as pool:
            waiting = []
            began = time.monotonic()
            for n in range(1, total + 1):
                waiting.append(pool.submit(ask, n))
                if n == total - 50:
                    long = [Stream(group, f"long {tokens}", tokens) for tokens in (200, 250, 300)]
                    group.terminate()
                time.sleep(max(0.0, began + n / 50 - time.monotonic()))
            group.until("not ready", lambda: group.ask(0, "/readyz").status == 503)  # the long streams hold the drain
            wrong = [e for e in (w.exception() for w in waiting) if e is not None]
        assert not wrong, wrong[:3]
        for stream in long:
            stream.check()
        assert served[0] == total
        assert group.codes() == [0, 0]
        with capsys.disabled():
            print(f"\n{total} requests in {time.monotonic() - began:.1f} s while two pods were drained: none cut")
