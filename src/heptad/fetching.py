"""Data and weights by name, verified, in the cache or copied into a folder to be carried along."""

from __future__ import annotations

from pathlib import Path

from heptad.architectures import ARCHITECTURES
from heptad.architectures.pretrained import ensure_weights
from heptad.datasets.catalog import CATALOG
from heptad.datasets.fetch import ensure_dataset
from heptad.errors import OutputError, UnusableError, unknown
from heptad.files import copy_whole


def fetch_all(names: list[str], *, to: Path | None = None) -> list[tuple[str, list[Path]]]:
    """Fetch what `names` mean; give the verified files of each, in `to` where that is given.

    names: data sets, architectures (their default weights), or names of weights files; all are
    looked up before the first is fetched. Raises UnusableError for an unknown one, MissingError for
    one that cannot be had, OutputError or SaveError if `to` cannot be written.
    """
    weights = {
        file.name: file for entry in ARCHITECTURES.values() for file in entry.weights.values()
    }
    defaults = {
        name: next(iter(entry.weights.values()))
        for name, entry in ARCHITECTURES.items()
        if entry.weights
    }
    known = {**weights, **defaults}
    choices = [*CATALOG, *defaults, *weights]
    if not names:
        raise UnusableError(f"nothing is named to fetch. Allowed: {', '.join(choices)}.")
    for name in names:
        if name not in choices:
            raise UnusableError(unknown("data set or weights", name, choices))
    if to is not None:
        try:
            to.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{to} cannot be made a folder: {error.strerror}.") from error
    fetched = []
    for name in names:
        if name in CATALOG:
            folder = ensure_dataset(CATALOG[name])
            paths = [folder / file.name for file in CATALOG[name].files]
            # Sets share their file names, so each gets a folder of its own.
            target = to / name if to else None
        else:
            paths = [ensure_weights(known[name])[0]]
            target = to
        fetched.append((name, _copied(paths, target) if target else paths))
    return fetched


def _copied(paths: list[Path], folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for path in paths:
        copy_whole(path, folder / path.name)
    return [folder / path.name for path in paths]
