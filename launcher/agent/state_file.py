"""What survives a restart of the container: one small JSON file in ``--state-dir``, an emptyDir.

Every rank saves the newest epoch and its members (a new leader must hear of epochs that it did not make itself), the
first failure, the restarts charged, whether the group has given up, and its own incarnation. A file without the mark of
a clean exit means that the previous launcher was killed. The file helps but is never needed: one that cannot be read or
believed is set aside, and a full disk is logged once.

The engine, other containers of the pod and a broken disk can all change the folder. So nothing in it is followed,
waited for or trusted, and a thread writes the file, so that a disk that hangs delays no heartbeat.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from launcher.common import files
from launcher.group.messages import (
    MAX_CHARGES,
    MAX_RANKS,
    MAX_SECONDS,
    MOST_EPOCHS,
    cause_from,
    cause_object,
    read_json,
)
from launcher.model import Cause, CauseKind, Epoch
from launcher.node.leftovers import Snapshot

KILLED = "the launcher was killed, possibly out of memory (it left no mark of a clean end)"
MOST_BYTES = 1 << 20  #: 4,096 members take 74 kB, and 25 long lines that are not ASCII 60 kB
MOST_TAIL = 1 << 17  #: bytes of the first failure's last lines
MOST_EPOCH = 100_000  #: characters that the guard hands on
AHEAD = 3600.0  #: seconds that a time may lie in the future, after a clock was set back
AUTOPSY_FILE = "launcher-autopsy.txt"
WRITE_SECONDS = 0.5  #: that the event loop waits for the disk; after that the file is written in the background


@dataclass(frozen=True)
class SavedState:
    """The file's content. ``place`` identifies this pod on this boot of its node."""

    incarnation: str = ""
    place: str = ""
    clean: bool = True
    handed_off: bool = False  #: the engine replaced the launcher, so however that ended, the launcher was not killed
    last: tuple[Epoch, tuple[str, ...]] | None = None  #: the newest epoch, and its members' incarnations by rank
    charges: tuple[int, ...] = ()  #: when restarts were charged, in seconds of the wall clock, newest first
    first_failure: Cause | None = None
    first_epoch: int | None = None  #: the number of the epoch that it ended
    first_at: float | None = None  #: when that was: seconds since 1970
    gave_up_at: float | None = None  #: when the group gave up, if it has not been ready since: seconds since 1970

    def killed(self, rank: int) -> Cause | None:
        """Why the previous launcher counts as killed; None: it exited in good order, or there was none."""
        ended_well = self.clean or self.handed_off or not self.incarnation
        return None if ended_well else Cause(CauseKind.AGENT, rank, KILLED, "launcher")


class StateFile:
    """Reads the file once, and writes it when something changed."""

    def __init__(self, folder: str | None, rank: int) -> None:
        self._folder = folder
        self._name = f"launcher-rank-{rank}.json"
        self._fresh = f"launcher-rank-{rank}.new"
        self.set_aside = ""  #: why a file was not believed
        self.before = self._read() if folder else SavedState()
        self._now = self.before
        self.trouble = ""  #: why the file could not be written
        self._reported = False
        self._lock = threading.Condition()
        self._waiting: bytes | None = None  # what the thread has yet to write; only the newest counts
        self._writing = False

    def save(self, **changes: Any) -> bool:
        """Write what changed. False if that failed for the first time (``trouble`` says why)."""
        if self._folder is None or all(getattr(self._now, name) == value for name, value in changes.items()):
            return self._unless_first_trouble()  # called after every event
        self._now = now = replace(self._now, **changes)
        body = asdict(now) | {
            "last": epoch_text(*now.last) if now.last else None,
            "first_failure": cause_object(now.first_failure, MOST_TAIL) if now.first_failure else None,
        }
        with self._lock:
            behind, self._waiting = self._writing, json.dumps(body).encode()
        if not behind:
            self._start_writing()
            self.settle(WRITE_SECONDS)
        return self._unless_first_trouble()

    def settle(self, seconds: float) -> None:
        """Wait until all that was saved is on the disk, at most ``seconds``."""
        with self._lock:
            self._lock.wait_for(lambda: not self._writing, seconds)

    def _unless_first_trouble(self) -> bool:
        """False once: when the file could not be written for the first time."""
        first = bool(self.trouble) and not self._reported
        self._reported = self._reported or first
        return not first

    # ------------------------------------------------------------------------------------------------ the writing

    def _start_writing(self) -> None:
        self._writing = True
        try:
            threading.Thread(target=self._write_all, name="state file", daemon=True).start()
        except RuntimeError:  # the limit of processes is reached
            self._write_all()

    def _write_all(self) -> None:
        while True:
            with self._lock:
                body, self._waiting = self._waiting, None
                if body is None:
                    self._writing = False
                    self._lock.notify_all()
                    return
            try:
                self._write(body)
            except OSError as error:
                self.trouble = self.trouble or f"{self._folder}/{self._name}: {error.strerror}"

    def _write(self, body: bytes) -> None:
        assert self._folder is not None
        os.makedirs(self._folder, exist_ok=True)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                files.replace(folder, self._name, self._fresh, body)
            except IsADirectoryError:  # there is a folder of that name
                files.set_aside(folder, self._name)
                files.replace(folder, self._name, self._fresh, body)
        finally:
            os.close(folder)

    # ------------------------------------------------------------------------------------------------ the reading

    def _read(self) -> SavedState:
        assert self._folder is not None
        try:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return SavedState()  # a first start; any other trouble shows when it is written
        try:
            return _believed(read_json(files.read(self._name, MOST_BYTES, follow=False, folder=folder)))
        except FileNotFoundError:
            return SavedState()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
            return self._doubt(folder, error)
        finally:
            os.close(folder)

    def _doubt(self, folder: int, error: Exception) -> SavedState:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        try:
            where = f"set aside as {files.set_aside(folder, self._name)}"
        except OSError as failure:
            where = f"it stays where it is: {failure.strerror}"
        self.set_aside = f"{self._folder}/{self._name}: {why}; {where}"
        return SavedState()


def _believed(body: Any) -> SavedState:
    """The content of a file, if all of it can be true. Raises ValueError, TypeError, KeyError."""
    if not isinstance(body, dict):
        raise ValueError("it is not a JSON object")
    cause, charges = body.get("first_failure"), body["charges"]
    now = time.time()
    if not isinstance(charges, list):
        raise ValueError("its charges are no list")
    return SavedState(
        incarnation=_name(body["incarnation"]) if body["incarnation"] else "",
        place=_text(body["place"]),
        clean=body["clean"] is True,
        handed_off=body.get("handed_off") is True,
        last=epoch_from(_text(body["last"])) if body["last"] else None,
        charges=tuple(int(at) for at in map(_time, charges[:MAX_CHARGES]) if at <= now + AHEAD),
        first_failure=cause_from(cause) if cause else None,
        first_epoch=None if body.get("first_epoch") is None else _number(body["first_epoch"]),
        first_at=_moment(body.get("first_at"), now),
        gave_up_at=_moment(body.get("gave_up_at"), now),
    )


def _moment(value: Any, now: float) -> float | None:
    """When something happened; None: unknown, or not to be believed."""
    return None if value is None or not now - MAX_SECONDS < _time(value) <= now + AHEAD else _time(value)


def _time(value: Any) -> float:
    """Seconds since 1970. Compared before it is converted, because an integer of 400 digits is no float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e12:
        raise ValueError("a time in it is no time")
    return float(value)


def _number(value: Any) -> int:
    """The number of an epoch."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_EPOCHS:
        raise ValueError(f"an epoch's number is not a whole number from 0 to {MOST_EPOCHS}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is missing in it")
    return value


def _name(value: Any) -> str:
    """A launcher's incarnation, as a peer takes it."""
    text = _text(value)
    if not is_incarnation(text):
        raise ValueError("an incarnation in it is not a plain word of at most 32 characters")
    return text


def is_incarnation(text: str) -> bool:
    return 0 < len(text) <= 32 and text.isprintable() and not set(text) & set(" ,")


def epoch_text(epoch: Epoch, members: tuple[str, ...], shm: Snapshot | None = None) -> str:
    """An epoch, its members and what was in /dev/shm before it, for the next launcher in this pod."""
    text = json.dumps([epoch.n, epoch.leader, list(members), None if shm is None else sorted(shm)])
    return text if shm is None or len(text) <= MOST_EPOCH else epoch_text(epoch, members)


def epoch_from(text: str) -> tuple[Epoch, tuple[str, ...]]:
    """Raises ValueError, TypeError."""
    n, leader, members, *_ = _parts(text)
    if not isinstance(members, list) or len(members) > MAX_RANKS:
        raise ValueError("the members of the latest epoch are no list")
    return Epoch(_number(n), _name(leader)), tuple(map(_name, members))


def shm_from(text: str) -> Snapshot | None:
    """What was in /dev/shm before the epoch of `epoch_text`; None: unknown.

    Raises ValueError, TypeError.
    """
    found = _parts(text)[3:]
    return (
        None if not found or found[0] is None else frozenset((_text(path), _inode(inode)) for path, inode in found[0])
    )


def _inode(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise ValueError("a file's number is not a whole number of 64 bits")
    return value


def _parts(text: str) -> list[Any]:
    parts = read_json(text)
    if not isinstance(parts, list):
        raise ValueError("it is not a JSON list")
    return parts


def handed_on(environ: Any) -> tuple[tuple[Epoch, tuple[str, ...]] | None, Snapshot | None]:
    """The latest epoch, and what was in /dev/shm before it, from the guard's LAUNCHER_LAST_EPOCH.

    Only the guard sets it; any other value is ignored.
    """
    text = environ.get("LAUNCHER_LAST_EPOCH")
    if not text:
        return None, None
    try:
        return epoch_from(text), shm_from(text)
    except (ValueError, TypeError):
        return None, None


def keep_autopsy(folder: str, text: str) -> None:
    """Write the latest autopsy beside the state. Blocks as long as the disk does. Raises OSError."""
    os.makedirs(folder, exist_ok=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        files.replace(fd, AUTOPSY_FILE, "launcher-autopsy.new", text.encode("utf-8", "backslashreplace"))
    finally:
        os.close(fd)


def place(hostname: str, address: str) -> str:
    """This pod on this boot of its node: it differs in a folder that has outlived its pod or is shared by pods."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            boot = file.read().strip()
    except OSError:
        boot = ""
    return f"{boot}/{hostname}/{address}" if boot else ""
