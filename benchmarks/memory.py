"""The most memory that a process holds, watched from inside it."""

from __future__ import annotations

import threading
import time
from pathlib import Path


class PeakMemory(threading.Thread):
    """Watches this process's anonymous memory, in GB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_gb = 0.0
        self.start()

    def run(self) -> None:
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    self.peak_gb = max(self.peak_gb, int(line.split()[1]) / 1e6)
            time.sleep(0.02)
