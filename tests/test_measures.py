"""Figures of answers, against scikit-learn and against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import f1_score, precision_recall_fscore_support, top_k_accuracy_score

from heptad.measures import (
    calibration,
    macro_measures,
    measure_classes,
    num_in_top,
    spread_of,
    student_t,
)
from heptad.records import Scores


def scored(logits, labels) -> Scores:
    labels = torch.as_tensor(labels)
    return Scores(torch.as_tensor(logits), labels, torch.arange(len(labels)), loss=0.0)


def drawn(seed: int, *, num_images: int = 500, num_classes: int = 7) -> Scores:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, num_images)
    logits = generator.normal(size=(num_images, num_classes)) + 2 * np.eye(num_classes)[labels]
    return scored(logits, labels)


@pytest.mark.parametrize("seed", range(5))
def test_precision_recall_and_f1_are_those_of_scikit_learn(seed):
    scores = drawn(seed)
    classes = measure_classes(scores.confusion)
    expected = precision_recall_fscore_support(scores.labels, scores.predicted)
    found = [[getattr(each, name) for each in classes] for name in ("precision", "recall", "f1")]
    np.testing.assert_allclose(found, expected[:3], rtol=1e-12)
    assert [each.num_images for each in classes] == expected[3].tolist()


def test_macro_averages_leave_out_classes_without_images_as_scikit_learn_does():
    # Class 2 has no image but is answered once; class 1 is never answered.
    labels, answers = [0, 0, 0, 1, 1], [0, 0, 2, 0, 0]
    scores = scored(np.eye(4)[answers], labels)
    classes = measure_classes(scores.confusion)
    macro = macro_measures(classes)
    expected = precision_recall_fscore_support(
        labels, answers, labels=[0, 1], average="macro", zero_division=0
    )
    assert (macro.precision, macro.recall, macro.f1) == pytest.approx(expected[:3])
    # Counting all four classes would give another F1.
    every = f1_score(labels, answers, labels=range(4), average="macro", zero_division=0)
    assert macro.f1 != pytest.approx(every)
    assert (classes[1].precision, classes[2].recall, classes[3].f1) == (None, None, None)
    assert (classes[1].f1, classes[2].precision) == (0, 0)


def test_averages_over_no_image_at_all_are_refused():
    with pytest.raises(ValueError, match="no class has an image"):
        macro_measures(measure_classes(torch.zeros(3, 3, dtype=torch.int64)))


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_top_k_is_that_of_scikit_learn(k):
    scores = drawn(3)
    expected = top_k_accuracy_score(scores.labels, scores.logits, k=k, normalize=False)
    assert num_in_top(scores.logits, scores.labels, k) == expected


def test_the_first_of_equal_logits_is_the_answer_in_top_1_too():
    scores = scored(torch.zeros(4, 3), [0, 1, 2, 0])
    assert num_in_top(scores.logits, scores.labels, 1) == scores.num_correct == 2
    assert num_in_top(scores.logits, scores.labels, 2) == 3


def test_the_calibration_error_is_the_sum_by_hand():
    # Two answers with probability 3/4, one of them right; two of 9/10, both right.
    sure = [[np.log(3), 0]] * 2 + [[np.log(9), 0]] * 2
    found = calibration(torch.tensor(sure), torch.tensor([0, 1, 0, 0]), num_bins=10)
    assert found.error == pytest.approx((2 * 0.25 + 2 * 0.1) / 4)
    filled = [(each.low, each.num_images, each.accuracy) for each in found.bins if each.num_images]
    assert filled == [(pytest.approx(0.7), 2, 0.5), (pytest.approx(0.8), 2, 1.0)]
    assert sum(each.num_images for each in found.bins) == 4


def test_answers_right_as_often_as_they_say_have_no_calibration_error():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert calibration(logits, labels).error < 0.004
    # A control: the same answers, said with twice the certainty.
    assert calibration(2 * logits, labels).error > 0.03


def test_certainty_itself_falls_into_the_last_bin():
    found = calibration(torch.tensor([[1000.0, 0.0]]), torch.tensor([0]))
    assert (found.bins[-1].num_images, found.bins[-1].confidence, found.error) == (1, 1.0, 0.0)


@pytest.mark.parametrize("coverage", [0.5, 0.95, 0.999])
def test_the_points_of_students_t_are_those_of_scipy(coverage):
    degrees = range(1, 201)
    found = [student_t(each, coverage) for each in degrees]
    expected = scipy.stats.t.ppf((1 + coverage) / 2, degrees)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert student_t(999) == pytest.approx(scipy.stats.t.ppf(0.975, 999), rel=1e-12)


def test_the_spread_of_three_values_is_that_by_hand():
    # Deviations -1, 0, 1: a variance of 2 / 2; the table's t of 2 degrees of freedom is 4.303.
    found = spread_of([4.0, 6.0, 5.0])
    assert (found.mean, found.least, found.most, found.deviation) == (5.0, 4.0, 6.0, 1.0)
    assert found.interval == pytest.approx((5 - 4.3027 / 3**0.5, 5 + 4.3027 / 3**0.5), abs=1e-4)


def test_equal_values_have_no_spread():
    found = spread_of([0.1] * 7)
    assert (found.deviation, found.interval) == (0.0, (0.1, 0.1))
