"""Strangers in numbers on both ports, and a relay between a member and its leader. Real launchers, loopback only.

The default tests lower the launcher's limit of open files, so that some hundred connections exhaust it. The full ones
(marker ``strangers``) open 10,000: LAUNCHER_STRANGERS_SECONDS (60) of each kind.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.group import messages as m
from tests.crowd import KINDS, crowd
from tests.e2e.group import LAUNCHER, Group, running
from tests.e2e.test_launcher_strangers import secret
from tests.relay import Relay

SECONDS = float(os.environ.get("LAUNCHER_STRANGERS_SECONDS", "60"))
LOW = 256  #: descriptors
LONG = 120.0  #: a crowd stops by itself after that, whatever becomes of the test
LEASE = ("--lease", "10")


def limit_of(pid: int) -> tuple[int, int]:
    found = re.search(r"Max open files\s+(\d+)\s+(\d+)", Path(f"/proc/{pid}/limits").read_text())
    assert found is not None
    return int(found[1]), int(found[2])


@contextlib.contextmanager
def at_both_ports(group: Group, kind: str, count: int, **more: float) -> Iterator[None]:
    """Strangers at the leader's group port and at its agent port."""
    where = group.addresses[0]
    with (
        crowd(where, group.group_port, kind, count, LONG, **more) as first,
        crowd(where, group.agent_port, kind, count, LONG, **more) as second,
    ):
        yield
    print(f"{kind}: at the group port {first}, at the agent port {second}")
    assert first["opened"] and second["opened"]


def probe(group: Group) -> float:
    """Ask for /livez as a kubelet does, which takes three failures in a row for one; seconds."""
    began = time.monotonic()
    for attempt in range(3):
        try:
            assert group.ask(0, "/livez", timeout=30).status == 200
            break
        except OSError:
            if attempt == 2:
                raise
    return time.monotonic() - began


def epoch_of(group: Group) -> int | None:
    """The leader's epoch; None: its page was not to be had just now."""
    try:
        return int(json.loads(group.ask(0, "/status", timeout=30).body)["epoch"] or 0)
    except OSError:
        return None


def healthy(group: Group, epoch: int, fd_limit: int | None = None) -> None:
    """The group still serves in the same epoch; probes are answered; nothing was taken for a bug."""
    probe(group)
    group.complete("through the crowd", 5)
    assert group.until("an answer about its epoch", lambda: epoch_of(group)) == epoch
    assert group.ask(1, "/readyz", timeout=30).status == 200
    if fd_limit is not None:
        assert len(os.listdir(f"/proc/{group.agent(0)}/fd")) < fd_limit
    said = group.output(0)
    assert not any(word in said for word in ("Traceback", "a bug of the launcher")), said


@pytest.mark.parametrize("kind", ["idle", "storm"])
def test_more_connections_than_descriptors(tmp_path: Path, kind: str) -> None:
    """They are there before the member is: it joins all the same, and nothing ends while they stay."""
    with running(tmp_path, 2, *LEASE, start=False, nofile=(LOW, LOW)) as group:
        group.start(0)
        group.until_phase("gathering", 0)
        with at_both_ports(group, kind, 400, rate=100.0 if kind == "storm" else 300.0, sources=3):
            time.sleep(1.0)
            group.start(1)
            epoch = group.until_serving()
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                healthy(group, epoch, LOW)
        healthy(group, epoch)
        assert epoch == 1


def test_the_limit_is_raised_for_the_agent_only(tmp_path: Path) -> None:
    file, out = tmp_path / "engine.toml", tmp_path / "out"
    file.write_text(f'name = "limit"\ncompletes = true\n[all]\ncommand = ["cp", "/proc/self/limits", "{out}"]\n')
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [str(LAUNCHER), "run", "--engine-file", str(file), "--size", "1", "--agent-port", port]
    script = 'ulimit -Sn 256; ulimit -Hn 4096; exec "$@"'
    subprocess.run(["sh", "-c", script, "sh", *command], check=True, timeout=120, env=dict(os.environ))
    assert re.search(r"Max open files\s+256\s+4096", out.read_text())
    with running(tmp_path, 2, *LEASE, nofile=(256, 4096)) as group:
        group.until_serving()
        for rank in range(2):
            assert limit_of(group.agent(rank)) == (4096, 4096)
            assert limit_of(group.guard(rank)) == (256, 4096)


def test_with_a_token_strangers_that_talk_take_no_place(tmp_path: Path) -> None:
    """They say an upgrade and no proof; from other addresses and from the member's own."""
    right = secret(tmp_path, "right", "a long and secret word, never printed\n")
    with running(tmp_path, 2, *LEASE, *right, start=False, nofile=(LOW, LOW)) as group:
        group.start(0)
        group.until_phase("gathering", 0)
        with (
            crowd(group.addresses[0], group.group_port, "idle", 200, LONG, rate=50.0),
            crowd(group.addresses[0], group.group_port, "talk", 300, LONG, rate=300.0, sources=100),
        ):
            time.sleep(1.0)
            group.start(1)
            group.until_serving()
            healthy(group, 1, LOW)


# ------------------------------------------------------------------------------------------------------- the relay


@pytest.mark.parametrize("what", ["inject", "turn round"])
def test_a_relay_can_only_cut(tmp_path: Path, what: str) -> None:
    """It lets the proof pass and the group form, then meddles: the member notices, comes again, and nothing it was told
    by the relay has happened. Without meddling a group forms and serves through it."""
    right = secret(tmp_path, "right", "a long and secret word, never printed\n")
    meddle: list[str] = []  # how often is left to be done
    kept: list[bytes] = []
    false = m.encode(m.Goodbye())

    def edit(side: str, number: int, text: bytes) -> list[bytes]:
        if side != "leader" or number < 5:
            return [text]
        if kept:
            return [text, kept.pop()]
        if not meddle:
            return [text]
        meddle.pop()
        if what == "inject":
            return [false.encode(), text]
        kept.append(text)
        return []

    with running(tmp_path, 2, *LEASE, *right, start=False, group_id="relayed") as group:
        between = f"{group.prefix}.99"
        with Relay((group.addresses[0], group.group_port), between, group.group_port, edit) as relay:
            group.start(0)
            group.start(1, env={"LAUNCHER_LEADER": between})
            group.until_serving()
            assert any(side == "member" for side, _ in relay.said), "it came through the relay"
            assert not any(text.startswith(b'{"is":"hello"') for _, text in relay.said), "every word is bound"
            meddle.append(what)
            group.until_said("its MAC is wrong", 1)
            group.until("it was done", lambda: not meddle)
            group.until("it has come again and serves", group.serves)
            group.complete("after the relay", 5)
            said = group.output(0) + group.output(1)
            assert "Traceback" not in said and "a bug of the launcher" not in said


def test_a_secret_that_is_replaced(tmp_path: Path) -> None:
    """The Secret changes under a group that serves; its pods are started again one by one, with the new one only."""
    path = tmp_path / "token"
    path.write_text("the first secret word of all")
    with running(tmp_path, 2, *LEASE, "--token-file", str(path)) as group:
        epoch = group.until_serving()
        fresh = tmp_path / "fresh"
        fresh.write_text("the second secret word of all")
        fresh.replace(path)
        time.sleep(0.5)
        assert group.serves() and group.epoch() == epoch
        for rank in (1, 0):
            group.kill_rank(rank)
            group.restart(rank)
            epoch = group.until_serving(after=epoch)
        assert "is accepted for another 60 minutes" in group.output(0) + group.output(1)


# ------------------------------------------------------------------------------------------------------- in full


@pytest.mark.strangers
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand(tmp_path: Path, kind: str) -> None:
    """All the while: one epoch, probes answered, memory bounded; at the end a member comes back and joins."""
    with running(tmp_path, 2, *LEASE, start=False) as group:
        group.start_all()
        epoch = group.until_serving()
        before, slowest, most = group.resident(0)[1], 0.0, 0
        where = group.addresses[0]
        rate = 5000.0 if kind == "storm" else 1000.0
        more = {"rate": rate, "sources": 50}
        with (
            crowd(where, group.group_port, kind, 10_000, SECONDS + LONG, **more) as first,
            crowd(where, group.agent_port, kind, 10_000, SECONDS + LONG, **more) as second,
        ):
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                slowest = max(slowest, probe(group))
                most = max(most, group.resident(0)[1])
                assert epoch_of(group) in (None, epoch), group.words()
                time.sleep(0.2)
            healthy(group, epoch)
            group.kill_rank(1)
            group.restart(1)
            group.until("it looks for the leader", lambda: "seeking" in group.phase(1) or group.phase(1) != "silent")
            began = time.monotonic()
            group.until("it has joined", lambda: group.phase(1) not in ("silent", "setup", "seeking"))
            joined = time.monotonic() - began
            group.until_serving(after=epoch)
        print(
            f"\n{kind}, {SECONDS:g} s, at most {rate:g} connections a second on each port: group port {first}, agent "
            f"port {second}; slowest /livez {slowest:.3f} s; a member joined in {joined:.2f} s; the leader's agent "
            f"{before >> 10} MiB before, at most {most >> 10} MiB"
        )
        assert joined < 30.0
        assert most < before + (96 << 10)
