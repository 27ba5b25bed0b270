"""Lightning: `Trainer.fit` on tensors in memory.

The frozen network is written as in Lightning's page on transfer learning: the backbone in
evaluation mode, under `no_grad`, and a classifier that is trained.
"""

from __future__ import annotations

from time import perf_counter

import lightning
import torch
from peers.plain_loop import in_memory
from peers.torch_networks import LeNet5, accuracy, made_resnet50
from peers.work import LEARNING_RATE, NUM_CLASSES, Work, answer, given
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class LitLeNet5(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = LeNet5()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        images, labels = batch
        return cross_entropy(self(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)


class LitFrozenResNet50(lightning.LightningModule):
    def __init__(self, work: Work) -> None:
        super().__init__()
        layers = list(made_resnet50(work.made_weights).children())[:-1]
        self.feature_extractor = nn.Sequential(*layers)
        self.feature_extractor.eval()
        self.classifier = nn.Linear(2048, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.feature_extractor(images).flatten(1)
        return self.classifier(features)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        images, labels = batch
        return cross_entropy(self(images), labels)

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        images, labels = batch
        share = (self(images).argmax(1) == labels).float().mean()
        self.log("accuracy", share, batch_size=len(labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.classifier.parameters(), lr=LEARNING_RATE)


class Stopwatch(lightning.Callback):
    """An epoch, and the test images after it where there are any: they are part of it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *_: object) -> None:
        self.started_at = perf_counter()

    def on_train_epoch_end(self, *_: object) -> None:
        self.seconds.append(perf_counter() - self.started_at)


def main() -> None:
    work = given()
    lightning.seed_everything(0)
    model = LitFrozenResNet50(work) if work.is_frozen else LitLeNet5()
    train = in_memory(work.part("train"), shuffle=True)
    test = in_memory(work.part("test"), shuffle=False)
    stopwatch = Stopwatch()
    trainer = lightning.Trainer(
        max_epochs=work.num_epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[stopwatch],
    )
    trainer.fit(model, train, *([test] if work.is_frozen else []))
    trained = model.classifier if work.is_frozen else model
    answer(
        seconds=stopwatch.seconds,
        accuracy=accuracy(model, test),
        num_trained=sum(value.numel() for value in trained.parameters()),
    )


if __name__ == "__main__":
    main()
