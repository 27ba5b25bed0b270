"""ResNet50 on MNIST, frozen but for a new last layer: the seven stages, on Heptad's parts.

Leaves `resnet50_mnist.pth`, `metrics.pkl` and `resnet50_mnist.png` in the working directory.
Settings may be given as words: `python ResNet50.py limit=2000 weights=FILE.pth`.
`heptad train resnet50` does the same in one line.
"""

import sys
from pathlib import Path

from heptad import EpochReport, Position, load_recipe
from heptad.stages.data import open_sources, ordered_batches, training_batches
from heptad.stages.device import pick_device
from heptad.stages.evaluation import evaluate
from heptad.stages.model import build_model
from heptad.stages.objective import configure_objective
from heptad.stages.saving import save_plot, save_training_stats, save_weights
from heptad.stages.training import train_steps

recipe = load_recipe("resnet50", **dict(word.split("=", 1) for word in sys.argv[1:]))

# 1. Device: CUDA if there is one, else the CPU.
device = pick_device()

# 2. Data: 64 x 64 pixels, gray repeated to three channels, mean and deviation 0.5.
sources = open_sources(recipe, device=device)

# 3. Model: ImageNet weights, all frozen; fc is new, from 2048 values to ten classes.
model = build_model(recipe, num_classes=len(sources.train.classes), device=device)

# 4. Objective: cross entropy, and Adam on fc alone.
objective = configure_objective(recipe, model.trained_parameters())

epochs = []
for epoch in range(recipe.epochs):
    # 5. Training: frozen BatchNorm keeps its statistics, unlike in the plain loop.
    batches = training_batches(sources.train, recipe, Position(epoch))
    losses, sizes = [], []
    for batch, loss in train_steps(model, batches, objective):
        losses.append(loss.item())
        sizes.append(len(batch.labels))

    # 6. Evaluation: accuracy on all test images.
    scores = evaluate(model, ordered_batches(sources.test, recipe), objective.loss)
    epochs.append(EpochReport(epoch + 1, tuple(losses), tuple(sizes), scores.figures))
    print(f"epoch {epoch + 1}: loss {epochs[-1].train_loss:.4f}, accuracy {scores.accuracy:.2%}")

# 7. Saving: weights with torchvision's names, losses and accuracies, and the curves.
save_weights(Path("resnet50_mnist.pth"), model.network)
save_training_stats(Path("metrics.pkl"), recipe, epochs)
save_plot(Path("resnet50_mnist.png"), "ResNet50 on MNIST", epochs)
