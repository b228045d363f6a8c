"""Two that run the script of a page: QuickJS on a document of our own (`dom.js`), and Chromium by PyQt6-WebEngine.

Each has `open(page)` and `run(script)`: what the script returns, as JSON brings it.
"""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

HERE = Path(__file__).parent
OPEN = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


class Tree(HTMLParser):
    """A page as [tag, attributes, [what is in it]]."""

    def __init__(self, html):
        super().__init__()
        self.open = [["#document", {}, []]]
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        element = [tag, {name: value or "" for name, value in attrs}, []]
        self.open[-1][2].append(element)
        if tag not in OPEN:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.open[-1][2].append([tag, {name: value or "" for name, value in attrs}, []])

    def handle_endtag(self, tag):
        while self.open[-1][0] != tag:  # a tag that may stay open
            self.open.pop()
        self.open.pop()

    def handle_data(self, data):
        self.open[-1][2].append(data)


class QuickJS:
    def __init__(self, folder):
        self._engine = pytest.importorskip("quickjs", reason="quickjs-ng is not installed (it is in palora[dev])")

    def open(self, page):
        html = Path(page).read_text(encoding="utf-8")
        self._context = self._engine.Context()
        self._context.eval((HERE / "dom.js").read_text(encoding="utf-8"))
        self._context.eval(f"load({json.dumps(Tree(html).open[0])})")
        for script in SCRIPT.findall(html):
            self._context.eval(script)

    def run(self, script):
        return json.loads(self._context.eval(f"JSON.stringify((() => {{ {script} }})() ?? null)"))

    def close(self):
        pass


class Chromium:
    def __init__(self, folder):
        pytest.importorskip(
            "PyQt6.QtWebEngineCore",
            reason="PyQt6-WebEngine is not installed (pip install PyQt6-WebEngine: half a GB)",
            exc_type=ImportError,
        )
        command = [sys.executable, str(HERE / "chromium.py"), str(folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def _ask(self, **asked):
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"errors": ["the browser has ended"]}')
        assert not answer["errors"], answer["errors"]
        return answer["value"]

    def open(self, page):
        assert self._ask(open=page if "://" in str(page) else Path(page).as_uri())

    def run(self, script):
        return json.loads(self._ask(run=f"JSON.stringify((() => {{ {script} }})() ?? null)"))

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=30)


def opened(kind, folder):
    """A browser, closed in the end; for a fixture to yield from."""
    browser = kind(folder)
    yield browser
    browser.close()
