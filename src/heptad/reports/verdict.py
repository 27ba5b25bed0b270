"""Whether a training learned anything at all, in one sentence, and what to try if it did not."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

from heptad.records import Run

# A training loss this near to that of guessing has moved by no more than noise.
NEAR_CHANCE = 0.95
MOST_NAMED = 5


@dataclass(frozen=True)
class Verdict:
    """Whether a run learned, said in a sentence, with what to try next where it did not."""

    has_learned: bool
    sentence: str
    advice: str = ""


def judge(run: Run) -> Verdict:
    """Judge a finished run by its last epoch: the loss against ln K, and what it answers."""
    scores, classes = run.scores, run.metrics["classes"]
    loss, guessing = run.epochs[-1].train_loss, log(len(classes))
    answers = scores.confusion.sum(0).tolist()
    answered = [name for name, count in zip(classes, answers, strict=True) if count]
    if len(answered) == 1 and len(classes) > 1:
        return Verdict(
            False,
            f"It did not learn: it answers {answered[0]!r} to every image.",
            _advice(run),
        )
    if loss > NEAR_CHANCE * guessing:
        return Verdict(
            False,
            f"It did not learn: its loss is {loss:.2f}, and guessing costs"
            f" ln {len(classes)} = {guessing:.2f}.",
            _advice(run),
        )
    commonest = int(scores.confusion.sum(1).max()) / scores.num_images
    if scores.interval[0] <= commonest:
        return Verdict(
            False,
            f"It learned next to nothing: always answering the commonest class would score"
            f" {100 * commonest:.1f} %.",
            _advice(run),
        )
    learned = f"It learned: loss {loss:.3f} where guessing costs ln {len(classes)} = {guessing:.2f}"
    present = scores.confusion.sum(1).tolist()
    unused = [
        name for name, n, there in zip(classes, answers, present, strict=True) if there and not n
    ]
    if unused:
        more = ", …" if len(unused) > MOST_NAMED else ""
        return Verdict(
            True,
            f"{learned}; but it never answers {', '.join(unused[:MOST_NAMED])}{more}.",
            _advice(run),
        )
    return Verdict(True, f"{learned}, and every class is answered.")


def _advice(run: Run) -> str:
    recipe = run.recipe
    tries = []
    if run.metrics["weights"]["name"] == "none" and recipe.trainable == "last-layer":
        tries.append("pretrained weights (the frozen part is random)")
    tries.append(f"--learning-rate {recipe.learning_rate / 10:g}")
    tries.append(f"--epochs {2 * recipe.epochs}")
    if recipe.limit:
        tries.append("a larger --limit")
    return f"Try {', or '.join(tries)}."
