"""Plug-ins with real entry points, installed as pip would do it, without a network or a build."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DOCS = Path(__file__).parents[1] / "docs"
_BLOCK = re.compile(r"^`([\w./]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def install(folder: Path, files: Mapping[str, str]) -> Path:
    """Put the package of a ``pyproject.toml`` and its metadata into a folder, which then goes onto PYTHONPATH."""
    project = tomllib.loads(files["pyproject.toml"])["project"]
    for name, text in files.items():
        if name != "pyproject.toml":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(head)
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


def documented() -> dict[str, str]:
    """The files of the example in docs/plugins.md."""
    return dict(_BLOCK.findall((DOCS / "plugins.md").read_text()))


def environment(folder: Path) -> dict[str, str]:
    """What a launcher is started with so that it sees the plug-ins of ``folder``."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LAUNCHER_")}
    path = [str(folder), *filter(None, [environ.get("PYTHONPATH", "")])]
    return {**environ, "PYTHONPATH": os.pathsep.join(path), "LAUNCHER_TERMINATION_LOG": os.devnull}
