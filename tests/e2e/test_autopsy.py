"""The autopsy: of a group that hangs, the rank that does not come is named, and every rank's stacks are kept.

How often, and on how many ranks, says the command line of ``python -m tests.e2e.test_autopsy``; docs/hangs.md has the
result of a long run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.group import Group, fetch, running

pytestmark = pytest.mark.timing

MODES = {"busy": "_compute", "blocked": "_read_nothing", "stopped": "is stopped (state T)"}
TURNS = ("--restart-backoff", "0.1", "--hang-timeout", "1")


def ask(group: Group) -> None:
    """A request that gets no answer."""
    with contextlib.suppress(OSError):
        fetch(group.addresses[0], group.port, "/v1/completions", {"prompt": "stuck", "max_tokens": 5}, 120)


def hung(group: Group, after: int = 0) -> dict[str, Any]:
    """Send a request that hangs the group in an epoch later than ``after``; the autopsy of rank 0."""
    group.until("ready", lambda: group.serves(after))
    time.sleep(0.2)  # from now on the faulty rank passes nothing on
    asking = threading.Thread(target=ask, args=(group,))
    asking.start()
    group.until("an autopsy", lambda: (group.status(0).get("autopsy") or {"epoch": 0})["epoch"] > after)
    asking.join(120)
    return dict(group.status(0)["autopsy"])


def one_turn(folder: Path, size: int, mode: str, rank: int, *more: str) -> dict[str, Any]:
    """One group that hangs once; its autopsy."""
    faults = ("--", "--hang-after", "0.1", "--hang-mode", mode, "--fault-ranks", str(rank), "--fault-epochs", "1")
    with running(folder, size, *TURNS, *more, *faults) as group:
        return hung(group)


@pytest.mark.parametrize("mode", MODES)
def test_the_rank_that_hangs_is_named(tmp_path: Path, mode: str) -> None:
    size = 3 if mode == "busy" else 2
    rank = size - 1 if mode != "blocked" else 0
    found = one_turn(tmp_path, size, mode, rank)
    assert found["rank"] == rank, json.dumps(found, indent=1)
    assert found["verdict"].startswith(f"rank {rank} is ") and MODES[mode] in found["verdict"]
    assert [one["rank"] for one in found["ranks"]] == list(range(size))


def test_it_is_kept_in_whole_for_those_that_may_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    faults = ("--", "--hang-after", "0.1", "--hang-mode", "busy", "--fault-ranks", "1", "--fault-epochs", "1")
    with running(tmp_path, 2, *TURNS, "--state-dir", str(folder), *faults) as group:
        verdict = hung(group)["verdict"]
        group.until_serving(after=1)
        answer = group.ask(0, "/autopsy")
        assert answer.status == 200 and verdict in answer.text
        assert answer.text.count("(most recent call first)") >= 4, "two processes of each of two ranks"
        assert "=== rank 1" in answer.text and " in _compute\n" in answer.text
        kept = folder / "launcher-autopsy.txt"
        group.until("the file is there", kept.exists)
        assert kept.read_text() == answer.text and kept.stat().st_mode & 0o077 == 0
        assert group.ask(0, "/autopsy", Forwarded="for=10.0.0.9").status == 403
        assert group.ask(1, "/autopsy").status == 404
        for rank in range(2):
            assert group.status(rank)["first_failure"]["autopsy"] == verdict
            group.until_said(f"launcher:   autopsy: {verdict}", rank)


def test_the_termination_message_names_the_rank(tmp_path: Path) -> None:
    faults = ("--", "--hang-after", "0.1", "--hang-mode", "stopped", "--fault-ranks", "1")
    with running(tmp_path, 2, *TURNS, "--max-restarts", "0", *faults) as group:
        group.until("ready", group.serves)
        time.sleep(0.2)
        asking = threading.Thread(target=ask, args=(group,))
        asking.start()
        assert group.codes() == [75, 75]
        asking.join(120)
        for rank in range(2):
            assert "\nautopsy: rank 1 is stopped (state T), rank 0 waits in" in group.termination(rank)


def test_off_an_engine_that_hangs_is_stopped_like_any_other(tmp_path: Path) -> None:
    faults = ("--", "--hang-after", "0.1", "--hang-mode", "busy", "--fault-ranks", "1", "--fault-epochs", "1")
    with running(tmp_path, 2, *TURNS, "--autopsy", "off", "--stop-grace", "0.3", *faults) as group:
        group.until("ready", group.serves)
        environ = Path(f"/proc/{group.root(1)}/environ").read_bytes()
        assert b"PYTHONFAULTHANDLER" not in environ
        time.sleep(0.2)
        asking = threading.Thread(target=ask, args=(group,))
        asking.start()
        group.until_serving(after=1)
        asking.join(120)
        status = group.status(0)
        assert status["first_failure"]["cause"] == "no_progress"
        assert status["autopsy"] is None and status["first_failure"]["autopsy"] is None
        assert group.ask(0, "/autopsy").status == 404
        assert "Fatal Python error" not in group.output(1)


def right_of(turns: int, size: int, mode: str, rank: int) -> int:
    """How often the right rank is named in one group that hangs so many times, epoch after epoch."""
    faults = ("--", "--hang-after", "0.1", "--hang-mode", mode, "--fault-ranks", str(rank))
    right = after = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), size, *TURNS, "--max-restarts", "100", *faults) as group,
    ):
        for _ in range(turns):
            found = hung(group, after)
            after = found["epoch"]
            right += found["rank"] == rank
            if found["rank"] != rank:
                print(f"rank {rank} of {size} {mode}: {found['verdict']}", flush=True)
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description="Hang groups of reference engines; how often is the right rank named?")
    parser.add_argument("--turns", type=int, default=15, help="of each size, shared out among the modes")
    parser.add_argument("--sizes", default="2,4,16")
    parser.add_argument("--modes", default=",".join(MODES))
    asked = parser.parse_args()
    chance, modes = random.Random(asked.turns), asked.modes.split(",")
    for size in map(int, asked.sizes.split(",")):
        right, each = 0, -(-asked.turns // (2 * len(modes)))  # two groups a mode, each with a rank of its own
        for number, begun in enumerate(range(0, asked.turns, each)):
            mode, turns = modes[number % len(modes)], min(each, asked.turns - begun)
            right += right_of(turns, size, mode, chance.randrange(size))
        print(f"{size} ranks: {right} of {asked.turns}", flush=True)


if __name__ == "__main__":
    main()
