"""Whether a training learned anything at all, in one sentence, and what to try if it did not."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

from heptad.records import Run

# A loss this near to that of guessing has moved by no more than noise; above it, answers are worse
# than a guess.
NEAR_GUESSING = 1.1
MOST_NAMED = 5


@dataclass(frozen=True)
class Verdict:
    """Whether a run learned, said in a sentence, with what to try next where it did not."""

    has_learned: bool
    sentence: str
    advice: str = ""


def judge(run: Run) -> Verdict:
    """Judge a finished run by its last evaluation: what it answers, and the loss against ln K.

    It has learned if the accuracy's whole interval is above what the commonest class would score.
    """
    scores, classes = run.scores, run.metrics["classes"]
    guessing = log(len(classes))
    # Of the probabilities, whatever was trained by.
    loss = scores.negative_log_likelihood
    costs = f"loss {loss:.3f} where guessing costs ln {len(classes)} = {guessing:.2f}"
    answers = scores.confusion.sum(0).tolist()
    images = scores.confusion.sum(1).tolist()
    answered = [name for name, count in zip(classes, answers, strict=True) if count]
    commonest = max(images) / scores.num_images
    if scores.interval[0] <= commonest:
        found = (
            f"it answers {answered[0]!r} to every image"
            if len(answered) == 1
            else f"always the commonest class would score {100 * commonest:.1f} %"
        )
        return Verdict(False, f"It did not learn: {found}; {costs}.", _advice(run))
    unused = [
        name
        for name, count, there in zip(classes, answers, images, strict=True)
        if there and not count
    ]
    if unused:
        more = ", …" if len(unused) > MOST_NAMED else ""
        named = ", ".join(unused[:MOST_NAMED])
        return Verdict(
            True, f"It learned: {costs}; but it never answers {named}{more}.", _advice(run)
        )
    return Verdict(True, f"It learned: {costs}, and every class that occurs is answered.")


def _advice(run: Run) -> str:
    """Say what to try: smaller steps if answers are worse than guesses, else larger or more."""
    recipe = run.recipe
    tries = []
    if run.metrics["weights"]["name"] == "none" and recipe.has_frozen_part:
        tries.append("pretrained weights (the frozen part is random)")
    if run.scores.negative_log_likelihood > NEAR_GUESSING * log(len(run.metrics["classes"])):
        tries.append(f"--learning-rate {recipe.learning_rate / 10:g}")
    else:
        tries += [f"--epochs {2 * recipe.epochs}", f"--learning-rate {recipe.learning_rate * 10:g}"]
    if recipe.limit:
        tries.append("a larger --limit")
    return f"Try {', or '.join(tries)}."
