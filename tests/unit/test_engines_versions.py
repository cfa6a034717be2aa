"""What the engine's interpreter says of itself, asked of a real one; and how releases compare."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.engines import versions
from launcher.errors import ConfigError
from launcher.model import NodeFacts
from launcher.settings import Settings


def ask(*names: str, cwd: Path | None = None) -> dict[str, str]:
    run = subprocess.run(
        versions.argv(sys.executable, names), capture_output=True, text=True, check=True, timeout=100, cwd=cwd
    )
    return dict(versions.parse(run.stdout, sys.executable))


def test_a_real_interpreter_answers_with_what_is_there() -> None:
    found = ask("click", "no-such-distribution", "ray")
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(found) == {"python", "click"}


def test_a_checkout_in_the_working_directory_does_not_answer(tmp_path: Path) -> None:
    for name in ("ray-9.9.9.dist-info", "vllm-1.0.dist-info"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "METADATA").write_text(f"Name: {name[:4].strip('-')}\nVersion: 9.9.9\n")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise SystemExit('imported')")
    assert set(ask("ray", "vllm", cwd=tmp_path)) == {"python"}


def test_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTHONPATH is how some images install their engine; a module that would end the interpreter is only found."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "ray-2.60.0.dist-info").mkdir()
    (tmp_path / "ray-2.60.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ray\nVersion: 2.60.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert ask("ray")["ray"] == "2.60.0"


def test_chatter_is_passed_over() -> None:
    text = 'a site says hello\nLAUNCHER-VERSIONS {"vllm": "0.33.0"}\nbye\n'
    assert versions.parse(text, "py") == {"vllm": "0.33.0"}


@pytest.mark.parametrize(
    "text",
    [
        *("", "Traceback ...", "LAUNCHER-VERSIONS {", "LAUNCHER-VERSIONS []", 'LAUNCHER-VERSIONS {"a": 1}'),
        'LAUNCHER-VERSIONS {"a": "' + "1" * 200 + '"}',
        "LAUNCHER-VERSIONS " + "x" * 100_000,
    ],
)
def test_no_answer(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        versions.parse(text, "/opt/py")
    assert caught.value.message.startswith("/opt/py did not tell its versions; it printed ")
    assert len(caught.value.message) < 300


def test_the_cache_key_changes_with_the_interpreter_and_its_packages(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text("")
    first = versions.cache_key(str(python))
    assert first == versions.cache_key(str(python))
    import os

    os.utime(tmp_path / "lib", (1, 1))
    second = versions.cache_key(str(python))
    os.utime(python, (1, 1))
    assert len({first, second, versions.cache_key(str(python))}) == 3
    assert versions.cache_key(str(tmp_path / "none"))[1] == 0.0


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("0.11.2", "0.11.2", True),
        ("0.11.1", "0.11.2", False),
        ("0.12", "0.11.2", True),
        ("0.9.0.1", "0.9", True),
        ("0.32.0+cpu", "0.32.0", True),
        ("0.11.2rc1", "0.11.2", True),
        ("0.11.2.dev5+g1", "0.11.2", True),
        ("0.4.10.post2", "0.4.10.post2", True),
        ("0.4.10.post1", "0.4.10.post2", False),
        ("0.4.10", "0.4.10.post2", False),
        ("0.4.11", "0.4.10.post2", True),
        ("v2.60.0", "2.52.0", True),
        ("10.0", "9.9", True),
    ],
)
def test_releases_compare_by_what_they_can_do(one: str, other: str, expected: bool) -> None:
    assert versions.release(one).at_least(other) is expected


@pytest.mark.parametrize(
    ("text", "known"),
    [("0.33.0", True), ("0.1.dev1+g1", False), ("0.0.0.dev0", False), ("dev", False), ("0.1.0", True)],
)
def test_a_tree_without_tags_is_unknown(text: str, known: bool) -> None:
    assert versions.release(text).is_known is known


def test_a_version_that_was_said_stands_in_for_one_that_nobody_could_ask() -> None:
    said = Settings(engine_version="0.11.2")
    release, warnings = versions.installed(said, NodeFacts(), "vllm", "0.33.0", "vLLM")
    assert (str(release), warnings) == ("0.11.2", ())
    release, _ = versions.installed(said, NodeFacts({"vllm": "0.20.0"}, True), "vllm", "0.33.0", "vLLM")
    assert str(release) == "0.20.0"
    assert versions.release("0.32.0+cpu").local == "cpu"
