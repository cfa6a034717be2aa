"""What the engine's interpreter has installed, found in tens of milliseconds and without importing any of it.

The launcher runs in another interpreter, so it asks the engine's Python once, through importlib.metadata: importing
torch for its version takes seconds and may touch the GPU. The interpreter runs without ``-I`` and ``-E``, because some
images install their engine by PYTHONPATH or in a user site. The script removes the working directory from ``sys.path``
itself, because a checkout there would hide the installed package (``-P`` needs Python 3.11).

This module runs nothing: ``argv`` is the command, ``parse`` reads its output. ``Release`` compares versions.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.errors import ConfigError
from launcher.model import NodeFacts
from launcher.settings import Settings

SCRIPT = """
import sys
sys.path[:] = [p for p in sys.path if p not in ("", ".")]
import json
try:
    from importlib.metadata import PackageNotFoundError, version
except ImportError:
    from importlib_metadata import PackageNotFoundError, version
from importlib.util import find_spec
versions = {"python": "%d.%d.%d" % sys.version_info[:3]}
for name in sys.argv[1:]:
    try:
        found = version(name)
    except PackageNotFoundError:
        continue
    except Exception as error:
        print("%s: %s" % (name, error), file=sys.stderr)
        continue
    if found and (name != "ray" or find_spec("ray") is not None):
        versions[name] = str(found)
print("LAUNCHER-VERSIONS " + json.dumps(versions))
"""

PREFIX = "LAUNCHER-VERSIONS "
TIMEOUT = 30.0  #: seconds; a cold network file system is slow, a local disk takes 0.1 s
_MAX_OUTPUT = 64 * 1024
_MAX_VERSION = 100
_RELEASE = re.compile(r"^\s*v?(?:\d+!)?(\d+(?:\.\d+)*)(?:[._-]?post(\d+))?", re.IGNORECASE)


def argv(interpreter: str, distributions: Sequence[str]) -> tuple[str, ...]:
    """The command. It prints one line and exits with 0, also where nothing is installed."""
    return (interpreter, "-c", SCRIPT, *distributions)


def parse(output: str, interpreter: str) -> Mapping[str, str]:
    """The versions in the output of ``argv``; other lines (a chatty sitecustomize) are skipped.

    Raises:
        ConfigError: there is no answer in it, or an invalid one.
    """
    if len(output) > _MAX_OUTPUT:
        output = output[-_MAX_OUTPUT:]
    lines = [line for line in output.splitlines() if line.startswith(PREFIX)]
    if lines:
        try:
            answer = json.loads(lines[-1][len(PREFIX) :])
        except ValueError:
            answer = None
        if isinstance(answer, dict) and all(isinstance(v, str) and len(v) <= _MAX_VERSION for v in answer.values()):
            return dict(answer)
    raise ConfigError(
        f"{interpreter} did not tell its versions; it printed {output.strip()[-200:]!r}",
        "is it a Python 3.8 or newer? Name the engine's interpreter with --python",
    )


def cache_key(interpreter: str) -> tuple[str, float, float]:
    """What a cached answer depends on: the interpreter (not resolved: a venv's is a symlink) and its mtime.

    The ``lib`` folder beside it counts too: ``pip install`` changes that and not the interpreter. Reads the disk.
    """
    path = os.path.abspath(interpreter)
    return path, _mtime(path), _mtime(os.path.join(os.path.dirname(os.path.dirname(path)), "lib"))


def _mtime(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


# ------------------------------------------------------------------------------------------- comparing


def installed(
    settings: Settings, facts: NodeFacts, distribution: str, newest: str, called: str
) -> tuple[Release, tuple[str, ...]]:
    """The engine's release and warnings about it; ``newest`` where the interpreter could not be asked.

    Raises:
        ConfigError: the interpreter was asked and does not have the engine.
    """
    text = facts.versions.get(distribution)
    if text is None and facts.versions_known:
        raise ConfigError(
            f"{settings.python or 'python3'} has no {distribution}",
            f"name the Python that {called} is installed in with --python, or install it there",
        )
    text = text or settings.engine_version
    if text is None:
        return release(newest), (
            f"{called}'s version is not known here: {newest} is assumed (say it with --engine-version)",
        )
    found = release(text)
    if not found.is_known:
        return release(newest), (f"{called} calls itself {text}: taken for as new as {newest}",)
    return found, ()


@dataclass(frozen=True)
class Release:
    """A version of an engine: release numbers and post release.

    ``.dev``, ``rc`` and the local part (``+cu129``) do not count: a development build has what its release will have.
    """

    text: str
    numbers: tuple[int, ...]
    post: int = 0

    def at_least(self, version: str) -> bool:
        other = release(version)
        return (_padded(self.numbers), self.post) >= (_padded(other.numbers), other.post)

    @property
    def local(self) -> str:
        """The part after ``+``: ``cpu``, ``cu129``."""
        return self.text.partition("+")[2]

    @property
    def is_known(self) -> bool:
        """False for a build from a source tree without tags (``0.1.dev1+g12ab``, ``dev``): it is new, not old."""
        return bool(self.numbers) and not (self.numbers[:2] in ((0, 0), (0, 1)) and "dev" in self.text)

    def __str__(self) -> str:
        return self.text


def release(text: str) -> Release:
    """Parse a version. One that cannot be parsed has no numbers, and its ``is_known`` is False."""
    match = _RELEASE.match(text)
    if match is None:
        return Release(text, ())
    return Release(text, tuple(int(n) for n in match[1].split(".")), int(match[2] or 0))


def _padded(numbers: tuple[int, ...]) -> tuple[int, ...]:
    return (*numbers, 0, 0, 0, 0)[:4]
