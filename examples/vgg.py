"""VGG16 on MNIST, frozen but for a new last layer: the seven stages, on Heptad's parts.

Leaves `vgg16_mnist.pth`, `vgg16_training_stats.json` and `vgg16_mnist.png` in the working
directory. Settings may be given as words: `python vgg.py limit=200 weights=FILE.pth`. Long: on
two processor cores an epoch of all images takes hours. `heptad train vgg16` does the same.
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

recipe = load_recipe("vgg16", **dict(word.split("=", 1) for word in sys.argv[1:]))

# 1. Device: CUDA if there is one, else the CPU.
device = pick_device()

# 2. Data: 224 x 224 pixels, gray repeated to three channels, mean and deviation 0.5.
sources = open_sources(recipe, device=device)

# 3. Model: ImageNet weights, all frozen; classifier[6] is new, from 4096 values to ten classes.
model = build_model(recipe, num_classes=len(sources.train.classes), device=device)

# 4. Objective: cross entropy, and Adam on classifier[6] alone.
objective = configure_objective(recipe, model.trained_parameters())

epochs = []
for epoch in range(recipe.epochs):
    # 5. Training: Dropout inside the frozen classifier is on, as in the plain loop.
    batches = training_batches(sources.train, recipe, Position(epoch))
    losses, sizes = [], []
    for batch, loss in train_steps(model, batches, objective):
        losses.append(loss.item())
        sizes.append(len(batch.labels))

    # 6. Evaluation: Dropout is off.
    scores = evaluate(model, ordered_batches(sources.test, recipe), objective.loss)
    epochs.append(EpochReport(epoch + 1, tuple(losses), tuple(sizes), scores.figures))
    print(f"epoch {epoch + 1}: loss {epochs[-1].train_loss:.4f}, accuracy {scores.accuracy:.2%}")

# 7. Saving: weights with torchvision's names, losses and accuracies, and the curves.
save_weights(Path("vgg16_mnist.pth"), model.network)
save_training_stats(Path("vgg16_training_stats.json"), recipe, epochs)
save_plot(Path("vgg16_mnist.png"), "VGG16 on MNIST", epochs)
