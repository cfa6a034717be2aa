"""What a dead engine may still hold: files in /dev/shm, ports, GPU memory; and whether the kernel killed it for memory.

The agent's: it asks before an epoch, and after one when the guard has reported ``Stopped``. Nothing is started here
(``nvidia-smi`` runs through the guard, as ``GPU_QUERY``) and nothing waits, except for another launcher that looks at
the same /dev/shm: each function looks once, and the agent asks again until it is satisfied or its bound is over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Mapping

from launcher.common.numbers import is_whole
from launcher.node import cgroup
from launcher.node.tree import PROC

SHM = "/dev/shm"
CGROUPS = "/sys/fs/cgroup"
#: Asks each GPU for the memory that is in use, in MiB; for ``gpu_memory``.
GPU_QUERY = ("nvidia-smi", "--query-gpu=uuid,memory.used", "--format=csv,noheader,nounits")
#: MiB by which a GPU may differ from before: the driver keeps a little of what contexts used.
GPU_TOLERANCE = 256

#: Seconds to wait for another launcher that looks at the same files: it needs some milliseconds.
MOST_WAIT = 2.0

_F_SETSIG = 10  #: in `fcntl` since Python 3.11 only

#: Path and inode of each file: a name that was used again for a new file is a new file.
Snapshot = frozenset[tuple[str, int]]


# --------------------------------------------------------------------------------------------------- shared memory


def snapshot(folder: str = SHM) -> Snapshot:
    """The regular files below ``folder`` now."""
    return frozenset((path, info.st_ino) for path, info in _files(folder))


def remove(before: Snapshot, folder: str = SHM, proc: str = PROC) -> tuple[str, ...]:
    """Remove files that are not in ``before``, belong to our user, and are mapped or open nowhere; their paths.

    NCCL, torch, vLLM and Ray put segments of up to many GiB there, and a killed process cannot remove its own. Whoever
    uses one is found in ``/proc/*/maps`` and ``/proc/*/fd``, by device and inode. Not seen there are processes in other
    PID namespaces that share the folder (a sidecar), and those of other users: so the kernel itself is asked whether
    a file is open anywhere (`_held`). Where it doesn't say, and some process could not be looked into, only files that
    such a process could not have opened are removed.
    """
    new = {(i.st_dev, i.st_ino): (path, i) for path, i in _files(folder) if (path, i.st_ino) not in before}
    new = {key: (path, info) for key, (path, info) in new.items() if info.st_uid == os.geteuid()}
    if not new:
        return ()
    removed = []
    with _looking_alone(folder):
        used, all_seen = _used(set(new), proc)
        for key, (path, info) in new.items():
            if key in used:
                continue
            held = _held(path, key)
            private = not info.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
            if held is False or (held is None and (all_seen or private)):
                try:
                    os.unlink(path)
                    removed.append(path)
                except OSError:  # already removed
                    continue
    return tuple(sorted(removed))


@contextlib.contextmanager
def _looking_alone(folder: str) -> Iterator[None]:
    """Wait, at most `MOST_WAIT` seconds, for other launchers that share the folder.

    To look at a file is to have it open: two that look at the same time would each take the other's look for a use, and
    both would leave the file there for ever.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        until = time.monotonic() + MOST_WAIT
        while time.monotonic() < until:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def _held(path: str, key: tuple[int, int]) -> bool | None:
    """Whether any process, of any user or namespace, has the file open or mapped. None: not known.

    The kernel grants a write lease (fcntl(2), F_SETLEASE) to a file's owner only while no other process has it open. A
    process that opens it in that moment waits for our close, and we get SIGURG, which does nothing (SIGIO would kill).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        info = os.fstat(fd)
        if (info.st_dev, info.st_ino) != key:
            return None  # another file by now
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        return False
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    finally:
        os.close(fd)


def _files(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    for base, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(base, name)
            try:
                info = os.lstat(path)
            except OSError:
                continue
            if stat.S_ISREG(info.st_mode):
                yield path, info


def _used(wanted: set[tuple[int, int]], proc: str) -> tuple[set[tuple[int, int]], bool]:
    """Which of the files (device, inode) some process maps or has open, and whether every process could be asked."""
    used: set[tuple[int, int]] = set()
    all_seen = True
    for pid in filter(str.isdigit, os.listdir(proc)):
        try:
            used.update(wanted.intersection(_open_files(f"{proc}/{pid}/fd")))
            used.update(wanted.intersection(_mapped_files(f"{proc}/{pid}/maps")))
        except PermissionError:
            all_seen = False
        except OSError:  # it ended
            continue
    return used, all_seen


def _open_files(folder: str) -> Iterator[tuple[int, int]]:
    for name in os.listdir(folder):
        try:
            info = os.stat(f"{folder}/{name}")
        except (PermissionError, ProcessLookupError):
            raise
        except OSError:  # closed by now, or it lies on a mount that is dead: no file of /dev/shm
            continue
        yield info.st_dev, info.st_ino


def _mapped_files(path: str) -> Iterator[tuple[int, int]]:
    with open(path, "rb") as file:
        for line in file:
            _, _, _, device, inode, *_ = line.split(maxsplit=5)
            if inode != b"0":
                major, _, minor = device.partition(b":")
                yield os.makedev(int(major, 16), int(minor, 16)), int(inode)


# ----------------------------------------------------------------------------------------------------------- ports


def busy_ports(ports: Iterable[int], host: str = "") -> tuple[int, ...]:
    """Those that cannot be bound now. A connection in TIME_WAIT does not count: servers set SO_REUSEADDR too."""
    return tuple(port for port in ports if not _free(port, host))


def _free(port: int, host: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)  # two may bind with SO_REUSEADDR, only one may listen
        except OSError as error:
            # Anything else (an address that is not ours, a port that only root may take) is not the port's being busy.
            return error.errno != errno.EADDRINUSE
    return True


# ------------------------------------------------------------------------------------------------------ GPU memory


def gpu_memory(text: str) -> dict[str, int]:
    """MiB in use by GPU, from the output of ``GPU_QUERY``, without GPUs that don't tell ("[N/A]": unified memory)."""
    found = {}
    for line in text.splitlines():
        gpu, _, used = line.partition(",")
        if is_whole(used.strip()):
            found[gpu.strip()] = int(used)
    return found


def gpu_memory_kept(before: Mapping[str, int], now: Mapping[str, int], tolerance: int = GPU_TOLERANCE) -> str:
    """What is still held, in words, or an empty string when every GPU is back to where it was."""
    kept = {gpu: used - before.get(gpu, 0) for gpu, used in now.items()}
    return ", ".join(
        f"GPU {gpu} holds {more} MiB more than before the engine" for gpu, more in kept.items() if more > tolerance
    )


# ------------------------------------------------------------------------------------------------------------- OOM


def oom_kills(proc: str = PROC, cgroups: str = CGROUPS) -> int | None:
    """Processes that the OOM killer ended in our cgroup so far: compare before and after. None: not known.

    cgroup v2: ``oom_kill`` in memory.events; v1: in memory.oom_control (Linux 4.13).
    """
    try:
        with open(f"{proc}/self/cgroup", encoding="utf-8") as file:
            membership = file.read()
    except OSError:
        return None
    for place in cgroup.places(membership, cgroups, "memory.events", "memory", "memory.oom_control"):
        count = _oom_kill(place)
        if count is not None:
            return count
    return None


def _oom_kill(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    except (OSError, ValueError):
        pass
    return None
