"""Stage 3: the network, its start weights, which part is trained, and what "frozen" means.

Nothing outside the trained part moves, neither parameter nor buffer: frozen BatchNorm keeps its
statistics while training, and `frozen_digests` proves it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from heptad.architectures import Architecture, find_architecture
from heptad.architectures.pretrained import WeightsFile, ensure_weights
from heptad.architectures.states import (
    READERS,
    read_state,
    refuse_differences,
    refuse_not_finite,
)
from heptad.errors import DamagedError, DataError, RecipeError, WeightsError, did_you_mean
from heptad.files import sha256_of, user_path
from heptad.randomness import derived_seed
from heptad.recipe import Recipe
from heptad.records import Batch
from heptad.run_folder import saved_weights


class Model(nn.Module):
    """A network under the recipe's policy: `train()` leaves the frozen layers as they must be.

    network: the network itself, whose state dict is the one that is saved.
    trained: names of the parameters in the optimizer.
    held: modules that stay in evaluation mode while the rest trains.
    start: what the network started from: the weights' `name`, the `sha256` of their file, and
        `last_layer`, "new" or "kept".
    is_mixed: layers multiply in bfloat16, as in Kalamkar et al., arXiv:1905.12322; weights, sums
        and logits stay in their own type.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        trained: frozenset[str],
        held: list[nn.Module],
        start: dict[str, Any],
        is_mixed: bool = False,
    ):
        super().__init__()
        self.network = network
        self.trained = trained
        self.start = start
        self.is_mixed = is_mixed
        # In a tuple, so that they are not registered a second time.
        self._held = tuple(held)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in trained)

    def train(self, mode: bool = True) -> Model:
        """Switch the network to training, all but what is held; or to evaluation."""
        super().train(mode)
        for module in self._held:
            module.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Give logits [N, K]; of a part of a network, what it gives."""
        logits: Tensor
        if not self.is_mixed:
            logits = self.network(inputs)
            return logits
        # Its exponents are those of float32, so that no gradient has to be scaled as for float16.
        with torch.autocast(inputs.device.type, torch.bfloat16):
            logits = self.network(inputs)
        return logits.to(inputs.dtype)

    @property
    def has_dropout(self) -> bool:
        """Whether a training step draws what to drop."""
        return any(
            isinstance(module, _DropoutNd) and module.p > 0 and module not in self._held
            for module in self.network.modules()
        )

    def names_in(self, part: nn.Module) -> list[str]:
        """Name the network's parameters and buffers that a part made of its modules holds."""
        own = {id(tensor) for tensor in (*part.parameters(), *part.buffers())}
        tensors = (*self.network.named_parameters(), *self.network.named_buffers())
        return [name for name, tensor in tensors if id(tensor) in own]

    def held_norms(self) -> dict[str, nn.Module]:
        """Name the BatchNorm layers of the network whose statistics stay as they are."""
        named = self.network.named_modules()
        return {n: m for n, m in named if isinstance(m, _BatchNorm) and m in self._held}

    def trained_parameters(self) -> list[nn.Parameter]:
        """Give what the optimizer moves, in the network's order."""
        return [p for name, p in self.network.named_parameters() if name in self.trained]

    def part(self, network: nn.Module) -> Model:
        """Give a part of the network, made of its own modules, under the same policy."""
        own = set(network.modules())
        return Model(
            network,
            trained=frozenset(name for name, p in network.named_parameters() if p.requires_grad),
            held=[module for module in self._held if module in own],
            start=self.start,
            is_mixed=self.is_mixed,
        )


@dataclass(frozen=True)
class StartWeights:
    """Where a network's first values come from: a known file, a file of one's own, or a draw.

    sha256: of the file, where it belongs to a run that noted it.
    """

    name: str
    known: WeightsFile | None = None
    path: Path | None = None
    sha256: str | None = None


def find_weights(name: str, architecture: Architecture) -> StartWeights:
    """Understand a recipe's `weights`, before anything is fetched or read.

    Raises WeightsError if it is no name that the architecture has, no file and no finished run.
    """
    if name == "none":
        return StartWeights("none")
    known = dict(architecture.weights)
    if known:
        known = {"default": next(iter(known.values())), **known}
    if name in known:
        resolved = next(iter(architecture.weights)) if name == "default" else name
        return StartWeights(resolved, known=known[name])
    path = user_path(name)
    if path.is_dir():
        path, sha256 = saved_weights(path)
        return StartWeights(path.name, path=path, sha256=sha256)
    if path.is_file():
        return StartWeights(path.name, path=path)
    if path.suffix.lower() in READERS:
        raise WeightsError(
            f"there is no weights file {name!r}.",
            hint="a relative path is looked for from the working directory",
        )
    files = [f"a {suffix} file" for suffix in (".pth", ".safetensors")]
    choices = [*known, "none", *files, "a run's folder"]
    raise WeightsError(
        f"{architecture.name} has no weights {name!r}.{did_you_mean(name, choices)}"
        f" Allowed: {', '.join(choices)}.",
        hint="a relative path is looked for from the working directory",
    )


def check_model(
    recipe: Recipe, *, num_classes: int | None = None
) -> tuple[Architecture, StartWeights]:
    """Find the recipe's architecture and weights by name, before anything is fetched or built.

    num_classes: of the data, once it is known. Raises RecipeError or WeightsError if there is none
    such, they do not fit the recipe or the data, or a setting would have no effect on this network.
    """
    architecture = find_architecture(recipe, num_classes=num_classes)
    weights = find_weights(recipe.weights, architecture)
    # Without memory or values: enough to see which layers there are.
    with torch.device("meta"):
        network = architecture.build(recipe.channels, 2)
    _held(recipe, network, trained_prefixes(recipe, architecture))
    rate_groups(recipe, architecture, network)
    return architecture, weights


def build_model(
    recipe: Recipe,
    *,
    num_classes: int,
    device: torch.device,
    network: nn.Module | None = None,
) -> Model:
    """Build the network on `device`, channels last, frozen and held as the recipe says.

    network: one that exists already, to be used instead; it is changed in place. Random start
    values depend on the recipe's seed alone. Raises WeightsError if a file does not fit,
    MissingError if known weights cannot be had, RecipeError for a setting without effect.
    """
    architecture, weights = check_model(recipe, num_classes=num_classes)
    start = {"name": "given", "sha256": None, "last_layer": "given"}
    if network is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(recipe.seed, "start"))
            network, start = _start(recipe, architecture, weights, num_classes)
    network = network.to(device, getattr(torch, recipe.number_type)).to(
        memory_format=torch.channels_last
    )
    prefixes = trained_prefixes(recipe, architecture)
    return Model(
        network,
        trained=frozenset(n for n, _ in network.named_parameters() if _is_within(n, prefixes)),
        held=_held(recipe, network, prefixes),
        start=start,
        is_mixed=recipe.precision == "bfloat16",
    )


def trained_prefixes(recipe: Recipe, architecture: Architecture) -> tuple[str, ...]:
    """Name the submodules that are trained with all that is in them; "" is the whole network.

    Raises RecipeError if the last block is to be trained of a network that has none.
    """
    if recipe.trainable == "last-block" and not architecture.blocks:
        raise RecipeError(f"trainable is last-block, but {architecture.name} has no blocks.")
    choices = {
        "all": ("",),
        "last-block": tuple(chain(*architecture.blocks[-2:])),
        "last-layer": (architecture.last_layer,),
    }
    return choices[recipe.trainable]


def _is_within(name: str, prefixes: Iterable[str]) -> bool:
    """Tell whether a parameter or module is one of those named, or in one of them."""
    return any(not prefix or f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)


def rate_groups(
    recipe: Recipe, architecture: Architecture, network: nn.Module
) -> list[dict[str, Any]]:
    """Group the trained parameters by learning rate, as an optimizer takes them, output last.

    Each group has its `rate_factor`: 1 for the last block, for each one before it the recipe's
    layer_decay once more (Howard & Ruder, arXiv:1801.06146). Raises RecipeError if that would have
    no effect, a trained parameter is in no block, or there is none.
    """
    prefixes = trained_prefixes(recipe, architecture)
    trained = {n: p for n, p in network.named_parameters() if _is_within(n, prefixes)}
    if not trained:
        raise RecipeError(
            f"trainable is {recipe.trainable}, but the last layer of {recipe.architecture} has no"
            " parameters; leave it at all."
        )
    if recipe.layer_decay == 1:
        return [{"params": [*trained.values()], "rate_factor": 1.0}]
    groups: list[dict[str, Any]] = []
    for distance, block in enumerate(reversed(architecture.blocks)):
        names = [name for name in trained if _is_within(name, block)]
        if names:
            factor = recipe.layer_decay**distance
            groups.insert(0, {"params": [trained.pop(n) for n in names], "rate_factor": factor})
    if trained or len(groups) < 2:
        raise RecipeError(
            f"layer_decay is {recipe.layer_decay:g}, but {architecture.name} with trainable ="
            f" {recipe.trainable} has one block that is trained; leave it at 1."
        )
    return groups


def _held(recipe: Recipe, network: nn.Module, trained: tuple[str, ...]) -> list[nn.Module]:
    """Choose the layers that stay in evaluation mode; refuse settings without effect.

    trained: the submodules that are trained.
    """
    modules = dict(network.named_modules())
    all_norms = [module for module in modules.values() if isinstance(module, _BatchNorm)]
    frozen = [module for name, module in modules.items() if not _is_within(name, trained)]
    norms = [module for module in frozen if isinstance(module, _BatchNorm)]
    dropouts = [module for module in frozen if isinstance(module, _DropoutNd)]
    if recipe.batchnorm == "held" and len(norms) == len(all_norms):
        raise RecipeError(
            f"batchnorm is held, but {recipe.architecture} with trainable = {recipe.trainable}"
            " trains no BatchNorm; leave it at frozen."
        )
    if recipe.batchnorm == "held":
        norms = all_norms
    for setting, default, layers in (
        ("batchnorm", "frozen", norms),
        ("frozen_dropout", "on", dropouts),
    ):
        if getattr(recipe, setting) != default and not layers:
            raise RecipeError(
                f"{setting} is {getattr(recipe, setting)}, but {recipe.architecture} with"
                f" trainable = {recipe.trainable} has no such frozen layer; leave it at {default}."
            )
    return [
        *(norms if recipe.batchnorm != "drifting" else ()),
        *(dropouts if recipe.frozen_dropout == "off" else ()),
    ]


def _start(
    recipe: Recipe, architecture: Architecture, weights: StartWeights, num_classes: int
) -> tuple[nn.Module, dict[str, Any]]:
    if weights.known is None and weights.path is None:
        network = architecture.build(recipe.channels, num_classes)
        return network, {"name": "none", "sha256": None, "last_layer": "new"}
    if weights.known:
        path, sha256 = ensure_weights(weights.known)
    else:
        assert weights.path is not None
        path, sha256 = weights.path, sha256_of(weights.path)
        if weights.sha256 not in (None, sha256):
            raise DamagedError(
                f"{path} is not what was saved: its SHA-256 is {sha256}, not {weights.sha256}."
            )
    # Without memory of its own: the file's tensors become the parameters, copied nowhere.
    with torch.device("meta"):
        network = architecture.build(recipe.channels, num_classes)
    is_kept = _load_into(network, path, architecture, may_keep_last=weights.known is None)
    note = {"name": weights.name, "sha256": sha256, "last_layer": "kept" if is_kept else "new"}
    return network, note


def _load_into(
    network: nn.Module, path: Path, architecture: Architecture, *, may_keep_last: bool
) -> bool:
    """Give the file's values to a network without any; tell whether the last layer's were kept."""
    state = read_state(path)
    expected = network.state_dict()
    for name in expected:
        # Files from before PyTorch 0.4.1 lack these counters, and loading them counts from zero.
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.tensor(0))
    last = [name for name in expected if name.startswith(f"{architecture.last_layer}.")]
    is_kept = may_keep_last and all(
        name in state and state[name].shape == expected[name].shape for name in last
    )
    if not is_kept:
        # Made outside the meta device, so with its own initialisation.
        fresh: Any = network.get_submodule(architecture.last_layer).to_empty(device="cpu")
        fresh.reset_parameters()
        state |= {f"{architecture.last_layer}.{k}": v for k, v in fresh.state_dict().items()}
    refuse_differences(path, state, expected, what=architecture.name)
    values = {name: value.to(expected[name].dtype).contiguous() for name, value in state.items()}
    # Looked at in the type that is used: a float64 value may be too large for float32.
    refuse_not_finite(path, values)
    network.load_state_dict(values, strict=True, assign=True)
    return is_kept


def refuse_lone_images(model: Model, *, num_images: int, batch_size: int) -> None:
    """Raise RecipeError if BatchNorm moves and some batch would have a single image.

    One image has no variance over images: PyTorch refuses it where its maps are one pixel, and
    elsewhere it spoils the statistics.
    """
    if moving_buffers(model) and (batch_size == 1 or num_images % batch_size == 1):
        raise RecipeError(
            f"batch_size is {batch_size}, which leaves one of {num_images:,} images alone in a"
            " batch, and BatchNorm that moves needs two; change batch_size or limit."
        )


def moving_buffers(model: Model) -> frozenset[str]:
    """Name the buffers that training moves: the statistics of BatchNorm that is not held."""
    model_is_training = model.training
    model.train()
    moving = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.network.named_modules()
        if isinstance(module, _BatchNorm) and module.training
        for name, _ in module.named_buffers(recurse=False)
    }
    model.train(model_is_training)
    return frozenset(moving)


def state_digests(model: Model, *, leave_out: frozenset[str] = frozenset()) -> dict[str, str]:
    """Hash every parameter and buffer of the network, but those to leave out: SHA-256 by name."""
    state = model.network.state_dict()
    return digests_of({name: value for name, value in state.items() if name not in leave_out})


def digests_of(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Hash tensors: SHA-256 by name."""
    return {name: hashlib.sha256(_bytes_of(value)).hexdigest() for name, value in state.items()}


def frozen_digests(model: Model) -> dict[str, str]:
    """Hash every parameter and buffer that training may not move: SHA-256 by name."""
    return state_digests(model, leave_out=model.trained | moving_buffers(model))


def _bytes_of(value: Tensor) -> Any:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()


def recalibrate_batchnorm(model: Model, batches: Iterable[Batch]) -> None:
    """Set the statistics of frozen BatchNorm to the means over the images of `batches`, each once.

    Each layer's momentum is set so that the running figures are the batches' means and unbiased
    variances, weighted by images. A batch of one image has no variance and is left out. Dropout
    stays off. Raises DataError if no batch is left.
    """
    norms: list[Any] = [*model.held_norms().values()]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    num_seen = 0
    with torch.no_grad():
        for batch in batches:
            if len(batch.labels) > 1:
                num_seen += len(batch.labels)
                for norm in norms:
                    norm.momentum = len(batch.labels) / num_seen
                model(batch.inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
    if not num_seen:
        raise DataError("batchnorm is recalibrated, which needs batches of at least two images.")
