"""podman for tests: without any registry, and without anything left behind.

What is made is called ``launcher-test-PID-...`` after the process that made it. Containers, networks, volumes and the
launcher's own image go when that process ends, or are swept by the next run if it was killed. Three base images
(``launcher-test-debian``, ``-bare``, ``-python``) stay: a debootstrap takes a minute. `podman rmi` removes them.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.real.install import cache

PACKAGES = ("podman", "runc", "netavark", "aardvark-dns", "catatonit", "debootstrap")
NAME = "launcher-test"
MINE = f"{NAME}-{os.getpid()}"

# runc, for crun does not work where cgroups are of the first version; the limits are those of small machines.
CONF = """
[containers]
default_ulimits = ["nofile=10000:10000", "nproc=5000:5000"]
[engine]
runtime = "runc"
[network]
network_backend = "netavark"
"""


def why_not() -> str | None:
    """Why containers can't be run here, for a test's skip reason."""
    if os.geteuid() != 0:
        return "containers need root"
    missing = [name for name in ("podman", "runc", "catatonit", "debootstrap") if shutil.which(name) is None]
    if missing:
        return f"containers need {', '.join(missing)}: apt-get install {' '.join(PACKAGES)}"
    if not Path("/usr/lib/podman/netavark").exists() or not Path("/usr/lib/podman/aardvark-dns").exists():
        return "containers need netavark and aardvark-dns, for names"
    return None


@functools.cache
def conf() -> str:
    """A containers.conf for this machine; the file's name."""
    path = cache() / "containers.conf"
    path.write_text(CONF)
    return str(path)


@functools.cache
def sweep() -> None:
    """Take away what test processes that were killed have left, and see to it that nothing of this one stays."""
    for what, command in _LISTS.items():
        remove({what: [name for name in podman(*command).split() if _of_the_dead(name)]})
    for folder in Path(tempfile.gettempdir()).glob(f"{NAME}-*-*"):
        if _of_the_dead(folder.name):
            subprocess.run(["umount", "--recursive", folder / "root/proc"], check=False, capture_output=True)
            shutil.rmtree(folder, ignore_errors=True)
    atexit.register(_remove_mine)
    # Told to go is interrupted: the fixtures still take down what they put up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _of_the_dead(name: str) -> bool:
    found = re.search(rf"\b{NAME}-(\d+)\b", name)
    return found is not None and not Path(f"/proc/{found[1]}").exists()


#: in the order in which they can be removed
_LISTS: Mapping[str, Sequence[str]] = {
    "pod": ("pod", "ls", "--format", "{{.Name}}"),
    "container": ("ps", "--all", "--format", "{{.Names}}"),
    "volume": ("volume", "ls", "--format", "{{.Name}}"),
    "network": ("network", "ls", "--format", "{{.Name}}"),
    "image": ("images", "--format", "{{.Repository}}:{{.Tag}}"),
}


def remove(names: Mapping[str, Sequence[str]]) -> None:
    """Podman's word for a kind of things (container, volume, ...) to the names of those to remove."""
    now = {"pod": ("-t", "0"), "container": ("-t", "0")}
    for what, which in ((what, which) for what, which in names.items() if which):
        podman(what, "rm", "-f", *now.get(what, ()), *which, check=False)


def _remove_mine() -> None:
    """The images of this process. Containers, volumes and networks went with their Network."""
    mine = [n for n in podman(*_LISTS["image"], check=False).split() if n.endswith(f":{MINE}")]
    remove({"image": mine})


def podman(*arguments: str, check: bool = True, timeout: float = 300) -> str:
    """Its standard output. Raises AssertionError with its words."""
    environ = {**os.environ, "CONTAINERS_CONF": conf()}
    command = ["podman", *arguments]
    done = subprocess.run(command, capture_output=True, env=environ, check=False, timeout=timeout)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr.decode()}"
    return done.stdout.decode().strip()
