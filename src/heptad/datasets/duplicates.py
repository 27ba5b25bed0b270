"""Pictures that are there more than once: copies, and such as look nearly alike. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from heptad.datasets.scan import Seen

# Two pictures whose 64 bits differ in at most so many places look nearly alike.
NEAR_BITS = 3
MOST_PAIRS = 1000


def copies(seen: Sequence[Seen]) -> list[list[int]]:
    """Give the places of pictures with equal pixels, group by group; none that is there once."""
    found: dict[str, list[int]] = defaultdict(list)
    for place, now in enumerate(seen):
        found[now.pixels].append(place)
    return [places for places in found.values() if len(places) > 1]


def across(groups: Sequence[Sequence[int]], kinds: Sequence[Hashable]) -> list[list[int]]:
    """Give the groups of places whose pictures are of more than one of the `kinds` [N]."""
    return [list(group) for group in groups if len({kinds[place] for place in group}) > 1]


def near_duplicates(seen: Sequence[Seen]) -> list[tuple[int, int]]:
    """Find pairs of pictures that look nearly alike: their places, copies of one another left out.

    At most 1,000 pairs: small or plain pictures, such as digits, nearly all look alike so.

    By 64 bits of a difference hash that differ in three at most; found by the pigeonhole principle:
    of four pieces of 16 bits one must then be equal.
    """
    hashes = np.array([int(now.shape or "0", 16) for now in seen], np.uint64)
    pairs: set[tuple[int, int]] = set()
    for piece in range(4):
        groups: dict[int, list[int]] = defaultdict(list)
        for place, value in enumerate((hashes >> np.uint64(16 * piece)) & np.uint64(0xFFFF)):
            if seen[place].shape:
                groups[int(value)].append(place)
        for group in groups.values():
            own = np.array(group)
            for number, place in enumerate(group[:-1]):
                others = own[number + 1 :]
                bits = np.bitwise_count(hashes[others] ^ hashes[place])
                if len(pairs) >= MOST_PAIRS:
                    return sorted(pairs)[:MOST_PAIRS]
                pairs |= {
                    (place, int(other))
                    for other in others[bits <= NEAR_BITS]
                    if seen[other].pixels != seen[place].pixels
                }
    return sorted(pairs)[:MOST_PAIRS]
