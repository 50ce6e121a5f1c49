# SPDX-License-Identifier: Apache-2.0
"""A local server that answers huggingface_hub as the hub does, with faults on request.

``/REPO/resolve/REVISION/FILE`` is answered by a redirect to a storage address with the headers
X-Repo-Commit, X-Linked-ETag (the file's SHA-256, as for large files) and X-Linked-Size; the storage
serves ranges.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The hub's files by "repo/path", the server's faults, and the requests that it received."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.errors: dict[str, tuple[int, str]] = {}  # "repo/path" -> status and X-Error-Code
        self.damage = False  # storage sends wrong bytes of the right length
        self.small = False  # the hub gives no SHA-256, as for small files
        self.cut_after = 0  # storage closes its first connection after this many bytes
        self.hold_after = 0  # storage sends nothing more after this many bytes until `release`
        self.release = threading.Event()
        self.held = threading.Event()
        self.size: str | None = ""  # X-Linked-Size; "": the true one, None: not sent
        # Headers and blocks that storage sends instead of the file.
        self.body: tuple[dict[str, str], Callable[[], Iterable[bytes]]] | None = None
        self.ranges: list[str] = []
        self.sent = 0  # bytes of `body`
        self.requests: list[str] = []
        self.tokens: list[str] = []  # authorization headers that storage received
        self.url = ""


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = unquote(self.path)
            hub.requests.append(f"{self.command} {path}")
            if path.startswith("/storage/"):
                self.storage(hub.files[path.removeprefix("/storage/")], body)
                return
            repo, _, rest = path.lstrip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            key = f"{repo}/{name}"
            if key in hub.errors or key not in hub.files:
                status, code = hub.errors.get(key, (404, "EntryNotFound"))
                self.headers_only(status, {"X-Error-Code": code, "X-Error-Message": code})
                return
            content = hub.files[key]
            digest = hashlib.sha256(content).hexdigest()
            storage = hub.url.replace("127.0.0.1", "localhost")  # another host to the client
            about = {
                "X-Repo-Commit": COMMIT if revision == "main" else revision,
                "X-Linked-ETag": f'"{digest[:40] if hub.small else digest}"',
                "Location": f"{storage}/storage/{quote(key)}",
            }
            if hub.size is not None:
                about["X-Linked-Size"] = hub.size or str(len(content))
            self.headers_only(302, about)

        def headers_only(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        def send_body(self, headers: dict[str, str], blocks: Callable[[], Iterable[bytes]]) -> None:
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            chunked = headers.get("Transfer-Encoding") == "chunked"
            self.close_connection = True
            with contextlib.suppress(OSError):  # the client may close the connection
                for block in blocks():
                    hub.sent += len(block)
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if chunked else block)
                if chunked:
                    self.wfile.write(b"0\r\n\r\n")

        def storage(self, content: bytes, body: bool) -> None:
            hub.tokens.append(self.headers.get("authorization", ""))
            if hub.body is not None:
                self.send_body(*hub.body)
                return
            wanted = self.headers.get("Range", "")
            start = 0
            if wanted:
                hub.ranges.append(wanted)
                start = int(wanted.removeprefix("bytes=").split("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                end = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", end)
            self.end_headers()
            if not body:
                return
            if hub.damage:
                content = content[:-1] + bytes([content[-1] ^ 1])
            stop = hub.cut_after or hub.hold_after
            if not stop:
                self.wfile.write(content[start:])
                return
            self.wfile.write(content[start : start + stop])
            self.wfile.flush()
            if hub.hold_after:
                hub.held.set()
                hub.release.wait(60)
            hub.cut_after = 0
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
