"""A small disk that nobody else sees: a tmpfs in a mount namespace of its own. Linux, as root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from peers.running import Ending, Place, ending_of

DISK_BYTES = 64_000_000


@dataclass(frozen=True)
class Disk:
    """A disk, for those who enter the namespace of `pid` under `mount`, for others as `seen`."""

    pid: int
    mount: Path
    seen: Path

    def carry_out(self, place: Place) -> Ending:
        """Run a tool, in a fresh Python, its run folder and temporary files on the disk."""
        words = place.tool.words(place.work, self.mount / "run")
        python = [sys.executable, *(["-m"] if words[0] == "heptad" else [])]
        done = subprocess.run(
            ["nsenter", "--target", str(self.pid), "--mount", "--", *python, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            env={**os.environ, "TMPDIR": str(self.mount / "tmp")},
        )
        return ending_of(done.returncode, done.stdout)

    def make_room(self) -> None:
        (self.seen / "ballast").unlink()


@contextmanager
def small_disk(mount: Path, *, room: int) -> Iterator[Disk]:
    """Give a disk with `room` bytes free; raises OSError if the system does not allow it."""
    mount.mkdir()
    script = f"mount -t tmpfs -o size={DISK_BYTES} none {mount} && echo ready && exec sleep 3600"
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = holder.stdout.readline().strip()
        if said != "ready":
            raise OSError(f"no disk of its own: {said}")
        seen = Path(f"/proc/{holder.pid}/root{mount}")
        for name in ("run", "tmp"):
            (seen / name).mkdir()
        with (seen / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(seen).free - room)
        yield Disk(holder.pid, mount, seen)
    finally:
        holder.kill()
        holder.communicate()
