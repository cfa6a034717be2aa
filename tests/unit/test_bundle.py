"""The self-contained launcher: what goes into it, and its entry. All of it runs in tests/e2e/test_containers.py."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

IMAGES = Path(__file__).resolve().parents[2] / "images"
WORDS = "#!/bin/sh\necho fake $*\n"


@pytest.fixture(scope="module")
def bundle() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bundle", IMAGES / "bundle.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins() -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in (IMAGES / "requirements.txt").read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def test_every_dependency_of_the_package_is_pinned_within_its_range() -> None:
    text = (IMAGES.parent / "pyproject.toml").read_text()
    block = text.split("dependencies = [", 1)[1].split("\n]", 1)[0]
    for line in re.findall(r'^\s+"([^"]+)"', block, re.M):
        wanted = Requirement(line)
        assert pins()[wanted.name] in wanted.specifier


def wheels(folder: Path, **tags: str) -> Path:
    """Empty wheels of all that is pinned; `tags` gives some a tag of their own."""
    folder.mkdir()
    for name, version in pins().items():
        key = name.replace("-", "_")
        with zipfile.ZipFile(folder / f"{key}-{version}-{tags.get(key, 'py3-none-any')}.whl", "w") as wheel:
            wheel.writestr(f"{key}/__init__.py", "")
            wheel.writestr(f"{key}/tests/test.py", "")
    return folder


def test_bundle_is_whole_and_has_no_tests(bundle: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bundle.build(wheels(tmp_path / "w", psutil="cp36-abi3-manylinux2014_x86_64"), out)
    assert os.access(out / "launcher", os.X_OK)
    assert (out / "bin/python").resolve() == out / "launcher"
    assert (out / "lib/launcher/guard/guard.py").exists()
    assert (out / "lib/launcher/api/page.html").exists()
    assert (out / "lib/psutil/__init__.py").exists()
    assert not (out / "lib/psutil/tests").exists()
    assert list((out / "lib/launcher/cli/__pycache__").glob(f"main.{sys.implementation.cache_tag}.pyc"))
    assert str(tmp_path) not in next((out / "lib/launcher/cli/__pycache__").glob("main.*.pyc")).read_bytes().decode(
        "latin1"
    )


def test_wheel_of_one_python_is_refused(bundle: ModuleType, tmp_path: Path) -> None:
    folder = wheels(tmp_path / "w", tomli="cp310-cp310-manylinux2014_x86_64")
    with pytest.raises(SystemExit, match="one Python only: tomli"):
        bundle.build(folder, tmp_path / "out")


def test_other_version_is_refused(bundle: ModuleType, tmp_path: Path) -> None:
    folder = wheels(tmp_path / "w")
    next(folder.glob("idna*")).rename(folder / "idna-0.1-py3-none-any.whl")
    with pytest.raises(SystemExit, match=r"idna==0\.1"):
        bundle.build(folder, tmp_path / "out")


# ------------------------------------------------------------------------------------------------------- the entry


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """The entry alone, on a PATH with nothing but what the shell needs."""
    folder = tmp_path / "opt"
    folder.mkdir()
    for name in ("launcher", "run.py"):
        (folder / name).write_text((IMAGES / "bundle" / name).read_text())
    (folder / "launcher").chmod(0o755)
    (tmp_path / "bin").mkdir()
    return folder / "launcher"


def python(folder: Path, name: str, text: str = WORDS) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def start(entry: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": str(entry.parent.parent / "bin"), **environ}
    return subprocess.run([str(entry), *arguments], env=environ, capture_output=True, text=True, check=False)


def test_entry_runs_the_images_python_in_isolation(entry: Path) -> None:
    python(entry.parent.parent / "bin", "python3")
    assert start(entry, "plan", "--tp", "2").stdout == f"fake -I -S {entry.parent}/run.py plan --tp 2\n"


def test_entry_prefers_the_engines_python(entry: Path) -> None:
    python(entry.parent.parent / "bin", "python3")
    mine = python(entry.parent.parent, "my python", WORDS.replace("fake", "mine"))
    assert start(entry, LAUNCHER_PYTHON=str(mine)).stdout.startswith("mine -I -S")


@pytest.mark.parametrize("minor", [10, 11, 12, 13, 14])
def test_entry_finds_a_python_that_has_no_other_name(entry: Path, minor: int) -> None:
    """In an image whose `python3` is not there, or too old."""
    folder = entry.parent.parent / "bin"
    python(folder, f"python3.{minor}")
    assert start(entry, "plan").stdout == f"fake -I -S {entry.parent}/run.py plan\n"
    assert f'"python3.{minor}"' in (entry.parent / "run.py").read_text()


def test_entry_without_python_says_what_to_do(entry: Path) -> None:
    done = start(entry)
    assert done.returncode == 78
    assert "LAUNCHER_PYTHON" in done.stderr


def test_old_python_takes_a_later_one(entry: Path) -> None:
    """run.py on a Python that says it is 3.9: it looks for a later one of the image, or says so."""
    run = str(entry.parent / "run.py")
    old = f"import sys; sys.version_info = (3, 9, 1); sys.argv = [{run!r}, 'plan']; __file__ = {run!r}"
    old += f"; exec(open({run!r}).read())"
    command = [sys.executable, "-I", "-S", "-c", old]
    environ = {"PATH": str(entry.parent.parent / "bin")}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert "3.10 or later" in done.stderr
    python(entry.parent.parent / "bin", "python3.11")
    environ["PATH"] += ":/bin"
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout == f"fake -I -S {entry.parent}/run.py plan\n"


def test_entry_works_through_a_link(entry: Path) -> None:
    python(entry.parent.parent / "bin", "python3")
    link = entry.parent.parent / "linked"
    link.symlink_to(entry)
    path = f"{entry.parent.parent / 'bin'}:/bin:/usr/bin"
    assert start(link, PATH=path).stdout == f"fake -I -S {entry.parent}/run.py\n"
