"""LeNet-5 with Lightning: checkpoints while it trains, and on with the last one when run again.

What is used is what Lightning documents for training that may be interrupted: `ModelCheckpoint`
with `every_n_train_steps` and `save_last`, `fit(ckpt_path="last")`, and a data loader with a
`state_dict`, which Lightning asks for when an epoch is to be resumed in its middle; torchdata's.

    python lightning_lenet5.py DATA RUN EVERY
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from heptad.architectures.lenet import LeNet5


class LitLeNet5(lightning.LightningModule):
    """LeNet-5, its loss and its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = LeNet5()

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        images, labels = batch
        return cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), lr=0.001)

    def on_train_start(self) -> None:
        if self.global_step:
            print(f"Going on after step {self.global_step}.", flush=True)

    def on_train_epoch_end(self) -> None:
        print(f"epoch {self.current_epoch + 1}/2", flush=True)


def main(data: Path, run: Path, every: int) -> None:
    lightning.seed_everything(0)
    digits = torch.load(data, weights_only=True)
    loader = StatefulDataLoader(
        TensorDataset(digits["images"], digits["labels"]), batch_size=32, shuffle=True
    )
    model = LitLeNet5()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        deterministic=True,
        logger=False,
        enable_progress_bar=False,
        callbacks=[
            ModelCheckpoint(dirpath=run / "checkpoints", every_n_train_steps=every, save_last=True)
        ],
    )
    trainer.fit(model, loader, ckpt_path="last")
    torch.save(model.network.state_dict(), run / "final.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
