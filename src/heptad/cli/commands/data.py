"""Commands about data and weights: what is in a folder, fetched, kept."""

# Each command imports what it needs when it runs: PyTorch takes seconds, and help must not wait.

from __future__ import annotations

from cyclopts import App

from heptad.cli.commands.app import DATA, READING, Json, app, print_json
from heptad.cli.flags import flags_of, given
from heptad.cli.streams import PlainConsole
from heptad.errors import counted
from heptad.files import user_path
from heptad.recipe import Recipe
from heptad.recipes import load_recipe
from heptad.text import one_line


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
        print_json(report.as_document())
    else:
        show_scan(console, report)
    return UnusableError.exit_code if report.bad else 0


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
        print_json([{"name": name, "files": list(map(str, paths))} for name, paths in fetched])
        return
    for name, paths in fetched:
        print(f"{name}:")
        for path in paths:
            print(one_line(f"  {path}"))


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
        print_json([store.as_document() for store in stores])
        return
    total_mb = sum(store.num_bytes for store in stores) / 1e6
    place = f"{total_mb:,.1f} MB, in {stores_folder()}"
    print(one_line(f"{counted(len(stores), 'store')} of features and pictures, {place}"))
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
        print_json({"removed": removed, "in_use": in_use})
        return
    left = f"; {counted(len(in_use), 'store', 'is', 'are')} in use" if in_use else ""
    print(f"removed {counted(len(removed), 'store')}{left}")
