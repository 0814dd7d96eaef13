"""``python -m tests.fuzz.planted FAULT PORT``: a small server that answers well, but for the fault that is planted in it."""

import json
import os
import socket
import sys
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.fuzz.valid import ORDINARY

__all__ = ["FAULTS"]

READ = ("/healthz", "/readyz", "/v1/models", "/metrics", "/openapi.json")
ASKED = ("/v1/translate", "/v1/encode", "/v1/attention")
FAULTS = {
    "none": "",
    "error": "status 500",
    "hang": "the service neither answered nor ended the connection within",
    "redirect": "status 307",
    "plain": "status 400 is text/plain, not application/problem+json",
    "malformed": "the answer is no HTTP: illegal status line: bytearray(b'HTP/1.1 200')",
    "twice": "there are more answers than requests",
    "short": "the answer breaks off",
    "silent end": "the connection ended without an answer to a request",
    "sockets": "sockets are open; there were",
    "memory": "memory has grown by",
    "work": "dragoman_rows_in_use is 1.0 when nothing is asked",
    "exception": "an exception was reported:\nTraceback (most recent call last):\n",
    "death": "an ordinary request is no longer answered with 200",
}
"""What is planted, and what must be reported of it."""
kept: list[Any] = []
"""What is never given back."""


class Planted(BaseHTTPRequestHandler):
    """Answers like the service, with little in its answers."""

    protocol_version = "HTTP/1.1"
    fault = "none"

    def answer(self, status: int = 200, told: Any = None, kind: str = "application/json", **headers: str) -> None:
        content = told if isinstance(told, bytes) else json.dumps(told or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def problem(self, status: int, **headers: str) -> None:
        told = {"type": "about:blank", "title": "x", "status": status, "detail": self.path}
        self.answer(status, told, "application/problem+json", **headers)

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path not in READ + ASKED:
            self.problem(404)
        elif self.command not in (("GET", "HEAD") if self.path in READ else ("POST",)):
            self.problem(405, Allow="GET, HEAD" if self.path in READ else "POST")
        elif self.path == "/metrics":
            rows = int(self.fault == "work")
            self.answer(told=f"dragoman_rows_in_use {rows}\ndragoman_waiting_tokens 0\n".encode(), kind="text/plain")
        elif self.path in READ or body == ORDINARY.body or not self.misbehaved():
            self.answer()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one  # noqa: N815

    def misbehaved(self) -> bool:
        """Show the fault; returns whether this is all the answer there is."""
        if self.fault == "error":
            self.problem(500)
        elif self.fault == "hang":
            time.sleep(5)
        elif self.fault == "redirect":
            self.answer(307, Location="/")
        elif self.fault == "plain":
            self.answer(400, b"Invalid", "text/plain")
        elif self.fault == "malformed":
            self.wfile.write(b"HTP/1.1 200\r\n\r\n")
        elif self.fault == "short":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\nonly")
            self.close_connection = True
        elif self.fault == "silent end":
            self.close_connection = True
        elif self.fault == "death":
            os._exit(1)
        else:
            return self.misbehaved_besides()
        return True

    def misbehaved_besides(self) -> bool:
        """Show a fault beside the answer."""
        if self.fault == "twice":
            self.answer()
        elif self.fault == "sockets":
            kept.append(socket.socket(fileno=os.dup(self.connection.fileno())))
        elif self.fault == "memory":
            kept.append(os.urandom(8 * 2**20))
        elif self.fault == "exception":
            try:
                raise RuntimeError("planted")
            except RuntimeError:
                traceback.print_exc()
        return False

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # more clients come at one time than it lets wait unless told


if __name__ == "__main__":
    Planted.fault = sys.argv[1]
    Server(("127.0.0.1", int(sys.argv[2])), Planted).serve_forever()
