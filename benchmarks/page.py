"""How soon the page answers a stroke: measured in a browser, from the pointer to the drawn bars.

    python benchmarks/page.py RUN [--drawings 20] [--picture docs/page.png]

RUN: a finished run on digits. Chromium, without a window, draws a 4 with the mouse again and again
on the page of `heptad serve`; the page itself notes when it was asked and when it has answered
(`performance.measure`), painting included. Server and browser share the machine's cores, as they do
on a desk. --picture saves what the page looks like then, as docs/page.png was made. Needs the
extras `web` and `dev`, and Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from statistics import median, quantiles

import torch
from machine import machine, versions
from playwright.sync_api import Page, sync_playwright

# A 4 of two strokes, points as shares of the pad's side.
FOUR = (
    [
        (0.43, 0.17),
        (0.42, 0.22),
        (0.40, 0.28),
        (0.38, 0.34),
        (0.35, 0.41),
        (0.32, 0.47),
        (0.29, 0.53),
        (0.28, 0.57),
        (0.31, 0.585),
        (0.38, 0.58),
        (0.46, 0.57),
        (0.54, 0.555),
        (0.62, 0.54),
        (0.70, 0.525),
        (0.76, 0.515),
    ],
    [
        (0.645, 0.24),
        (0.635, 0.31),
        (0.62, 0.38),
        (0.605, 0.46),
        (0.59, 0.54),
        (0.575, 0.62),
        (0.565, 0.70),
        (0.555, 0.77),
        (0.55, 0.85),
    ],
)
BETWEEN_MOVES_MS = 16
# The page keeps the last measure alone.
NOTE_MEASURES = """() => {
  window.measured = [];
  const note = (list) => measured.push(...list.getEntries().map((each) => each.duration));
  new PerformanceObserver(note).observe({ type: "measure" });
}"""


def draw(page: Page, strokes: tuple[list[tuple[float, float]], ...]) -> None:
    box = page.locator("#pad").bounding_box()
    assert box is not None
    for points in strokes:
        for number, (x, y) in enumerate(points):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            if number == 0:
                page.mouse.down()
            # As a screen shows them; a hand is not faster.
            page.wait_for_timeout(BETWEEN_MOVES_MS)
        page.mouse.up()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--drawings", type=int, default=20)
    parser.add_argument("--picture")
    options = parser.parse_args()
    command = [sys.executable, "-m", "heptad", "serve", options.run, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split(": ")[-1].strip()
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1100, "height": 1000}, device_scale_factor=1)
            page.goto(address)
            page.evaluate(NOTE_MEASURES)
            answers = []
            for _ in range(options.drawings):
                draw(page, FOUR)
                # Its policy forbids the page to be waited for in one call.
                while not page.evaluate("waiting === null && !isAsking"):
                    page.wait_for_timeout(BETWEEN_MOVES_MS)
                answers.append(page.locator("#answer").inner_text())
                if options.picture and len(answers) == options.drawings:
                    page.locator("main").screenshot(path=options.picture)
                page.locator("#clear").click()
            measured = page.evaluate("measured")
            browser.close()
    finally:
        server.terminate()
        server.wait()
    tenths = quantiles(measured, n=10)
    print(machine(torch.get_num_threads()))
    print(versions(("heptad", "torch", "starlette", "uvicorn", "playwright")))
    print(f"{options.run}: {len(measured)} answers, all to {'/'.join(sorted(set(answers)))}")
    print(
        f"median {median(measured):.1f} ms, nine of ten under {tenths[-1]:.1f} ms,"
        f" the slowest {max(measured):.1f} ms"
    )


if __name__ == "__main__":
    main()
