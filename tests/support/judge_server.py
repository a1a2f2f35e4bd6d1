"""A judge on this machine: a real HTTP server whose replies a test chooses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from analysis.values import Json

KEY = "sk-test-3f9a71c0d2"


@dataclass(frozen=True)
class Response:
    """What the server sends: a chat completion of `text`, or `body` as it stands."""

    text: str = "50"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None


@dataclass
class Server:
    """The address, and what was asked so far: bodies and headers."""

    url: str
    bodies: list[Json] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    busiest: int = 0


Choose = Callable[[int, str], Response]
"""From how many requests came before, and the question's text, to what is sent."""


@contextmanager
def judge_server(choose: Choose) -> Iterator[Server]:
    """Serve on a free port of the loopback until the block ends."""
    lock, busy = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.bodies)
                server.bodies.append(body | {"path": self.path})
                server.headers.append(dict(self.headers.items()))
                busy[0] += 1
                server.busiest = max(server.busiest, busy[0])
            found = choose(number, body["messages"][-1]["content"])
            with lock:
                busy[0] -= 1
            data = found.body if found.body is not None else completion(found.text)
            try:
                self.send_response(found.status)
                for name, value in found.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # the client has gone

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    server = Server(f"http://127.0.0.1:{httpd.server_address[1]}/v1")
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def completion(text: str | None) -> bytes:
    """A chat completion as an OpenAI-compatible server sends it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 11, "completion_tokens": 2}
    return json.dumps({"choices": [choice], "usage": usage}).encode()
