"""Two classifiers on the same images, against SciPy, published examples and sums by hand."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from heptad.reports.comparison import p_text
from heptad.reports.paired import PairedCounts, holm, mcnemar_p, paired_interval

# Complete response before and after consolidation therapy (Cavo et al. 2012), airway
# hyper-responsiveness before and after transplantation (Bentur et al. 2009), both with intervals as
# in Fagerland, Lydersen & Laake, Statistical Analysis of Contingency Tables (2017), chapter 8.
CAVO, BENTUR = PairedCounts(59, 6, 16, 80), PairedCounts(1, 1, 7, 12)


@pytest.mark.parametrize(
    ("first", "second"),
    [(0, 0), (1, 0), (0, 9), (5, 5), (25, 2), (112, 34), (3000, 2800), (100_000, 101_000)],
)
def test_the_p_of_mcnemars_test_is_that_of_the_binomial_test(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar_p(PairedCounts(7, first, second, 3)) == pytest.approx(expected, rel=1e-8)


def test_the_p_of_a_published_example():
    assert mcnemar_p(CAVO) == pytest.approx(0.052479, abs=5e-7)


@pytest.mark.parametrize(
    ("counts", "expected"), [(CAVO, (-0.1186, -0.0046)), (BENTUR, (-0.507, -0.026))]
)
def test_the_interval_of_a_difference_is_the_published_one(counts, expected):
    assert paired_interval(counts) == pytest.approx(expected, abs=5e-4)
    # A control: with the correlation as it is, not corrected, it would be another.
    if counts is CAVO:
        assert paired_interval(counts) != pytest.approx((-0.1174, -0.0059), abs=5e-4)


@pytest.mark.parametrize("counts", [(1, 1, 7, 12), (5, 0, 0, 5), (90, 4, 0, 6), (0, 3, 9, 0)])
def test_the_other_way_round_everything_changes_its_sign_alone(counts):
    both, first, second, neither = counts
    there, back = PairedCounts(*counts), PairedCounts(both, second, first, neither)
    assert back.difference == -there.difference
    assert mcnemar_p(back) == mcnemar_p(there)
    low, high = paired_interval(there)
    assert paired_interval(back) == pytest.approx((-high, -low), abs=1e-12)
    assert low <= there.difference <= high


@pytest.mark.parametrize("counts", [(10, 0, 0, 0), (0, 10, 0, 0), (0, 0, 10, 0), (0, 0, 0, 1)])
def test_counts_in_one_cell_have_an_interval_too(counts):
    low, high = paired_interval(PairedCounts(*counts))
    assert -1 <= low < high <= 1


def test_holms_correction_is_that_by_hand():
    # Sorted: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04, which may not be below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert (holm([0.2]), holm([])) == ([0.2], [])


def test_a_p_just_below_the_limit_is_not_written_as_the_limit():
    p = binomtest(42, 67).pvalue
    assert (p < 0.05, p_text(p)) == (True, "p = 0.0498")
    assert [p_text(p) for p in (0.05, 0.0502, 0.049999, 0.2)] == [
        "p = 0.05",
        "p = 0.05",
        "p = 0.049999",
        "p = 0.2",
    ]
