"""The engine's health: start-ups that take too long or stall, endpoints that fail, tokens that stand still."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from launcher.node.tree import read
from tests.e2e.group import fetch, running
from tests.e2e.test_launcher_one_fate import check_end

pytestmark = pytest.mark.timing

NO_RESTART = ("--max-restarts", "0", "--stop-grace", "1")


def test_a_start_that_takes_too_long(tmp_path: Path) -> None:
    with running(tmp_path, 2, *NO_RESTART, "--startup-timeout", "1.5", "--", "--startup-seconds", "600") as group:
        check_end(group, 75, r"rank 0: the engine was not ready within 1.5 s \(--startup-timeout\), rank 0 not done")


def test_a_start_without_a_sign_of_life(tmp_path: Path) -> None:
    quiet = ("--", "--startup-seconds", "600", "--startup-quiet")
    with running(tmp_path, 2, *NO_RESTART, "--startup-stall-timeout", "3", *quiet) as group:
        check_end(group, 75, r"rank 0: start-up stalled: no output, .* for 3 s \(--startup-stall-timeout\)")


def test_a_start_with_signs_of_life_goes_on(tmp_path: Path) -> None:
    """Longer than the limit for a stall, but something moves all the while."""
    quiet = ("--", "--startup-seconds", "6", "--startup-quiet", "--output-rate", "2", "--fault-ranks", "1")
    with running(tmp_path, 2, *NO_RESTART, "--startup-stall-timeout", "4", *quiet) as group:
        group.until_serving()


def test_a_stage_that_is_not_done(tmp_path: Path) -> None:
    """The engine's own limit for its peers."""
    with running(tmp_path, 2, *NO_RESTART, "--", "--join-seconds", "0.5", "--startup-seconds", "600") as group:
        check_end(group, 1, r"rank [01]: reference ended with exit code 1")
        assert "was not whole after 0.5 s" in group.output(0) + group.output(1)


def test_health_that_fails_ends_the_epoch(tmp_path: Path) -> None:
    args = ("--health-interval", "0.1", "--health-failures", "3", "--restart-backoff", "0.3")
    faults = ("--", "--unhealthy-after", "3", "--fault-epochs", "1")
    with running(tmp_path, 2, *args, *faults) as group:
        group.until_serving(after=1)
        for rank in range(2):
            failure = group.status(rank)["first_failure"]
            assert failure["text"] == "reference failed its health check 3 times in a row: HTTP 503"
            assert (failure["rank"], failure["cause"]) == (0, "unhealthy")


def test_errors_do_not_end_an_engine_whose_requests_move(tmp_path: Path) -> None:
    """Its server says 503 for many times --health-failures; a request that was there before is whole."""
    args = ("--health-interval", "0.1", "--health-failures", "3", "--restart-backoff", "0.3")
    faults = ("--", "--unhealthy-after", "4", "--fault-epochs", "1", "--token-seconds", "0.1")
    with running(tmp_path, 2, *args, *faults) as group:
        group.until("serving", lambda: group.phase(0) == "running")
        group.complete("slow and whole", 80, timeout=120)
        group.until_serving(after=1)  # nothing is in flight any more
        failed = re.search(r"failed its health check (\d+) times in a row", group.status(1)["first_failure"]["text"])
        assert failed is not None and int(failed[1]) > 3, group.words()


def test_a_machine_that_stood_still_says_so_of_itself(tmp_path: Path) -> None:
    """All processes of all pods, for longer than the lease: nobody calls another, or itself, silent."""
    with running(tmp_path, 2, "--lease", "4", "--restart-backoff", "0.3") as group:
        group.until_serving()
        everybody = [p.pid for rank in range(2) for p in (*group.tree(rank), read(group.guard(rank))) if p]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(6)
        for pid in reversed(everybody):
            with contextlib.suppress(ProcessLookupError):  # a guard that goes on kills its engine at once
                os.kill(pid, signal.SIGCONT)
        group.until_serving(after=1, patience=90)
        for rank in range(2):
            text = group.status(rank)["first_failure"]["text"]
            assert re.match(r"this launcher did not run for \d+\.\d s: machine frozen or overloaded", text), text
            group.until_said("this launcher did not run for", rank)


def test_tokens_that_stand_still_end_the_epoch(tmp_path: Path) -> None:
    """The engine looks healthy and has a request, but its chain of ranks passes nothing on."""
    args = ("--hang-timeout", "1", "--restart-backoff", "0.3")
    faults = ("--", "--hang-after", "0.5", "--fault-ranks", "1", "--fault-epochs", "1")
    with running(tmp_path, 2, *args, *faults) as group:
        group.until("ready", group.serves)
        time.sleep(0.5)  # from now on the chain passes nothing on
        request = {"prompt": "stuck", "max_tokens": 5}

        def ask() -> None:
            try:
                fetch(group.addresses[0], group.port, "/v1/completions", request, 60)
            except OSError:
                return

        asking = threading.Thread(target=ask)
        asking.start()
        group.until_serving(after=1)
        asking.join(60)
        failure = group.status(1)["first_failure"]
        assert "no tokens produced for" in failure["text"], failure
        assert failure["cause"] == "no_progress"


def test_an_idle_or_sleeping_engine_does_not_hang(tmp_path: Path) -> None:
    with running(tmp_path, 1, "--hang-timeout", "0.5", "--", "--sleep-state") as group:
        group.until_phase("running")
        base = (group.addresses[0], group.port)
        asked = threading.Thread(target=group.complete, args=("asleep", 3))
        asked.start()
        group.until("the request waits", lambda: 'waiting{model_name="reference"} 1' in fetch(*base, "/metrics").text)
        for _ in range(40):
            assert group.epoch() == 1
            assert group.phase(0) == "running"
        fetch(*base, "/wake_up", {})
        asked.join(60)
        group.complete("awake", 3)
        assert group.epoch() == 1


def test_a_canary_finds_what_nobody_asks(tmp_path: Path) -> None:
    args = ("--canary-interval", "0.3", "--hang-timeout", "1", "--restart-backoff", "0.3")
    faults = ("--", "--hang-after", "0.5", "--fault-epochs", "1")
    with running(tmp_path, 2, *args, *faults) as group:
        group.until_serving(after=1)
        assert group.status(0)["first_failure"]["cause"] == "no_progress"
