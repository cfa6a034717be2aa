#!/usr/bin/env python3
"""The self-contained launcher: one folder with the launcher and all that it needs, for any CPython from 3.10 on.

    python3 images/bundle.py OUT                    download the wheels, build OUT
    python3 images/bundle.py --download WHEELS      only download (where the build itself has no network)
    python3 images/bundle.py --wheels WHEELS OUT    build from these, no network

OUT/launcher is the command. It runs on the Python that it finds in the image, in isolation: nothing is taken from that
Python's site-packages, no PYTHON* variable is heard, and nothing is put there. So one folder serves images of different
Pythons, and it may be copied anywhere; every wheel in it is pure Python or abi3 (one binary for all Pythons of Linux
with glibc, per machine type).

Needs Python 3.10 and nothing else; downloading needs pip.
"""

from __future__ import annotations

import argparse
import compileall
import platform
import py_compile
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"
PACKAGE = HERE.parent / "launcher"
OLDEST = "3.10"
#: never imported by the launcher in a pod
LEFT_OUT = ("*.pyi", "*.exe", "tests/*", "*/tests/*", "bin/*", "*.data/scripts/*")


def main() -> int:
    arguments = _arguments()
    if arguments.download:
        download(arguments.download, arguments.machine)
        return 0
    wheels = arguments.wheels
    if wheels is None:
        wheels = arguments.out.with_name(arguments.out.name + ".wheels")
        download(wheels, arguments.machine)
    build(wheels, arguments.out)
    if arguments.wheels is None:
        shutil.rmtree(wheels)
    files = [p for p in arguments.out.rglob("*") if p.is_file()]
    compiled = sum(p.stat().st_size for p in files if p.suffix == ".pyc")
    total = sum(p.stat().st_size for p in files)
    print(f"{arguments.out}: {total / 1e6:.1f} MB in {len(files)} files, {compiled / 1e6:.1f} MB of it compiled for "
          f"Python {platform.python_version()}")  # fmt: skip
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build the self-contained launcher.")
    parser.add_argument("out", type=Path, nargs="?", help="folder to make; replaced if it is there")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to build from")
    parser.add_argument(
        "--download", type=Path, metavar="WHEELS", help="download wheels into this folder, build nothing"
    )
    parser.add_argument("--machine", default=platform.machine(), help="x86_64 or aarch64 [this machine's]")
    arguments = parser.parse_args()
    if (arguments.out is None) == (arguments.download is None):
        parser.error("name either the folder to build or --download")
    return arguments


def download(folder: Path, machine: str) -> None:
    """Exactly the wheels of requirements.txt, for Python 3.10 and this machine type, into an empty `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--abi", "abi3", "--abi", "none"]
    command += ["--python-version", OLDEST, "-d", str(folder), "-r", str(REQUIREMENTS)]
    for name in (f"manylinux2014_{machine}", f"manylinux_2_17_{machine}", f"manylinux_2_28_{machine}"):
        command += ["--platform", name]
    subprocess.run(command, check=True)


def build(wheels: Path, out: Path) -> None:
    """`out` from the wheels and this checkout's package."""
    shutil.rmtree(out, ignore_errors=True)
    library = out / "lib"
    library.mkdir(parents=True)
    found = sorted(wheels.glob("*.whl"))
    _check(found)
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if not any(Path(name).match(pattern) for pattern in LEFT_OUT):
                    archive.extract(name, library)
    shutil.copytree(PACKAGE, library / "launcher", ignore=shutil.ignore_patterns("__pycache__"))
    for name, mode in (("launcher", 0o755), ("run.py", 0o644)):
        shutil.copyfile(HERE / "bundle" / name, out / name)
        (out / name).chmod(mode)
    # Good for as long as nobody edits the files, whatever happens to their times when the folder is copied.
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    if not compileall.compile_dir(library, quiet=2, invalidation_mode=unchecked, stripdir=str(out)):
        raise SystemExit("bundle.py: not everything could be compiled")
    # For run.sh, and for whatever starts a module of the launcher: bin/python -m launcher.x
    (out / "bin").mkdir()
    for name in ("launcher", "python"):
        (out / "bin" / name).symlink_to("../launcher")
    for path in (p for p in out.rglob("*") if not p.is_symlink()):
        path.chmod(0o755 if path.is_dir() or path == out / "launcher" else 0o644)


def _check(wheels: list[Path]) -> None:
    """Each requirement once, in a wheel that any CPython from 3.10 on takes."""
    lines = [line.partition("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines()]
    wanted = {tuple(line.lower().replace("-", "_").split("==")) for line in lines if line}
    have = {tuple(wheel.name.lower().split("-")[:2]) for wheel in wheels}
    if have != wanted:
        different = ", ".join(sorted("==".join(pair) for pair in have ^ wanted))
        raise SystemExit(f"bundle.py: wheels and {REQUIREMENTS.name} differ: {different}")
    bound = [w.name for w in wheels if w.stem.split("-")[-2] not in ("none", "abi3")]
    if bound:
        raise SystemExit(f"bundle.py: made for one Python only: {', '.join(bound)}")


if __name__ == "__main__":
    sys.exit(main())
