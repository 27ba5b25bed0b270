"""Commands that use a finished run: on pictures, on a page, elsewhere."""

# Each command imports what it needs when it runs: PyTorch takes seconds, and help must not wait.

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from heptad.cli.commands.app import OUTPUT, READING, USE, Json, app, load_with, print_json
from heptad.cli.flags import at_least_1, flags_of, output_path, port_number, probability
from heptad.cli.stopping import Stopped
from heptad.cli.streams import PlainConsole
from heptad.recipe import Recipe, RunOptions
from heptad.text import one_line

if TYPE_CHECKING:
    from heptad.classifier import Classifier


def _run_or_file(run: str, flags: dict[str, str | None]) -> Classifier:
    """Load a finished run, or a file that was exported from one."""
    from heptad.exporting.loading import is_exported, load_model
    from heptad.loaded_run import load_run

    return load_with(load_model if is_exported(run) else load_run, run, flags)


@app.command(group=USE, sort_key=1)
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
    """Classify pictures with a finished run, or with a file exported from one.

    Parameters
    ----------
    run
        The run's folder, or an exported file (.onnx, .safetensors).
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
    give_answers(_run_or_file(run, flags), paths, wanted)


@app.command(group=USE, sort_key=2)
@flags_of(Recipe, RunOptions, only=(*READING, "device", "threads"))
def serve(run: str, /, *, port: str = "7007", json: Json = False, **flags: str | None) -> int:
    """Serve a page on this machine: draw a digit, or drop a picture, and see the answer.

    Parameters
    ----------
    run
        The run's folder, or an exported file.
    port
        Where the page is served, at 127.0.0.1 alone; 0 for any that is free.
    """
    from heptad.serving import check_web, leave_to_browser

    number = port_number("port", port)
    check_web()
    from heptad.serving.server import address_of, bound, serve_page, title_of

    def announce() -> None:
        if json:
            print_json({"url": address_of(listener)})
        else:
            print(one_line(f"{title_of(classifier)}: {address_of(listener)}"))
            print("Ctrl-C ends it.")
        sys.stdout.flush()

    try:
        # Before the network is loaded, so that a port in use is said at once.
        with bound(number) as listener:
            classifier = _run_or_file(run, flags)
            if flags.get("threads") is None:
                leave_to_browser()
            serve_page(classifier, listener, announce)
    except Stopped as stop:
        # The address was the one document.
        if json:
            return stop.exit_code
        raise Stopped(stop.number, "the page is no longer served") from None
    return 0


@app.command(group=USE, sort_key=3)
@flags_of(RunOptions, only=("threads",))
def export(
    run: str,
    /,
    *,
    format_name: Annotated[Literal["onnx", "safetensors"], Parameter(name="--format")] = "onnx",
    out: Annotated[str | None, Parameter(group=OUTPUT)] = None,
    data: str | None = None,
    images: str = "100",
    json: Json = False,
    **flags: str | None,
) -> None:
    """Write a finished run as one file to use elsewhere, compared with the run before it is kept.

    Parameters
    ----------
    run
        The run's folder.
    format_name
        ONNX, for ONNX Runtime and many others; or the weights alone, as safetensors. Both carry the
        names of the classes and the transform.
    out
        The file; without it, beside the run's weights under their name.
    data
        Compare on the test images of this data set or folder instead of the run's own.
    images
        Compare on so many test images, at least 10, in batches of 1, 2 and 7.
    """
    from heptad.cli.display import say, showing_work
    from heptad.exporting.export import Exported, exporting
    from heptad.exporting.loading import FORMATS
    from heptad.loaded_run import load_run

    num_images = at_least_1("images", images)
    path = output_path("out", out, FORMATS[format_name].suffix)
    loaded = load_with(load_run, run, {**flags, "device": "cpu"})
    work = exporting(loaded, format_name, path, data=data, num_images=num_images)
    console = PlainConsole()
    exported = showing_work(console, work, Exported, is_silent=json)
    if json:
        print_json(exported.as_document())
        return
    exactly = " in float32" if loaded.recipe.precision == "bfloat16" else ""
    say(
        console,
        f"{exported.file}, {exported.num_bytes / 1e6:,.1f} MB, answers as the run does{exactly}:"
        f" {exported.num_images:,} test images, logits within"
        f" {exported.largest_difference:.1e} of the largest.",
    )
