"""Proof that both ends of a link know the group's secret, and what else is derived from it. Pure; nothing is sent here.

The leader opens with a nonce. The member answers with a nonce of its own and a MAC, the leader with the other MAC; only
then is anything else said. Each MAC covers its direction, the group and both nonces, so it can neither be replayed nor
reflected, nor used in another group that shares the secret. The secret itself never crosses the wire.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from launcher.errors import ConfigError
from launcher.words import Epoch

LEAST_BYTES = 16


def read_secret(path: str, said: str) -> bytes:
    """The secret in a file, without the white space around it. Raises ConfigError where there is none to be had."""
    try:
        secret = Path(path).read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"{said} cannot be read: {error.strerror}", "mount the Secret there, readable for this user"
        ) from None
    if len(secret) < LEAST_BYTES:
        raise ConfigError(
            f"{said} holds {len(secret)} bytes; that is too short to be a secret",
            f"use {LEAST_BYTES} random bytes or more, for example from `openssl rand -hex 32`",
        )
    return secret


def member_mac(secret: bytes, group: str, leader_nonce: str, member_nonce: str) -> str:
    """What a member sends to the leader."""
    return _mac(secret, "member to leader", group, leader_nonce, member_nonce)


def leader_mac(secret: bytes, group: str, leader_nonce: str, member_nonce: str) -> str:
    """What the leader answers."""
    return _mac(secret, "leader to member", group, leader_nonce, member_nonce)


def ray_token(secret: bytes, group: str, epoch: Epoch) -> str:
    """Ray's token of one epoch: the same on all ranks, and never sent."""
    return _mac(secret, "ray token", group, str(epoch.n), epoch.leader)


def same(one: str, other: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))


def _mac(secret: bytes, *parts: str) -> str:
    said = [p.encode("utf-8", "surrogatepass") for p in ("launcher/1", *parts)]  # a peer's nonce may hold anything
    body = b"".join(len(p).to_bytes(4, "big") + p for p in said)
    return hmac.new(secret, body, hashlib.sha256).hexdigest()
