"""Real containers for tests: podman without any registry. The base is a debootstrap of this machine's Debian.

What is made is called ``launcher-test-PID-...`` after the process that made it. Containers, networks, volumes and the
launcher's own image go when that process ends, or are swept by the next run if it was killed. Three base images
(``launcher-test-debian``, ``-bare``, ``-python``) stay: a debootstrap takes a minute. `podman rmi` removes them.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.manifests import ROOT, Pods
from tests.real.install import cache, exclusive

PACKAGES = ("podman", "runc", "netavark", "aardvark-dns", "catatonit", "debootstrap")
BASE = "launcher-test-debian:2"
NAME = "launcher-test"
MINE = f"{NAME}-{os.getpid()}"
LAUNCHER = f"launcher:{MINE}"

# runc, for crun does not work where cgroups are of the first version; the limits are those of small machines.
CONF = """
[containers]
default_ulimits = ["nofile=10000:10000", "nproc=5000:5000"]
[engine]
runtime = "runc"
[network]
network_backend = "netavark"
"""
_numbers = itertools.count(1)


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
def _conf() -> str:
    path = cache() / "containers.conf"
    path.write_text(CONF)
    return str(path)


@functools.cache
def sweep() -> None:
    """Take away what test processes that were killed have left, and see to it that nothing of this one stays."""
    for what, command in _LISTS.items():
        _remove({what: [name for name in podman(*command).split() if _of_the_dead(name)]})
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


def _remove(names: Mapping[str, Sequence[str]]) -> None:
    now = {"pod": ("-t", "0"), "container": ("-t", "0")}
    for what, which in ((what, which) for what, which in names.items() if which):
        podman(what, "rm", "-f", *now.get(what, ()), *which, check=False)


def _remove_mine() -> None:
    """The images of this process. Containers, volumes and networks went with their Network."""
    mine = [n for n in podman(*_LISTS["image"], check=False).split() if n.endswith(f":{MINE}")]
    _remove({"image": mine})


def podman(*arguments: str, check: bool = True, stdin: bytes | None = None, timeout: float = 300) -> str:
    """Its standard output. Raises AssertionError with its words."""
    environ = {**os.environ, "CONTAINERS_CONF": _conf()}
    command = ["podman", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, env=environ, check=False, timeout=timeout)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr.decode()}"
    return done.stdout.decode().strip()


# ------------------------------------------------------------------------------------------------------- images


def has_image(name: str) -> bool:
    return subprocess.run(["podman", "image", "exists", name], check=False).returncode == 0


@contextlib.contextmanager
def _made_once(name: str) -> Iterator[bool]:
    """Whether the image must be made; others that want it wait meanwhile."""
    with exclusive(cache() / f"{name.replace(':', '-')}.lock"):
        yield not has_image(name)


def base_image() -> str:
    """Debian with Python, and with libnuma1, which vLLM for CPU needs."""
    with _made_once(BASE) as make:
        if not make:
            return BASE
        release = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.M)
        assert release
        with tempfile.TemporaryDirectory(prefix=f"{MINE}-") as folder:
            root = Path(folder) / "root"
            command = ["debootstrap", "--variant=minbase", "--include=python3,libnuma1", release[1], str(root)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout[-2000:]
            for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
                shutil.rmtree(root / waste, ignore_errors=True)
            import_folder(root, BASE)
    return BASE


def import_folder(root: Path, name: str) -> None:
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    tar = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
    environ = {**os.environ, "CONTAINERS_CONF": _conf()}
    command = ["podman", "import", "-q", "--change", f"ENV {path}", "-", name]
    subprocess.run(command, stdin=tar.stdout, env=environ, check=True, capture_output=True)
    assert tar.wait() == 0


def build(image: str, **environ: str) -> str:
    """Runs images/build.sh as anybody would, over a copy of the checkout; the name of the image."""
    sweep()
    # The stages of the others add nothing, so that no layer of theirs stays behind; see build.sh on --layers.
    options = "--isolation chroot -q" + (" --layers=false" if image == "launcher" else "")
    ours = {"BUILDER": "podman", "TAG": MINE, "BUILD_ARGS": options, "OFFLINE": "1"}
    everything = {**os.environ, "CONTAINERS_CONF": _conf(), **ours, **environ}
    with _checkout() as checkout:
        command = [str(checkout / "images/build.sh"), image]
        done = subprocess.run(command, env=everything, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1].removeprefix("built: ")


@contextlib.contextmanager
def _checkout() -> Iterator[Path]:
    """A copy of what the images are built from, with the wheels in it: downloaded once, by build.sh's own means."""
    with tempfile.TemporaryDirectory(prefix=f"{MINE}-") as folder:
        for name in ("images", "launcher"):
            shutil.copytree(ROOT / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__", "wheels"))
        shutil.copy(ROOT / ".dockerignore", folder)
        wanted = (ROOT / "images/requirements.txt").read_bytes()
        wheels, list_of_it = cache() / "wheels", cache() / "wheels.txt"
        with exclusive(cache() / "wheels.lock"):
            if not list_of_it.exists() or list_of_it.read_bytes() != wanted:
                command = [sys.executable, f"{folder}/images/bundle.py", "--download", str(wheels)]
                subprocess.run(command, check=True)
                list_of_it.write_bytes(wanted)
            shutil.copytree(wheels, Path(folder) / "images/wheels")
        yield Path(folder)


@functools.cache
def launcher_image() -> str:
    """The image of this checkout."""
    assert build("launcher", BASE_IMAGE=base_image()) == LAUNCHER
    return LAUNCHER


def python_home(version: str) -> Path | None:
    """Where a whole CPython of this version lies that can be copied (pyenv's, uv's)."""
    roots = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"]
    roots.append(Path.home() / ".local/share/uv/python")
    for root in roots:
        for found in sorted([*root.glob(f"{version}*"), *root.glob(f"cpython-{version}*")], reverse=True):
            if (found / "bin" / f"python{version}").exists():
                return found
    return None


def engine_image(version: str) -> str:
    """An image with this Python and no trace of the launcher: what an engine's own image is to us."""
    name = f"{NAME}-python:{version}"
    home = python_home(version)
    assert home
    base = base_image()
    with _made_once(name) as make, tempfile.TemporaryDirectory(prefix=f"{MINE}-") as folder:
        if make:
            waste = shutil.ignore_patterns("test", "__pycache__", "site-packages", "*.a", "idlelib", "tkinter", "share")
            shutil.copytree(home, Path(folder) / "python", symlinks=True, ignore=waste)
            (Path(folder) / "Dockerfile").write_text(
                f"FROM {base}\n"
                "COPY python /usr/local\n"
                f"RUN rm -f /usr/bin/python3* && ln -sf python{version} /usr/local/bin/python3 && ldconfig\n"
            )
            podman("build", "-q", "--isolation", "chroot", "--layers=false", "-t", name, folder)
    return name


def bare_image() -> str:
    """Debian into which the machine's own folders can be mounted where they are, for users other than root too."""
    name = f"{NAME}-bare:2"
    base = base_image()
    with _made_once(name) as make, tempfile.TemporaryDirectory(prefix=f"{MINE}-") as folder:
        if make:
            (Path(folder) / "Dockerfile").write_text(f"FROM {base}\nRUN chmod 755 /root\n")
            podman("build", "-q", "--isolation", "chroot", "--layers=false", "-t", name, folder)
    return name


# --------------------------------------------------------------------------------------------------- containers


@dataclass
class Network:
    """A podman network with DNS, its volumes and containers; a context manager."""

    name: str = field(default_factory=lambda: f"{MINE}-{next(_numbers)}")
    containers: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)

    def __enter__(self) -> Network:
        sweep()
        podman("network", "create", self.name)
        found = json.loads(podman("network", "inspect", self.name))[0]
        self.prefix = found["subnets"][0]["subnet"].rpartition(".")[0]
        return self

    def __exit__(self, *error: object) -> None:
        _remove({"container": self.containers, "volume": self.volumes})
        podman("network", "rm", "-f", self.name, check=False)

    def volume(self) -> str:
        """Like an emptyDir: anybody may write."""
        name = f"{self.name}-v{next(_numbers)}"
        podman("volume", "create", name)
        self.volumes.append(name)
        Path(podman("volume", "inspect", "--format", "{{.Mountpoint}}", name)).chmod(0o777)
        return name


class Container:
    """Pod `rank` of a manifest as one container, the way a kubelet would start it."""

    def __init__(
        self, network: Network, pods: Pods, rank: int, image: str, host: int, more: Sequence[str] = ()
    ) -> None:
        self.network, self.pods, self.rank, self.image, self.more = network, pods, rank, image, more
        self.pod = f"{pods.name}-{rank}"
        self.name = f"{network.name}-{self.pod}"
        self.volumes = {v["name"]: network.volume() for v in pods.spec["volumes"] if v["name"] in ("launcher", "state")}
        self.host = host
        for init in pods.spec.get("initContainers", []):
            mounts = [f"-v={self.volumes[m['name']]}:{m['mountPath']}" for m in init["volumeMounts"]]
            command = ["run", "--rm", "--network=none", _memory(init), *self._security(init), *mounts]
            podman(*command, "--entrypoint", init["command"][0], LAUNCHER, *init["command"][1:])
        self.start()

    @property
    def ip(self) -> str:
        return f"{self.network.prefix}.{self.host}"

    def _security(self, container: Mapping[str, Any]) -> list[str]:
        security, pod = container["securityContext"], self.pods.spec["securityContext"]
        assert security["readOnlyRootFilesystem"] and security["capabilities"]["drop"] == ["ALL"]
        assert not security["allowPrivilegeEscalation"]
        return [
            *("--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
            # podman would add the user to /etc/passwd, which no kubelet does
            "--passwd=false",
            f"--user={pod['runAsUser']}:{pod['runAsGroup']}",
        ]

    def start(self) -> None:
        """A new container with the manifest's args, variables, volumes and security context."""
        engine = self.pods.engine
        environ = {**self.pods.environment(self.rank), "POD_IP": self.ip}
        if "PATH" not in self.pods.env:
            del environ["PATH"]
        mounts = []
        for mount in engine["volumeMounts"]:
            if mount["name"] in self.volumes:
                end = ":ro" if mount.get("readOnly") else ""
                mounts.append(f"-v={self.volumes[mount['name']]}:{mount['mountPath']}{end}")
            else:
                mounts.append(f"--tmpfs={mount['mountPath']}:mode=1777,size=512m")
        names = [self.pod, f"{self.pod}.{self.pods.env['LAUNCHER_SERVICE']}.default.svc.cluster.local"]
        podman(
            *("run", "-d", f"--name={self.name}", f"--hostname={self.pod}", f"--network={self.network.name}"),
            *(f"--ip={self.ip}", *(f"--network-alias={n}" for n in names), *self._security(engine), *mounts),
            _memory(engine),
            *(f"--env={k}={v}" for k, v in environ.items()),
            *self.more,
            *("--entrypoint", engine["command"][0], self.image, *engine["args"]),
        )
        self.network.containers.append(self.name)

    def again(self, host: int) -> None:
        """The pod made anew: another address, an empty state folder."""
        podman("rm", "-f", "-t", "0", self.name)
        self.host = host
        self.volumes["state"] = self.network.volume()
        self.start()

    def probe(self, name: str) -> bool:
        """What the kubelet's probe of the manifest would find."""
        asked = self.pods.engine[name]["httpGet"]
        try:
            return self.get(asked["path"], self.pods.port(asked["port"])).status == 200
        except OSError:
            return False

    def get(self, path: str, port: int) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.ip, port, timeout=5)
        connection.request("GET", path)
        return connection.getresponse()

    def complete(self, prompt: str) -> str:
        connection = http.client.HTTPConnection(self.ip, self.pods.port("api"), timeout=10)
        body = json.dumps({"model": "reference", "prompt": prompt, "max_tokens": 5})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        assert answer.status == 200, text
        return str(json.loads(text)["choices"][0]["text"])

    @property
    def exit_code(self) -> int | None:
        state = json.loads(podman("inspect", "--format", "{{json .State}}", self.name))
        return None if state["Running"] else int(state["ExitCode"])

    def wait(self, patience: float) -> int:
        """Its exit code, once it has ended."""
        try:
            return int(podman("wait", self.name, timeout=patience))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"after {patience:g} s {self.name} has not ended\n{self.logs[-4000:]}") from None

    @property
    def logs(self) -> str:
        done = subprocess.run(["podman", "logs", self.name], capture_output=True, check=False)
        return (done.stdout + done.stderr).decode(errors="replace")

    def launcher_memory(self) -> int:
        """Bytes of memory that the launcher's own two processes have for themselves (PSS), seen from the machine."""
        pid = int(podman("inspect", "--format", "{{.State.Pid}}", self.name))
        mine = [
            pid,
            *(c for c in children(pid) if b"-m\0launcher.reference" not in _cmdline(c) and b"run.py" in _cmdline(c)),
        ]
        assert len(mine) == 2, [_cmdline(p) for p in mine]
        return sum(pss(p) for p in mine)


def _memory(container: Mapping[str, Any]) -> str:
    limit: str = container["resources"]["limits"]["memory"]
    return f"--memory={limit.replace('Mi', 'm').replace('Gi', 'g')}"


def children(pid: int) -> Sequence[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def pss(pid: int) -> int:
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    assert found
    return int(found[1]) * 1024
