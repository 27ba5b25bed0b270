"""The report of a group of runs that differ in their seeds alone: each, and all together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from heptad.errors import DamagedError, damage_in
from heptad.files import as_word, write_bytes
from heptad.finished import read_run
from heptad.records import Run
from heptad.reports import words
from heptad.reports.report import Written, environment_of, render
from heptad.reports.seed_charts import seed_chart, seed_curves
from heptad.run_folder import REPORT, SEEDS
from heptad.seed_group import SeedGroup
from heptad.stages.saving import read_metrics


def write_group_report(group: SeedGroup, path: Path | None = None) -> Written:
    """Write the report of a finished group into its folder, or to `path`.

    Raises DamagedError if a run of it is not the one that its `seeds.json` knows, RunError if one
    is not there, SaveError if the page cannot be written.
    """
    metrics = [read_metrics(folder) for folder in group.folders]
    for run, own in zip(group.runs, metrics, strict=True):
        if run["digest"] != own["digest"]:
            raise DamagedError(
                f"{group.folder / SEEDS} knows another run of seed {run['seed']} than is there.",
                hint="put back the run that was there; or remove the other one, and `heptad resume"
                f" {as_word(group.folder)}` trains it again",
            )
    target = path or group.folder / REPORT
    first = read_run(group.folders[0], metrics[0])
    write_bytes(target, group_page(group, metrics, first).encode())
    return Written(target, None)


def group_page(group: SeedGroup, metrics: list[dict[str, Any]], first: Run) -> str:
    """Give the page of a group. metrics: of each run; first: the whole of the first one."""
    part = first.epochs[0].part
    wilson = group.wilson_interval
    named = [(run["seed"], float(run["test_accuracy"])) for run in group.runs]
    intervals = {"over seeds": group.accuracy.interval}
    if wilson:
        intervals["over images"] = wilson

    def of_epochs(name: str) -> list[list[float]]:
        with damage_in(group.folder):
            return [[float(epoch[f"{part}_{name}"]) for epoch in own["epochs"]] for own in metrics]

    return render(
        "seeds.html",
        title=f"{group.recipe.name} on {group.recipe.data}, seeds {group.seeds[0]} to"
        f" {group.seeds[-1]}",
        group=group,
        first=first,
        part=part,
        lead=words.group_words(first, group.seeds, group.document["seconds"]),
        not_done=words.not_done_in_group(first),
        strip=seed_chart(named, group.accuracy.mean, intervals),
        loss_chart=seed_curves(of_epochs("loss"), what=f"Loss on the {part} images", percent=False),
        accuracy_chart=seed_curves(
            of_epochs("accuracy"), what=f"Accuracy on the {part} images", percent=True
        ),
        command=[*words.command_words(first), "--seeds", str(len(group.seeds))],
        environment=environment_of(first),
    )
