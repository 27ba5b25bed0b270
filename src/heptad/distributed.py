"""The processes that train together: which one this is, and what they tell one another.

A process alone has nobody to ask, and everything here is trivial for it. Under `torchrun` they are
the ranks of `torch.distributed`, and each does the same things in the same order. One that ends
takes the others with it: they learn of it in whatever they next do together.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar

from heptad.errors import HeptadError, MissingError, RankError, RecipeError, UnusableError

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger("heptad")

Items = TypeVar("Items")
Value = TypeVar("Value")

# What a launcher tells each of its processes; without all of these there is none.
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# A network file system may show a new file a little later elsewhere.
SEEN_WITHIN_S = 10.0
LOOK_INTERVAL_S = 0.2
# Gradients are exchanged in so many parts or more, of this size at most (PyTorch's own).
NUM_EXCHANGES = 4
MOST_EXCHANGED_MB = 25
# In the words of gloo and NCCL: another process ended, or did not answer.
LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Application timeout",
    "gloo",
    "NCCL",
)


@dataclass(frozen=True)
class Ranks:
    """One process among all that train together: `rank` counts from 0 to `world_size` - 1."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_alone(self) -> bool:
        """Whether there is no other."""
        return self.world_size == 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes: the run's folder is rank 0's."""
        return self.rank == 0

    def share(self, items: Items) -> Items:
        """Take this rank's part of a batch, every `world_size`-th item; perhaps none.

        items: anything that slices, such as a tensor of image indices [N].
        """
        return items[self.rank :: self.world_size]  # type: ignore[index, no-any-return]

    def share_sizes(self, num_items: int, batch_size: int) -> list[int]:
        """Count the items of each rank's part of all batches together."""
        whole, rest = divmod(num_items, batch_size)
        return [
            whole * len(range(rank, batch_size, self.world_size))
            + len(range(rank, rest, self.world_size))
            for rank in range(self.world_size)
        ]

    def sum_beside(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin to add up what each rank has, number by number; all get the same bits.

        What it gives waits for the sum: whatever is done before it is called is done meanwhile.
        """
        if self.is_alone:
            return lambda: values
        return _reduced(values.detach().clone(), _dist().ReduceOp.SUM)

    def merged(self, share: Tensor, num_items: int) -> Tensor:
        """Put the parts [n, ...] that `share` made of a batch together again: [num_items, ...]."""
        if self.is_alone:
            return share
        num_rows = -(-num_items // self.world_size)
        padded = share.new_zeros(num_rows, *share.shape[1:])
        padded[: len(share)] = share
        parts = [padded.new_empty(padded.shape) for _ in range(self.world_size)]
        _dist().all_gather(parts, padded)
        import torch

        # Row j of rank r was item j * world_size + r; what was padded is behind all items.
        return torch.stack(parts, 1).flatten(0, 1)[:num_items]

    def gathered(self, value: Value) -> list[Value]:
        """Give what each rank has, by rank; any value that can be pickled."""
        if self.is_alone:
            return [value]
        values: list[Any] = [None] * self.world_size
        _dist().all_gather_object(values, value)
        return values

    def largest_beside(self, number: int) -> Callable[[], int]:
        """Begin to find the largest of the numbers that the ranks have; what it gives waits."""
        if self.is_alone:
            return lambda: number
        import torch

        found = _reduced(torch.tensor(number), _dist().ReduceOp.MAX)
        return lambda: int(found())

    def by_first(self, work: Callable[[], Value]) -> Value:
        """Have rank 0 alone do some work; all get what it gave, once it is done.

        What a HeptadError of it says is raised everywhere, as a RankError elsewhere.
        """
        if self.is_alone:
            return work()
        told: list[Any] = [None]
        if self.is_first:
            # Whatever else is raised ends this process, and the others learn of that.
            try:
                told = [(work(), None)]
            except HeptadError as error:
                told = [(None, (f"rank 0: {error.message}", error.hint, error.exit_code))]
                _dist().broadcast_object_list(told, src=0)
                raise
        _dist().broadcast_object_list(told, src=0)
        value, refusal = told[0]
        if refusal:
            message, hint, exit_code = refusal
            raise RankError(message, hint=hint, exit_code=exit_code)
        given: Value = value
        return given

    def wait(self) -> None:
        """Wait until every rank is here."""
        self.largest_beside(0)()

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Let rank 0 carry out the block before the others do, who may find what it kept."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def parallel(self, model: nn.Module, nothing: Callable[[], Tensor]) -> nn.Module:
        """Give a model whose gradients are, after each backward pass, their mean over the ranks.

        nothing: gives inputs [0, ...] of the model.
        """
        if self.is_alone:
            return model
        from torch.nn.parallel import DistributedDataParallel

        # In parts, so that most of the exchange is done beside the backward pass.
        num_bytes = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        part_mb = min(MOST_EXCHANGED_MB, num_bytes / NUM_EXCHANGES / 2**20)
        with warnings.catch_warnings():
            # Releases before 2.14 know no other word for it.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            shared = DistributedDataParallel(
                model, broadcast_buffers=False, init_sync=False, bucket_cap_mb=part_mb
            )
        # How gradients are put together for the exchange is settled in the first pass, and a sum of
        # three numbers depends on it: without this one, a resume would differ in the last bits.
        shared(nothing()).sum().backward()
        model.zero_grad()
        return shared

    def refuse_differences(self, facts: Mapping[str, Any]) -> None:
        """Raise UnusableError, on every rank, where one has other facts than rank 0."""
        everywhere = self.gathered((socket.gethostname(), dict(facts)))
        host, expected = everywhere[0]
        # Another version may know other settings.
        lines = [
            f"{name} is {found.get(name)} on rank {rank} ({other}), but {expected.get(name)} on"
            f" rank 0 ({host})."
            for rank, (other, found) in enumerate(everywhere)
            for name in sorted(found.keys() | expected.keys())
            if found.get(name) != expected.get(name)
        ]
        if lines:
            raise UnusableError(
                "\n".join(lines),
                hint="all ranks are started with the same command, versions, data and weights",
            )

    def refuse_other_folders(self, folder: Path, what: str) -> None:
        """Raise MissingError, on every rank, unless all see one and the same folder, which exists.

        what: for people, what the folder is for.
        """
        if self.is_alone:
            return

        def leave_a_sign() -> Path:
            path = folder / f".seen-{secrets.token_hex(8)}"
            path.touch()
            return path

        sign = self.by_first(leave_a_sign)
        # By its own name for the folder: caches may be mounted elsewhere on other machines.
        places = self.gathered((appears(folder / sign.name), f"{folder} on {socket.gethostname()}"))
        if self.is_first:
            sign.unlink(missing_ok=True)
        blind = [f"rank {rank} ({place})" for rank, (sees, place) in enumerate(places) if not sees]
        if blind:
            raise MissingError(
                f"{what} needs one folder that all ranks see, but {', '.join(blind)}"
                f" {'does' if len(blind) == 1 else 'do'} not see what rank 0 writes into"
                f" {places[0][1]}.",
                hint="set HEPTAD_HOME to a folder of a shared file system on every machine",
            )


ALONE = Ranks()


def _reduced(values: Tensor, operation: Any) -> Callable[[], Tensor]:
    """Begin to put the values of all ranks together, in place; what it gives waits for them."""
    work = _dist().all_reduce(values, op=operation, async_op=True)

    def wait() -> Tensor:
        work.wait()
        return values

    return wait


def appears(path: Path) -> bool:
    """Wait a little for a file that another machine has written; tell whether it is there."""
    until = monotonic() + SEEN_WITHIN_S
    while not path.exists():
        if monotonic() > until:
            return False
        sleep(LOOK_INTERVAL_S)
    return True


def launched() -> Ranks:
    """Give what the launcher says of this process, whether or not the ranks have met; no torch.

    Raises RecipeError if it says nonsense.
    """
    if not all(os.environ.get(name) for name in LAUNCHED):
        return ALONE
    try:
        found = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    except ValueError:
        found = Ranks(-1)
    if not 0 <= found.rank < found.world_size:
        raise RecipeError(
            f"RANK is {os.environ['RANK']} and WORLD_SIZE {os.environ['WORLD_SIZE']}; allowed: a"
            " whole number from 0, below the second one.",
            hint="start the ranks with torchrun, which sets both",
        )
    return found


def local_rank() -> int | None:
    """Give the number of this process among those of its machine; None for a process alone.

    Raises RecipeError if the launcher does not say.
    """
    if launched().is_alone:
        return None
    number = os.environ.get("LOCAL_RANK", "")
    if not number.isdecimal():
        raise RecipeError(
            f"RANK is set, but LOCAL_RANK is {number or 'not'}, which decides the device.",
            hint="start the ranks with torchrun, which sets both",
        )
    return int(number)


def launch_name() -> str | None:
    """Name the process of torchrun that started this one, whatever it restarts; None for none.

    A name that a person gave to a launch will be given to another one.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if not name:
        return None
    launcher = os.getppid()
    try:
        # When it started, as another may have its number later.
        started_at = Path(f"/proc/{launcher}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started_at = ""
    return f"{name} {socket.gethostname()} {launcher} {started_at}"


def met() -> Ranks:
    """Give this process among those that it has joined: alone, unless within `joined`."""
    # Whoever joined has imported it.
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size())


def refuse_launched(what: str) -> None:
    """Raise RecipeError if a launcher started several processes for what one does alone."""
    ranks = launched()
    if not ranks.is_alone:
        raise RecipeError(
            f"{what} is the work of one process, but {ranks.world_size} were launched.",
            hint="several ranks can carry out `heptad train` and `heptad resume` of one run",
        )


@contextmanager
def joined(timeout_s: int) -> Iterator[Ranks]:
    """Meet the other ranks that a launcher started, until the block ends; alone without one.

    timeout_s: how long to wait for others, here and in whatever is done together. Raises RankError
    if they do not come, or end or do not answer while the block is carried out, MissingError if the
    port is taken.
    """
    ranks = launched()
    if ranks.is_alone:
        yield ranks
        return
    _meet(ranks, timeout_s)
    try:
        with lost_ranks_said():
            yield ranks
    finally:
        _dist().destroy_process_group()


def _meet(ranks: Ranks, timeout_s: int) -> None:
    import torch

    # Imported later, as DistributedDataParallel does, its default arguments would keep the group of
    # that time for ever, with threads that may abort a process that ends (pytorch#179291).
    import torch.distributed.nn.functional

    dist = _dist()
    _keep_to_this_machine()
    is_for_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    timeout = timedelta(seconds=timeout_s)
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if is_for_gpus else "gloo",
            store=_of_this_attempt(store),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
        )
    except (RuntimeError, ValueError) as error:
        where = f"at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        if errno.errorcode[errno.EADDRINUSE] in str(error):
            raise MissingError(
                f"the ranks cannot meet {where}: the port is in use.",
                hint="torchrun --standalone takes a free one; else choose another --master-port",
            ) from error
        if "timed out" not in str(error).lower():
            raise RankError(
                f"rank {ranks.rank} cannot meet the others {where}: {_first_line(error)}",
                hint="see what became of them, and what the network allows",
            ) from error
        raise RankError(
            f"rank {ranks.rank} waited {timeout_s} s {where}, and not all {ranks.world_size}"
            f" ranks came: {_first_line(error)}",
            hint="see what became of the others; --rank-timeout waits longer",
        ) from error


def _of_this_attempt(store: Any) -> Any:
    """Keep apart what the ranks of each restart write into torchrun's store.

    There is one for all (pytorch#135712): where ranks of an earlier attempt listened still stands
    in it, and sooner or later somebody would wait for them.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store
    # Each machine counts its own restarts, so that only one alone has a number in common.
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        logger.warning(
            "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun on every machine, else a"
            " restart may wait for ranks that are gone"
        )
        return store
    return _dist().PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)


@contextmanager
def lost_ranks_said() -> Iterator[None]:
    """Turn what PyTorch raises when another rank is gone into a RankError."""
    try:
        yield
    except RuntimeError as error:
        is_lost = isinstance(error, _dist().DistError) or any(w in str(error) for w in LOST)
        if not is_lost:
            raise
        raise RankError(
            f"another rank ended, or did not answer: {_first_line(error)}",
            hint="if it ended by an error, its own message says why",
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _keep_to_this_machine() -> None:
    """Let ranks that are all on one machine listen there alone: what they say is not protected."""
    names = [name for _, name in socket.if_nameindex()] if hasattr(socket, "if_nameindex") else []
    loopback = next((name for name in ("lo", "lo0") if name in names), None)
    if loopback and os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


def _dist() -> Any:
    import torch.distributed

    return torch.distributed
