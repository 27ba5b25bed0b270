"""The page's server as a process of its own, and what one says to it by hand."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Served:
    """A page that is being served."""

    url: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str):
        """Ask for something; gives status, headers and body. Names take `_` for `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def answer(self, content: bytes, as_digit: str = "auto", **headers: str):
        """Ask about a picture; gives the status and what was said."""
        headers = {"Content_Type": "image/png", **headers}
        status, _, body = self.ask("POST", f"/answer?as_digit={as_digit}", content, **headers)
        return status, json.loads(body)

    def connected(self) -> socket.socket:
        """Give a raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal; gives the exit code and what was printed."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@contextlib.contextmanager
def serving_page(run: Path, *words: str) -> Iterator[Served]:
    """Serve a run's page at a free port until the block ends."""
    command = [sys.executable, "-m", "heptad", "serve", str(run), "--port", "0", *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        yield Served(_url(process), process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def _url(process: subprocess.Popen[str]) -> str:
    for line in process.stdout:
        if "http://" in line:
            return line[line.index("http://") :].strip().strip('"')
    raise AssertionError(process.stderr.read())


def png_of(pixels: np.ndarray) -> bytes:
    """Give the bytes of a PNG file of a picture."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()
