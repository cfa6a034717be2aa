"""The distribution: an sdist of the checkout, a wheel made from that sdist, and the command in a fresh environment.

Builds with the tools of this environment and without a network. `.ci/release` does the same from a clean clone, as a
user would, with what the package index has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from launcher import __version__
from tests.manifests import K8S, ROOT

STEM = f"multinode_launcher-{__version__}"


def run(*command: str | Path, cwd: Path, **environ: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LAUNCHER_", "PYTHON"))}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**clean, **environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel."""
    checkout, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout, so it is not known which files belong to it")
    for name in run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0"):
        if name and (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name)
    # Without --sdist or --wheel `build` makes the sdist, and the wheel from what is in the sdist.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, checkout, cwd=out)
    return out


def test_the_sdist_has_what_the_wheel_and_the_tests_need(built: Path) -> None:
    with tarfile.open(built / f"{STEM}.tar.gz") as archive:
        names = {name.removeprefix(f"{STEM}/") for name in archive.getnames()}
    for name in ("LICENSE", "CHANGELOG.md", "README.md", "run.sh", "pyproject.toml", "k8s/base/kustomization.yaml",
                 "images/requirements.txt", "tests/conftest.py", "docs/upgrade.md"):  # fmt: skip
        assert name in names
    assert not [name for name in names if name.startswith((".venv", ".git/", "images/wheels"))]


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(built / f"{STEM}-py3-none-any.whl") as wheel:
        names = wheel.namelist()
        metadata = message_from_bytes(wheel.read(f"{STEM}.dist-info/METADATA"))
    assert {name.split("/")[0] for name in names} == {"launcher", f"{STEM}.dist-info"}
    assert {"launcher/py.typed", "launcher/api/page.html"} <= set(names)
    assert f"{STEM}.dist-info/licenses/LICENSE" in names
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "launcher").rglob("*.py")}
    layers = {str(p.relative_to(ROOT)) for part in ("base", "components") for p in (K8S / part).rglob("*.yaml")}
    assert ours | {f"launcher/render/{name}" for name in layers} <= set(names)
    assert (metadata["Name"], metadata["Version"]) == ("multinode-launcher", __version__)
    assert metadata["License-Expression"] == "Apache-2.0"


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a fresh environment with the wheel. Third-party packages are this environment's."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin/python"
    wheel = built / f"{STEM}-py3-none-any.whl"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps", wheel, cwd=folder)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # A folder named in a .pth is searched, but its own .pth files, with the path of this checkout, are not read.
    (Path(site) / "third-party.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_installed_command_works_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import launcher; print(launcher.__file__)", cwd=tmp_path)
    assert where.startswith(str(installed.parent))
    assert run(installed / "launcher", "--version", cwd=tmp_path).split()[-1] == __version__
    assert "reference" in run(installed / "launcher", "engines", cwd=tmp_path)
    planned = run(installed / "launcher", "plan", "--engine", "reference", "--size", "2", cwd=tmp_path)
    assert "rank 1" in planned


def test_the_installed_command_renders_as_the_checkout_does(installed: Path, tmp_path: Path) -> None:
    render = ("render", "-f", K8S / "examples/inferenceservice.yaml", "--gang", "volcano")
    ours = run(sys.executable, "-m", "launcher", *render, cwd=ROOT)
    assert "kind: StatefulSet" in ours
    assert run(installed / "launcher", *render, cwd=tmp_path) == ours
