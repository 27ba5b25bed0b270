"""The plain PyTorch loop: PIL transforms in a DataLoader, or a TensorDataset in memory.

The variant is the number of loader workers, or "memory".
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch
from peers.torch_networks import LeNet5, accuracy, frozen_resnet50, num_trained
from peers.work import BATCH_SIZE, LEARNING_RATE, Part, Work, answer, given
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import transforms

TRANSFORMS = {
    "lenet5": [
        transforms.Resize((32, 32)),
        transforms.ToTensor(),
        transforms.Normalize((0.1307,), (0.3081,)),
    ],
    "resnet50": [
        transforms.Resize((64, 64)),
        transforms.Grayscale(3),
        transforms.ToTensor(),
        transforms.Normalize((0.5,), (0.5,)),
    ],
}


class Digits(Dataset):
    """What torchvision.datasets.MNIST does for each image: to PIL, then the transforms."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, workload: str) -> None:
        self.pixels, self.labels = pixels, labels
        self.transform = transforms.Compose(TRANSFORMS[workload])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), int(self.labels[index])


def in_memory(part: Part, *, shuffle: bool) -> DataLoader:
    """A loader of tensors that were resized and normalised before."""
    dataset = TensorDataset(torch.from_numpy(part.images), torch.from_numpy(part.labels))
    return DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=shuffle)


def loader_of(work: Work, name: str) -> DataLoader:
    part, shuffle = work.part(name), name == "train"
    if work.variant == "memory":
        return in_memory(part, shuffle=shuffle)
    num_workers = int(work.variant)
    return DataLoader(
        Digits(part.pixels, part.labels, work.workload),
        batch_size=BATCH_SIZE,
        shuffle=shuffle,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )


def epoch_of(network: nn.Module, loader: DataLoader) -> Callable[[], None]:
    """Make a training of what is not frozen; the function given carries out an epoch."""
    criterion = nn.CrossEntropyLoss()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)

    def epoch() -> None:
        running_loss = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(network(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()

    return epoch


def main() -> None:
    work = given()
    torch.manual_seed(0)
    network = frozen_resnet50(work.made_weights) if work.is_frozen else LeNet5()
    train, test = loader_of(work, "train"), loader_of(work, "test")
    epoch = epoch_of(network, train)
    seconds = []
    for _ in range(work.num_epochs):
        started_at = perf_counter()
        # BatchNorm of a frozen network keeps the statistics of its weights.
        network.train(not work.is_frozen)
        epoch()
        if work.is_frozen:
            share = accuracy(network, test)
        seconds.append(perf_counter() - started_at)
    if not work.is_frozen:
        share = accuracy(network, test)
    answer(seconds=seconds, accuracy=share, num_trained=num_trained(network))


if __name__ == "__main__":
    main()
