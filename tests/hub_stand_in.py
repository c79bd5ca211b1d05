"""A hub on 127.0.0.1 that speaks as much of the protocol as the official client needs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StandIn:
    """Serves `files` ("owner/repository/path" -> bytes); cuts the next answers after `cuts`."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.cuts, self.offsets = files, [], []
        self.url = ""

    @contextmanager
    def running(self) -> Iterator[StandIn]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _handler(hub: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            data = hub.files.get(self.path.split("?")[0].lstrip("/").replace("/resolve/main", ""))
            if data is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            wanted = self.headers.get("Range", "bytes=0-").removeprefix("bytes=")
            start = int(wanted.split("-")[0])
            part = data[start:]
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("ETag", f'"{len(data):040x}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if with_body:
                hub.offsets.append(start)
                cut = hub.cuts.pop(0) if hub.cuts else len(part)
                self.wfile.write(part[:cut])
                self.close_connection = cut < len(part)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
