"""fastai: a `Learner` on tensors in memory, frozen but for its last layer where asked for."""

from __future__ import annotations

from time import perf_counter

import torch
from fastai.callback.core import Callback
from fastai.callback.training import BnFreeze
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy as fastai_accuracy
from fastai.optimizer import Adam
from fastai.torch_core import params, set_seed
from peers.torch_networks import LeNet5, accuracy, made_resnet50, num_trained
from peers.work import BATCH_SIZE, LEARNING_RATE, NUM_CLASSES, Work, answer, given
from torch import nn
from torch.utils.data import TensorDataset


class Stopwatch(Callback):
    """An epoch; what it calls validation is part of it, or is left out."""

    def __init__(self, *, with_test: bool) -> None:
        self.with_test, self.epochs = with_test, []

    def before_epoch(self) -> None:
        self.started_at = perf_counter()

    def after_train(self) -> None:
        if not self.with_test:
            self.epochs.append(perf_counter() - self.started_at)

    def after_epoch(self) -> None:
        if self.with_test:
            self.epochs.append(perf_counter() - self.started_at)


def learner_of(work: Work, loaders: DataLoaders, stopwatch: Stopwatch) -> Learner:
    options = {"loss_func": CrossEntropyLossFlat(), "opt_func": Adam, "lr": LEARNING_RATE}
    # Its own Adam decays weights unless told otherwise.
    options |= {"metrics": fastai_accuracy, "wd": 0.0}
    if not work.is_frozen:
        return Learner(loaders, LeNet5(), cbs=[stopwatch], **options)
    network = made_resnet50(work.made_weights)
    body = nn.Sequential(*list(network.children())[:-1], nn.Flatten())
    learner = Learner(
        loaders,
        nn.Sequential(body, nn.Linear(2048, NUM_CLASSES)),
        splitter=lambda model: [params(model[0]), params(model[1])],
        # As elsewhere BatchNorm neither learns nor moves; fastai would train it.
        train_bn=False,
        cbs=[stopwatch, BnFreeze()],
        **options,
    )
    learner.freeze()
    return learner


def main() -> None:
    work = given()
    set_seed(0)
    parts = [work.part(name) for name in ("train", "test")]
    datasets = [
        TensorDataset(torch.from_numpy(part.images), torch.from_numpy(part.labels))
        for part in parts
    ]
    loaders = DataLoaders.from_dsets(
        *datasets, bs=BATCH_SIZE, num_workers=0, device=torch.device("cpu"), drop_last=False
    )
    stopwatch = Stopwatch(with_test=work.is_frozen)
    learner = learner_of(work, loaders, stopwatch)
    with learner.no_bar(), learner.no_logging():
        learner.fit(work.num_epochs)
    answer(
        seconds=stopwatch.epochs,
        accuracy=accuracy(learner.model, loaders.valid),
        num_trained=num_trained(learner.model),
    )


if __name__ == "__main__":
    main()
