"""The network as one ONNX file, to be computed without PyTorch; and such a file, to be used here.

Images come in normalised, float [N, C, S, S], N as one likes; logits [N, K] come out. All weights
are within the file: one that points to others is not read.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from heptad.classifier import Classifier
from heptad.errors import DeviceError, MissingError, ModelError
from heptad.exporting.document import Description, read_described
from heptad.loaded_run import LoadedRun

SUFFIX = ".onnx"
INPUT, OUTPUT = "images", "logits"
# Of the operators; what torch 2.14's exporter writes and onnxruntime has read since 1.14.
OPSET = 18
# ONNX Runtime's own: of what it says, only errors, which it raises too.
ONLY_ERRORS = 3


def content_of(run: LoadedRun, texts: Mapping[str, str]) -> bytes:
    """Give the content of the file: graph, weights, and the texts; raises MissingError."""
    _extra("onnxscript")
    network = run.model.network
    transform = run.transform
    size = (2, transform.channels, transform.image_size, transform.image_size)
    example = torch.zeros(size, dtype=getattr(torch, run.recipe.precision), device=run.device)
    with _silence():
        program = torch.onnx.export(
            network,
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
    model.producer_name, model.producer_version = "heptad", _plain(texts["heptad"])
    model.doc_string = _how_to_use(run)
    for name, text in texts.items():
        model.metadata_props.add(key=name, value=text)
    content: bytes = model.SerializeToString()
    return content


def _plain(text: str) -> str:
    return text.strip('"')


def _how_to_use(run: LoadedRun) -> str:
    transform = run.transform
    size = transform.image_size
    return (
        f"{INPUT}: [N, {transform.channels}, {size}, {size}], pixels resized to {size} x {size}"
        " (bilinear, antialiased), divided by 255, minus transform.mean, divided by"
        f" transform.deviation. {OUTPUT}: [N, {len(run.classes)}], one for each of classes; their"
        " softmax are probabilities."
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
            return __import__(name)
    except ImportError as error:
        raise MissingError(
            f"ONNX files need the package {name}, which is not installed.",
            hint=f"pip install 'heptad[onnx]' ({error})",
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


def _texts(path: Path, content: bytes) -> dict[str, str]:
    """Read the texts of a file, and refuse one whose weights lie elsewhere.

    Such a file names others on this machine, and has been made to name any:
    CVE-2026-27489, CVE-2026-34445.
    """
    onnx = _extra("onnx")
    try:
        model = onnx.load_model_from_string(content)
    # Protobuf's own error, and whatever else a damaged file makes it raise.
    except Exception as error:
        raise ModelError(f"{path} cannot be read as ONNX: it is damaged, or none.") from error
    graphs = [model.graph, *model.functions]
    if any(map(onnx.external_data_helper.uses_external_data, _tensors(graphs))):
        raise ModelError(
            f"{path} keeps weights in other files, which are not read.",
            hint="`heptad export` writes all of them into the one file",
        )
    return {each.key: each.value for each in model.metadata_props}


def _tensors(graphs: list[Any]) -> Iterator[Any]:
    """Give every tensor in some graphs and those within them."""
    for graph in graphs:
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
                yield from _tensors([attribute.g, *attribute.graphs])


def _computing(
    path: Path, content: bytes, described: Description, *, threads: int | None
) -> Callable[[Tensor], Tensor]:
    """Give what computes logits [N, K] from images; raises ModelError if the graph is another."""
    runtime = _extra("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = ONLY_ERRORS
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        said = str(error).splitlines()[0]
        raise ModelError(f"{path} cannot be computed by ONNX Runtime: {said}") from error
    transform = described.transform
    expected = {
        INPUT: [transform.channels, transform.image_size, transform.image_size],
        OUTPUT: [len(described.classes)],
    }
    found = {each.name: each.shape[1:] for each in (*session.get_inputs(), *session.get_outputs())}
    if found != expected:
        raise ModelError(f"{path} takes and gives {found}, but by its description {expected}.")

    def compute(inputs: Tensor) -> Tensor:
        [logits] = session.run([OUTPUT], {INPUT: inputs.contiguous().numpy()})
        return torch.from_numpy(logits)

    return compute
