"""A web server on this machine, for what downloads."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest


class Answer(NamedTuple):
    """To a GET request."""

    content: bytes = b""
    status: int = 200
    missing: int = 0
    """Bytes that are announced and not sent."""
    location: str = ""


class WebServer:
    """Answers by ``answers``, paths with their queries; notes what was asked for in ``requests``."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                answer = server.answers.get(self.path, Answer(b"nothing here", 404))
                self.send_response(answer.status)
                self.send_header("Content-Length", str(len(answer.content) + answer.missing))
                if answer.location:
                    self.send_header("Location", answer.location)
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (as in the base class)
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture(scope="session")
def _web_server() -> Iterator[WebServer]:
    server = WebServer()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    with pytest.MonkeyPatch.context() as patch, server.http:
        patch.setenv("no_proxy", "127.0.0.1")
        thread.start()
        yield server
        server.http.shutdown()
        thread.join()


@pytest.fixture
def web(_web_server: WebServer) -> WebServer:
    """The server, with nothing to answer yet."""
    _web_server.answers.clear()
    _web_server.requests.clear()
    return _web_server


@pytest.fixture
def answer() -> type[Answer]:
    return Answer
