"""Programs that are started by path in the engine's interpreter: the files beside them must hide no package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.engines.ray import stages
from launcher.preflight.group import rank_program

PROGRAMS = {
    stages.CLUSTER: ("ray/scripts/scripts.py", ["start", "--", "start"]),
    rank_program.INSIDE: (
        "torch/__init__.py",
        ["--rank", "0", "--pods", "1", "--local", "1", "--master", "127.0.0.1", "1", "--backend", "gloo"],
    ),
}
#: Imported in the place of the package that the program needs.
WITNESS = """
import sys
for name in {names!r}:
    print(__import__(name).__file__)
sys.exit(3)
"""


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: Path(path).name)
def test_a_package_with_the_name_of_a_file_beside_it(tmp_path: Path, program: str, linked: bool) -> None:
    names = sorted(path.stem for path in Path(program).parent.glob("*.py") if path.stem != "__init__")
    assert len(names) > 1
    imported, arguments = PROGRAMS[program]
    site = tmp_path / "site"
    for name in names:
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").touch()
    for folder in reversed(list(Path(imported).parents)):
        (site / folder).mkdir(exist_ok=True)
        (site / folder / "__init__.py").touch()
    (site / imported).write_text(WITNESS.format(names=names))
    if linked:
        (tmp_path / "link").symlink_to(Path(program).parent)
        program = str(tmp_path / "link" / Path(program).name)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, program, *arguments],
        env={**environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines() == [str(site / name / "__init__.py") for name in names]
