"""What each network is, as data: how it is built, its last layer, its pretrained weights.

A new architecture is one more entry in `ARCHITECTURES`; nothing else in Heptad knows a network by
its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from heptad.architectures.lenet import LeNet5
from heptad.architectures.lenet1998 import NUM_DIGITS, LeNet5Of1998
from heptad.architectures.pretrained import WeightsFile
from heptad.errors import RecipeError, unknown
from heptad.recipe import Recipe


@dataclass(frozen=True)
class Split:
    """A place where a network can be cut into a trunk and a head.

    Both are made of the network's own modules: what trains in the head trains in the network.
    trunk: gives the part from images [N, C, H, W] to features [N, ...]. head: from features to
    logits [N, K].
    """

    name: str
    trunk: Callable[[Any], nn.Module]
    head: Callable[[Any], nn.Module]


@dataclass(frozen=True)
class Architecture:
    """One network as the recipes name it.

    build: gives the network for (number of channels, number of classes), with random weights and
        its own initialisation; pretrained ones are loaded into it before the last layer is changed.
    last_layer: name of the submodule that gives one output a class, with the `reset_parameters` by
        which PyTorch's layers are filled anew.
    channels: the numbers of channels it can take. image_sizes: the sides in pixels it can take.
    weights: pretrained weights by name; the first is `default`.
    splits: where it can be cut, the longest trunk first; which one serves depends on the recipe.
    blocks: from the input to the output, the submodules of each block by name; each may have a
        learning rate of its own. The last one classifies, the last two are "last-block".
    maps: submodules whose outputs [N, C, H, W] are few enough to be looked at, with their names.
    num_classes: how many classes it tells apart, where that cannot be chosen.
    """

    name: str
    build: Callable[[int, int], nn.Module]
    last_layer: str
    channels: tuple[int, ...]
    image_sizes: range
    weights: dict[str, WeightsFile] = field(default_factory=dict)
    splits: tuple[Split, ...] = ()
    blocks: tuple[tuple[str, ...], ...] = ()
    maps: dict[str, str] = field(default_factory=dict)
    num_classes: int | None = None


def _of_torchvision(name: str) -> Callable[[int, int], nn.Module]:
    """Give what builds a network of torchvision's."""

    def build(_: int, num_classes: int) -> nn.Module:
        # Imported here: it brings PyTorch's compiler with it, and takes almost as long to import as
        # PyTorch itself, which LeNet-5's users need not wait for.
        from torchvision import models

        network: nn.Module = models.get_model(name, num_classes=num_classes)
        return network

    return build


def _published(name: str, *, num_bytes: int, sha256: str, is_confirmed: bool = True) -> WeightsFile:
    """Give a file of torchvision's weights, which all have learned from images normalised alike."""
    return WeightsFile(
        name=name,
        url=f"https://download.pytorch.org/models/{name}",
        num_bytes=num_bytes,
        sha256=sha256,
        mean=(0.485, 0.456, 0.406),
        deviation=(0.229, 0.224, 0.225),
        is_confirmed=is_confirmed,
    )


def _vgg_trunk(num_classifier_layers: int) -> Callable[[Any], nn.Module]:
    return lambda vgg: nn.Sequential(
        vgg.features, vgg.avgpool, nn.Flatten(1), *vgg.classifier[:num_classifier_layers]
    )


def _resnet_trunk(resnet: Any) -> nn.Module:
    *layers, _ = resnet.children()
    return nn.Sequential(*layers, nn.Flatten(1))


def _resnet_stem_to_layer3(resnet: Any) -> nn.Module:
    *layers, _, _, _ = resnet.children()
    return nn.Sequential(*layers)


def _resnet_layer4_to_fc(resnet: Any) -> nn.Module:
    return nn.Sequential(resnet.layer4, resnet.avgpool, nn.Flatten(1), resnet.fc)


# In torchvision's `features`, the first layer of the fifth block of convolutions.
VGG_BLOCK_5 = 24


def _vgg_up_to_block_4(vgg: Any) -> nn.Module:
    layers: nn.Module = vgg.features[:VGG_BLOCK_5]
    return layers


def _vgg_block_5_to_end(vgg: Any) -> nn.Module:
    return nn.Sequential(vgg.features[VGG_BLOCK_5:], vgg.avgpool, nn.Flatten(1), vgg.classifier)


ARCHITECTURES: dict[str, Architecture] = {
    "lenet5": Architecture(
        name="lenet5",
        build=lambda channels, num_classes: LeNet5(num_classes, in_channels=channels),
        last_layer="fc3",
        channels=(1, 3),
        image_sizes=range(32, 33),
        blocks=(("conv1",), ("conv2",), ("fc1", "fc2", "fc3")),
        maps={"conv1": "C1", "conv2": "C3"},
    ),
    "lenet5-1998": Architecture(
        name="lenet5-1998",
        build=lambda *_: LeNet5Of1998(),
        last_layer="output",
        channels=(1,),
        image_sizes=range(32, 33),
        blocks=(("c1", "s2"), ("c3", "s4"), ("c5", "f6", "output")),
        maps={"c1": "C1", "s2": "S2", "c3": "C3"},
        num_classes=NUM_DIGITS,
    ),
    "vgg16": Architecture(
        name="vgg16",
        build=_of_torchvision("vgg16"),
        last_layer="classifier.6",
        channels=(3,),
        # Five halvings leave one pixel of 32.
        image_sizes=range(32, 1025),
        # Dropout, on while training, ends the trunk; what is frozen behind it runs in every step.
        splits=(
            Split("before classifier.6", _vgg_trunk(6), lambda vgg: vgg.classifier[6]),
            Split("after classifier.1", _vgg_trunk(2), lambda vgg: vgg.classifier[2:]),
            Split("before features.24", _vgg_up_to_block_4, _vgg_block_5_to_end),
        ),
        blocks=(
            ("features.0", "features.2"),
            ("features.5", "features.7"),
            ("features.10", "features.12", "features.14"),
            ("features.17", "features.19", "features.21"),
            ("features.24", "features.26", "features.28"),
            ("classifier",),
        ),
        weights={
            "IMAGENET1K_V1": _published(
                "vgg16-397923af.pth",
                num_bytes=553_433_881,
                sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            ),
        },
    ),
    "resnet50": Architecture(
        name="resnet50",
        build=_of_torchvision("resnet50"),
        last_layer="fc",
        channels=(3,),
        image_sizes=range(32, 1025),
        splits=(
            Split("before fc", _resnet_trunk, lambda resnet: resnet.fc),
            Split("before layer4", _resnet_stem_to_layer3, _resnet_layer4_to_fc),
        ),
        blocks=(("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",), ("fc",)),
        weights={
            "IMAGENET1K_V2": _published(
                "resnet50-11ad3fa6.pth",
                num_bytes=102_540_417,
                sha256="11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
                # From one source only: the eight digits in torchvision's file name decide.
                is_confirmed=False,
            ),
            "IMAGENET1K_V1": _published(
                "resnet50-0676ba61.pth",
                num_bytes=102_530_333,
                sha256="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
            ),
        },
    ),
}


def find_architecture(recipe: Recipe, *, num_classes: int | None = None) -> Architecture:
    """Give the recipe's architecture, if it takes such images; raises RecipeError if not.

    num_classes: of the data, where they are known already; it has to tell them apart.
    """
    name = recipe.architecture
    if name not in ARCHITECTURES:
        raise RecipeError(unknown("architecture", name, ARCHITECTURES))
    architecture = ARCHITECTURES[name]
    if recipe.channels not in architecture.channels:
        allowed = " or ".join(map(str, architecture.channels))
        raise RecipeError(f"channels is {recipe.channels}, but {name} takes {allowed}.")
    sizes = architecture.image_sizes
    if recipe.image_size not in sizes:
        allowed = f"{sizes[0]} px alone" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} px"
        raise RecipeError(f"image_size is {recipe.image_size} px, but {name} takes {allowed}.")
    if num_classes is not None and architecture.num_classes not in (None, num_classes):
        raise RecipeError(
            f"the data has {num_classes} classes, but {name} tells {architecture.num_classes}"
            " apart, no more and no fewer."
        )
    return architecture
