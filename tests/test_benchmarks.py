"""The arithmetic and the tables of the benchmarks, on made-up seconds. Nothing is timed here."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """Import a module of benchmarks/ as its scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def cells(markdown: str, name: str) -> list[str]:
    """Give the cells of the row of a table that begins with `name`."""
    [line] = [line for line in markdown.splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def lenet5_answer(*seconds: float, num_trained: int = 61_706) -> dict:
    return {"seconds": list(seconds), "accuracy": 0.975, "num_trained": num_trained}


def resnet50_answer(*seconds: float, **more: float) -> dict:
    return {"seconds": list(seconds), "accuracy": 0.5, "num_trained": 20_490} | more


def test_a_ratio_is_of_one_round_so_that_a_slow_round_falls_out(module, tmp_path):
    # The second round was twice as slow for both; the peer always took three times as long.
    answers = {
        "Heptad": [lenet5_answer(9, 2), lenet5_answer(9, 4), lenet5_answer(9, 2)],
        "plain": [lenet5_answer(8, 6), lenet5_answer(8, 12), lenet5_answer(8, 6)],
    }
    measured = module("peer_tables").Measured("Heptad", answers, (60_000, 10_000), tmp_path)
    row = cells(module("peer_tables").lenet5_table(measured), "plain")
    assert row == [
        "plain",
        "8.00 s (8.00 to 8.00)",
        "6.00 s (6.00 to 12.00)",
        "3.00 (3.00 to 3.00)",
        "97.5 %",
    ]


def test_a_frozen_peer_takes_its_epochs_times_one_and_heptad_what_it_took(module, tmp_path):
    answers = {
        "Heptad": [resnet50_answer(*[0.5] * 20, prepared_s=7.5, pass_s=4.0)],
        "plain loop": [resnet50_answer(8.0)],
        "jitted": [resnet50_answer(6.0, compile_s=30.0)],
    }
    measured = module("peer_tables").Measured("Heptad", answers, (1500, 500), tmp_path)
    text = module("peer_tables").resnet50_table(measured)
    # 5 x 8 s against 7.5 s + 5 x 0.5 s; 20 x 8 s against 7.5 s + 20 x 0.5 s.
    assert cells(text, "plain loop")[1:] == ["", "8.0 s", "4.0", "9.1", "50.0 %"]
    assert cells(text, "jitted")[1:] == ["30.0 s", "6.0 s", "3.0", "6.9", "50.0 %"]
    assert "The fastest of them is jitted: 5 epochs take 3.0 times as long." in text
    # 2,000 images in 4 s against 2,000 in 8 s.
    assert (
        "The pass alone: 500 images/s; an epoch of the plain loop, training and test: 250." in text
    )
    assert "2.00 times as many" in text


def test_a_peer_that_trained_another_network_is_not_compared(module, tmp_path):
    answers = {"Heptad": [lenet5_answer(1, 1)], "plain": [lenet5_answer(1, 1, num_trained=61_707)]}
    measured = module("peer_tables").Measured("Heptad", answers, (60, 10), tmp_path)
    with pytest.raises(AssertionError, match="plain trained"):
        module("peer_tables").lenet5_table(measured)


def test_a_written_section_replaces_the_one_before_and_nothing_else(module, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- this -->\nold\n<!-- end of this -->\nafter\n")
    for text in ("first \\1", "second"):
        module("ratios").put_between(page, "this", text)
    expected = "before\n<!-- this -->\n\nsecond\n\n<!-- end of this -->\nafter\n"
    assert page.read_text() == expected
    with pytest.raises(SystemExit, match="no section 'that'"):
        module("ratios").put_between(page, "that", "text")
    assert page.read_text() == expected


def test_the_page_has_the_sections_that_are_written_into(module, tmp_path):
    page = tmp_path / "benchmarks.md"
    page.write_text((BENCHMARKS.parent / "docs" / "benchmarks.md").read_text())
    for marker in ("against peers", "growth"):
        module("ratios").put_between(page, marker, f"{marker} was measured")
        assert f"{marker} was measured" in page.read_text()
