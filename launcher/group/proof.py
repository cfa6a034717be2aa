"""Proof that both ends of a link know the group's secret, and the tokens derived from it. Nothing is sent here.

The leader opens with a nonce. The member answers with a nonce of its own and a MAC, and the leader replies with the
other MAC; nothing else is said before that. Each MAC covers its direction, the group and both nonces, so it can be
neither replayed nor reflected, nor used in another group that shares the secret. The secret never crosses the wire.

The proof alone would hold only for its moment: a relay could let it pass and then speak for itself. So every later
message carries a tag (`Seal`), made with a key derived from the secret, the group and these two nonces. If a message
was altered, repeated, dropped or reordered, the tag does not verify. Messages are not encrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from launcher.errors import ConfigError
from launcher.model import Epoch

LEAST_BYTES = 16
VERSION = 2  #: of the proof; version 1 (launcher 0.1) did not bind the messages that follow
TAG_BYTES = 32  #: of a message's tag: 128 bits in hexadecimal, because messages are text
#: How long the old secret is accepted after the file has changed: pods restart one by one, and the kubelet takes a
#: minute or two to bring the new content to each.
KEEP_SECONDS = 3600.0


def read_secret(path: str, said: str) -> bytes:
    """Read the secret in a file, without surrounding white space. Raises ConfigError if it is unreadable or short."""
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


class Secrets:
    """The secrets of ``--token-file``, newest first: the file is read again when it changes.

    The previous content stays valid for ``KEEP_SECONDS``. A file that becomes unreadable changes nothing; ``warn`` is
    called once.
    """

    def __init__(self, path: str, said: str, warn: Callable[[str], None] = lambda text: None) -> None:
        self._path, self._said, self.warn = path, said, warn
        self._stat = self._look()
        self._newest = read_secret(path, said)
        self._former: list[tuple[bytes, float]] = []  # former secrets, each with its expiry

    def accepted(self) -> tuple[bytes, ...]:
        """All secrets that prove membership now."""
        self._read_again()
        now = time.monotonic()
        self._former = [(secret, until) for secret, until in self._former if until > now]
        return (self._newest, *(secret for secret, _ in self._former))

    @property
    def newest(self) -> bytes:
        return self.accepted()[0]

    def named(self, key: str) -> bytes | None:
        """The accepted secret with this :func:`key_id`."""
        return next((secret for secret in self.accepted() if same(key_id(secret), key)), None)

    def _read_again(self) -> None:
        found = self._look()
        if found == self._stat:
            return
        self._stat = found
        try:
            secret = read_secret(self._path, self._said)
        except ConfigError as error:
            self.warn(f"{error.message}; the secret read before stays in use")
            return
        if secret == self._newest:
            return
        until = time.monotonic() + KEEP_SECONDS
        former = [pair for pair in self._former if pair[0] != secret]
        self._former = [(self._newest, until), *former][:3]
        self._newest = secret
        self.warn(
            f"{self._said} has changed; the secret before is accepted for another {KEEP_SECONDS / 60:.0f} minutes"
        )

    def _look(self) -> tuple[int, ...]:
        try:
            found = os.stat(self._path)
        except OSError as error:
            return (error.errno or 0,)
        return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


class Seal:
    """One direction of a proven connection: each message carries a tag that depends on its position.

    The tag covers the direction and the connection (through the key), the message's number, and its text.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._count = 0

    def tag(self, digest: bytes) -> bytes:
        """The tag of the next message; ``digest`` is :func:`digest_of` its text."""
        self._count += 1
        return hmac.digest(self._key, self._count.to_bytes(8, "big") + digest, "sha256")[:16].hex().encode()

    def opened(self, message: bytes) -> bytes | None:
        """The text of the next message, without its tag; None if it is not what the other side sent next."""
        text = message[TAG_BYTES:]
        return text if hmac.compare_digest(message[:TAG_BYTES], self.tag(digest_of(text))) else None


def digest_of(text: bytes) -> bytes:
    """The digest of a text that its tags cover, so that a text sent to a thousand members is hashed once."""
    return hashlib.sha256(text).digest()


def seals(secret: bytes, group: str, leader_nonce: str, member_nonce: str) -> tuple[Seal, Seal]:
    """The seals of a proven connection: one for the leader's messages, one for the member's."""
    nonces = (group, leader_nonce, member_nonce)
    leaders, members = (_mac(secret, f"messages of the {who}", *nonces) for who in ("leader", "member"))
    return Seal(bytes.fromhex(leaders)), Seal(bytes.fromhex(members))


def key_id(secret: bytes) -> str:
    """Identifies a secret to those who have it, and reveals nothing about it to others."""
    return _mac(secret, "key id")[:16]


def member_mac(secret: bytes, group: str, leader_nonce: str, member_nonce: str) -> str:
    """The MAC that a member sends to the leader."""
    return _mac(secret, "member to leader, messages bound", group, leader_nonce, member_nonce)


def leader_mac(secret: bytes, group: str, leader_nonce: str, member_nonce: str) -> str:
    """The MAC that the leader replies with."""
    return _mac(secret, "leader to member, messages bound", group, leader_nonce, member_nonce)


def epoch_token(secret: bytes, group: str, epoch: Epoch) -> str:
    """An engine's token of one epoch (Ray's, say): the same on all ranks, and never sent."""
    return _mac(secret, "ray token", group, str(epoch.n), epoch.leader)


def status_token(secret: bytes) -> str:
    """The bearer token for the details of /status. It grants nothing else, and the secret can't be derived from it."""
    return _mac(secret, "status token")


def exposure(path: str, said: str) -> str:
    """A warning if more users than necessary can read or change the file; empty if not, or if stat fails.

    A Secret mounted 0440 with fsGroup is as strict as it gets: the kubelet owns it and our group reads it.
    """
    try:
        found = os.stat(path)
    except OSError:
        return ""
    mode = stat.S_IMODE(found.st_mode)
    mounted = mode & 0o777 == 0o440 and found.st_gid in (os.getegid(), *os.getgroups())
    group_reads = bool(mode & stat.S_IRGRP) and found.st_uid == os.geteuid() and not mounted
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        who = "every user here"
    elif mode & stat.S_IWGRP or group_reads:
        who = "its whole group"
    else:
        return ""
    does = "changed" if mode & (stat.S_IWGRP | stat.S_IWOTH) else "read"
    return (
        f"{said} can be {does} by {who} (mode {mode:04o}): chmod 0400; a Secret's volume is 0644 unless it has "
        "`defaultMode: 0400` (0440 with fsGroup)"
    )


def same(one: str, other: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))


def _mac(secret: bytes, *parts: str) -> str:
    said = [p.encode("utf-8", "surrogatepass") for p in ("launcher/1", *parts)]  # a peer's nonce may hold anything
    body = b"".join(len(p).to_bytes(4, "big") + p for p in said)
    return hmac.new(secret, body, hashlib.sha256).hexdigest()
