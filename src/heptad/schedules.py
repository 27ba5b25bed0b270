"""The learning rate as a function of the step: a resume needs nothing of its past. No torch."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

# Of the one-cycle schedule, as in PyTorch's OneCycleLR: the part of the steps that rises, and what
# the peak is divided by at the start and at the end.
RISING, START_DIVISOR, END_DIVISOR = 0.3, 25, 25e4
# Of the step schedule, as in He et al. 2016, arXiv:1512.03385: a tenth, and a tenth again.
DROPS, DROP = (0.5, 0.75), 0.1


def _between(start: float, stop: float, progress: float) -> float:
    """Give the way from `start` to `stop` along half a cosine; progress: 0..1."""
    return stop + (start - stop) * (1 + cos(pi * progress)) / 2


def _constant(_step: int, _num_steps: int) -> float:
    return 1.0


def _cosine(step: int, num_steps: int) -> float:
    return _between(1.0, 0.0, step / num_steps)


def _one_cycle(step: int, num_steps: int) -> float:
    # Nothing rises or falls in one step.
    if num_steps == 1:
        return 1.0
    top, last = RISING * num_steps - 1, num_steps - 1
    if step <= top:
        return _between(1 / START_DIVISOR, 1.0, step / top)
    return _between(1.0, 1 / END_DIVISOR, (step - top) / (last - top))


def _stepwise(step: int, num_steps: int) -> float:
    return DROP ** sum(step >= at * num_steps for at in DROPS)


# Factors of the recipe's learning rate at a step, counted from 0, of so many: half a cosine is
# Loshchilov & Hutter, arXiv:1608.03983; one cycle Smith & Topin, arXiv:1708.07120.
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "one-cycle": _one_cycle,
    "step": _stepwise,
}


def rate_at(step: int, *, schedule: str, peak: float, warmup: float, num_steps: int) -> float:
    """Give the learning rate of `step`, counted from 0, of `num_steps` in all.

    peak: the largest. warmup: the fraction of the steps in which it rises evenly to that, before
    the schedule begins.
    """
    num_warm = round(warmup * num_steps)
    if step < num_warm:
        return peak * (step + 1) / num_warm
    return peak * SCHEDULES[schedule](step - num_warm, num_steps - num_warm)
