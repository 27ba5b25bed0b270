"""A run that was stopped or killed goes on to the bit: the same weights, log, metrics, pictures."""

from __future__ import annotations

import random

import pytest

from killing import killed_again_and_again, leftovers, metrics_of, result_of, train_words


@pytest.mark.parametrize("seed", range(2))
def test_a_run_that_is_killed_at_random_moments_ends_as_if_it_never_was(
    digits, straight, tmp_path, seed
):
    run = tmp_path / "run"
    words = train_words(digits, run, "--resume")
    draws = random.Random(seed)
    codes = list(killed_again_and_again(words, run, tmp_path / "log", draws, most_kills=5))
    print("seed", seed, "codes", codes, "from steps", metrics_of(run)["execution"]["resumed_from"])
    assert result_of(run) == result_of(straight)
    assert leftovers(run) == []
    # A control: the kills were real, and the resumes began in the middle.
    assert codes.count(-9) >= 1
    assert all(step > 0 for step in metrics_of(run)["execution"]["resumed_from"])
    assert len(metrics_of(run)["execution"]["resumed_from"]) >= 1
