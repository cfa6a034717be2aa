"""The secret's proofs, and what a pod answers to a GET: pure functions, no socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import ConfigError
from launcher.group import proof
from launcher.http import Pages, respond
from launcher.words import Epoch

SECRET, OTHER = b"0123456789abcdef", b"fedcba9876543210"


def test_proofs_hold_for_one_secret_group_direction_and_pair_of_nonces() -> None:
    own = proof.member_mac(SECRET, "g", "n1", "n2")
    others = {
        proof.leader_mac(SECRET, "g", "n1", "n2"),
        proof.member_mac(OTHER, "g", "n1", "n2"),
        proof.member_mac(SECRET, "h", "n1", "n2"),
        proof.member_mac(SECRET, "g", "n2", "n1"),
        proof.member_mac(SECRET, "g", "n1n", "2"),
    }
    assert own not in others and len(others) == 5
    assert proof.same(own, proof.member_mac(SECRET, "g", "n1", "n2"))


def test_rays_token_differs_by_epoch_and_leader() -> None:
    tokens = {proof.ray_token(SECRET, "g", Epoch(n, leader)) for n in (1, 2) for leader in ("a", "b")}
    assert len(tokens) == 4


def test_a_secret_must_be_there_and_long_enough(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--token-file .*cannot be read"):
        proof.read_secret(str(tmp_path / "absent"), f"--token-file {tmp_path}/absent")
    (tmp_path / "short").write_text("abc\n")
    with pytest.raises(ConfigError, match="3 bytes"):
        proof.read_secret(str(tmp_path / "short"), "--token-file short")
    (tmp_path / "good").write_text("x" * 32 + "\n")
    assert proof.read_secret(str(tmp_path / "good"), "--token-file good") == b"x" * 32


def _pages(secret: str = "", ready: bool = False) -> Pages:
    status = {"phase": "running", "rank": 0, "size": 2, "ready": ready, "members": [{"address": "10.0.0.1"}]}
    return Pages(lambda: (ready, "why"), lambda: "launcher_ready 0\n", lambda: status, secret)


def _get(pages: Pages, path: str, peer: str = "10.0.0.9", **headers: str) -> tuple[int, Any]:
    reply = respond(pages, path, headers, peer)
    text = reply.body.decode()
    return reply.status_code, json.loads(text) if path.startswith("/status") else text


def test_livez_is_always_200_and_readyz_follows_the_group() -> None:
    assert _get(_pages(), "/livez")[0] == 200
    assert _get(_pages(), "/readyz") == (503, "why\n")
    assert _get(_pages(ready=True), "/readyz?x=1")[0] == 200
    assert _get(_pages(), "/metrics")[1].startswith("launcher_ready")
    assert _get(_pages(), "/nothing")[0] == 404


def test_details_of_status_need_the_secret_or_loopback() -> None:
    assert "members" in _get(_pages(), "/status")[1], "no secret: everybody sees everything"
    assert "members" not in _get(_pages("s3cret"), "/status")[1]
    assert "members" not in _get(_pages("s3cret"), "/status", Authorization="Bearer wrong")[1]
    assert "members" in _get(_pages("s3cret"), "/status", Authorization="Bearer s3cret")[1]
    assert "members" in _get(_pages("s3cret"), "/status", peer="127.0.0.1")[1]
    assert "members" in _get(_pages("s3cret"), "/status", peer="::1")[1]
