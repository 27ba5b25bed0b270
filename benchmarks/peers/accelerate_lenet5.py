"""LeNet-5 with accelerate: checkpoints while it trains, and on with the last one when run again.

What is used is what accelerate documents for that: `save_state` and `load_state` with automatic
names and a limit, `skip_first_batches` for the epoch that was under way, and for orders that can be
repeated `set_seed`, `use_seedable_sampler` and `set_epoch`.

    python accelerate_lenet5.py DATA RUN EVERY
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from heptad.architectures.lenet import LeNet5


def main(data: Path, run: Path, every: int) -> None:
    set_seed(0)
    accelerator = Accelerator(
        cpu=True,
        project_config=ProjectConfiguration(
            project_dir=str(run), automatic_checkpoint_naming=True, total_limit=2
        ),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    digits = torch.load(data, weights_only=True)
    model = LeNet5()
    model, optimizer, loader = accelerator.prepare(
        model,
        torch.optim.Adam(model.parameters(), lr=0.001),
        DataLoader(TensorDataset(digits["images"], digits["labels"]), batch_size=32, shuffle=True),
    )

    num_steps = 0
    saved = [int(path.name.split("_")[1]) for path in (run / "checkpoints").glob("checkpoint_*")]
    if saved:
        # Without a name the one of the highest number is loaded; numbers begin at 0.
        accelerator.load_state()
        accelerator.project_configuration.iteration = max(saved) + 1
        num_steps = (max(saved) + 1) * every
        print(f"Going on after step {num_steps}.", flush=True)

    for epoch in range(num_steps // len(loader), 2):
        loader.set_epoch(epoch)
        num_done = num_steps % len(loader)
        batches = accelerator.skip_first_batches(loader, num_done) if num_done else loader
        for images, labels in batches:
            optimizer.zero_grad()
            accelerator.backward(cross_entropy(model(images), labels))
            optimizer.step()
            num_steps += 1
            if num_steps % every == 0:
                accelerator.save_state()
        print(f"epoch {epoch + 1}/2", flush=True)
    torch.save(accelerator.unwrap_model(model).state_dict(), run / "final.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
