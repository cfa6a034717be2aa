"""Files that nobody maps, ports, GPU memory and OOM kills."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.node import leftovers

#: Holds one file open and another mapped until its standard input ends.
HOLDER = """
import mmap, sys
opened = open(sys.argv[1])
with open(sys.argv[2], "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 0)
print("held", flush=True)
sys.stdin.read()
"""


#: Looks each time that it reads a line, and takes 10 ms or more for each file.
LOOKER = """
import fcntl, sys, time
from launcher.node import leftovers
kernel = fcntl.fcntl
fcntl.fcntl = lambda *words: time.sleep(0.01) or kernel(*words)
for line in sys.stdin:
    leftovers.remove(frozenset(), sys.argv[1])
    print("looked", flush=True)
"""


@pytest.fixture
def shm() -> Iterator[Path]:
    """On tmpfs, as /dev/shm is: elsewhere (btrfs, overlay) /proc/PID/maps may tell another device than stat does."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_only_new_files_that_nobody_uses_are_removed(shm: Path) -> None:
    (shm / "old").write_text("x")
    before = leftovers.snapshot(str(shm))
    (shm / "old").unlink()
    for name in ("old", "new", "mapped", "opened"):
        (shm / name).write_text(name)
    (shm / "deep").mkdir()
    (shm / "deep" / "new").write_text("x")
    for path in filter(Path.is_file, shm.rglob("*")):
        path.chmod(0o600)  # as shm_open callers do; what others could open is kept where a process can't be looked into
    with (shm / "mapped").open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
    with (shm / "opened").open():
        removed = leftovers.remove(before, str(shm))
        left = {path.name for path in filter(Path.is_file, shm.rglob("*"))}
    # "old" is a new file under an old name, unless the file system gave it the old inode again: then it is kept. A
    # launcher of a test beside this one may be faster: it takes away what nobody uses, too.
    assert set(removed) <= {str(shm / "old"), str(shm / "new"), str(shm / "deep" / "new")}
    assert left - {"old"} == {"mapped", "opened"}
    mapping.close()
    leftovers.remove(before, str(shm))
    assert {path.name for path in filter(Path.is_file, shm.rglob("*"))} <= {"old"}


def test_a_descriptor_that_cannot_be_looked_at_hides_no_other(shm: Path, tmp_path: Path) -> None:
    """One on a mount that is dead, say; here it is a link to itself."""
    used = shm / "used"
    used.write_text("x")
    descriptors = tmp_path / "7" / "fd"
    descriptors.mkdir(parents=True)
    for name in ("1", "3"):
        (descriptors / name).symlink_to(name)
    (descriptors / "2").symlink_to(used)
    (tmp_path / "7" / "maps").write_text("")
    assert leftovers.remove(frozenset(), str(shm), str(tmp_path)) == ()
    assert used.exists()


def test_launchers_that_share_the_folder_look_one_after_the_other(shm: Path) -> None:
    """To look at a file is to open it: two at the same time would take each other's look for a use, and keep it."""
    looks = [
        subprocess.Popen([sys.executable, "-c", LOOKER, str(shm)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for turn in range(20):
        for name in range(5):
            (shm / f"{turn}-{name}").touch(0o600)
        for look in looks:
            assert look.stdin is not None
            look.stdin.write(b"look\n")
            look.stdin.flush()
        for look in looks:
            assert look.stdout is not None
            assert look.stdout.readline() == b"looked\n"
        assert list(shm.iterdir()) == []
    for look in looks:
        look.communicate(timeout=60)


def test_a_folder_that_another_holds_is_looked_at_all_the_same(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "MOST_WAIT", 0.1)
    (shm / "left").write_text("x")
    (shm / "left").chmod(0o600)
    held = os.open(shm, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert leftovers.remove(frozenset(), str(shm)) == (str(shm / "left"),)
    os.close(held)


def test_a_process_that_cannot_be_looked_into_keeps_no_file(
    shm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that all may read, free and in use; the kernel knows which is which, whoever has them."""
    for name in ("free", "opened", "mapped"):
        (shm / name).write_text(name)
        (shm / name).chmod(0o666)
    (tmp_path / "8").mkdir()

    def closed(folder: str) -> list[str]:
        if folder == f"{tmp_path}/8/fd":
            raise PermissionError(13, "Permission denied", folder)
        return listed(folder)

    listed = os.listdir
    monkeypatch.setattr(os, "listdir", closed)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(shm / "opened"), str(shm / "mapped")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert leftovers.remove(frozenset(), str(shm), str(tmp_path)) == (str(shm / "free"),)
    holder.communicate(timeout=60)
    assert set(leftovers.remove(frozenset(), str(shm), str(tmp_path))) == {str(shm / "mapped"), str(shm / "opened")}


def test_ports() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        assert leftovers.busy_ports([port]) == (port,)
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # the side that closes first stays in TIME_WAIT
        client.close()
    assert not leftovers.busy_ports([port])


def test_gpu_memory() -> None:
    before = leftovers.gpu_memory("GPU-a, 3\nGPU-b, 450\nGPU-c, [N/A]\n")
    assert before == {"GPU-a": 3, "GPU-b": 450}
    assert leftovers.gpu_memory_kept(before, {"GPU-a": 20, "GPU-b": 1}) == ""
    assert leftovers.gpu_memory_kept(before, {"GPU-a": 70003, "GPU-b": 450}) == (
        "GPU GPU-a holds 70000 MiB more than before the engine"
    )
    assert leftovers.gpu_memory("Failed to initialize NVML: Driver/library version mismatch\n") == {}


def test_oom_kills_v2_v1_and_none(tmp_path: Path) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    assert leftovers.oom_kills(str(proc), str(cgroups)) is None
    (proc / "self" / "cgroup").write_text("0::/kubepods/pod1\n")
    cgroups.mkdir()
    (cgroups / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert leftovers.oom_kills(str(proc), str(cgroups)) == 2
    (cgroups / "kubepods" / "pod1").mkdir(parents=True)
    (cgroups / "kubepods" / "pod1" / "memory.events").write_text("oom_kill 5\n")
    assert leftovers.oom_kills(str(proc), str(cgroups)) == 5
    (proc / "self" / "cgroup").write_text("12:cpu,cpuacct:/x\n5:memory:/kubepods/y\n0::/\n")
    (cgroups / "memory").mkdir()
    (cgroups / "memory" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    assert leftovers.oom_kills(str(proc), str(cgroups)) == 4


def test_the_real_machine() -> None:
    assert isinstance(leftovers.snapshot(), frozenset)
    assert leftovers.oom_kills() is None or os.path.exists("/sys/fs/cgroup")


def test_port_is_not_busy_because_the_address_is_not_ours() -> None:
    assert leftovers.busy_ports([8000], "192.0.2.1") == ()
