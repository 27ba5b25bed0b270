"""What a group of runs that differ in their seeds alone comes to: `seeds.json`, written and read.

The document follows from the group's recipe, its seeds and the `metrics.json` of its runs, and from
nothing else. It is written when the group begins and after each run; the figures of all together
are there when all runs are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heptad.errors import DamagedError, RecipeError, RunError, damage_in
from heptad.files import as_word, digest_of, read_document
from heptad.measures import Spread, spread_of
from heptad.recipe import Recipe
from heptad.records import wilson_interval
from heptad.run_folder import SEEDS, is_group, seed_folder
from heptad.text import table_with_picture

# Of `seeds.json`; one of another is not read.
SCHEMA = 1
# One run alone has no spread; for more than so many, what is read at the end would not fit a page.
LEAST_SEEDS, MOST_SEEDS = 2, 1000
ALLOWED_SEEDS = f"a whole number, {LEAST_SEEDS} to {MOST_SEEDS} (one run alone has no spread)"
LARGEST_SEED = 2**63 - 1
# What stands in `seeds.json` as the `metrics.json` of a run has it.
TAKEN_OVER = ("test_loss", "test_set", "seconds", "digest")
# What else tells whether runs differ in more than their seeds; runs of earlier versions lack it.
ORIGINS = ("weights", "data", "seed_draws_images")
TWO_INTERVALS = (
    "Wilson's interval is about which test images were drawn, Student's over the seeds about the"
    " draws of training: {draws}."
)
OTHER_IMAGES = (
    "Here the seed also decided which images {what}, so that Student's is about that too."
)


def seeds_of(recipe: Recipe, num_seeds: int) -> tuple[int, ...]:
    """Give the seeds of a group: that of the recipe, and those that follow it.

    Raises RecipeError for a number that is not allowed, or beyond the largest seed.
    """
    if not LEAST_SEEDS <= num_seeds <= MOST_SEEDS:
        raise RecipeError(f"seeds is {num_seeds}; allowed: {ALLOWED_SEEDS}.")
    if recipe.seed + num_seeds - 1 > LARGEST_SEED:
        raise RecipeError(
            f"seeds is {num_seeds} and seed is {recipe.seed}: the last one would be beyond the"
            f" largest, {LARGEST_SEED}."
        )
    return tuple(range(recipe.seed, recipe.seed + num_seeds))


@dataclass(frozen=True)
class SeedGroup:
    """Runs of one recipe with several seeds, and what they come to together.

    recipe: with the first seed. document: that of `seeds.json`.
    """

    recipe: Recipe
    folder: Path
    document: dict[str, Any]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that there are to be runs of, finished or not."""
        return tuple(self.document["seeds"])

    @property
    def runs(self) -> list[dict[str, Any]]:
        """What `seeds.json` says of each finished run, in the order of their seeds."""
        return list(self.document["runs"])

    @property
    def folders(self) -> list[Path]:
        """The folders of all its runs."""
        return [seed_folder(self.folder, seed) for seed in self.seeds]

    @property
    def is_finished(self) -> bool:
        """Whether all its runs are."""
        return len(self.runs) == len(self.seeds)

    @property
    def accuracy(self) -> Spread:
        """The test accuracies together; of a finished group."""
        return _spread_in(self.document["test_accuracy"])

    @property
    def loss(self) -> Spread:
        """The test losses together; of a finished group."""
        return _spread_in(self.document["test_loss"])

    @property
    def wilson_interval(self) -> tuple[float, float] | None:
        """The interval over images of one run as good as the mean; see `document_of`."""
        found = self.document["test_accuracy"]["wilson_interval"]
        return (found[0], found[1]) if found else None

    @property
    def words(self) -> str:
        """What its two intervals are about, in words."""
        draws = "start, order, Dropout" + (", augmentation" if self.recipe.augments else "")
        said = TWO_INTERVALS.format(draws=draws)
        if not self.document["same_test"]:
            what = "were trained and tested on"
        # The test part may have no more images than that.
        elif self.recipe.limit is not None:
            what = "were trained on"
        elif self.recipe.validation not in (0, "folder"):
            what = "were set apart to validate with"
        else:
            return said
        return f"{said} {OTHER_IMAGES.format(what=what)}"

    def _repr_html_(self) -> str:
        """Show the group in a notebook: how well on average, how much apart, where."""
        found = self.accuracy
        low, high = (f"{100 * bound:.2f}" for bound in found.interval)
        return table_with_picture(
            {
                "runs": f"{len(self.seeds)} of {self.recipe.name} on {self.recipe.data}",
                "mean test accuracy": f"{100 * found.mean:.2f} %, from {100 * found.least:.2f} to"
                f" {100 * found.most:.2f}",
                "95 % interval over seeds": f"{low} to {high}",
                "folder": str(self.folder),
            },
            None,
        )


def document_of(
    recipe: Recipe, seeds: Sequence[int], metrics: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    """Give the document of `seeds.json`, from the `metrics.json` of each finished run by its seed.

    With the interval over seeds of the mean accuracy, cut to 0..1, there is Wilson's over images
    beside it: that of one run as good as the mean. None where runs had other numbers of images. The
    figures of all together are None until all are finished.
    """
    runs = [_run_figures(seed, metrics[seed]) for seed in seeds if seed in metrics]
    is_finished = len(runs) == len(seeds)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "recipe": recipe.changed(seed=seeds[0]).model_dump(),
        "seeds": list(seeds),
        "finished": is_finished,
        "runs": runs,
        "test_accuracy": _accuracies(runs) if is_finished else None,
        "test_loss": _as_document(spread_of([run["test_loss"] for run in runs]))
        if is_finished
        else None,
        "same_test": len({run["test_set"] for run in runs}) == 1 if is_finished else None,
        "seconds": sum(run["seconds"] for run in runs),
    }
    return sealed(document)


def _run_figures(seed: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
    num_correct, num_images = metrics["test_correct"], metrics["test_images"]
    return {
        "seed": seed,
        "folder": seed_folder(Path(), seed).name,
        "test_accuracy": num_correct / num_images,
        "test_correct": num_correct,
        "test_images": num_images,
        "test_accuracy_interval": list(wilson_interval(num_correct, num_images)),
        **{name: metrics.get(name) for name in TAKEN_OVER},
        **{name: metrics[name] for name in ORIGINS if name in metrics},
    }


def difference_in(runs: Mapping[int, Mapping[str, Any]]) -> str:
    """Say in what runs differ that their seeds do not decide: start weights, images; "" if nothing.

    runs: of each, by its seed, what `metrics.json` or `seeds.json` says of it. What one of an
    earlier version does not say is not compared.
    """
    known = {"start weights": {seed: _start_digest(run) for seed, run in runs.items()}}
    if any(run.get("seed_draws_images") is False for run in runs.values()):
        for what, name in (("test images", "test_set"), ("images or labels", "data")):
            known[what] = {seed: run.get(name) for seed, run in runs.items()}
    for what, digests in known.items():
        seeds = [seed for seed in sorted(digests) if digests[seed]]
        for seed in seeds[1:]:
            if digests[seed] != digests[seeds[0]]:
                return f"the {what} of seed {seed} are not those of seed {seeds[0]}"
    return ""


def _start_digest(run: Mapping[str, Any]) -> str | None:
    start = run.get("weights")
    return start["sha256"] if start else None


def _accuracies(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    document = _as_document(spread_of([run["test_accuracy"] for run in runs]))
    low, high = document["student_interval"]
    counts = {run["test_images"] for run in runs}
    wilson = None
    if len(counts) == 1:
        correct = sum(run["test_correct"] for run in runs) / len(runs)
        wilson = list(wilson_interval(correct, counts.pop()))
    return {
        **document,
        "student_interval": [max(0.0, low), min(1.0, high)],
        "wilson_interval": wilson,
    }


def _as_document(spread: Spread) -> dict[str, Any]:
    values = asdict(spread)
    return {
        "mean": values["mean"],
        "least": values["least"],
        "most": values["most"],
        "standard_deviation": values["deviation"],
        "student_interval": list(values["interval"]),
    }


def _spread_in(document: Mapping[str, Any]) -> Spread:
    low, high = document["student_interval"]
    return Spread(
        mean=document["mean"],
        least=document["least"],
        most=document["most"],
        deviation=document["standard_deviation"],
        interval=(low, high),
    )


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Give the document with its hashes, as `metrics.json` has them.

    `digest` is the one that equal groups share, whatever time they took; `sha256` is of all.
    """
    kept = {key: v for key, v in document.items() if key not in ("digest", "sha256", "seconds")}
    runs = [{key: v for key, v in run.items() if key != "seconds"} for run in kept["runs"]]
    whole = {key: v for key, v in document.items() if key != "sha256"}
    whole["digest"] = digest_of(kept | {"runs": runs})
    return {**whole, "sha256": digest_of(whole)}


def read_group(folder: Path) -> SeedGroup:
    """Read a group's `seeds.json`, checked against its own hashes; its runs are not looked at.

    Raises RunError if the folder is no group's, DamagedError if the file is not as it was saved.
    """
    if not is_group(folder):
        raise RunError(f"{folder} is no group of runs: it has no {SEEDS}.")
    path = folder / SEEDS
    document = read_document(path, schema=SCHEMA, hint=way_to_mend(folder))
    with damage_in(path):
        if sealed(document) != document:
            raise _damaged(path, "it was changed since it was saved")
        # A document that was made by others, its hashes and all, may hold anything.
        recipe = Recipe(**document["recipe"])
        if not follows(document, {run["seed"]: run for run in document["runs"]}):
            raise _damaged(path, "its figures do not follow from its runs")
    return SeedGroup(recipe, folder, document)


def follows(document: Mapping[str, Any], metrics: Mapping[int, Mapping[str, Any]]) -> bool:
    """Tell whether a document says what its recipe, its seeds and the runs that it lists come to.

    Its hashes apart, and what earlier versions did not write: settings, origins of runs.
    """
    recipe = Recipe(**document["recipe"])
    seeds = seeds_of(recipe, len(document["seeds"]))
    listed = {}
    for run in document["runs"]:
        own = metrics[run["seed"]]
        unsaid = set(ORIGINS) - run.keys()
        listed[run["seed"]] = {name: value for name, value in own.items() if name not in unsaid}
    made = document_of(recipe, seeds, listed)
    return _without_recipe(made) == _without_recipe(document)


def _without_recipe(document: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the recipe, which a later version writes with more settings, and all hashes."""
    return {k: v for k, v in document.items() if k not in ("recipe", "digest", "sha256")}


def way_to_mend(folder: Path) -> str:
    """Say what makes a group's `seeds.json` anew; what cannot be read, `heptad resume` refuses."""
    word = as_word(folder)
    return f"`heptad train RECIPE --seeds N --out {word} --resume` makes {SEEDS} anew from the runs"


def _damaged(path: Path, reason: str) -> DamagedError:
    return DamagedError(f"{path} is damaged: {reason}.", hint=way_to_mend(path.parent))


def read_finished_group(folder: Path) -> SeedGroup:
    """Read a group all of whose runs are finished; raises RunError if some are not."""
    group = read_group(folder)
    if not group.is_finished:
        raise RunError(
            f"{folder} is a group of runs that was not finished: {len(group.runs)} of"
            f" {len(group.seeds)} are.",
            hint=f"`heptad resume {as_word(folder)}` finishes it",
        )
    return group
