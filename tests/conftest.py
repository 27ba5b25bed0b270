"""What the tests share: real digits in a cache of their own, and small folders of them."""

from __future__ import annotations

import contextlib
import functools
import gzip
import http.server
import multiprocessing
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heptad.cli import main
from heptad.datasets.dataset import find_dataset, read_part
from heptad.datasets.idx import idx_header
from killing import small_words, train_words

NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def pytest_configure() -> None:
    # A shell leaves Ctrl-C ignored in what it starts in the background, nohup a closed terminal,
    # and so it is in all that this starts; some tests do both.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Make what a test printed text that passes between processes: file names are any bytes."""
    report = yield
    report.sections = [
        (title, printed.encode(errors="backslashreplace").decode())
        for title, printed in report.sections
    ]
    return report


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> Iterator[Path]:
    """An empty cache for the whole session, which the first test that wants MNIST really fills.

    No test sees, or touches, what the user has cached.
    """
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEPTAD_HOME", str(folder / "heptad"))
        patch.setenv("TORCH_HOME", str(folder / "torch"))
        yield folder / "heptad"


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Kills what a test that failed left running, perhaps in a step that never ends."""
    yield
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


@pytest.fixture(scope="session")
def mnist():
    """All of MNIST: {"train": (images [60000, 1, 28, 28], labels), "test": ...}, `uint8`."""
    dataset = find_dataset("mnist")
    return {part: read_part(dataset, part) for part in ("train", "test")}


def write_idx(folder: Path, part: str, images, labels, *, packed: bool = False) -> None:
    """Write images [N, H, W] and labels [N] as the two IDX files of a part."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in zip(NAMES[part], (images, labels), strict=True):
        content = idx_header(*values.shape) + values.astype(np.uint8).tobytes()
        path = folder / (name + ".gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)


def write_first_digits(folder: Path, mnist, *, num_train: int, num_test: int) -> Path:
    """Write the first digits of each part of MNIST as IDX files."""
    for part, count in (("train", num_train), ("test", num_test)):
        images, labels = mnist[part]
        write_idx(folder, part, images[:count, 0], labels[:count])
    return folder


def write_pictures(folder: Path, images, labels, *, suffix: str = ".png") -> Path:
    """Write gray images [N, H, W] as LABEL/NUMBER.png, each in the folder of its class."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / str(label) / f"{number}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


@pytest.fixture(scope="session")
def digits(mnist, tmp_path_factory) -> Path:
    """A folder of IDX files with the first 512 training and 200 test digits of MNIST."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    return write_first_digits(folder, mnist, num_train=512, num_test=200)


@pytest.fixture(scope="session")
def pictures(mnist, tmp_path_factory) -> Path:
    """A folder of class folders with the first 200 training digits of MNIST as PNGs."""
    images, labels = mnist["train"]
    folder = tmp_path_factory.mktemp("data") / "pictures"
    return write_pictures(folder, images[:200, 0], labels[:200])


@pytest.fixture(scope="session")
def digit_files(mnist, tmp_path_factory) -> list[Path]:
    """The first twenty test digits of MNIST as PNG files."""
    folder = tmp_path_factory.mktemp("digits")
    paths = [folder / f"{number}.png" for number in range(20)]
    for image, path in zip(mnist["test"][0][:, 0], paths, strict=False):
        Image.fromarray(image).save(path)
    return paths


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a run that is not there yet."""
    return tmp_path / "run"


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without writing a line about each."""

    def log_message(self, *args) -> None:
        pass


class SpoilingHandler(QuietHandler):
    """Serves every file changed by `spoil`, under a length that is never too small."""

    spoil = staticmethod(lambda content: content)

    def do_GET(self):
        content = Path(self.translate_path(self.path)).read_bytes()
        sent = self.spoil(content)
        self.send_response(200)
        self.send_header("Content-Length", str(max(len(content), len(sent))))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(sent)


class RedirectingHandler(QuietHandler):
    """Sends whoever asks to an address that is not spoken."""

    def do_GET(self):
        self.send_response(302)
        self.send_header("Location", "http://192.0.2.1/elsewhere")
        self.end_headers()


@contextlib.contextmanager
def serving(folder: Path, handler: type[QuietHandler] = QuietHandler) -> Iterator[str]:
    """Serve a folder over HTTP on 127.0.0.1; gives the address, with a slash at its end."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    )
    # Asked so often whether to stop, it does so at once.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="session")
def straight(digits, tmp_path_factory) -> Path:
    """The folder of a run of `killing.train_words` that nothing disturbed."""
    out = tmp_path_factory.mktemp("straight") / "run"
    assert main(train_words(digits, out)) == 0
    return out


@pytest.fixture(scope="session")
def small(digits, tmp_path_factory) -> Path:
    """The folder of a run of `killing.small_words` that nothing disturbed."""
    out = tmp_path_factory.mktemp("small") / "run"
    assert main(small_words(digits, out)) == 0
    return out


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a window."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox needs rights that root in a container does not have.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
