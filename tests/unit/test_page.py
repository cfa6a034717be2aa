"""The page at `/`, without a browser: its size, its policy, and that no text can become markup.

`tests/e2e/test_page_in_browser.py` looks at it in headless Chromium.
"""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest

import launcher
from launcher.api import page
from launcher.api.server import Pages, respond
from launcher.model import PHASES

PACKAGE = Path(launcher.__file__).parent
FILE = PACKAGE / "api" / page.FILE
LARGEST = 40_000  #: bytes
#: ways in which a script makes markup or code of a text
SINKS = (
    *("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "createContextualFragment"),
    *("eval(", "new Function", "srcdoc", "setHTML", "parseFromString", ".style", "cssText", "insertRule", "import("),
)


class Elements(HTMLParser):
    """Start tags with their attributes, and what is inside of style and script."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"style": [], "script": []}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_data(self, data: str) -> None:
        last = self.tags[-1][0] if self.tags else ""
        if last in self.inside and not self.inside[last][-1]:
            self.inside[last][-1] = data


def get(
    path: str = "/", peer: str = "10.0.0.9", method: str = "GET", **headers: str
) -> tuple[int, Mapping[str, str], str]:
    pages = Pages(lambda: (False, ""), lambda: "", dict, secrets=lambda: (b"s" * 32,))
    reply = respond(pages, path, headers, peer, method)
    return reply.status_code, reply.headers, reply.body.decode()


def test_it_is_small_and_one_file() -> None:
    code, headers, text = get()
    assert code == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert int(headers["Content-Length"]) == len(text.encode()) == FILE.stat().st_size < LARGEST
    assert text == FILE.read_text(encoding="utf-8") and "\r" not in text


def test_the_policy_admits_its_own_script_and_style_and_nothing_else() -> None:
    _, headers, text = get()
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    inside = Elements(text).inside
    for kind in ("script", "style"):
        (content,) = inside[kind]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy.pop(f"{kind}-src") == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"


def test_it_loads_nothing_and_has_no_inline_styles_or_handlers() -> None:
    text = get()[2]
    assert not re.findall(r"[a-z]+://|url\(|@import|//\w+\.\w+", text, re.I)
    tags = Elements(text).tags
    assert {"svg", "template", "form"} <= {tag for tag, _ in tags}, "they were read"
    assert not {"link", "img", "iframe", "object", "embed", "base", "video", "audio", "source"} & {
        tag for tag, _ in tags
    }
    for tag, attributes in tags:
        assert "style" not in attributes and not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert not {"src", "srcset", "action", "formaction", "ping"} & attributes.keys(), (tag, attributes)
        assert attributes.get("href") in (None, "status"), (tag, attributes)


def test_texts_become_text_nodes() -> None:
    (script,) = Elements(get()[2]).inside["script"]
    assert not [sink for sink in SINKS if sink in script]
    assert "createTextNode" in script and ".textContent = " in script
    assert set(re.findall(r"setAttribute\('([^']+)'", script)) == {"x", "width", "class", "aria-label", "href"}
    assert len(re.findall(r"setAttribute\(", script)) == 5, "each with a literal name"
    assert "setAttribute('href', 'autopsy')" in script


def test_it_knows_every_phase() -> None:
    (script,) = Elements(get()[2]).inside["script"]
    table = script.split("const PHASES = {", 1)[1].split("\n};", 1)[0]
    assert set(re.findall(r"^  (\w+): \[", table, re.M)) == set(PHASES)


def test_it_is_the_same_for_everybody_and_takes_get_only() -> None:
    assert get()[2] == get(peer="127.0.0.1", Host="localhost")[2] == get("/?x=<script>", Authorization="Bearer x")[2]
    assert get(method="POST")[0] == 405
    assert get("/page.html")[0] == get("/index.html")[0] == 404


def test_it_costs_nothing_before_somebody_asks() -> None:
    code = "import sys; from launcher.api import server; print('launcher.api.page' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_it_is_read_from_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "launcher.zip", "w") as archive:
        for path in (PACKAGE / "__init__.py", *(p for p in (PACKAGE / "api").iterdir() if p.is_file())):
            archive.write(path, path.relative_to(PACKAGE.parent))
    code = "import sys; sys.path.insert(0, sys.argv[1]); from launcher.api import page"
    code += "; print(page.__file__, len(page.load()[0]))"
    command = [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "launcher.zip")]
    where, length = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "launcher.zip" in where and int(length) == len(get()[2])


def test_a_page_that_cannot_be_read_costs_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say, because the image's file system fails: the other pages go on, and so does this one later."""
    from launcher.api.visitors import answer_of

    page.load.cache_clear()
    monkeypatch.setattr(page, "FILE", "absent.html")
    pages = Pages(lambda: (True, "serving"), lambda: "", dict)

    def ask(path: str) -> int:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost".encode()
        return answer_of(
            lambda method, target, headers, peer: respond(pages, target, headers, peer, method), head, "127.0.0.1"
        ).status_code

    assert (ask("/"), ask("/readyz")) == (500, 200)
    monkeypatch.undo()
    assert ask("/") == 200
