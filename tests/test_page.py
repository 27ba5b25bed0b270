"""The page in a real browser: what is drawn stroke by stroke is answered, and all can use it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from conftest import write_pictures
from heptad.cli import main
from served import serving_page
from strokes import strokes_of

pytestmark = pytest.mark.slow

NUM_DIGITS = 20


@pytest.fixture(scope="module")
def trained(mnist, tmp_path_factory) -> Path:
    """LeNet-5, trained well enough to know what it is shown."""
    out = tmp_path_factory.mktemp("trained") / "run"
    words = ["train", "lenet5-fast", "--limit", "20000", "--no-report", "--json", "--out", str(out)]
    assert main(words) == 0
    return out


@pytest.fixture(scope="module")
def served(trained):
    with serving_page(trained) as served:
        yield served


@pytest.fixture(scope="module")
def predicted(trained, digit_files) -> list[str]:
    """What `heptad predict` says of the same digits."""
    import heptad

    run = heptad.load_run(trained)
    return [prediction.classes[0][0] for prediction in run.predict(digit_files)]


@pytest.fixture
def page(browser, served):
    """The page, opened; it may say nothing odd and ask nobody else."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    events: list[str] = []
    page.on("console", lambda message: events.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: events.append(f"error: {error}"))
    page.on("request", lambda request: events.append(request.url))
    page.goto(served.url)
    yield page
    page.close()
    # What is refused with 422 is in the console, by the browser's own habit.
    refused = "console: Failed to load resource: the server responded with a status of 422 "
    odd = [e for e in events if not e.startswith((served.url, "blob:", refused))]
    assert odd == []


def draw(page, strokes) -> None:
    """Draw with the mouse, a stroke after another."""
    box = page.locator("#pad").bounding_box()

    def to(point) -> tuple[float, float]:
        return box["x"] + point[0] * box["width"], box["y"] + point[1] * box["height"]

    for points in strokes:
        page.mouse.move(*to(points[0]))
        page.mouse.down()
        for point in points:
            page.mouse.move(*to(point))
        page.mouse.up()


def wait_until(page, expression: str) -> None:
    """Wait until something holds; the page's own policy forbids the browser's way to do so."""
    for _ in range(1000):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(10)
    raise AssertionError(expression)


def settled(page) -> str:
    """Wait until every question is answered; gives the answer."""
    wait_until(page, "waiting === null && !isAsking")
    return page.locator("#answer").inner_text().strip()


def drop(page, path: Path, kind: str = "image/png") -> None:
    """Drop a file onto the page."""
    content = base64.b64encode(path.read_bytes()).decode()
    page.evaluate(
        """([content, name, type]) => {
          const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([bytes], name, { type }));
          const options = { dataTransfer, bubbles: true, cancelable: true };
          document.querySelector("main").dispatchEvent(new DragEvent("dragover", options));
          document.querySelector("main").dispatchEvent(new DragEvent("drop", options));
        }""",
        [content, path.name, kind],
    )


def test_digits_drawn_stroke_by_stroke_are_read_as_predict_reads_them(page, mnist, predicted):
    answers = []
    for image in mnist["test"][0][:NUM_DIGITS, 0]:
        page.locator("#clear").click() if page.locator("#clear").is_enabled() else None
        draw(page, strokes_of(image))
        answers.append(settled(page))
    assert answers == predicted


def test_dropped_digits_are_read_as_predict_reads_them(page, digit_files, predicted):
    answers = []
    for path in digit_files:
        drop(page, path)
        answers.append(settled(page))
    assert answers == predicted


def test_the_answer_follows_the_drawing(page):
    """It comes while the button is still down; the bars are the probabilities."""
    box = page.locator("#pad").bounding_box()
    x, y, side = box["x"], box["y"], box["width"]
    page.mouse.move(x + 0.5 * side, y + 0.15 * side)
    page.mouse.down()
    for k in range(1, 15):
        page.mouse.move(x + 0.5 * side, y + (0.15 + 0.05 * k) * side)
    assert settled(page) == "1"
    values = [float(row.split()[-2]) for row in page.locator("#bars li").all_inner_texts()]
    assert sum(values) == pytest.approx(100, abs=1)
    assert page.locator("#bars li.first .name").inner_text() == page.locator("#answer").inner_text()
    # On, to the right: an L that nobody takes for a 1.
    for k in range(1, 9):
        page.mouse.move(x + (0.5 + 0.05 * k) * side, y + 0.85 * side)
    settled(page)
    after = [float(row.split()[-2]) for row in page.locator("#bars li").all_inner_texts()]
    assert after[1] < values[1]
    page.mouse.up()


def test_a_stroke_that_touches_the_edge_belongs_to_the_digit(page):
    """An open 4 whose stem runs off the pad; once the stem was taken for a photo's table."""
    draw(page, [[(0.3, 0.15), (0.25, 0.5), (0.5, 0.5), (0.8, 0.5)], [(0.66, 0.2), (0.66, 1.0)]])
    assert settled(page) == "4"


@pytest.mark.parametrize("undone", ["#undo", "#clear", "drop"])
def test_what_is_taken_back_in_the_midst_of_a_stroke_stays_so(page, digit_files, undone):
    """Once the rest of the stroke was added to the one before, or the page failed."""
    draw(page, [[(0.2, 0.2), (0.2, 0.8)]])
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 150)
    if undone == "drop":
        drop(page, digit_files[0])
    else:
        # As a second finger would; the button of the mouse stays down.
        page.locator(undone).dispatch_event("click")
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.up()
    settled(page)
    left = [[0.2, 0.2, 0.8]] if undone == "#undo" else []
    rows = page.evaluate("strokes.map((points) => points.map(([, y]) => y))")
    assert [pytest.approx(row, abs=0.01) for row in left] == rows


def test_one_sees_what_the_network_sees_and_its_maps(page, mnist):
    draw(page, strokes_of(mnist["test"][0][0, 0]))
    settled(page)
    said = page.locator("#seen-text").inner_text()
    assert said == "28 × 28 pixels, as in MNIST; the network is given them at 32 × 32"
    captions = page.locator("#maps figcaption").all_inner_texts()
    assert captions == ["C1: 6 feature maps of 28 × 28", "C3: 16 feature maps of 10 × 10"]
    brightest = page.evaluate(
        """Math.max(...document.querySelector("#seen").getContext("2d")
           .getImageData(0, 0, 28, 28).data.filter((_, k) => k % 4 === 0))"""
    )
    assert brightest == 255


def test_clear_and_undo_take_the_answer_back(page):
    draw(page, [[(0.5, 0.15), (0.5, 0.85)], [(0.3, 0.85), (0.7, 0.85)]])
    settled(page)
    page.locator("#undo").click()
    assert settled(page) == "1"
    page.locator("#clear").click()
    settled(page)
    assert page.locator("#answer").inner_text().strip() == ""
    assert page.locator("#bars .value").all_inner_texts() == [""] * 10
    assert page.locator("#undo").is_disabled()


def test_a_digit_can_be_drawn_with_the_keyboard_alone(page):
    """Down to the pad by Tab, a stroke from the middle, and the answer is spoken."""
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "pad"
    for key in ["ArrowUp"] * 8 + [" "] + ["ArrowDown"] * 16 + [" "]:
        page.keyboard.press(key)
    assert settled(page) == "1"
    wait_until(page, "document.querySelector('#spoken').textContent.startsWith('1, ')")
    assert page.locator("#pen").inner_text() == "pen lifted at column 13, row 21 of 25"
    page.keyboard.press("Backspace")
    assert settled(page) == ""


def test_a_key_that_is_held_down_does_not_scatter_strokes(page):
    page.keyboard.press("Tab")
    for _ in range(5):
        page.keyboard.down(" ")
    page.keyboard.up(" ")
    assert page.evaluate("strokes.length") == 1


def test_a_finger_draws_too(browser, served):
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    page = context.new_page()
    page.goto(served.url)
    box = page.locator("#pad").bounding_box()
    session = context.new_cdp_session(page)
    x = box["x"] + box["width"] / 2

    def touch(kind: str, *points) -> None:
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})

    touch("touchStart", {"x": x, "y": box["y"] + 0.15 * box["height"]})
    for k in range(1, 15):
        touch("touchMove", {"x": x, "y": box["y"] + (0.15 + 0.05 * k) * box["height"]})
    touch("touchEnd")
    assert settled(page) == "1"
    assert page.evaluate("scrollY") == 0
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 820, 1440])
def test_the_page_fits_every_screen(browser, served, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto(served.url)
    draw(page, [[(0.5, 0.15), (0.5, 0.85)]])
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, colour[4:-1].split(","))) > 400) == (scheme == "light")
    page.close()


def test_every_control_has_a_name(page):
    """As a screen reader is told of them."""
    for role, name in (
        ("button", "Undo"),
        ("button", "Clear"),
        ("application", "Drawing pad"),
        ("list", "Probability of each class"),
    ):
        assert page.get_by_role(role, name=name).count() == 1, name
    assert page.get_by_label("Photo of a digit").count() == 1
    # One for the answer, one for the pen.
    assert page.locator("[role=status]").count() == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("words.png", b"no picture", "its content is of no known format"),
        (
            "page.svg",
            b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
            "no known format",
        ),
        ("large.png", bytes(17 * 2**20), "This file has 17.0 MB; allowed: 16 MB."),
    ],
)
def test_a_hostile_file_is_answered_with_words(page, tmp_path, name, content, said):
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    (tmp_path / name).write_bytes(content)
    page.locator("#file").set_input_files(tmp_path / name)
    page.locator("#problem").wait_for(state="visible")
    assert said in page.locator("#problem").inner_text()
    # And the next one is answered.
    draw(page, [[(0.5, 0.15), (0.5, 0.85)]])
    assert settled(page) == "1"
    assert page.locator("#problem").is_hidden()


def test_a_server_that_went_away_is_said(browser, trained):
    with serving_page(trained) as served:
        page = browser.new_page()
        page.goto(served.url)
        served.stop()
        draw(page, [[(0.5, 0.15), (0.5, 0.85)]])
        settled(page)
        assert "The server does not answer." in page.locator("#problem").inner_text()
        page.close()


NAMES = ["<img src=x onerror=alert(1)>", "cat", "\u202egod", "=cmd()", "a" * 120]


def test_a_run_on_ones_own_pictures_takes_dropped_ones(browser, mnist, tmp_path, monkeypatch):
    """With class names that attack; there is nothing to draw on."""
    monkeypatch.chdir(tmp_path)
    images, labels = mnist["train"]
    few = labels < len(NAMES)
    images, labels = images[few, 0][:200], labels[few][:200]
    write_pictures(tmp_path / "set", images, [NAMES[k] for k in labels])
    words = ["train", "lenet5", "--data", "set", "--epochs", "8", "--out", "run", "--no-report"]
    assert main([*words, "--json"]) == 0
    with serving_page(tmp_path / "run") as served:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        page.goto(served.url)
        assert page.locator("#pad").count() == 0
        path = next((tmp_path / "set" / "cat").iterdir())
        drop(page, path)
        expected = json.loads(_json_of(["predict", "run", str(path), "--json"]))
        name = expected[0]["classes"][0]["name"]
        assert settled(page) == name
        assert page.locator("#preview").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("document.querySelectorAll('main img').length") == 1
        page.close()


def _json_of(words: list[str]) -> str:
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(words) == 0
    return printed.getvalue()


def test_the_strokes_of_a_digit_draw_it(mnist):
    """The control of the other tests: the lines lie on the ink, and cover most of it."""
    for image in mnist["test"][0][:NUM_DIGITS, 0]:
        near = np.zeros((28, 28), bool)
        for line in strokes_of(image):
            for x, y in line:
                row, column = int(y * 28), int(x * 28)
                assert image[row, column] > 100
                near[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = True
        assert near[image > 100].mean() > 0.95
