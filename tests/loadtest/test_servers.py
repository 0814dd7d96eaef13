import json
import sys
import urllib.request

import pytest

from loadtest.servers import free_port, running

SAYS_ITS_ENVIRONMENT = """
import http.server, json, os, sys

class Says(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(dict(os.environ)).encode())

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Says).serve_forever()
"""


def test_a_service_has_none_of_the_callers_settings_and_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAGOMAN_ROWS", "7")
    monkeypatch.setenv("dragoman_cpus", "1")  # settings are read in any case
    monkeypatch.setenv("KEPT", "yes")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", SAYS_ITS_ENVIRONMENT, str(port)]
    with running(command, url), urllib.request.urlopen(url, timeout=20) as answer:
        found = json.load(answer)
    assert not [name for name in found if name.upper().startswith("DRAGOMAN")]
    assert found["KEPT"] == "yes"
