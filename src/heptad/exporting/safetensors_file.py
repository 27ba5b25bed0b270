"""The whole state dict as safetensors: no code, torchvision's names, read by many tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from heptad.architectures.states import read_state, refuse_not_finite
from heptad.classifier import Classifier
from heptad.errors import WeightsError, damage_in
from heptad.exporting.document import DIGEST, check_digest, read_described
from heptad.files import digest_of
from heptad.loaded_run import LoadedRun, network_with
from heptad.stages.device import pick_device
from heptad.stages.model import Model, digests_of

SUFFIX = ".safetensors"


def content_of(run: LoadedRun, texts: Mapping[str, str]) -> bytes:
    """Give the content of the file: every tensor of the network, contiguous, and the texts."""
    state = {
        name: value.detach().cpu().contiguous()
        for name, value in run.model.network.state_dict().items()
    }
    digest = json.dumps(digest_of(digests_of(state)))
    # The entry that other libraries look for before they take the tensors for PyTorch's.
    return safetensors.torch.save(state, metadata={"format": "pt", **texts, DIGEST: digest})


def load(path: Path, *, device: str, threads: int | None) -> Classifier:
    """Load the network of such a file, ready to answer.

    Raises WeightsError for a file that is none, ModelError for one that was not exported,
    DamagedError for one that is not as it was written, DeviceError.
    """
    state = read_state(path, kind=SUFFIX)
    texts = texts_of(path)
    described = read_described(path, texts)
    check_digest(path, texts, digest_of(digests_of(state)))
    at = pick_device(device, threads=threads)
    with damage_in(path):
        network = network_with(
            state, described.recipe, num_classes=len(described.classes), path=path
        )
        refuse_not_finite(path, state)
    network = network.to(at).to(memory_format=torch.channels_last)
    model = Model(network, trained=frozenset(), held=[], start={})
    return Classifier(
        recipe=described.recipe,
        model=model.eval(),
        transform=described.transform,
        classes=described.classes,
        device=at,
        is_for_digits=described.is_for_digits,
    )


def texts_of(path: Path) -> dict[str, str]:
    """Read the texts that travel with the tensors; raises WeightsError."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}.") from error
