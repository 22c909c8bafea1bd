"""A web server on this machine, for what downloads."""

import hashlib
import re
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import NamedTuple

PIECE = 2**18


class Answer(NamedTuple):
    """To a GET or HEAD request."""

    content: bytes = b""
    status: int = 200
    stops_at: int | None = None
    """Byte of the content before which the connection is closed."""
    etag: str = ""
    ranges: bool = False
    """A ``Range`` is respected, if ``If-Range`` is the etag or not there."""
    pause: float = 0
    """Seconds between two pieces."""
    headers: Mapping[str, str] = MappingProxyType({})


def on_hub(content: bytes, says: bytes | None = None) -> Answer:
    """As the Hugging Face Hub answers: the etag is the content's SHA-256, or that of what it says that it has."""
    etag = hashlib.sha256(content if says is None else says).hexdigest()
    return Answer(content, etag=f'"{etag}"', headers={"X-Repo-Commit": "0" * 40})


class WebServer:
    """Answers by ``answers``, paths with their queries; those in a list one after another, and then the last one.

    Attributes:
        requests: paths that were got, in order.
        sent: bytes of content that were sent for each of them.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Answer | list[Answer]] = {}
        self.requests: list[str] = []
        self.sent: list[int] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                server.requests.append(self.path)
                content, stop, pause = self.answer()
                sent, number = server.sent, len(server.sent)
                sent.append(0)
                for begin in range(0, stop, PIECE):
                    piece = content[begin : min(begin + PIECE, stop)]
                    sent[number] += len(piece)
                    try:
                        self.wfile.write(piece)
                    except ConnectionError:  # the client wants no more
                        break
                    time.sleep(pause)

            def answer(self) -> tuple[bytes, int, float]:
                """Send the headers; the content, how much of it is to be sent, and the seconds between pieces."""
                found = server.answers.get(self.path, Answer(b"nothing here", 404))
                if isinstance(found, list):
                    found = found.pop(0) if len(found) > 1 else found[0]
                start, status, size = 0, found.status, len(found.content)
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                if asked and found.ranges and self.headers.get("If-Range", found.etag) == found.etag:
                    start = int(asked[1])
                    status = 206 if start < size else 416
                self.send_response(status)
                if status in (206, 416):
                    self.send_header(
                        "Content-Range", f"bytes {start}-{size - 1}/{size}" if status == 206 else f"bytes */{size}"
                    )
                if found.etag:
                    self.send_header("ETag", found.etag)
                for name, value in found.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(max(size - start, 0)))
                self.end_headers()
                stop = size if found.stops_at is None else found.stops_at
                return found.content[start:], max(stop - start, 0), found.pause

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (as in the base class)
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
