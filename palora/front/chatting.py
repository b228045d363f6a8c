"""Talk to the arms of a run: in the terminal, or on a page of this machine.

The page is for whoever started it alone. The server listens on the loopback interface; every address begins with a
random token; a request under another host's name is refused (a page on the web could otherwise point its own name
here). It has no script and loads nothing: a form is sent, the answers stand in the next page, escaped.
"""

import secrets
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from palora.common.errors import PaloraError
from palora.common.progress import waiting
from palora.common.wording import printable

Ask = Callable[[str], dict[str, str]]  # a question -> what every arm answers

LABELS = {"base": "base (as it was)", "lora": "lora (plain LoRA)"}
LARGEST = 64 * 1024  # bytes of a form
SHOWN = 50  # questions on the page
HOSTS = ("127.0.0.1", "localhost")
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def label(arm: str) -> str:
    """What an arm is called."""
    return LABELS.get(arm, arm)


def show(question: str, answers: dict[str, str]) -> None:
    """Print what every arm answers, side by side."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def plain(text: str) -> Text:
        return Text(printable(text))  # what a model writes shall not steer the terminal

    table = Table(title=plain(question), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, expand=True)
    for arm in answers:
        table.add_column(label(arm), ratio=1, overflow="fold")
    table.add_row(*(plain(text or "(nothing)") for text in answers.values()))
    Console(width=None if Console().is_terminal else 100).print(table)


def talk(ask: Ask, questions: Iterable[str]) -> None:
    """Answer one question after the other; a question that cannot be answered is told, and the next one is asked."""
    for question in filter(None, map(str.strip, questions)):
        try:
            with waiting("The arms answer"):
                answers = ask(question)
        except PaloraError as error:
            print(f"palora: {error}")
        else:
            show(question, answers)


def typed() -> Iterable[str]:
    """What a person types, line by line, until Ctrl-D or Ctrl-C."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (input() then has a history)
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


class Page(ThreadingHTTPServer):
    """The page of a run, served on a free port of the loopback interface until `shutdown`.

    Args:
        ask: called by one request at a time.
        run: the folder, for the title.
    """

    daemon_threads = True

    def __init__(self, ask: Ask, run: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token, self.run = secrets.token_urlsafe(24), run
        self._ask, self._one, self._said = ask, threading.Lock(), list[tuple[str, dict[str, str]]]()

    @property
    def url(self) -> str:
        """The address to open."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def answer(self, question: str) -> None:
        """Let every arm answer; it stands on the page from then on."""
        with self._one:
            try:
                said = {label(arm): text for arm, text in self._ask(question).items()}
            except PaloraError as error:
                said = {"palora": str(error)}
            self._said = [(question, said), *self._said][:SHOWN]

    def html(self) -> str:
        """The page as it is now, the newest question first."""
        from palora.results.pages import page

        return page.fill(Path(page.__file__).with_name("chat.html.jinja"), run=str(self.run), said=self._said)


class _Handler(BaseHTTPRequestHandler):
    server: Page
    timeout = 30  # seconds that a request may take to arrive

    def do_GET(self) -> None:
        if self._allowed("/"):
            self._send(HTTPStatus.OK, self.server.html())

    def do_POST(self) -> None:
        if not self._allowed("/ask"):
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self._send(HTTPStatus.LENGTH_REQUIRED)
        elif len(length) > 9 or int(length) > LARGEST:
            self._send(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            form = parse_qs(self.rfile.read(int(length)).decode("utf-8", "replace"))
            if question := form.get("question", [""])[0].strip():
                self.server.answer(question)
            self._send(HTTPStatus.SEE_OTHER, Location=f"/{self.server.token}/")  # so that a reload asks nothing again

    def _allowed(self, wanted: str) -> bool:
        """Whether a request is from this machine's user, for a page that there is; otherwise it is answered here."""
        token, slash, rest = self.path.removeprefix("/").partition("/")
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in HOSTS or not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._send(HTTPStatus.FORBIDDEN)
        elif slash + rest != wanted:
            self._send(HTTPStatus.NOT_FOUND)
        else:
            return True
        return False

    def _send(self, status: HTTPStatus, text: str | None = None, **headers: str) -> None:
        body = (text or f"{status.value} {status.phrase}\n").encode()
        self.close_connection = True  # what was not read of a refused request is no next one
        self.send_response(status)
        for name, value in {**_HEADERS, **headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the address holds the token."""

    def version_string(self) -> str:
        return "palora"


def serve(ask: Ask, run: Path) -> None:
    """Serve the page until Ctrl-C."""
    with Page(ask, run) as server:
        print(f"Open {server.url} in a browser on this machine; Ctrl-C ends it.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
