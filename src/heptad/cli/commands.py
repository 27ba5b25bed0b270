"""The commands: what each takes, which part of the library it calls, how its result is printed."""

# Each command imports what it needs when it runs: PyTorch takes seconds, and help must not wait.

from __future__ import annotations

import json
import sys
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter

import heptad
from heptad.cli.flags import at_least_1, flags_of, given, probability
from heptad.cli.stopping import SIGNALS, Stopped
from heptad.cli.streams import PlainConsole
from heptad.cli.text import one_line
from heptad.files import as_word, user_path
from heptad.recipe import Recipe, RunOptions, to_toml
from heptad.recipes import RECIPES, load_recipe

if TYPE_CHECKING:
    from heptad.classifier import Classifier
    from heptad.records import Scores

# Settings of a recipe that say how pictures are read, wherever they are.
READING = ("max_pixels", "float_range")

OUTPUT = Group("Output", sort_key=4)
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

app = App(
    name="heptad",
    help="Train LeNet-5, VGG16 and ResNet50 by one seven-stage cycle: device, data, model,"
    " objective, training, evaluation, saving.",
    version=heptad.__version__,
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    help_on_error=False,
    suppress_keyboard_interrupt=False,
)


def _print_json(document: Any) -> None:
    # In ASCII: what a terminal would act on, and what is no Unicode, is escaped.
    print(json.dumps(document, indent=2))


@app.command
@flags_of(Recipe, RunOptions)
def train(recipe: str, /, *, json: Json = False, **flags: Any) -> None:
    """Train a network: the whole cycle, from data to saved weights, metrics and plot.

    Parameters
    ----------
    recipe
        A recipe's name (lenet5, vgg16, resnet50), a .toml or .json file, or an earlier run's
        folder.
    """
    loaded = load_recipe(recipe, **given(flags, Recipe))
    options = RunOptions(**given(flags, RunOptions))
    _carry_out(loaded, options, as_json=json)


@app.command
@flags_of(RunOptions, leave_out=("out", "resume"))
def resume(run: str, /, *, data: str | None = None, json: Json = False, **flags: Any) -> None:
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
    _carry_out(load_recipe(user_path(run), **moved), options, as_json=json)


def _carry_out(recipe: Recipe, options: RunOptions, *, as_json: bool) -> None:
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
    if as_json:
        _print_json({"run": str(run.folder), **run.metrics})
        return
    show_summary(console, run)


@app.command
@flags_of(Recipe, RunOptions, only=(*READING, "device", "threads"))
def evaluate(
    run: str, /, *, data: str | None = None, json: Json = False, **flags: str | None
) -> None:
    """Score a finished run on the test images: with an interval, by class, what is taken for what.

    Parameters
    ----------
    run
        The run's folder.
    data
        Score on the test images of this data set or folder instead of the run's own.
    """
    classifier = _loaded(run, flags)
    limit = classifier.recipe.limit if data is None else None
    if json:
        scores = classifier.evaluate(data)
        _print_json({"limit": limit, **_scores_document(scores, classifier.classes)})
        return
    from heptad.cli.display import say, show_scores, showing_work
    from heptad.records import Scores

    console = PlainConsole()
    scores = showing_work(console, classifier.scoring(data), Scores)
    if limit:
        say(console, f"On the run's own sample of at most {limit:,} test images (--limit {limit}).")
    show_scores(console, scores, classifier.classes)


def _loaded(run: str, flags: dict[str, str | None]) -> Classifier:
    """Load a finished run, to read pictures as in its training unless flags say otherwise."""
    from heptad.classifier import load_run

    options = RunOptions(**given(flags, RunOptions))
    classifier = load_run(run, device=options.device, threads=options.threads)
    return replace(classifier, recipe=classifier.recipe.changed(**given(flags, Recipe)))


def _scores_document(scores: Scores, classes: tuple[str, ...]) -> dict[str, Any]:
    from heptad.stages.saving import score_metrics

    rows = scores.confusion.tolist()
    return {
        **score_metrics(scores),
        "classes": [
            {
                "name": name,
                "images": sum(rows[k]),
                "correct": rows[k][k],
                "answered": sum(row[k] for row in rows),
            }
            for k, name in enumerate(classes)
        ],
        "confusion": rows,
    }


@app.command
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
    from heptad.cli.answers import Wanted, give_answers, output_path
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


@app.command
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


@app.command
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


@app.command
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


@app.command
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


cache = App(name="cache", help="List or remove kept features of frozen trunks, and pictures.")
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


@app.command
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
