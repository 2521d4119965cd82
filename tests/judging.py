"""A judge for tests: an OpenAI-compatible endpoint in a thread, whose replies a test writes."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Server:
    """`reply(user text, number) -> text | (status, text) | seconds to sleep`; keeps what it was asked."""

    def __init__(self) -> None:
        self.reply = lambda user, number: '{"score": 7}'
        self.asked: list[dict] = []
        self.headers: list[dict] = []
        self.most_at_once = self.now = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.asked.append(body)
                    outer.headers.append(dict(self.headers) | {"path": self.path})
                    number = len(outer.asked)
                    outer.now += 1
                    outer.most_at_once = max(outer.most_at_once, outer.now)
                got = outer.reply(body["messages"][1]["content"], number)
                if isinstance(got, float):
                    time.sleep(got)
                    got = '{"score": 7}'
                with outer.lock:
                    outer.now -= 1
                status, text = got if isinstance(got, tuple) else (200, got)
                whole = text if isinstance(text, bytes) else _completion(text)
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "0.8")
                self.send_header("Content-Length", str(len(whole)))
                self.end_headers()
                self.wfile.write(whole)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def _completion(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found = Server()
    yield found
    found.close()
