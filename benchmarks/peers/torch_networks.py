"""The networks of the peers that are written in PyTorch, as their users write them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from peers.work import NUM_CLASSES
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import resnet50


class LeNet5(nn.Module):
    """ReLU before the pool, as it is usually written."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU()),
            *(nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, NUM_CLASSES)),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def made_resnet50(weights: Path) -> nn.Module:
    """torchvision's ResNet50 with the weights of a file."""
    network = resnet50()
    network.load_state_dict(load_file(weights))
    return network


def frozen_resnet50(weights: Path) -> nn.Module:
    """The same, frozen under a new last layer of ten classes."""
    network = made_resnet50(weights)
    for parameter in network.parameters():
        parameter.requires_grad = False
    network.fc = nn.Linear(2048, NUM_CLASSES)
    return network


def num_trained(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters() if value.requires_grad)


def accuracy(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Score the batches; the share that is right."""
    num_correct, num_images = 0, 0
    network.eval()
    with torch.no_grad():
        for images, labels in batches:
            num_correct += (network(images).argmax(1) == labels).sum().item()
            num_images += len(labels)
    return num_correct / num_images
