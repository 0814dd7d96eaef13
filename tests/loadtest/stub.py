"""Services that answer what a test wants, and programs in a process of their own: gevent patches whatever loads it."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATCHED = "from gevent import monkey\nmonkey.patch_all()\n"
"""How a program begins that loads anything of Locust's."""


class Stub(BaseHTTPRequestHandler):
    """Answers everything with 200 until a method says otherwise."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.get()

    def do_POST(self) -> None:
        self.post()

    def do_DELETE(self) -> None:
        self.post()

    def get(self) -> None:
        self.answer(200)

    def post(self) -> None:
        self.body()
        self.answer(200)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, content: bytes = b"", missing: int = 0) -> None:
        """Answer; with ``missing`` bytes more announced than come before the connection ends."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) + missing))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection |= bool(missing)

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *arguments: object) -> None:
        """Clients that leave are no news."""


@contextmanager
def served(handler: type[Stub]) -> Iterator[str]:
    """The address of a service that answers as ``handler`` does."""
    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def program(text: str, *arguments: str, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
    """Run ``text`` as Python."""
    command = [sys.executable, "-c", text, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
