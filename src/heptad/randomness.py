"""Every random draw of a run comes from here: derived from the recipe's seed, never saved.

A draw is named by its purpose and its place in the run, so that a resume, another number of
workers or another order of the stages changes none of them. No torch here.
"""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, purpose: str, *place: int) -> int:
    """Give a seed in 0..2**63-1 that depends on nothing but the arguments.

    `purpose` keeps draws of different kinds apart ("order", "dropout"); `place` is where in the
    run the draw happens (an epoch, a position). SHA-256, so that near places give far seeds.
    """
    text = f"{purpose}:{seed}:{':'.join(str(number) for number in place)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
