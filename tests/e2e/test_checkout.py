"""run.sh in a fresh checkout: what it installs, and what it says where it cannot or must wait."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli.commands import COMMANDS
from tests.e2e.group import until
from tests.manifests import ROOT

NOWHERE = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("run.sh", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, tmp_path)
    return tmp_path


def environ(**more: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "LAUNCHER_"))}
    return {**clean, "PYTHON": sys.executable, **more}


def test_help_lists_each_command() -> None:
    done = subprocess.run([ROOT / "run.sh", "--help"], capture_output=True, text=True, check=True)
    listed = re.findall(r"^  ([\w-]+)  +\w", done.stdout, re.M)
    assert sorted(listed) == sorted([*COMMANDS, "run"])
    cases = re.findall(r"^([\w |]+)\)$", (ROOT / "run.sh").read_text(), re.M)
    for name in " ".join(cases).replace("|", " ").split():
        assert re.search(rf"^  \./run\.sh (\w+\|)?{name}\b", done.stdout, re.M), name


def test_it_says_that_it_waits_and_that_there_is_no_index(checkout: Path) -> None:
    """Another run.sh holds the lock; then the package index cannot be reached."""
    python = checkout / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')  # a whole environment takes half a minute to make
    python.chmod(0o755)
    said = checkout / "said"
    with (checkout / ".venv.lock").open("w") as lock, said.open("w") as output:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [checkout / "run.sh", "plan"],
            env=environ(**NOWHERE, PIP_DRY_RUN="1"),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        until("it says that it waits", lambda: "waiting for another run.sh" in said.read_text())
        assert process.poll() is None
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert process.wait(300) == 69, said.read_text()
    words = said.read_text()
    assert "pip could not install what the launcher needs" in words
    assert "PIP_INDEX_URL" in words and "PIP_FIND_LINKS" in words


def test_the_first_call_installs_what_render_needs(checkout: Path) -> None:
    """After `./run.sh demo`, `./run.sh render` has its PyYAML."""
    fake = checkout / ".venv/bin/python"
    fake.parent.mkdir(parents=True)
    fake.write_text(f'#!/bin/sh\necho "$@" >> {checkout}/asked\ncp {checkout}/launcher {checkout}/.venv/bin/launcher\n')
    (checkout / "launcher").write_text("#!/bin/sh\necho ran $*\n")
    for path in (fake, checkout / "launcher"):
        path.chmod(0o755)
    for _ in range(2):
        done = subprocess.run(
            [checkout / "run.sh", "render", "-f", "x"], env=environ(), capture_output=True, text=True, check=True
        )
        assert done.stdout == "ran render -f x\n"
    installed = [line for line in (checkout / "asked").read_text().splitlines() if " install " in line]
    assert len(installed) == 1 and installed[0].endswith(f"{checkout}[render]")


def test_no_python(checkout: Path) -> None:
    (checkout / "bin").mkdir()
    for name in ("bash", "dirname", "cksum", "tr", "flock", "grep"):
        (checkout / "bin" / name).symlink_to(str(shutil.which(name)))
    done = subprocess.run(
        [checkout / "run.sh", "plan"],
        env={"PATH": str(checkout / "bin"), "PYTHON": "/nowhere/python"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 69
    assert "no Python >= 3.10 with venv was found" in done.stderr
