"""Real launchers find each other, form the group and serve: in both start orders, alone, and through `local`."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.e2e.group import running

pytestmark = pytest.mark.timing


def test_worker_first(tmp_path: Path) -> None:
    with running(tmp_path, 2, start=False) as group:
        group.start(1)
        group.until("the worker looks for the leader", lambda: group.phase(1) == "seeking")
        group.until("it says what it waits for", lambda: "refused: nothing listens" in group.output(1))
        assert group.ask(1, "/livez").status == 200
        assert group.ask(1, "/readyz").status == 503
        group.start(0)
        assert group.until_serving() == 1
        assert group.ask(1, "/readyz").status == 200


def test_leader_first(tmp_path: Path) -> None:
    with running(tmp_path, 3, start=False) as group:
        group.start(0)
        group.until_phase("gathering", 0)
        group.until("both are missing", lambda: group.status(0).get("waiting_for") == "waiting for ranks 1, 2")
        group.start(2)
        group.until("rank 1 is missing", lambda: group.status(0).get("waiting_for") == "waiting for rank 1")
        group.until("rank 2 knows", lambda: group.status(2).get("waiting_for") == "waiting for rank 1")
        assert not group.engines()
        group.start(1)
        assert group.until_serving() == 1
        members = group.status(0)["members"]
        assert [m["address"] for m in members] == group.addresses
        assert all(m["state"] == "running" and m["incarnation"] for m in members)
        for rank in range(3):
            pids = {p.pid for p in group.engine(rank)}

            def told(rank: int = rank, pids: set[int] = pids) -> bool:
                return set(group.status(0)["members"][rank]["engine_pids"]) == pids

            group.until(f"pids of rank {rank}", told)


def test_alone_opens_no_group_port(tmp_path: Path) -> None:
    with running(tmp_path, 1) as group:
        assert group.until_serving() == 1
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((group.addresses[0], group.group_port), 5)
        assert len(group.tree(0)) == 3  # agent, engine, its worker


def test_tensor_parallel_workers(tmp_path: Path) -> None:
    with running(tmp_path, 2, "--tp", "4", workers=2) as group:
        group.until_serving()
        assert len(group.engine(0)) == len(group.engine(1)) == 3
