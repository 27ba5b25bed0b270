"""An epoch of LeNet-5 on all of MNIST: the plain loop against Heptad, side by side in one run.

The plain loop is the one that the field writes: torchvision's MNIST data set, PIL transforms in a
DataLoader, batches of 64, ReLU before the pool, Adam; without loader workers and with two.
Heptad's side is `heptad.steps` on the recipe `lenet5` as shipped. Both sides take the same number
of steps of the same batch size over the same 60,000 images. The plain loop resizes every image in
every epoch; Heptad resizes once, before the first, and that time is printed beside its epochs.
Reading the files is counted on neither side.

    python benchmarks/lenet5_epoch.py [--rounds 3]

Rounds alternate between the sides; what is printed is the median of each and the ratios.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import heptad
from heptad.datasets.dataset import find_dataset, read_part
from heptad.records import Position
from heptad.stages.data import open_sources


class PlainMnist(Dataset):
    """What torchvision.datasets.MNIST does for each image: to PIL, then the transforms."""

    def __init__(self) -> None:
        images, labels = read_part(find_dataset("mnist"), "train")
        self.images, self.labels = images[:, 0], labels
        self.transform = transforms.Compose(
            [
                transforms.Resize((32, 32)),
                transforms.ToTensor(),
                transforms.Normalize((0.1307,), (0.3081,)),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


class PlainLeNet5(nn.Module):
    """ReLU before the pool, as it is usually written."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU()),
            *(nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def plain_epoch(num_workers: int) -> Callable[[], int]:
    """Make a plain training; the function given carries out an epoch and counts its images."""
    loader = DataLoader(PlainMnist(), batch_size=64, shuffle=True, num_workers=num_workers)
    model = PlainLeNet5()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)

    def epoch() -> int:
        model.train()
        running_loss, num_images = 0.0, 0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            num_images += len(labels)
        return num_images

    return epoch


def our_epoch() -> Callable[[], int]:
    """Make a training of Heptad; the function given carries out its next epoch."""
    cycle = heptad.prepare(heptad.load_recipe("lenet5"))

    def epoch() -> int:
        num_images = 0
        for step in heptad.steps(cycle, Position(cycle.at.epoch + 1)):
            step.loss  # noqa: B018 - read, as the plain loop reads it
            num_images += step.num_images
        return num_images

    return epoch


def resizing_seconds() -> float:
    """Time what Heptad does to the images before its first epoch."""
    recipe = heptad.load_recipe("lenet5")
    source = open_sources(recipe, device=torch.device("cpu"), memory=0).train
    started_at = time.perf_counter()
    for few in source.images.split(1000):
        source.transform.resize(few)
    return time.perf_counter() - started_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    sides = {
        "plain loop": plain_epoch(num_workers=0),
        "plain loop, 2 loader workers": plain_epoch(num_workers=2),
        "heptad": our_epoch(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, epoch in sides.items():
            started_at = time.perf_counter()
            assert epoch() == 60_000
            seconds[name].append(time.perf_counter() - started_at)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads,"
        f" {torch.backends.cpu.get_cpu_capability()}, {platform.machine()}; {rounds} rounds"
    )
    ours = statistics.median(seconds["heptad"])
    print(f"{'heptad, resizing once':30} {resizing_seconds():6.2f} s")
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = f"{min(values):.1f} to {max(values):.1f}"
        print(f"{name:30} {median:6.2f} s ({spread})  {median / ours:5.2f} x heptad")


if __name__ == "__main__":
    main()
