"""Whole commands of Heptad, in processes of their own, timed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any


def timed_command(words: Sequence[str]) -> tuple[float, dict[str, Any]]:
    """Carry out `heptad WORDS --json`; give its seconds and the document that it printed."""
    started_at = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "heptad", *words, "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    return time.perf_counter() - started_at, json.loads(done.stdout)
