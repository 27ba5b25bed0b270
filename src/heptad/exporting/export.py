"""A run, written as one file of another format and compared with itself before that is kept."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from heptad.classifier import Classifier
from heptad.errors import OutputError, RecipeError, SaveError, UnusableError, unknown
from heptad.exporting.document import describe
from heptad.exporting.loading import FORMATS, Format
from heptad.files import sha256_of, user_path, writing
from heptad.image_source import ImageSource
from heptad.loaded_run import LoadedRun, find_weights, load_run
from heptad.records import PassReport
from heptad.run_folder import is_of_run
from heptad.stages.saving import TRAINED_PART

# Of the largest logit: by how much an exported network may differ. Other orders of summation come
# to 1e-6 or so.
TOLERANCE = 1e-4
# Batches that are compared, in turn: one image, few, and a number that divides nothing.
BATCH_SIZES = (1, 2, 7)
NUM_IMAGES = 100


@dataclass(frozen=True)
class Exported:
    """An exported file, and how it compared: on so many test images, all with the same answer.

    largest_difference: between logits, as a part of the largest one.
    """

    file: Path
    format: str
    num_bytes: int
    sha256: str
    num_images: int
    largest_difference: float

    def as_document(self) -> dict[str, Any]:
        """Give it as plain values, for JSON."""
        return asdict(self) | {"file": str(self.file)}


def export(
    run: str | Path,
    format_name: str,
    path: str | Path | None = None,
    *,
    num_images: int = NUM_IMAGES,
) -> Exported:
    """Write a finished run as one file and give what came of it; see `exporting`."""
    # On the CPU, where what it is compared with is computed too.
    loaded = load_run(run, device="cpu")
    *_, exported = exporting(loaded, format_name, path, num_images=num_images)
    assert isinstance(exported, Exported)
    return exported


def exporting(
    run: LoadedRun,
    format_name: str,
    path: str | Path | None = None,
    *,
    data: str | None = None,
    num_images: int = NUM_IMAGES,
) -> Iterator[PassReport | Exported]:
    """Write a run as one file, read it back, and keep it if it answers as the run does.

    format_name: one of `FORMATS`. path: the file, in the run's folder under the name of its weights
    unless it is given. data: test images to compare on other than the run's own. num_images: how
    many of them, at least 10, spread over all; where there are fewer, they come again. Yields
    reports of the work, last what was exported. Raises OutputError for a path of another suffix or
    of a file of a run, SaveError if the answers differ by more than TOLERANCE of the largest logit,
    or in a class; nothing is left then, and an earlier file stays.
    """
    if format_name not in FORMATS:
        raise RecipeError(unknown("format", format_name, FORMATS))
    if num_images < sum(BATCH_SIZES):
        raise RecipeError(f"images is {num_images}; allowed: at least {sum(BATCH_SIZES)}.")
    kind = FORMATS[format_name]
    target = user_path(path) if path else default_path(run, kind.suffix)
    if target.suffix.lower() != kind.suffix or is_of_run(target):
        raise OutputError(
            f"the file is {target}; allowed: a name ending in {kind.suffix}, of no file of a run."
        )
    source = yield from run.opening(data, memory=0)
    with writing(target) as file:
        file.write(kind.content_of(run, describe(run)))
        file.flush()
        written = Path(file.name)
        again = _read_back(kind, written, run)
        answers = yield from _answers((run.model.network, again.model), source, num_images)
        difference = _refuse_differences(format_name, *answers)
        num_bytes, digest = written.stat().st_size, sha256_of(written)
    num_compared = min(num_images, len(source.labels))
    yield Exported(target, format_name, num_bytes, digest, num_compared, difference)


def _read_back(kind: Format, written: Path, run: LoadedRun) -> Classifier:
    """Load what was written; raises SaveError if it is not what was to be written."""
    try:
        again = kind.load(written, device="cpu", threads=None)
    except UnusableError as error:
        raise SaveError(
            "the file cannot be read back, and was not kept.", hint=str(error)
        ) from error
    if (again.transform, again.classes) != (run.transform, run.classes):
        raise SaveError("the file came back with other classes or another transform than it had.")
    return again


def default_path(run: LoadedRun, suffix: str) -> Path:
    """Give the file beside a run's weights that has their name and another suffix."""
    weights, _ = find_weights(run.folder, run.metrics)
    stem = weights.name.removesuffix(TRAINED_PART).removesuffix(".pth")
    return weights.with_name(stem + suffix)


def _answers(
    models: Sequence[Callable[[Tensor], Tensor]], source: ImageSource, num_images: int
) -> Generator[PassReport, None, list[Tensor]]:
    """Give each model's logits [M, K] for M images of a source."""
    started_at = perf_counter()
    # Spread over all, since images may be in the order of their classes.
    num_there = len(source.labels)
    num_different = min(num_images, num_there)
    places = torch.arange(num_images) % num_different * num_there // num_different
    logits: list[list[Tensor]] = [[] for _ in models]
    sizes = cycle(BATCH_SIZES)
    num_done = 0
    while num_done < num_images:
        inputs = source.take(places[num_done : num_done + next(sizes)], None)
        with torch.inference_mode():
            for model, answers in zip(models, logits, strict=True):
                answers.append(model(inputs))
        num_done += len(inputs)
        yield PassReport(num_done, num_images, perf_counter() - started_at, "comparing")
    return [torch.cat(answers) for answers in logits]


def _refuse_differences(name: str, ours: Tensor, theirs: Tensor) -> float:
    """Give the largest difference between logits, as a part of the largest; raises SaveError."""
    difference = float((ours - theirs).abs().max() / ours.abs().max())
    num_others = int((ours.argmax(1) != theirs.argmax(1)).sum())
    # So said, a difference that is not a number is refused too.
    if not difference <= TOLERANCE or num_others:
        raise SaveError(
            f"the {name} file answers otherwise than the run, and was not kept: logits differ by"
            f" {difference:.1e} of the largest, and so do {num_others} of {len(ours)} answers.",
            hint=f"allowed: {TOLERANCE:.0e} of the largest logit, and no other answer",
        )
    return difference
