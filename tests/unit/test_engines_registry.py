"""Engines by name: built in, from an entry point, from a file, or none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.engines import registry
from launcher.engines.base import Engine
from launcher.errors import ConfigError, UsageError
from launcher.settings import Settings


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_built_in(name: str) -> None:
    engine = registry.load(Settings(engine=name))
    assert isinstance(engine, Engine)
    assert engine.name == name
    assert engine.summary == registry.BUILT_IN[name].summary


def test_a_built_in_name_imports_neither_the_others_nor_the_entry_points() -> None:
    program = (
        "import sys; from launcher.engines.registry import load; from launcher.settings import Settings;"
        "load(Settings(engine='sglang')); print([m for m in ('importlib.metadata', 'launcher.engines.vllm.engine',"
        " 'launcher.engines.reference') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert run.stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "near"), [("vlm", "did you mean vllm? "), ("SGLang", "did you mean sglang? "), ("zzz", "")]
)
def test_an_unknown_name(name: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        registry.load(Settings(engine=name, origins={"engine": "--engine"}))
    assert caught.value.message.startswith(f"--engine {name}: there is no such engine; available: ")
    assert "reference, sglang, vllm" in caught.value.message
    assert caught.value.fix == f"{near}Give --engine one of these, or wrap another with --engine-file my.toml"


MODULE = """
from launcher.engines.sglang.engine import SGLangEngine
class Mine(SGLangEngine):
    name = "mine"
    summary = "my own"
instance = Mine()
def factory():
    return Mine()
nothing = 3
class Bare:
    pass
def broken():
    raise RuntimeError("no licence")
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution with entry points, as pip would install it."""
    (tmp_path / "my_engines.py").write_text(MODULE)
    info = tmp_path / "my_engines-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-engines\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[launcher.engines]\nmine = my_engines:Mine\nready = my_engines:instance\nmade = my_engines:factory\n"
        "nothing = my_engines:nothing\nbare = my_engines:Bare\nbroken = my_engines:broken\ngone = my_engines:gone\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_engines", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", ["mine", "ready", "made"])
def test_an_entry_point_is_a_class_an_instance_or_a_factory(installed: Path, name: str) -> None:
    assert registry.load(Settings(engine=name)).summary == "my own"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "engine nothing: 3 is no engine"),
        ("bare", "is no engine"),
        ("broken", "engine broken cannot be loaded: RuntimeError: no licence"),
        ("gone", "entry point gone = my_engines:gone cannot be loaded: AttributeError"),
    ],
)
def test_an_entry_point_that_is_no_engine(installed: Path, name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.load(Settings(engine=name))
    assert words in caught.value.message


def test_the_listing(installed: Path) -> None:
    rows = {name: (summary, origin) for name, summary, origin in registry.available()}
    assert rows["vllm"][1] == "built in"
    assert rows["mine"] == ("my own", "my-engines 1.2 (my_engines:Mine)")
    assert rows["broken"][0] == "cannot be used: engine broken cannot be loaded: RuntimeError: no licence"


def test_a_file_goes_before_a_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n[leader]\ncommand = ["a"]\n[worker]\ncommand = ["b"]\n')
    assert registry.load(Settings(engine_file=str(path), engine="no such thing")).name == "mine"
