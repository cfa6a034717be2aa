"""Images for tests: Debian by debootstrap, engines' images that never saw the launcher, and what images/ builds."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.podman import MINE, NAME, conf, podman, sweep
from tests.manifests import ROOT
from tests.real.install import cache, exclusive

BASE = f"{NAME}-debian:2"
LAUNCHER = f"launcher:{MINE}"


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
    environ = {**os.environ, "CONTAINERS_CONF": conf()}
    command = ["podman", "import", "-q", "--change", f"ENV {path}", "-", name]
    subprocess.run(command, stdin=tar.stdout, env=environ, check=True, capture_output=True)
    assert tar.wait() == 0


def build(image: str, **environ: str) -> str:
    """Runs images/build.sh as anybody would, over a copy of the checkout; the name of the image."""
    sweep()
    # The stages of the others add nothing, so that no layer of theirs stays behind; see build.sh on --layers.
    options = "--isolation chroot -q" + (" --layers=false" if image == "launcher" else "")
    ours = {"BUILDER": "podman", "TAG": MINE, "BUILD_ARGS": options, "OFFLINE": "1"}
    everything = {**os.environ, "CONTAINERS_CONF": conf(), **ours, **environ}
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
