"""The network as one ONNX file, to be computed without PyTorch; and such a file, to be used here.

Images come in normalised, float [N, C, S, S], N as one likes; logits [N, K] come out. All weights
are within the file: one that points to others is not read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from heptad.classifier import Classifier
from heptad.errors import DeviceError, MissingError, ModelError
from heptad.exporting.document import DIGEST, Description, check_digest, read_described
from heptad.loaded_run import LoadedRun
from heptad.text import one_line

SUFFIX = ".onnx"
INPUT, OUTPUT = "images", "logits"
# Of the operators; what torch 2.14's exporter writes and onnxruntime has read since 1.14.
OPSET = 18
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# ONNX Runtime would print names out of the file, escape sequences and all; what it raises says the
# same.
NOTHING_BUT_FATAL = 4
TYPES = {"float32": "tensor(float)", "float64": "tensor(double)"}
MOST_SAID = 200
# What is done to pixels, by the transform's `fit`.
FITTED = {
    "resize": "resized to {size} x {size} (bilinear, antialiased)",
    "pad": "in the middle of {size} x {size}, black around them",
}


def content_of(run: LoadedRun, texts: Mapping[str, str]) -> bytes:
    """Give the content of the file: graph, weights, and the texts; raises MissingError."""
    for package in PACKAGES:
        _extra(package)
    transform = run.transform
    size = (2, transform.channels, transform.image_size, transform.image_size)
    example = torch.zeros(size, dtype=getattr(torch, run.recipe.number_type), device=run.device)
    with _silence():
        program = torch.onnx.export(
            run.model.network,
            (example,),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("num_images")},),
            verbose=False,
        )
        assert program is not None
        model = program.model_proto
    _forget_origins(model.graph)
    model.producer_name, model.producer_version = "heptad", json.loads(texts["heptad"])
    model.doc_string = _how_to_use(run)
    for name, text in {**texts, DIGEST: json.dumps(_digest(model))}.items():
        model.metadata_props.add(key=name, value=text)
    content: bytes = model.SerializeToString()
    return content


def _forget_origins(graph: Any) -> None:
    """Remove what the exporter notes of each node: lines of source, and the folders of these."""
    graph.doc_string = ""
    for each in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        del each.metadata_props[:]
        each.doc_string = ""


def _digest(model: Any) -> str:
    """Hash the graph and its weights: SHA-256."""
    digest = hashlib.sha256()
    for part in (*model.graph.node, *model.graph.initializer):
        digest.update(part.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _how_to_use(run: LoadedRun) -> str:
    transform = run.transform
    size = transform.image_size
    brought = FITTED[transform.fit].format(size=size)
    return (
        f"{INPUT}: [N, {transform.channels}, {size}, {size}], pixels {brought}, divided by 255,"
        f" minus transform.mean, divided by transform.deviation. {OUTPUT}:"
        f" [N, {len(run.classes)}], one for each of classes; their softmax are probabilities."
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Keep back what the exporter has to say to its own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _extra(name: str) -> ModuleType:
    """Give a package of the extra `onnx`; raises MissingError without it."""
    try:
        # onnxscript warns of Python's own plans as it is imported.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(name)
    except ImportError as error:
        raise MissingError(
            f"ONNX files need the package {name}, which is not installed.",
            hint=f"pip install {' '.join(PACKAGES)} ({error})",
        ) from error


def load(path: Path, *, device: str, threads: int | None) -> Classifier:
    """Load such a file, to be computed on the CPU by ONNX Runtime.

    Raises ModelError for a file that cannot be used, DamagedError for one that is not as it was
    written, DeviceError for another device, MissingError without the extra `onnx`.
    """
    if device not in ("auto", "cpu"):
        raise DeviceError(f"device is {device!r}, but ONNX files are computed on the CPU alone.")
    content = path.read_bytes()
    described = read_described(path, _texts(path, content))
    return Classifier(
        recipe=described.recipe,
        model=_computing(path, content, described, threads=threads),
        transform=described.transform,
        classes=described.classes,
        device=torch.device("cpu"),
        is_for_digits=described.is_for_digits,
    )


def texts_of(path: Path) -> dict[str, str]:
    """Read the texts of a file; raises ModelError, DamagedError, MissingError."""
    return _texts(path, path.read_bytes())


def _texts(path: Path, content: bytes) -> dict[str, str]:
    """Read the texts of a file whose weights are all within it and as they were written.

    Weights elsewhere are given by the name of a file, which has been made to be any on the machine:
    CVE-2026-27489, CVE-2026-34445.
    """
    onnx = _extra("onnx")
    try:
        model = onnx.load_model_from_string(content)
    # Protobuf's own error, and whatever else a damaged file makes it raise.
    except Exception as error:
        raise ModelError(f"{path} cannot be read as ONNX: it is damaged, or none.") from error
    if _points_elsewhere(model):
        raise ModelError(
            f"{path} keeps weights in other files, which are not read.",
            hint="`heptad export` writes all of them into the one file",
        )
    texts = {each.key: each.value for each in model.metadata_props}
    if DIGEST in texts:
        check_digest(path, texts, _digest(model))
    return texts


def _points_elsewhere(message: Any) -> bool:
    """Tell whether a tensor anywhere in a message of ONNX, however deep, names another file."""
    if message.DESCRIPTOR.name == "TensorProto":
        return bool(message.external_data or message.data_location)
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        values = [value] if hasattr(value, "ListFields") else value
        if any(map(_points_elsewhere, values)):
            return True
    return False


def _computing(
    path: Path, content: bytes, described: Description, *, threads: int | None
) -> Callable[[Tensor], Tensor]:
    """Give what computes logits [N, K] from images; raises ModelError if the graph is another."""
    runtime = _extra("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = NOTHING_BUT_FATAL
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _not_computed(path, error) from error
    transform, num_classes = described.transform, len(described.classes)
    kind = TYPES[described.recipe.number_type]
    expected = {
        INPUT: (kind, [transform.channels, transform.image_size, transform.image_size]),
        OUTPUT: (kind, [num_classes]),
    }
    ends = (*session.get_inputs(), *session.get_outputs())
    if {each.name: (each.type, each.shape[1:]) for each in ends} != expected:
        raise ModelError(f"{path} takes and gives something else than its description says.")

    def compute(inputs: Tensor) -> Tensor:
        try:
            [logits] = session.run([OUTPUT], {INPUT: inputs.contiguous().numpy()})
        except Exception as error:
            raise _not_computed(path, error) from error
        if logits.shape != (len(inputs), num_classes):
            raise ModelError(f"{path} gave another number of answers than was asked for.")
        return torch.from_numpy(logits)

    return compute


def _not_computed(path: Path, error: Exception) -> ModelError:
    said = one_line(str(error))[:MOST_SAID]
    return ModelError(f"{path} cannot be computed by ONNX Runtime: {said}")
