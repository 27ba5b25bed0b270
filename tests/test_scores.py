"""Stage 6: counts added up and divided once, against scikit-learn and SciPy."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss
from torch import nn
from torch.nn.functional import cross_entropy

from heptad.errors import DataError, NotFiniteError
from heptad.records import Batch, wilson_interval
from heptad.stages.evaluation import evaluate


def batches(logits, labels, sizes):
    """A network that repeats its input is scored on these logits."""
    ids = torch.arange(len(labels))
    for inputs, truth, places in zip(
        logits.split(sizes), labels.split(sizes), ids.split(sizes), strict=True
    ):
        yield Batch(inputs, truth, places, truth, places)


@pytest.mark.parametrize("sizes", [[50, 50, 50, 3], [153], [1] * 153], ids=["short", "one", "ones"])
def test_scores_are_those_of_scikit_learn_whatever_the_batches(sizes):
    torch.manual_seed(0)
    logits, labels = torch.randn(153, 5) * 3, torch.randint(0, 5, (153,))
    scores = evaluate(nn.Identity(), batches(logits, labels, sizes), cross_entropy)
    predicted = logits.argmax(1)
    assert scores.accuracy == pytest.approx(accuracy_score(labels, predicted), rel=1e-12)
    assert scores.confusion.tolist() == confusion_matrix(labels, predicted).tolist()
    probabilities = logits.double().softmax(1)
    assert scores.loss == pytest.approx(log_loss(labels, probabilities, labels=range(5)), rel=1e-9)
    assert scores.num_images == 153


def test_a_short_last_batch_weighs_by_its_images():
    logits = torch.tensor([[9.0, 0.0]] * 4)
    labels = torch.tensor([0, 0, 0, 1])
    scores = evaluate(nn.Identity(), batches(logits, labels, [3, 1]), cross_entropy)
    assert scores.accuracy == 0.75  # a mean of batch means would say 0.5


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (10, 10), (1, 3), (9790, 10_000)])
def test_the_interval_is_the_one_of_scipy(correct, total):
    expected = binomtest(correct, total).proportion_ci(method="wilson")
    assert wilson_interval(correct, total) == pytest.approx(tuple(expected), abs=1e-12)


def test_an_answer_that_is_not_finite_is_refused():
    """NaN would pass for class 0."""
    logits = torch.tensor([[1.0, 0.0], [float("nan"), 0.0]])
    with pytest.raises(NotFiniteError, match="image 1 is not finite"):
        evaluate(nn.Identity(), batches(logits, torch.tensor([0, 0]), [2]), cross_entropy)


def test_nothing_to_score_is_an_error():
    with pytest.raises(DataError, match="no image"):
        evaluate(nn.Identity(), iter(()), cross_entropy)


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_of_the_model_is_put_back(mode):
    model = nn.Dropout(0.5).train(mode)
    logits = torch.ones(4, 2)
    scores = evaluate(model, batches(logits, torch.zeros(4).long(), [4]), cross_entropy)
    assert torch.equal(scores.logits, logits)
    assert model.training is mode
