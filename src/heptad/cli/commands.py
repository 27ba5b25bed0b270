"""The commands: what each takes, which part of the library it calls, how its result is printed."""

# Each command imports what it needs when it runs: PyTorch takes seconds, and help must not wait.

from __future__ import annotations

import json
import logging
import sys
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter

import heptad
from heptad.cli.flags import at_least_1, flags_of, given, output_path, probability
from heptad.cli.stopping import SIGNALS, Stopped
from heptad.cli.streams import PlainConsole
from heptad.files import as_word, user_path
from heptad.recipe import Recipe, RunOptions, to_toml
from heptad.recipes import RECIPES, load_recipe
from heptad.text import one_line

if TYPE_CHECKING:
    from heptad.classifier import Classifier
    from heptad.records import Run

logger = logging.getLogger("heptad")

# Settings of a recipe that say how pictures are read, wherever they are.
READING = ("max_pixels", "float_range")

OUTPUT = Group("Output", sort_key=4)
# The commands in the order of use.
TRAIN = Group("Train", sort_key=1)
LOOK = Group("Look at what came of it", sort_key=2)
DATA = Group("Data and weights", sort_key=3)
CHECK = Group("When in doubt", sort_key=4)
FLAGS = Group("Flags", sort_key=5)
EXAMPLES = """\
Examples:

  heptad train lenet5
      MNIST, ten epochs, a minute
  heptad train lenet5 --epochs 3
      every field of a recipe is a flag
  heptad predict runs/lenet5-1 7.jpg
      what a photo shows
  heptad report runs/lenet5-1
      a page on the run, for any browser
  heptad train resnet50 --data photos
      a folder of your own, by classes

A run is a folder: runs/NAME-NUMBER,
unless --out names another. More on each
command: heptad COMMAND --help
"""
Json = Annotated[
    bool,
    Parameter(
        name="--json",
        negative="",
        group=OUTPUT,
        show_default=False,
        help="Print one JSON document on stdout and nothing else.",
    ),
]
NoReport = Annotated[
    bool,
    Parameter(
        name="--no-report",
        negative="",
        group=OUTPUT,
        show_default=False,
        help="Leave out report.html and MODEL_CARD.md; `heptad report` writes them later.",
    ),
]

app = App(
    name="heptad",
    help="Train LeNet-5, VGG16 and ResNet50 by one seven-stage cycle: device, data, model,"
    " objective, training, evaluation, saving.",
    help_epilogue=EXAMPLES,
    help_format="plaintext",
    version=heptad.__version__,
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    help_on_error=False,
    suppress_keyboard_interrupt=False,
)
for flag in ("--help", "--version"):
    app[flag].group = (FLAGS,)


def _print_json(document: Any) -> None:
    # In ASCII: what a terminal would act on, and what is no Unicode, is escaped.
    print(json.dumps(document, indent=2))


@app.command(group=TRAIN, sort_key=2)
@flags_of(Recipe, RunOptions)
def train(recipe: str, /, *, no_report: NoReport = False, json: Json = False, **flags: Any) -> None:
    """Train a network: the whole cycle, from data to saved weights, metrics and report.

    Parameters
    ----------
    recipe
        A recipe's name (lenet5, vgg16, resnet50), a .toml or .json file, or an earlier run's
        folder.
    """
    loaded = load_recipe(recipe, **given(flags, Recipe))
    options = RunOptions(**given(flags, RunOptions))
    _carry_out(loaded, options, with_report=not no_report, as_json=json)


@app.command(group=TRAIN, sort_key=3)
@flags_of(RunOptions, leave_out=("out", "resume"))
def resume(
    run: str,
    /,
    *,
    data: str | None = None,
    no_report: NoReport = False,
    json: Json = False,
    **flags: Any,
) -> None:
    """Go on with a run that was stopped, killed or cut off, to the bit where it left off.

    Parameters
    ----------
    run
        The run's folder.
    data
        Where its data is now, if it was moved; it must be the same data.
    """
    from heptad.errors import RunError

    if not (user_path(run) / "recipe.json").is_file():
        raise RunError(
            f"{run} is no run that could go on: it has no recipe.json.",
            hint="nothing was saved there yet; `heptad train RECIPE --out FOLDER` begins a run",
        )
    options = RunOptions(**given(flags, RunOptions), out=run, resume=True)
    moved = {"data": data} if data is not None else {}
    recipe = load_recipe(user_path(run), **moved)
    _carry_out(recipe, options, with_report=not no_report, as_json=json)


def _carry_out(recipe: Recipe, options: RunOptions, *, with_report: bool, as_json: bool) -> None:
    """Train, show how it goes, and stop between two reports when a signal asks for it."""
    from heptad import cycle
    from heptad.cli.display import Where, show_nothing, show_summary, showing

    console = PlainConsole()
    where = Where()
    showing_it = nullcontext(show_nothing) if as_json else showing(console)
    with closing(cycle.run(recipe, options)) as events, showing_it as show:
        try:
            for event in events:
                SIGNALS.will_be_asked()
                show(event)
                where.note(event)
                if SIGNALS.pending is not None and where.run is None:
                    # Closed here, a run saves all that it needs to go on.
                    events.close()
                    raise Stopped(SIGNALS.pending, where.said)
        except Stopped as stop:
            # A second signal: thrown into the run, it ends it without a save.
            events.throw(stop)
    run = where.run
    assert run is not None
    # A run that was finished before is given as it is.
    if with_report and not where.was_finished:
        _try_to_report(run, options)
    if as_json:
        _print_json({"run": str(run.folder), **run.metrics})
        return
    show_summary(console, run)


def _try_to_report(run: Run, options: RunOptions) -> None:
    """Write the report of a run; whatever goes wrong costs a warning, never the training."""
    from heptad.reports.report import write_report

    try:
        write_report(run, device=options.device, threads=options.threads)
    except Exception as error:
        again = f"`heptad report {as_word(run.folder)}` tries again"
        logger.warning("WARNING: the report could not be written: %s %s", error, again)
        logger.debug("the report failed", exc_info=True)


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
    from heptad.records import Scores
    from heptad.stages.saving import save_predictions

    classifier = _loaded(run, flags)
    limit = classifier.recipe.limit if data is None else None
    console = PlainConsole()
    scores = showing_work(console, classifier.scoring(data), Scores, is_silent=json)
    if answers is not None:
        save_predictions(answers, scores)
    if table is not None:
        write_bytes(table, answers_csv(scores, classifier.classes))
    if json:
        _print_json({"limit": limit, **scores_document(scores, classifier.classes)})
        return
    if limit:
        say(console, f"On the run's own sample of at most {limit:,} test images (--limit {limit}).")
    show_scores(console, scores, classifier.classes)
    for path in filter(None, (answers, table)):
        say(console, f"Every answer is in {path}.")


def _loaded(run: str, flags: dict[str, str | None]) -> Classifier:
    """Load a finished run, to read pictures as in its training unless flags say otherwise."""
    from heptad.classifier import load_run

    options = RunOptions(**given(flags, RunOptions))
    classifier = load_run(run, device=options.device, threads=options.threads)
    return replace(classifier, recipe=classifier.recipe.changed(**given(flags, Recipe)))


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
        _print_json(comparison.as_document())
        return
    console = PlainConsole()
    show_comparison(console, comparison)
    if written:
        say(console, f"Written: {', '.join(map(str, written))}.")


@app.command(group=LOOK, sort_key=4)
@flags_of(Recipe, RunOptions, only=(*READING, "device", "threads"))
def predict(
    run: str,
    /,
    *images: str,
    as_digit: Literal["auto", "yes", "no"] = "auto",
    on_bad_image: Literal["error", "skip"] = "error",
    top: str = "3",
    unsure: str = "0",
    show: Annotated[str | None, Parameter(group=OUTPUT)] = None,
    csv: Annotated[str | None, Parameter(group=OUTPUT)] = None,
    json: Json = False,
    **flags: str | None,
) -> None:
    """Classify pictures with a finished run.

    Parameters
    ----------
    run
        The run's folder.
    images
        Pictures, or folders of pictures.
    as_digit
        Whether pictures are photos of a digit: it is found, made light on black, fitted into 20 x
        20 pixels and centred in 28 x 28, as in MNIST. A picture without one is a bad image. auto
        says yes for networks of MNIST-like digits, but leaves pictures of 28 x 28 pixels on black
        as they are.
    on_bad_image
        What to do about pictures that cannot be used: stop before anything is printed, or pass
        over them and name them at the end.
    top
        How many classes to name for each picture, likeliest first.
    unsure
        Call an answer unsure whose probability is below this.
    show
        Draw a PNG of the first 100 pictures, each beside what the network was fed and its answer.
    csv
        Write a CSV file of the answers instead of printing them.
    """
    from heptad.cli.answers import Wanted, give_answers
    from heptad.datasets.pictures import find_pictures

    num_shown, least = at_least_1("top", top), probability("unsure", unsure)
    paths = find_pictures(list(images))
    wanted = Wanted(
        as_digit=as_digit,
        skips_bad_images=on_bad_image == "skip",
        num_shown=num_shown,
        least_probability=least,
        sheet=output_path("show", show, ".png", paths),
        csv=output_path("csv", csv, ".csv", paths),
        as_json=json,
    )
    give_answers(_loaded(run, flags), paths, wanted)


@app.command(group=CHECK, sort_key=2)
@flags_of(Recipe)
def verify(
    run: str | None = None,
    /,
    *,
    resume_proof: str | None = None,
    kills: str = "5",
    json: Json = False,
    **flags: Any,
) -> int:
    """Hash everything in a run folder and say what is whole; or prove that a killed run resumes.

    Parameters
    ----------
    run
        The run's folder.
    resume_proof
        A recipe. A short run of it, two epochs of 512 images unless flags say otherwise, is killed
        at random moments, resumed each time, and compared to the bit with one that never was.
    kills
        How often to kill it at most.
    """
    from heptad.errors import DamagedError, RecipeError

    changes = given(flags, Recipe)
    if (run is None) == (resume_proof is None):
        raise RecipeError("verify takes a run's folder, or --resume-proof RECIPE, one of the two.")
    if resume_proof is not None:
        num_kills = at_least_1("kills", kills)
        recipe = load_recipe(resume_proof, **{"limit": 512, "epochs": 2, **changes})
        return _prove(recipe, num_kills=num_kills, as_json=json)
    if changes:
        raise RecipeError(f"{', '.join(changes)} has no effect on a run that is verified.")
    from heptad.verifying import examine_run

    assert run is not None
    found = examine_run(run)
    if json:
        _print_json(found.as_document())
    else:
        for finding in found.findings:
            mark = "ok" if finding.is_whole else "--"
            print(one_line(f"[{mark}] {finding.name}: {finding.said}"))
        goes_on = f"not finished; `heptad resume {as_word(run)}` goes on"
        state = "finished" if found.is_finished else goes_on
        whole = "whole" if found.is_whole else "damaged"
        print(one_line(f"The run in {run} is {whole}, and {state}."))
    return 0 if found.is_whole else DamagedError.exit_code


def _prove(recipe: Recipe, *, num_kills: int, as_json: bool) -> int:
    from heptad.errors import DamagedError
    from heptad.resume_proof import Kill, prove_resume

    for event in prove_resume(recipe, num_kills=num_kills):
        if isinstance(event, Kill):
            if not as_json:
                print(f"kill {event.number}, soon after {event.checkpoint}", flush=True)
            continue
        proof = event
    if as_json:
        _print_json(proof.as_document())
    else:
        steps = ", ".join(map(str, proof.resumed_from)) or "none"
        equal = "equal to the bit" if not proof.differing else "NOT equal"
        print(f"{proof.num_kills} kills, resumed from steps {steps}: {equal}.")
        for name in proof.differing:
            print(one_line(f"  {name} differs"))
        if not proof.num_kills:
            print("The run was too short to be killed: try more --epochs or a larger --limit.")
    return 0 if proof.holds else DamagedError.exit_code


@app.command(group=DATA, sort_key=1)
@flags_of(Recipe, only=READING)
def scan(folder: str, /, *, json: Json = False, **flags: str | None) -> int:
    """Look at every picture of a folder of class folders, as training would; changes nothing.

    Parameters
    ----------
    folder
        The folder that holds the class folders, or train/, val/ and test/ with them.
    """
    from heptad.cli.display import show_scan, showing_work
    from heptad.datasets.pictures import Decoding
    from heptad.errors import UnusableError
    from heptad.scanning import CHANNELS, ScanReport, scanning

    console = PlainConsole()
    # Any recipe will do: the flags are those of all.
    decoding = Decoding.of(load_recipe("lenet5", **given(flags, Recipe)), channels=CHANNELS)
    report = showing_work(console, scanning(folder, decoding), ScanReport, is_silent=json)
    if json:
        _print_json(report.as_document())
    else:
        show_scan(console, report)
    return UnusableError.exit_code if report.bad else 0


@app.command(group=TRAIN, sort_key=1)
def recipes(name: str | None = None, /, *, json: Json = False) -> None:
    """List the shipped recipes, or print one in full as TOML, to be changed and trained.

    Parameters
    ----------
    name
        The recipe to print.
    """
    if name is not None:
        recipe = load_recipe(name)
        if json:
            _print_json(recipe.model_dump())
        else:
            print(to_toml(recipe), end="")
        return
    if json:
        _print_json(
            {
                key: {
                    "source": shipped.source,
                    "command": shipped.command,
                    "expected": shipped.expected,
                    "recipe": shipped.recipe.model_dump(),
                }
                for key, shipped in RECIPES.items()
            }
        )
        return
    for key, shipped in RECIPES.items():
        print(f"{key}\n  {shipped.source}\n  {shipped.command}: {shipped.expected}")


@app.command(group=DATA, sort_key=2)
def fetch(*names: str, to: str | None = None, json: Json = False) -> None:
    """Fetch data sets and pretrained weights, verified, into the cache or into a folder.

    Parameters
    ----------
    names
        Data sets (mnist, fashion-mnist, kmnist, qmnist, cifar10) and networks whose weights to
        fetch (vgg16, resnet50), or one file of weights by its name.
    to
        Copy the files into this folder as well, to carry them to another machine.
    """
    from heptad.errors import OutputError
    from heptad.fetching import fetch_all

    if to == "":
        raise OutputError("to is empty; allowed: a folder.")
    fetched = fetch_all(list(names), to=None if to is None else user_path(to))
    if json:
        _print_json([{"name": name, "files": list(map(str, paths))} for name, paths in fetched])
        return
    for name, paths in fetched:
        print(f"{name}:")
        for path in paths:
            print(one_line(f"  {path}"))


@app.command(group=LOOK, sort_key=3)
@flags_of(RunOptions, only=("device", "threads"))
def report(
    *runs: str,
    out: Annotated[str | None, Parameter(group=OUTPUT)] = None,
    json: Json = False,
    **flags: str | None,
) -> None:
    """Write a page on a run for any browser: curves, confusions, the worst images, the recipe.

    Of one run, report.html and MODEL_CARD.md in its folder; of several, one page side by side.

    Parameters
    ----------
    runs
        Folders of finished runs.
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

    path = output_path("out", out, ".html", [])
    read = [read_run(user_path(run)) for run in runs]
    if len(read) > 1:
        assert path is not None
        written = write_side_by_side(read, path)
    else:
        written = write_report(read[0], path, device=options.device, threads=options.threads)
    if json:
        _print_json(written.as_document())
        return
    for sentence in written.missing:
        print(one_line(sentence))
    card = f", and {written.card}" if written.card else ""
    print(one_line(f"Written: {written.report}{card}."))


cache = App(
    name="cache",
    help="List or remove kept features of frozen trunks, and pictures.",
    group=DATA,
    sort_key=3,
)
app.command(cache)


@cache.command(name="list")
def list_cache(*, json: Json = False) -> None:
    """List the features and pictures that are kept: of what, how large, when last used."""
    from heptad.stores import list_stores, stores_folder

    stores = list_stores()
    if json:
        _print_json([store.as_document() for store in stores])
        return
    total_mb = sum(store.num_bytes for store in stores) / 1e6
    place = f"{total_mb:,.1f} MB, in {stores_folder()}"
    print(one_line(f"{len(stores)} stores of features and pictures, {place}"))
    for store in stores:
        size = f"{store.num_bytes / 1e6:,.1f} MB"
        print(one_line(f"{store.key[:12]}  {size}  {store.said}  {store.age}"))


@cache.command(name="clear")
def clear_cache(*keys: str, json: Json = False) -> None:
    """Remove kept features and pictures, all or those named; never what a live run uses.

    Parameters
    ----------
    keys
        Names as `heptad cache list` shows them, or their beginnings.
    """
    from heptad.stores import clear_stores

    removed, in_use = clear_stores(list(keys))
    if json:
        _print_json({"removed": removed, "in_use": in_use})
        return
    print(f"removed {len(removed)} stores" + (f"; {len(in_use)} are in use" if in_use else ""))


@app.command(group=CHECK, sort_key=1)
def doctor(*, json: Json = False) -> None:
    """Say what is on this machine, which data and weights are missing, and what to do about it."""
    from heptad.doctor import examine

    findings = examine()
    if json:
        _print_json([finding.as_document() for finding in findings])
        return
    for finding in findings:
        mark = "ok" if finding.is_well else "--"
        print(one_line(f"[{mark}] {finding.subject}: {finding.state}"))
        if finding.advice:
            print(one_line(f"     {finding.advice}"))
    sys.stdout.flush()


# The examples are for the page of all commands, whose lines are laid out by hand.
for command in app.resolved_commands():
    app[command].help_epilogue, app[command].help_format = "", "markdown"
