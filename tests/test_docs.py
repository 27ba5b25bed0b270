"""Every block of code in README and the tutorial, run as it stands there; and what links lead to.

The blocks of a page run one after another in one folder, as a reader would: shell blocks in bash,
blocks of Python in a fresh interpreter. What differs from a reader's machine is this, and only
this: making the environment is left to CI, which calls those very `make` targets; LeNet-5 learns
from a sample of the digits; ImageNet's weights, which are not to be had everywhere, are made ones
from a file; a page that is served is asked for once and then stopped; and photos are drawn by the
test.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet50

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/tutorial.md", "docs/use.md", "docs/how-to.md")
# Kinds of blocks that are looked at, not run.
SHOWN = ("text", "json", "toml")
SETTING_UP = re.compile(r"make \w+|python3 -m venv .*|\.venv/bin/.*|\. \.venv/bin/activate")


class Block(NamedTuple):
    kind: str
    code: str


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [Block(*each) for each in found]


def lines_of(page: str) -> list[str]:
    """The lines of a page's shell blocks, without their comments."""
    code = "\n".join(block.code for block in blocks_of(page) if block.kind == "sh")
    return [line for line in (each.split("  #")[0].strip() for each in code.splitlines()) if line]


def test_every_block_says_what_it_is():
    for page in PAGES:
        assert {block.kind for block in blocks_of(page)} <= {"sh", "python", *SHOWN}, page
        assert any(block.kind == "sh" for block in blocks_of(page))


def test_what_readme_says_of_setting_up_is_what_make_does():
    """The plain lines are those that the two commands carry out, which CI calls."""
    plain = [
        line for line in lines_of("README.md") if line.startswith((".venv", "python3 -m venv"))
    ]
    settings = ("VENV=.venv", "NEWEST_RUN=runs/lenet5-1")
    made = subprocess.run(
        ["make", "--dry-run", "--always-make", "train", "serve", *settings],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.replace("python -m pip install --quiet --editable", "pip install -e")
    assert plain
    # Some of it in quotes, for the shell.
    for line in plain:
        assert re.sub("['\"]", "", line) in re.sub("['\"]", "", made), line


def test_ci_calls_what_readme_tells_a_reader_to_make():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for page in PAGES:
        for line in lines_of(page):
            if line.startswith("make ") and line != "make serve":
                assert re.search(rf"^{line}$", script, flags=re.MULTILINE), line


@pytest.fixture
def desk(tmp_path, mnist, monkeypatch) -> Path:
    """A folder with what a reader has: photos of two things, one of a digit, and the commands."""
    draws = np.random.default_rng(0)
    for name, shape in (("cup", (60, 90)), ("spoon", (110, 20))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            photo = draws.integers(150, 200, (160, 160, 3), np.uint8)
            top, left = draws.integers(10, 40, 2)
            photo[top : top + shape[0], left : left + shape[1]] = draws.integers(0, 90, 3)
            Image.fromarray(photo).save(tmp_path / "photos" / name / f"IMG_{number:04}.jpg")
    digit = 255 - np.kron(mnist["test"][0][0, 0], np.ones((8, 8), np.uint8))
    Image.fromarray(digit).save(tmp_path / "digit.jpg")
    Image.fromarray(mnist["test"][0][0, 0]).save(tmp_path / "digit.png")
    Image.fromarray(photo).save(tmp_path / "new-photo.jpg")
    torch.manual_seed(0)
    torch.save(resnet50().state_dict(), tmp_path / "made.pth")
    (tmp_path / "bin").mkdir()
    heptad = tmp_path / "bin" / "heptad"
    heptad.write_text(
        f'#!/bin/bash\nargs=("$@")\n'
        '[[ "$1 $2" == "train resnet50" ]] && args+=(--weights made.pth)\n'
        '[[ "$1 $2" == "tune resnet50" ]] && args+=(--weights made.pth)\n'
        '[[ "$1 $2" == "train lenet5" ]] && args+=(--limit 2000)\n'
        f'exec {sys.executable} -m heptad "${{args[@]}}"\n'
    )
    torchrun = tmp_path / "bin" / "torchrun"
    torchrun.write_text(f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    for command in (heptad, torchrun):
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"


def serve_once(line: str, folder: Path) -> None:
    """Open the page that a command serves, and press Ctrl-C."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {line} --port 0"], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    try:
        address = process.stdout.readline().split(": ")[-1].strip()
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


def commands_in(code: str) -> list[str]:
    """Cut a shell block where a page is served, which would not end by itself."""
    parts = re.split(r"^(heptad serve .*)\n", code, flags=re.MULTILINE)
    return [part for part in parts if part.strip()]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs(page, desk):
    if page in ("docs/use.md", "docs/how-to.md"):
        # They begin where the tutorial has ended.
        run(["heptad", "train", "lenet5", "--epochs", "1"], desk)
        run(["heptad", "train", "resnet50", "--data", "photos", "--epochs", "1"], desk)
    for kind, code in blocks_of(page):
        if kind in SHOWN:
            continue
        if kind == "python":
            run([sys.executable, "-c", code], desk)
            continue
        lines = [line for line in code.splitlines(keepends=True) if not SETTING_UP.match(line)]
        for part in commands_in("".join(lines)):
            if part.startswith("heptad serve"):
                serve_once(part.split("  #")[0], desk)
            else:
                run(["bash", "-e", "-c", part], desk)
        # What `make train` has done by then.
        if "make train" in code and not (desk / "runs" / "lenet5-1").exists():
            run(["heptad", "train", "lenet5", "--epochs", "2"], desk)


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_every_link_leads_to_something(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), f"{path.name}: {target}"
        if anchor and found.suffix == ".md":
            assert anchor in anchors_of(found), f"{path.name}: {target}"


def anchors_of(path: Path) -> set[str]:
    """The names that headings have as targets, as the large forges make them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.strip().replace(" ", "-") for title in plain}


def test_the_page_of_settings_shows_numbers_as_numbers():
    """Once the channels of LeNet-5 were `on`, since 1 is true."""
    rows = {
        line.split("|")[1].strip().strip("`"): [cell.strip() for cell in line.split("|")[4:-1]]
        for line in (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    }
    assert rows["channels"] == ["1", "1", "3", "3"]
    assert rows["seed"] == ["0"] * 4
    assert rows["drop_leaks"] == ["off"] * 4
    assert rows["trunk"] == ["cached"]
