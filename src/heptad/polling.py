"""Ranks agree on a number between two reports: how a signal to one of them stops all of them."""

from __future__ import annotations

from collections.abc import Callable

from heptad.distributed import lost_ranks_said, met
from heptad.records import EpochReport, EvaluationReport, Prepared, StepReport


class Poll:
    """What all ranks are asked by every report: how a signal to one stops all at the same step."""

    def __init__(self) -> None:
        self._asked: Callable[[], int] | None = None

    def agreed(self, report: object, number: int | None) -> int | None:
        """Give the largest number that a rank had by the report before; None if none had one.

        Only where all have the same report; in a pass, where each has its own, a number stays with
        the one that has it, as it does in a process alone.
        """
        ranks = met()
        is_common = isinstance(report, Prepared | StepReport | EvaluationReport | EpochReport)
        if ranks.is_alone or not is_common:
            return number
        with lost_ranks_said():
            # Asked beside the work, it has long been answered.
            found = self._asked() if self._asked else 0
            self._asked = None if found else ranks.largest_beside(number or 0)
        return found or None
