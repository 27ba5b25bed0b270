"""Commands that look at finished runs: scores, comparisons, reports."""

# Each command imports what it needs when it runs: PyTorch takes seconds, and help must not wait.

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from heptad.cli.commands.app import LOOK, OUTPUT, READING, Json, app, load_with, print_json
from heptad.cli.flags import flags_of, given, output_path
from heptad.cli.streams import PlainConsole
from heptad.files import user_path
from heptad.recipe import Recipe, RunOptions
from heptad.text import one_line


@app.command(group=LOOK, sort_key=1)
@flags_of(Recipe, RunOptions, only=(*READING, "device", "threads"))
def evaluate(
    run: str,
    /,
    *,
    data: str | None = None,
    predictions: Annotated[str | None, Parameter(group=OUTPUT)] = None,
    csv: Annotated[str | None, Parameter(group=OUTPUT)] = None,
    json: Json = False,
    **flags: str | None,
) -> None:
    """Score a finished run on the test images: with an interval, by class, what is taken for what.

    Parameters
    ----------
    run
        The run's folder.
    data
        Score on the test images of this data set or folder instead of the run's own.
    predictions
        Write an .npz file of every answer: logits, labels and ids, as in the run.
    csv
        Write a CSV file with a row for each image: its id, its class, the answer to it.
    """
    answers = output_path("predictions", predictions, ".npz")
    table = output_path("csv", csv, ".csv")
    from heptad.cli.display import say, showing_work
    from heptad.cli.scores import answers_csv, scores_document, show_scores
    from heptad.files import write_bytes
    from heptad.loaded_run import load_run
    from heptad.records import Scores
    from heptad.stages.saving import save_predictions

    classifier = load_with(load_run, run, flags)
    limit = classifier.recipe.limit if data is None else None
    console = PlainConsole()
    scores = showing_work(console, classifier.scoring(data), Scores, is_silent=json)
    if answers is not None:
        save_predictions(answers, scores)
    if table is not None:
        write_bytes(table, answers_csv(scores, classifier.classes))
    if json:
        print_json({"limit": limit, **scores_document(scores, classifier.classes)})
        return
    if limit:
        say(console, f"On the run's own sample of at most {limit:,} test images (--limit {limit}).")
    show_scores(console, scores, classifier.classes)
    for path in filter(None, (answers, table)):
        say(console, f"Every answer is in {path}.")


@app.command(group=LOOK, sort_key=2)
def compare(
    *runs: str,
    csv: Annotated[str | None, Parameter(group=OUTPUT)] = None,
    latex: Annotated[str | None, Parameter(group=OUTPUT)] = None,
    png: Annotated[str | None, Parameter(group=OUTPUT)] = None,
    json: Json = False,
) -> None:
    """Put finished runs side by side and test whether one is better, or could be so by chance.

    Parameters
    ----------
    runs
        The runs' folders, two or more, all tested on the same images.
    csv
        Write a CSV file with a row for each run.
    latex
        Write a .tex file with two tables, of the runs and of their pairs.
    png
        Draw a PNG of the accuracies with their intervals.
    """
    from heptad.cli.comparing import as_csv, as_latex, draw, show_comparison
    from heptad.cli.display import say
    from heptad.files import write_bytes
    from heptad.reports.comparing import compare as compare_runs

    named = (("csv", csv, ".csv"), ("latex", latex, ".tex"), ("png", png, ".png"))
    paths = {flag: output_path(flag, text, suffix) for flag, text, suffix in named}
    comparison = compare_runs(runs)
    makers = {"csv": as_csv, "latex": as_latex, "png": draw}
    written = {path: makers[flag] for flag, path in paths.items() if path is not None}
    for path, make in written.items():
        write_bytes(path, make(comparison))
    if json:
        print_json(comparison.as_document())
        return
    console = PlainConsole()
    show_comparison(console, comparison)
    if written:
        say(console, f"Written: {', '.join(map(str, written))}.")


@app.command(group=LOOK, sort_key=3)
@flags_of(RunOptions, only=("device", "threads"))
def report(
    *runs: str,
    out: Annotated[str | None, Parameter(group=OUTPUT)] = None,
    json: Json = False,
    **flags: str | None,
) -> None:
    """Write a page on a run for any browser: curves, confusions, the worst images, the recipe.

    Of one run, report.html and MODEL_CARD.md in its folder; of several, one page side by side; of
    a group of runs, report.html in its folder.

    Parameters
    ----------
    runs
        Folders of finished runs, or that of a group.
    out
        Write the page to this .html file instead; for several runs it must be named.
    """
    from heptad.errors import OutputError, RunError

    options = RunOptions(**given(flags, RunOptions))
    if not runs:
        raise RunError("report takes the folder of a run, or of several.")
    if len(runs) > 1 and out is None:
        raise OutputError(
            f"out is not given, but {len(runs)} runs have no folder in common for their page.",
            hint="name the file: --out FILE.html",
        )
    from heptad.finished import read_run
    from heptad.reports.report import write_report, write_side_by_side
    from heptad.reports.seeds import write_group_report
    from heptad.run_folder import is_group
    from heptad.seed_group import read_finished_group

    path = output_path("out", out, ".html", [])
    folders = [user_path(run) for run in runs]
    if len(folders) > 1:
        assert path is not None
        written = write_side_by_side([read_run(folder) for folder in folders], path)
    elif is_group(folders[0]):
        group = read_finished_group(folders[0])
        for folder in group.folders:
            # A damaged run gets no page.
            read_run(folder)
        written = write_group_report(group, path)
    else:
        run = read_run(folders[0])
        written = write_report(run, path, device=options.device, threads=options.threads)
    if json:
        print_json(written.as_document())
        return
    for sentence in written.missing:
        print(one_line(sentence))
    card = f", and {written.card}" if written.card else ""
    print(one_line(f"Written: {written.report}{card}."))
