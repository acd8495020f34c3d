"""A server of weights on this machine, with the faults that a test asks for."""

import contextlib
import dataclasses
import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from edgeseg.networks.published import MIRROR, PUBLISHED

__all__ = [
    "ACCEPT",
    "CONTENT",
    "NAME",
    "blob_id",
    "gets",
    "last_line",
    "leave_part",
    "part_of",
    "pinned_cache",
    "serving",
]

CONTENT = bytes(range(256)) * 1200
NAME = "enet-void"
ACCEPT = ("fetch", NAME, "--accept-terms")


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Raw file contents, with the faults that the server's attributes ask for."""

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def do_CONNECT(self):
        self.server.requests.append(("CONNECT", self.path))
        self.send_error(503)

    def answer(self, *, head):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append((self.command, asked))
        server.paths.append(self.path)
        if server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        if (head and server.head_status) or server.status:
            self.send_error(server.head_status if head and server.head_status else server.status)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        total = len(server.content)
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            span = server.span or f"bytes {start}-{total - 1}/{total}"
            self.send_header("Content-Range", span)
        if server.says_length:
            self.send_header("Content-Length", str(server.length or len(body)))
        self.end_headers()
        if not head:
            self.wfile.write(body[: server.cut])
            if server.stalls:
                server.released.wait(10)

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(**faults):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.requests, server.paths = CONTENT, [], []
        server.ranges, server.says_length, server.stalls = True, True, False
        server.cut = server.length = server.span = None
        server.status = server.head_status = server.redirect = None
        server.released = threading.Event()
        server.address = f"http://127.0.0.1:{server.server_port}"
        vars(server).update(faults)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


def pinned_cache(monkeypatch, folder):
    """An empty cache; the pin of one published file is that of what the server has."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.delenv(MIRROR, raising=False)
    entry = dataclasses.replace(PUBLISHED[NAME], blob=blob_id(CONTENT))
    monkeypatch.setitem(PUBLISHED, NAME, entry)
    return folder / "edgeseg" / "weights"


def part_of(cache):
    return cache / f"{NAME}.pth.{blob_id(CONTENT)[:8]}.part"


def leave_part(cache, content):
    cache.mkdir(parents=True)
    part_of(cache).write_bytes(content)


def gets(server):
    return [asked for command, asked in server.requests if command == "GET"]


def last_line(err):
    assert "Traceback" not in err, err
    line = err.splitlines()[-1]
    assert line.startswith("edgeseg: "), line
    return line
