"""Which of how many processes one is: rank 0 of 1 unless the caller says otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

Items = TypeVar("Items")


@dataclass(frozen=True)
class Ranks:
    """One process among all that train together: `rank` counts from 0 to `world_size` - 1."""

    rank: int = 0
    world_size: int = 1

    def share(self, items: Items) -> Items:
        """Take this rank's part of a batch, every `world_size`-th item; perhaps none.

        items: anything that slices, such as a tensor of image indices [N].
        """
        return items[self.rank :: self.world_size]  # type: ignore[index, no-any-return]


ALONE = Ranks()
