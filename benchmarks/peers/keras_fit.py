"""Keras on JAX: `model.fit` on NumPy arrays.

The frozen network is `keras.applications.ResNet50` as in Keras's guide to transfer learning, with
the weights made for this run. It strides in the first convolution of a block where torchvision's
strides in the second, which is 6 % less arithmetic.
"""

from __future__ import annotations

import os
from time import perf_counter
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import keras
import numpy as np
from keras import layers
from peers.work import BATCH_SIZE, LEARNING_RATE, NUM_CLASSES, Work, answer, given
from safetensors.numpy import load_file

# Images [N, S, S, C] and labels [N].
Arrays = tuple[np.ndarray, np.ndarray]


def lenet5() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((32, 32, 1)),
            layers.Conv2D(6, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(120, activation="relu"),
            layers.Dense(84, activation="relu"),
            layers.Dense(NUM_CLASSES),
        ]
    )


def frozen_resnet50(work: Work) -> keras.Model:
    base = keras.applications.ResNet50(
        include_top=False, weights=None, input_shape=(64, 64, 3), pooling="avg"
    )
    set_made_weights(base, work)
    base.trainable = False
    inputs = keras.Input((64, 64, 3))
    return keras.Model(inputs, layers.Dense(NUM_CLASSES)(base(inputs, training=False)))


def set_made_weights(base: keras.Model, work: Work) -> None:
    """Give the layers torchvision's values; convolutions here have a bias as well, which is 0."""
    made = load_file(work.made_weights)
    for layer in base.layers:
        if not layer.weights:
            continue
        name = torchvision_name(layer.name)
        values = [made[f"{name}.weight"]]
        if isinstance(layer, layers.Conv2D):
            values = [values[0].transpose(2, 3, 1, 0), 0 * layer.get_weights()[1]]
        else:
            values += [made[f"{name}.{kind}"] for kind in ("bias", "running_mean", "running_var")]
        layer.set_weights(values)


def torchvision_name(name: str) -> str:
    """`conv3_block1_2_conv` is torchvision's `layer2.0.conv2`, its `_0_` is `downsample`."""
    stage, *block, kind = name.split("_")
    if not block or not block[0].startswith("block"):
        return f"{kind}1"
    place = f"layer{int(stage[4:]) - 1}.{int(block[0][5:]) - 1}"
    if block[1] == "0":
        return f"{place}.downsample.{['conv', 'bn'].index(kind)}"
    return f"{place}.{kind}{block[1]}"


class Stopwatch(keras.callbacks.Callback):
    """An epoch, and the test images after it where there are any: they are part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, *_: object) -> None:
        self.started_at = perf_counter()

    def on_epoch_end(self, *_: object) -> None:
        self.seconds.append(perf_counter() - self.started_at)


def main() -> None:
    work = given()
    keras.utils.set_random_seed(0)
    train, test = work.part("train"), work.part("test")
    model = frozen_resnet50(work) if work.is_frozen else lenet5()
    model.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    arrays = [(part.images_channels_last, part.labels) for part in (train, test)]
    stopwatch = Stopwatch()
    if work.is_frozen:
        # It compiles on few images: a whole epoch only for that would take long.
        few = [
            (images[: part.num_to_compile], labels[: part.num_to_compile])
            for part, (images, labels) in zip((train, test), arrays, strict=True)
        ]
        fit(model, *few, callbacks=[stopwatch])
        fit(model, *arrays, callbacks=[stopwatch], epochs=work.num_epochs)
        compile_s, *seconds = stopwatch.seconds
        more = {"compile_s": compile_s}
    else:
        fit(model, arrays[0], None, callbacks=[stopwatch], epochs=work.num_epochs)
        seconds, more = stopwatch.seconds, {}
    _, share = model.evaluate(*arrays[1], batch_size=BATCH_SIZE, verbose=0)
    answer(
        seconds=seconds,
        accuracy=share,
        num_trained=sum(value.numpy().size for value in model.trainable_weights),
        **more,
    )


def fit(model: keras.Model, train: Arrays, test: Arrays | None, **options: Any) -> None:
    model.fit(*train, batch_size=BATCH_SIZE, validation_data=test, verbose=0, **options)


if __name__ == "__main__":
    main()
