"""The page's server: what it answers, to whom, and how it bears those who mean no good."""

from __future__ import annotations

import asyncio
import base64
import gc
import http.client
import json
import signal
import socket
import struct
import sys
import threading
import time
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import heptad
from heptad.cli import main
from heptad.datasets.digit_pictures import as_digit
from heptad.serving.app import make_app
from heptad.serving.worker import Worker
from served import png_of, serving_page

MB = 2**20


@pytest.fixture(scope="module")
def served(small):
    with serving_page(small) as served:
        yield served


@pytest.fixture(scope="module")
def digit(mnist) -> np.ndarray:
    """A test digit of MNIST, [28, 28]."""
    return mnist["test"][0][0, 0]


def test_the_page_asks_for_nothing_but_its_own_files(served):
    status, headers, body = served.ask("GET", "/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"")
    for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript")):
        status, headers, _ = served.ask("GET", f"/{name}")
        assert (status, headers["content-type"].split(";")[0]) == (200, kind)


def test_a_picture_is_answered_as_predict_answers(served, small, digit, tmp_path):
    path = tmp_path / "7.png"
    path.write_bytes(png_of(digit))
    [expected] = heptad.load_run(small).predict([path])
    status, said = served.answer(path.read_bytes())
    assert status == 200
    found = [(each["name"], each["probability"]) for each in said["classes"]]
    assert [name for name, _ in found] == [name for name, _ in expected.classes]
    assert [value for _, value in found] == pytest.approx(
        [value for _, value in expected.classes], abs=1e-6
    )
    assert [int(each["name"]) for each in said["classes"]] == [
        each["place"] for each in said["classes"]
    ]


def test_one_is_shown_what_the_network_sees_of_a_drawing(served, digit):
    """A drawing of ten times the size comes back as MNIST would hold it."""
    drawn = np.kron(digit, np.ones((10, 10), np.uint8))
    _, said = served.answer(png_of(drawn), "yes")
    seen = said["seen"]
    pixels = np.frombuffer(base64.b64decode(seen["pixels"]), np.uint8)
    assert (seen["width"], seen["height"], seen["channels"]) == (28, 28, 1)
    assert np.array_equal(pixels.reshape(28, 28), as_digit(drawn[None]).pixels[0])


def test_lenet5_shows_its_feature_maps(served, digit):
    """Six of 28 x 28 after C1 and 16 of 10 x 10 after C3, as in the paper's figure 2."""
    _, said = served.answer(png_of(digit))
    shapes = {
        each["name"]: (
            len(each["rasters"]),
            each["rasters"][0]["width"],
            each["rasters"][0]["height"],
        )
        for each in said["maps"]
    }
    assert shapes == {"C1": (6, 28, 28), "C3": (16, 10, 10)}
    [first, _] = said["maps"]
    pixels = [np.frombuffer(base64.b64decode(r["pixels"]), np.uint8) for r in first["rasters"]]
    # The brightest of a layer is white; nothing is below black.
    assert max(each.max() for each in pixels) == 255


# Who may ask


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "10.0.0.1"])
def test_another_host_is_refused(served, host, digit):
    """A page elsewhere whose name was made to lead here: DNS rebinding."""
    for method, path, body in (("GET", "/", None), ("POST", "/answer", png_of(digit))):
        status, _, said = served.ask(method, path, body, Host=host, Content_Type="image/png")
        assert status == 403
        assert "the Host is" in json.loads(said)["error"]["message"]


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1"]
)
def test_another_page_is_refused(served, origin, digit):
    status, said = served.answer(png_of(digit), Origin=origin)
    assert status == 403
    assert "the Origin is" in said["error"]["message"]


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_the_page_itself_may_ask_by_either_name(served, name, digit):
    host = f"{name}:{served.port}"
    assert served.answer(png_of(digit), Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
def test_nobody_else_can_connect(served):
    """It listens at 127.0.0.1 alone; even the next address of the same machine is closed."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", served.port), timeout=5)


# What may be sent


def many_frames(number: int) -> bytes:
    """A TIFF of so many frames of one white pixel, each directory pointing to the next."""
    # Width, height, bits, compression, white is 1, place of the pixel, its rows and its bytes.
    tags = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 278: 1, 279: 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    size = 2 + len(entries) + 4
    nexts = [10 + size * k for k in range(1, number)] + [0]
    directories = (struct.pack("<H", len(tags)) + entries + struct.pack("<I", n) for n in nexts)
    return struct.pack("<2sHI", b"II", 42, 10) + b"\xff\0" + b"".join(directories)


def test_a_picture_of_many_frames_takes_no_longer(served):
    """Counting them all took Pillow the square of their number, minutes for what is allowed."""
    started_at = time.monotonic()
    status, said = served.answer(many_frames(50_000), "no", Content_Type="image/tiff")
    assert (status, len(said["classes"])) == (200, 10)
    assert time.monotonic() - started_at < 5


def bomb() -> bytes:
    """A PNG whose header promises 14,000 x 14,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", 14000, 14000, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(14000 * 3 * 20))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"no picture at all", "its content is of no known format"),
        (b"\x89PNG\r\n\x1a\n", "it begins as PNG does"),
        (b"%PDF-1.7\n", "its content is of no known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "its content is of no known format"),
        (bomb(), "has too many pixels"),
        (png_of(np.full((200, 200), 230, np.uint8)), "shows no digit"),
    ],
)
def test_what_is_no_picture_of_a_digit_is_said_to_be_none(served, content, said):
    status, answer = served.answer(content)
    assert status == 422
    assert answer["error"]["message"].startswith("the picture")
    assert said in answer["error"]["message"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_what_a_form_of_another_page_can_send_is_of_no_use(served, digit, kind):
    status, said = served.answer(png_of(digit), Content_Type=kind)
    assert (status, "is no picture" in said["error"]["message"]) == (415, True)


def test_a_choice_that_there_is_not_is_refused(served, digit):
    status, said = served.answer(png_of(digit), "perhaps")
    assert (status, "as_digit is perhaps" in said["error"]["message"]) == (422, True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/answer", 405),
        ("GET", "/../etc/passwd", 404),
        ("POST", "/", 405),
        ("DELETE", "/page.js", 405),
    ],
)
def test_nothing_else_is_there(served, method, path, status):
    assert served.ask(method, path)[0] == status


def memory_mb(served) -> float:
    lines = Path(f"/proc/{served.process.pid}/status").read_text().splitlines()
    [peak] = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return peak / 1024


@pytest.mark.slow
def test_a_gigabyte_is_refused_by_what_it_says_it_is(served):
    with served.connected() as connection:
        connection.sendall(
            b"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 1073741824\r\n\r\n"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_a_body_without_end_is_cut_off_and_takes_no_memory(served):
    """Sent in chunks, of which nobody says how many will come."""
    before = memory_mb(served)
    piece = b"100000\r\n" + bytes(2**20) + b"\r\n"
    with served.connected() as connection:
        connection.sendall(
            b"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        sent = 0
        try:
            while sent < 4096:
                connection.sendall(piece)
                sent += 1
        except ConnectionError:
            pass
        assert sent < 4096
    assert memory_mb(served) - before < 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"", b""),
        (b"POST /answer HTTP/1.1\r\nHost: local", b""),
        (
            b"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 1000\r\n\r\n",
            b"HTTP/1.1 408 ",
        ),
    ],
)
def test_who_says_nothing_is_left_after_a_while(served, start, expected):
    with served.connected() as connection:
        connection.sendall(start)
        started_at = time.monotonic()
        said = connection.recv(1000)
        assert said.startswith(expected)
        assert bool(said) == bool(expected)
        assert time.monotonic() - started_at < 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_fifty_at_a_time_are_all_answered(served, digit):
    draws = np.random.default_rng(0)
    large = png_of(draws.integers(0, 256, (1500, 1500), np.uint8))
    before = memory_mb(served)
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(served.answer, [png_of(digit)] * 40 + [large] * 10))
    # What is noise all over may show no digit.
    assert {status for status, _ in answers[:40]} == {200}
    assert {status for status, _ in answers[40:]} <= {200, 422}
    assert memory_mb(served) - before < 300


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_many_large_bodies_at_a_time_are_more_than_is_taken(served):
    """Each as large as is allowed and never ended: in all they would take 480 MB."""
    before, answers = memory_mb(served), []

    def send_some() -> None:
        with served.connected() as connection:
            head = "POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            connection.sendall(f"{head}Content-Length: {16 * MB}\r\n\r\n".encode())
            try:
                connection.sendall(bytes(16 * MB - 1))
            except ConnectionError:
                return
            answers.append(connection.recv(13))

    threads = [threading.Thread(target=send_some) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert b"HTTP/1.1 503 " in answers
    assert memory_mb(served) - before < 300


def test_it_still_answers_after_all_that(served, digit):
    assert served.answer(png_of(digit))[0] == 200


def test_a_bug_is_answered_with_500_and_keeps_its_traceback(small, digit, capsys):
    """Once Starlette had answered by itself, and nothing was printed."""

    def broken(_):
        raise ZeroDivisionError("made by the test")

    app = make_app(replace(heptad.load_run(small), model=broken), title="", said="")
    sent = []

    async def receive():
        return {"type": "http.request", "body": png_of(digit), "more_body": False}

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"image/png")]
    scope = {"type": "http", "method": "POST", "path": "/answer", "headers": headers}
    asyncio.run(app({**scope, "query_string": b""}, receive, send))
    assert sent[0]["status"] == 500
    assert "this is a bug of Heptad" in json.loads(sent[1]["body"])["error"]["message"]
    assert "ZeroDivisionError: made by the test" in capsys.readouterr().err


# The process


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_cleanly_and_frees_the_port(small, number, code):
    with serving_page(small) as served, served.connected():
        port = served.port
        ended, _, err = served.stop(number)
        name = signal.Signals(number).name
        assert (ended, err) == (code, f"error: stopped by {name}: the page is no longer served.\n")
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_ends_it_while_it_is_busy(small, digit, number, code):
    """With pages asked for all the time, and a picture half sent: once it lived on after SIGHUP."""
    with serving_page(small) as served, served.connected() as half_sent:
        half_sent.sendall(
            b"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 1000\r\n\r\nbegun"
        )
        is_over = threading.Event()

        def ask() -> None:
            while not is_over.is_set():
                try:
                    served.answer(png_of(digit))
                except (OSError, ValueError, http.client.HTTPException):
                    continue

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        ended, _, err = served.stop(number)
        is_over.set()
        for thread in threads:
            thread.join()
    name = signal.Signals(number).name
    assert (ended, err) == (code, f"error: stopped by {name}: the page is no longer served.\n")


def test_a_port_in_use_is_said(served, small, capsys):
    assert main(["serve", str(small), "--port", str(served.port)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: port {served.port} is in use by another program.")
    assert "--port 0" in said


@pytest.mark.slow
def test_with_json_its_address_is_one_document(small):
    with serving_page(small, "--json") as served:
        assert served.ask("GET", "/")[0] == 200
        assert served.url.startswith("http://127.0.0.1:")
        code, out, _ = served.stop(signal.SIGTERM)
    assert (code, out.strip().strip("}").strip()) == (143, "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "safetensors"])
def test_an_exported_file_is_served_too(small, tmp_path, name, digit):
    path = heptad.export(small, name, tmp_path / f"model.{name}").file
    with serving_page(path) as served:
        status, said = served.answer(png_of(digit))
        assert status == 200
        assert bool(said["maps"]) == (name == "safetensors")


def test_without_the_extra_one_is_told_what_to_install(small, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(small)]) == 6
    assert "pip install starlette uvicorn" in capsys.readouterr().err


def test_a_picture_that_nobody_waits_for_any_more_is_not_kept():
    class Picture:
        pass

    async def give_up() -> bool:
        worker, is_done = Worker(), threading.Event()
        first = asyncio.create_task(worker.do(partial(is_done.wait, 30)))
        picture = Picture()
        kept = weakref.ref(picture)
        second = worker.do(partial(id, picture))
        del picture
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(second, 0.1)
        gc.collect()
        lives = kept() is not None
        is_done.set()
        assert await first
        return lives

    assert asyncio.run(give_up()) is False
