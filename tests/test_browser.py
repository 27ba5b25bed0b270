"""The report in a real browser: it runs nothing, asks nobody, and fits every screen and a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heptad.cli import main
from test_report import ODD_NAMES

pytestmark = pytest.mark.slow

WIDTHS = (360, 820, 1440)


@pytest.fixture(scope="module")
def reports(mnist, tmp_path_factory) -> dict[str, Path]:
    """A report on folders whose names attack, one on MNIST's digits, and both side by side."""
    folder = tmp_path_factory.mktemp("browser")
    images, labels = mnist["test"]
    for label, name in enumerate(ODD_NAMES):
        place = folder / "set" / name.replace("/", "\u2215")
        place.mkdir(parents=True)
        for number in np.flatnonzero(labels == label)[:10]:
            Image.fromarray(images[number, 0]).save(
                place / f"{name[:60].replace('/', '.')}.{number}.png"
            )
    common = ["train", "lenet5", "--epochs", "2", "--json", "--out"]
    assert main([*common, str(folder / "odd"), "--data", str(folder / "set")]) == 0
    assert main([*common, str(folder / "plain"), "--limit", "300"]) == 0
    both = folder / "both.html"
    assert main(["report", str(folder / "odd"), str(folder / "plain"), "--out", str(both)]) == 0
    return {
        "odd": folder / "odd" / "report.html",
        "plain": folder / "plain" / "report.html",
        "both": both,
    }


def look(browser, path: Path, *, width: int = 1440, scheme: str = "light"):
    """Open a page; gives it with all that it said, asked for or opened."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    events: list[str] = []
    page.on("console", lambda message: events.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: events.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (events.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: events.append(f"request: {request.url}"))
    page.goto(path.as_uri())
    page.wait_for_timeout(200)
    asked = [event for event in events if not event.startswith("request: data:image/")]
    return page, asked


@pytest.mark.parametrize("which", ["odd", "plain", "both"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_report_runs_nothing_asks_nobody_and_fits(browser, reports, which, scheme, width):
    page, events = look(browser, reports[which], width=width, scheme=scheme)
    assert events == [f"request: {reports[which].as_uri()}"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.scripts.length") == 0
    pictures = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    assert page.evaluate(pictures)
    page.close()


def test_names_that_attack_are_seen_as_text(browser, reports):
    page, _ = look(browser, reports["odd"])
    shown = page.evaluate(
        "[...document.querySelectorAll('#class-table tbody th .name')].map(each => each.title)"
    )
    # A name of a folder cannot hold a slash.
    expected = [name.replace("/", "\u2215") for name in ODD_NAMES]
    escaped = [
        name if name.isprintable() else name.encode("unicode_escape").decode() for name in expected
    ]
    assert sorted(shown) == sorted(name.replace("\\u2215", "\u2215") for name in escaped)
    assert page.evaluate("document.querySelectorAll('main img[onerror], main script').length") == 0
    page.close()


def test_light_and_dark_are_as_the_reader_has_them(browser, reports):
    brightness = {}
    for scheme in ("light", "dark"):
        page, _ = look(browser, reports["plain"], scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness[scheme] = sum(int(part) for part in colour[4:-1].split(","))
        page.close()
    assert brightness["light"] > 700
    assert brightness["dark"] < 100


def test_a_report_is_printed_on_pages(browser, reports, tmp_path):
    page, _ = look(browser, reports["plain"])
    page.pdf(path=tmp_path / "report.pdf", format="A4", print_background=True)
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") <= 12
    page.close()


def test_the_browser_would_have_noticed(browser, tmp_path):
    """The negative control: a page that does what no report may."""
    (tmp_path / "bad.html").write_text(
        "<script>alert(1); console.log('ran')</script><img src='http://192.0.2.1/x.png'>"
        "<div style='width: 2000px'>wide</div>"
    )
    page, events = look(browser, tmp_path / "bad.html", width=360)
    assert {event.split(":")[0] for event in events} >= {"dialog", "console", "request"}
    assert any("192.0.2.1" in event for event in events)
    assert page.evaluate("document.documentElement.scrollWidth") > 360
    page.close()
