"""LeNet-5 on MNIST from scratch: the seven stages from top to bottom, on Heptad's parts.

Leaves `lenet5_mnist.pth` and `lenet5_mnist.png` in the working directory. Settings may be given as
words: `python LeNet5.py epochs=3 limit=1000`. `heptad train lenet5` does the same in one line, and
writes a whole run folder.
"""

import sys
from pathlib import Path

from heptad import EpochReport, Position, load_recipe
from heptad.stages.data import open_sources, ordered_batches, training_batches
from heptad.stages.device import pick_device
from heptad.stages.evaluation import evaluate
from heptad.stages.model import build_model
from heptad.stages.objective import configure_objective
from heptad.stages.saving import save_plot, save_weights
from heptad.stages.training import train_steps

recipe = load_recipe("lenet5", **dict(word.split("=", 1) for word in sys.argv[1:]))

# 1. Device: CUDA if there is one, else the CPU.
device = pick_device()

# 2. Data: 32 x 32 pixels, one channel, mean 0.1307 and deviation 0.3081.
sources = open_sources(recipe, device=device)

# 3. Model: 61,706 parameters, all trained.
model = build_model(recipe, num_classes=len(sources.train.classes), device=device)

# 4. Objective: cross entropy, and Adam with learning rate 0.001.
objective = configure_objective(recipe, model.trained_parameters())

epochs = []
for epoch in range(recipe.epochs):
    # 5. Training: a generator of steps, so that the loop is yours.
    batches = training_batches(sources.train, recipe, Position(epoch))
    losses, sizes = [], []
    for batch, loss in train_steps(model, batches, objective):
        losses.append(loss.item())
        sizes.append(len(batch.labels))

    # 6. Evaluation: accuracy on all test images.
    scores = evaluate(model, ordered_batches(sources.test, recipe), objective.loss)
    epochs.append(EpochReport(epoch + 1, tuple(losses), tuple(sizes), scores.figures))
    print(f"epoch {epoch + 1}: loss {epochs[-1].train_loss:.4f}, accuracy {scores.accuracy:.2%}")

# 7. Saving: the weights as a plain state dict, and the curves.
save_weights(Path("lenet5_mnist.pth"), model.network)
save_plot(Path("lenet5_mnist.png"), "LeNet-5 on MNIST", epochs)
