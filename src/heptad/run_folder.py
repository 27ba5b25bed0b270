"""The folder of a run, or of a group of runs that differ in their seeds alone. No torch.

It is checked before any work, made, and owned by one process at a time.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from heptad.distributed import launched
from heptad.errors import (
    MissingError,
    OutputError,
    RecipeError,
    RunError,
    WeightsError,
    counted,
)
from heptad.files import (
    NO_LOCKS,
    UNFINISHED,
    as_word,
    lies_at,
    remove_leftovers,
    try_lock,
    user_path,
    write_bytes,
)
from heptad.recipe import Recipe, RunOptions

logger = logging.getLogger("heptad")

# What a run was carried out with: the one file in which equal runs on two machines differ.
ENVIRONMENT = "environment.json"
# Which picture went where, of a run on pictures.
PICTURES = "pictures.json"
RUN_FILES = (
    "recipe.json",
    ENVIRONMENT,
    "metrics.jsonl",
    "epochs.csv",
    "metrics.json",
    "predictions.npz",
)
# What `heptad tune` leaves in a folder of its own; the first is there from the first trial on.
SEARCH, BEST = "search.json", "best.toml"
SEARCH_FILES = (SEARCH, "trials.journal", "trials.csv", "trials.png", BEST)
# Made from the others at any time, and so without a hash among them.
REPORT, CARD = "report.html", "MODEL_CARD.md"
# What a group of runs with several seeds has beside their folders, `seed-0` and so on.
SEEDS = "seeds.json"
# No name for a further file of a run.
TAKEN = (*RUN_FILES, PICTURES, SEEDS, *SEARCH_FILES)
# Either tells that a run was begun.
SIGNS = ("recipe.json", "metrics.json")
RUNS_FOLDER = Path("runs")
CHECKPOINTS = "checkpoints"
LOCK = ".heptad-lock"
LAUNCH = ".heptad-launch"
MOST_TRIES = 100


def check_output(recipe: Recipe, options: RunOptions) -> None:
    """See that a run could be written where the options say, before any work; makes nothing.

    Raises OutputError if the place lies under a file or cannot be written, and RecipeError if
    nothing is named to resume, or a file of the recipe's has a taken name.
    """
    if recipe.training_stats in TAKEN:
        raise RecipeError(
            f"training_stats is {recipe.training_stats}, which is the name of another file;"
            f" taken: {', '.join(TAKEN)}."
        )
    if options.resume and not options.out:
        raise RecipeError(
            "resume is asked for, but no run folder is named.",
            hint="name it with --out, or use `heptad resume RUN`",
        )
    check_place(options.out)


def refuse_unnamed_output(options: RunOptions) -> None:
    """Raise RecipeError if several processes would have to agree on a folder that nobody named."""
    if options.out is None and not launched().is_alone:
        raise RecipeError(
            "several ranks train together, but no run folder is named.",
            hint="name it with --out; they all must have the same",
        )


def is_restart_of(out: str | None, launchers: Iterable[str | None]) -> bool:
    """Tell whether one of these launchers had begun the run in `out`, and now starts it again.

    launchers: of each rank. Of several machines one may have been replaced, but not all. A run that
    others launched is not gone on with, however often a launcher tries.
    """
    if out is None:
        return False
    try:
        begun = (user_path(out) / LAUNCH).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return False
    return not set(begun).isdisjoint(filter(None, launchers))


def note_launch(folder: Path, launchers: Iterable[str | None]) -> None:
    """Note in a run's folder what launched it, for `is_restart_of`; before anything else is there.

    Equal runs are equal whatever launched them: it is none of their files.
    """
    names = sorted(set(filter(None, launchers)))
    if names:
        write_bytes(folder / LAUNCH, "\n".join(names).encode())


def check_place(out: str | None) -> None:
    """Raise OutputError if a folder `out`, or one in runs, could not be made or written."""
    folder = user_path(out) if out else RUNS_FOLDER
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise OutputError(f"no run folder can be made at {folder}: {nearest} is a file.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"no run folder can be made at {folder}: {nearest} cannot be written.")


def is_of_run(path: Path) -> bool:
    """Tell whether a file is one that the run or search in its folder, finished or not, saved."""
    if path.name in RUN_FILES and (path.parent / "recipe.json").is_file():
        return True
    if path.name in SEARCH_FILES and (path.parent / SEARCH).is_file():
        return True
    try:
        return path.name in json.loads((path.parent / "metrics.json").read_bytes())["files"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def saved_weights(folder: Path) -> tuple[Path, str]:
    """Give the file of the whole network that a finished run saved, and the SHA-256 it noted.

    Raises WeightsError if the folder holds none, or only its trained part; RunError if it is that
    of a search or of a group of runs.
    """
    refuse_group(folder)
    refuse_search_as_run(folder)
    try:
        files = dict(json.loads((folder / "metrics.json").read_bytes())["files"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise WeightsError(
            f"the folder {folder} is no finished run to start from.",
            hint="name a run's folder, a .pth or a .safetensors file",
        ) from None
    names = [name for name in files if name.endswith(".pth")]
    if len(names) != 1 or Path(names[0]).name != names[0] or not (folder / names[0]).is_file():
        raise WeightsError(
            f"the run in {folder} has no file of its whole network to start from.",
            hint=f"`heptad export {as_word(folder)} --format safetensors` writes one from its"
            " trained part",
        )
    return folder / names[0], str(files[names[0]])


@dataclass(frozen=True)
class StartRun:
    """A run whose weights another goes on from: its recipe, and the pictures it was trained on.

    pictures: the SHA-256 of each; none where it was trained on no pictures.
    """

    recipe: Recipe
    pictures: frozenset[str]


def start_run(weights: str) -> StartRun | None:
    """Give the run that a recipe's `weights` names by its folder; None if it names none."""
    folder = user_path(weights)
    try:
        recipe = Recipe(**json.loads((folder / "recipe.json").read_bytes()))
        listed = folder / PICTURES
        pictures = json.loads(listed.read_bytes())["pictures"] if listed.is_file() else []
        return StartRun(
            recipe, frozenset(each["sha256"] for each in pictures if each["part"] == "train")
        )
    # Whether it can be used at all is said where its weights are read.
    except (OSError, ValueError, LookupError, TypeError, RecursionError, RecipeError):
        return None


def seed_folder(folder: Path, seed: int) -> Path:
    """Give the folder of the run with this seed, in that of its group."""
    return folder / f"seed-{seed}"


def is_group(folder: Path) -> bool:
    """Tell whether a folder is one of a group of runs, finished or not."""
    return (folder / SEEDS).is_file()


def refuse_group(folder: Path) -> None:
    """Raise RunError, which names what may be meant, if a folder is that of a group of runs."""
    if not is_group(folder):
        return
    try:
        seeds = [int(seed) for seed in json.loads((folder / SEEDS).read_bytes())["seeds"]]
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        seeds = []
    said = f"a group of {counted(len(seeds), 'run')}" if seeds else "a group of runs"
    raise RunError(
        f"{folder} is {said}, not one; name one of them, such as"
        f" {seed_folder(folder, seeds[0] if seeds else 0)}.",
        hint=f"`heptad report {as_word(folder)}` is about all of them",
    )


def refuse_run(folder: Path) -> None:
    """Raise OutputError if a folder holds a run, finished or not."""
    taken = [name for name in RUN_FILES if (folder / name).exists()]
    taken += sorted(path.name for path in folder.glob("*.pth"))
    # A run of its own would take another's for those of the same place in its training.
    taken += [CHECKPOINTS] if any((folder / CHECKPOINTS).glob("*")) else []
    if "metrics.json" in taken:
        raise OutputError(
            f"the folder {folder} holds a run already.",
            hint="choose another --out, or leave it out for the next runs/NAME-NUMBER",
        )
    if taken:
        raise OutputError(
            f"the folder {folder} holds a run that was not finished: {taken[0]} is there.",
            hint=f"`heptad resume {as_word(folder)}` goes on with it; else choose another --out",
        )


def refuse_group_as_output(folder: Path) -> None:
    """Raise OutputError if a folder holds a group of runs."""
    if is_group(folder):
        raise OutputError(
            f"the folder {folder} holds a group of runs.",
            hint=f"`heptad resume {as_word(folder)}` goes on with it; else choose another --out",
        )


def is_search(folder: Path) -> bool:
    """Tell whether a folder is that of a search, finished or not."""
    return (folder / SEARCH).exists()


def refuse_search_as_run(folder: Path) -> None:
    """Raise RunError, which says what can be done with it, if a folder is that of a search."""
    if not is_search(folder):
        return
    best = folder / BEST
    trains = f"`heptad train {as_word(best)}` trains the best trial's recipe; "
    raise RunError(
        f"{folder} is a search of `heptad tune`, not a run.",
        hint=f"{trains if best.is_file() else ''}the same `heptad tune` command with `--resume"
        f" --out {as_word(folder)}` goes on with the search",
    )


def refuse_search(folder: Path) -> None:
    """Raise OutputError if a folder holds a search."""
    if is_search(folder):
        raise OutputError(
            f"the folder {folder} holds a search of `heptad tune`.", hint="choose another --out"
        )


def _refuse_seeds(folder: Path) -> None:
    """Raise OutputError if a folder holds runs of a group, finished or not."""
    begun = _begun_in_group(folder)
    if begun:
        raise OutputError(
            f"the folder {folder} holds a group of runs already: {begun[0].name} is there.",
            hint="--resume goes on with it, or adds runs if --seeds is larger; else choose another"
            " --out",
        )


def _begun_in_group(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("seed-*/recipe.json"))


def begun_seeds(folder: Path) -> list[int]:
    """Give the seeds of the runs that were begun in a group's folder, whatever `seeds.json` says.

    Finished ones too whose recipe is gone.
    """
    places = {path.parent for name in SIGNS for path in folder.glob(f"seed-*/{name}")}
    numbers = [path.name.removeprefix("seed-") for path in places]
    seeds = [int(number) for number in numbers if number.isascii() and number.isdecimal()]
    return sorted(seed for seed in seeds if seed_folder(folder, seed) in places)


def _has_recipe(folder: Path) -> bool:
    return (folder / "recipe.json").exists()


def _has_runs(folder: Path) -> bool:
    return bool(_begun_in_group(folder))


@contextmanager
def claimed(recipe: Recipe, options: RunOptions) -> Iterator[Path]:
    """Give the run's folder, made where there is none, and own it until the block ends.

    See `owned`. What an earlier owner left half-written is removed. Raises OutputError if the
    folder holds a search, a group of runs, or a run that is not to be resumed.
    """
    with owned(options.out, recipe.name, is_begun=_has_recipe) as folder:
        refuse_search(folder)
        refuse_group_as_output(folder)
        if not options.resume:
            refuse_run(folder)
        if _has_begun(folder, "recipe.json"):
            remove_leftovers(folder)
            remove_leftovers(folder / CHECKPOINTS, folders=True)
        yield folder


@contextmanager
def claimed_group(recipe: Recipe, options: RunOptions) -> Iterator[Path]:
    """Give the folder of a group of runs, as `claimed` gives that of a run.

    If the block ends before one of its runs has begun, its `seeds.json` is removed too.
    """
    with owned(options.out, recipe.name, is_begun=_has_runs) as folder:
        refuse_run(folder)
        refuse_search(folder)
        if not options.resume:
            _refuse_seeds(folder)
        if _has_begun(folder, SEEDS):
            remove_leftovers(folder)
        try:
            yield folder
        finally:
            with suppress(OSError):
                if not _has_runs(folder):
                    (folder / SEEDS).unlink(missing_ok=True)


def _has_begun(folder: Path, first: str) -> bool:
    """Tell whether an earlier owner began at least to write the `first` of its files."""
    return (folder / first).exists() or any(folder.glob(f".{first}.*{UNFINISHED}"))


@contextmanager
def owned(out: str | None, name: str, *, is_begun: Callable[[Path], bool]) -> Iterator[Path]:
    """Give a folder, made where there is none, and own it until the block ends.

    It is `out`, or runs/NAME-NUMBER with the first number that is free. If nothing has begun in it
    when the block ends, all that was made here is removed again. Raises OutputError if the folder
    cannot be made, MissingError if another process owns it.
    """
    made: list[Path] = []
    try:
        folder = _make(out, name, made)
        descriptor = _lock(folder)
    except OSError as error:
        _remove(made)
        raise OutputError(
            f"no run folder can be made at {out or RUNS_FOLDER}: {error.strerror}."
        ) from error
    try:
        yield folder
    finally:
        # A folder that may not even be looked into any more must not hide why the run ended.
        with suppress(OSError):
            if not is_begun(folder):
                (folder / LOCK).unlink(missing_ok=True)
                _remove(made)
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _make(out: str | None, name: str, made: list[Path]) -> Path:
    """Make the folder and its parents; those that were not there before are added to `made`."""
    if out:
        folder = user_path(out)
        for path in (*reversed(folder.parents), folder):
            if not path.is_dir():
                path.mkdir(exist_ok=True)
                made.append(path)
        return folder
    if not RUNS_FOLDER.is_dir():
        RUNS_FOLDER.mkdir(exist_ok=True)
        made.append(RUNS_FOLDER)
    number = 1
    while True:
        folder = RUNS_FOLDER / f"{name}-{number}"
        try:
            # Two runs that start at once cannot both make it.
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            made.append(folder)
            return folder


def _remove(made: list[Path]) -> None:
    for path in reversed(made):
        with suppress(OSError):
            path.rmdir()


def _lock(folder: Path) -> int:
    """Own the folder until the descriptor given is closed, be it by the end of this process.

    Who owns it is written into the file for the message alone; the lock itself is the system's.
    """
    path = folder / LOCK
    for _ in range(MOST_TRIES):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try_lock(descriptor)
            if not lies_at(descriptor, path):
                os.close(descriptor)
                continue
        except BlockingIOError:
            owner = os.read(descriptor, 500).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            if owner == _this_process():
                owner = "this very process, which did not close its earlier run"
            raise MissingError(
                f"the run folder {folder} is in use by {owner}.",
                hint="wait for it or stop it; a process that ended, however it did, holds nothing",
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
            logger.warning("%s cannot be locked: see to it that one run uses it at a time", folder)
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _this_process().encode())
        return descriptor
    raise OSError(errno.EBUSY, "others are making and removing it")


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"
