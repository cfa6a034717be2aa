"""What a launcher remembers across a restart of its container: one small JSON file in ``--state-dir``, an emptyDir.

Every rank remembers the newest epoch and who was in it (a new leader must hear of epochs that it did not make
itself), the first failure, the restarts charged, and its own incarnation. A file without the mark of a clean end means
that the launcher before was killed. Everything here is a help, never a need: an unreadable file is no file, and a full
disk is said once.
"""

from __future__ import annotations

import json
import os
from typing import Any

from launcher.data import asdict, dataclass, replace
from launcher.group.messages import MAX_CHARGES, cause_from, cause_object
from launcher.process.leftovers import Snapshot
from launcher.words import Cause, CauseKind, Epoch

KILLED = "the launcher was killed, possibly out of memory (it left no mark of a clean end)"
MOST_BYTES = 1 << 20  #: 4,096 members take 74 kB, and 25 long lines that are not ASCII 60 kB
MOST_EPOCH = 100_000  #: characters that the guard hands on


@dataclass(frozen=True)
class Memory:
    """The file's content. ``place`` tells this pod, on this boot of this node, from every other."""

    incarnation: str = ""
    place: str = ""
    clean: bool = True
    handed_off: bool = False  #: the engine took the launcher's place: however that ended, the launcher was not killed
    last: tuple[Epoch, tuple[str, ...]] | None = None  #: the newest epoch, and its members' incarnations by rank
    charges: tuple[int, ...] = ()  #: when restarts were charged, in seconds of the wall clock, newest first
    first_failure: Cause | None = None
    first_epoch: int | None = None  #: the number of the epoch that it ended
    first_at: float | None = None  #: when that was: seconds since 1970

    def killed(self, rank: int) -> Cause | None:
        """How the launcher before ended, if not in good order."""
        ended_well = self.clean or self.handed_off or not self.incarnation
        return None if ended_well else Cause(CauseKind.AGENT, rank, KILLED, "launcher")


class Keeper:
    """Reads the file once, and writes it when something changed."""

    def __init__(self, folder: str | None, rank: int) -> None:
        self._path = os.path.join(folder, f"launcher-rank-{rank}.json") if folder else None
        self.before = self._read()
        self._now = self.before
        self.trouble = ""  #: why the file could not be written, in words

    def remember(self, **changes: Any) -> bool:
        """Write what changed. False if that failed for the first time (``trouble`` says why)."""
        if self._path is None or all(getattr(self._now, name) == value for name, value in changes.items()):
            return True  # asked after every event
        self._now = now = replace(self._now, **changes)
        body = asdict(now) | {
            "last": epoch_text(*now.last) if now.last else None,
            "first_failure": cause_object(now.first_failure) if now.first_failure else None,
        }
        fresh = self._path.removesuffix("json") + "new"
        try:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            with open(fresh, "w", encoding="utf-8") as file:
                file.write(json.dumps(body))
            os.replace(fresh, self._path)
        except OSError as error:
            first, self.trouble = not self.trouble, f"{self._path}: {error.strerror}"
            return not first
        return True

    def _read(self) -> Memory:
        if self._path is None:
            return Memory()
        try:
            with open(self._path, "rb") as file:
                body = json.loads(file.read(MOST_BYTES))
            cause = body.get("first_failure")
            return Memory(
                incarnation=str(body["incarnation"])[:32],
                place=str(body["place"]),
                clean=body["clean"] is True,
                handed_off=body.get("handed_off") is True,
                last=epoch_from(body["last"]) if body["last"] else None,
                charges=tuple(int(at) for at in body["charges"])[:MAX_CHARGES],
                first_failure=cause_from(cause) if cause else None,
                first_epoch=int(body["first_epoch"]) if body.get("first_epoch") is not None else None,
                first_at=float(body["first_at"]) if body.get("first_at") is not None else None,
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return Memory()


def epoch_text(epoch: Epoch, members: tuple[str, ...], shm: Snapshot | None = None) -> str:
    """An epoch, its members and what was in /dev/shm before it, for the next launcher in this pod."""
    text = json.dumps([epoch.n, epoch.leader, list(members), None if shm is None else sorted(shm)])
    return text if shm is None or len(text) <= MOST_EPOCH else epoch_text(epoch, members)


def epoch_from(text: str) -> tuple[Epoch, tuple[str, ...]]:
    """Raises ValueError, TypeError."""
    n, leader, members, *_ = json.loads(text)
    return Epoch(int(n), str(leader)[:32]), tuple(str(m)[:32] for m in members)


def shm_from(text: str) -> Snapshot | None:
    """What was in /dev/shm before the epoch of :func:`epoch_text`; None: that is not known."""
    found = json.loads(text)[3:]
    return None if not found or found[0] is None else frozenset((str(path), int(inode)) for path, inode in found[0])


def place(hostname: str, address: str) -> str:
    """This pod on this boot of its node. A folder that outlives the pod or is shared by pods has another one."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            boot = file.read().strip()
    except OSError:
        boot = ""
    return f"{boot}/{hostname}/{address}" if boot else ""
