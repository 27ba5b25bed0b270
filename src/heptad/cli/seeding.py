"""What people see of a group of runs: which seed is its turn, and what all came to together."""

from __future__ import annotations

from rich.console import Console

from heptad.cli.display import Show, accuracy_text, say, show_next
from heptad.cli.tables import Cells, show_table
from heptad.errors import counted
from heptad.files import as_word
from heptad.records import Run
from heptad.reports.verdict import judge
from heptad.reports.words import duration, interval_words, percent, points
from heptad.run_folder import REPORT, SEEDS
from heptad.seed_group import SeedGroup
from heptad.seeds import Event, SeedReport


def announcing(console: Console, show: Show) -> Show:
    """Give what shows a group's reports: the usual lines, between what tells its runs apart."""
    seed = 0

    def show_all(event: Event) -> None:
        nonlocal seed
        if isinstance(event, SeedReport):
            seed = event.seed
            say(console, f"{event.said[0].upper()}{event.said[1:]}:", style="bold")
            show(event)
        elif isinstance(event, Run):
            verdict = judge(event)
            text = f"seed {seed}: test accuracy {accuracy_text(event.scores)}."
            if not verdict.has_learned:
                say(console, f"{text} {verdict.sentence}", style="yellow")
            else:
                say(console, text)
        else:
            show(event)

    return show_all


def show_group(console: Console, group: SeedGroup) -> None:
    """Print what came of a group: each run, all together, where they are, what to do next."""
    found, seeds = group.accuracy, group.seeds
    console.print()
    _show_runs(console, group)
    say(
        console,
        f"Mean test accuracy {percent(found.mean)} over {counted(len(seeds), 'seed')},"
        f" {seeds[0]} to {seeds[-1]}: from {percent(found.least)} to {percent(found.most)},"
        f" standard deviation {points(found.deviation)}, in {duration(group.document['seconds'])}.",
        style="bold",
    )
    wilson = group.wilson_interval
    over_images = f"; over test images {interval_words(wilson)} (Wilson)" if wilson else ""
    say(
        console,
        f"95 % interval over seeds {interval_words(found.interval)} (Student){over_images}.",
        style="bold",
    )
    say(console, group.words)
    if group.recipe.limit:
        limit = group.recipe.limit
        say(console, f"A figure for samples of --limit {limit}, not for all the data.")
    say(
        console,
        f"Saved in {group.folder}: {SEEDS}, and the runs {group.folders[0].name} to"
        f" {group.folders[-1].name}.",
    )
    report = group.folder / REPORT
    if report.exists():
        say(console, f"To be opened in a browser: {report}")
    word, first = as_word(group.folder), as_word(group.folders[0])
    more = min(2 * len(seeds), len(seeds) + 10)
    repeated = f"heptad train {word} --out {word} --resume"
    show_next(
        console,
        ({} if report.exists() else {f"heptad report {word}": "a page on all of them"})
        | {
            f"{repeated} --seeds {more}": "more seeds",
            f"heptad report {first}": "a page on one of them",
            f"heptad compare {first} {as_word(group.folders[1])}": "two of them, image by image",
        },
    )


def _show_runs(console: Console, group: SeedGroup) -> None:
    runs = group.runs
    show_table(
        console,
        Cells("seed", [str(run["seed"]) for run in runs]),
        [
            Cells("accuracy", [percent(run["test_accuracy"]) for run in runs]),
            Cells(
                "95 % over images", [interval_words(run["test_accuracy_interval"]) for run in runs]
            ),
            Cells("right", [f"{run['test_correct']:,}" for run in runs]),
            Cells("loss", [f"{run['test_loss']:.4f}" for run in runs]),
            Cells("time", [duration(run["seconds"]) for run in runs]),
        ],
    )
