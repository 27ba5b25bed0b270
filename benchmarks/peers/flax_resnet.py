"""ResNet50 in Flax NNX, block for block torchvision's, whose names its parts have."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from peers.work import Work
from safetensors.numpy import load_file

NUM_BLOCKS = (3, 4, 6, 3)


def normalized(channels: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(channels, use_running_average=True, epsilon=1e-5, rngs=rngs)


class Bottleneck(nnx.Module):
    def __init__(self, channels: int, width: int, stride: int, *, rngs: nnx.Rngs) -> None:
        wide = 4 * width
        self.conv1 = nnx.Conv(channels, width, (1, 1), use_bias=False, rngs=rngs)
        self.bn1 = normalized(width, rngs)
        self.conv2 = nnx.Conv(
            width, width, (3, 3), strides=stride, padding="VALID", use_bias=False, rngs=rngs
        )
        self.bn2 = normalized(width, rngs)
        self.conv3 = nnx.Conv(width, wide, (1, 1), use_bias=False, rngs=rngs)
        self.bn3 = normalized(wide, rngs)
        shortcut = [
            nnx.Conv(channels, wide, (1, 1), strides=stride, use_bias=False, rngs=rngs),
            normalized(wide, rngs),
        ]
        self.downsample = nnx.Sequential(*(shortcut if channels != wide else []))

    def __call__(self, maps: jax.Array) -> jax.Array:
        values = nnx.relu(self.bn1(self.conv1(maps)))
        # Padded before and not by the convolution: what XLA makes of one that pads 2 x 2 pixels is
        # many times slower (jax 0.10.2, CPU), and without the barrier it joins the two again.
        values = jax.lax.optimization_barrier(jnp.pad(values, ((0, 0), (1, 1), (1, 1), (0, 0))))
        values = nnx.relu(self.bn2(self.conv2(values)))
        values = self.bn3(self.conv3(values))
        return nnx.relu(values + self.downsample(maps))


class ResNet50Trunk(nnx.Module):
    """All but the last layer; images [N, H, W, 3] to features [N, 2048]."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(3, 64, (7, 7), strides=2, padding=3, use_bias=False, rngs=rngs)
        self.bn1 = normalized(64, rngs)
        channels = 64
        for stage, num_blocks in enumerate(NUM_BLOCKS):
            width = 64 * 2**stage
            blocks = []
            for number in range(num_blocks):
                stride = 2 if stage and not number else 1
                blocks.append(Bottleneck(channels, width, stride, rngs=rngs))
                channels = 4 * width
            setattr(self, f"layer{stage + 1}", nnx.Sequential(*blocks))

    def __call__(self, images: jax.Array) -> jax.Array:
        maps = nnx.relu(self.bn1(self.conv1(images)))
        maps = nnx.max_pool(maps, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = stage(maps)
        return maps.mean((1, 2))


def made_trunk(work: Work) -> ResNet50Trunk:
    """The trunk with the weights made for this run."""
    trunk = ResNet50Trunk(rngs=nnx.Rngs(0))
    made = load_file(work.made_weights)
    kinds = {"bias": "bias", "running_mean": "mean", "running_var": "var"}
    for name, values in made.items():
        *path, kind = name.split(".")
        if path[0] == "fc" or kind == "num_batches_tracked":
            continue
        layer = trunk
        for step in path:
            layer = layer.layers[int(step)] if step.isdigit() else getattr(layer, step)
        if isinstance(layer, nnx.Conv):
            layer.kernel[...] = values.transpose(2, 3, 1, 0)
        else:
            getattr(layer, kinds.get(kind, "scale"))[...] = values
    return trunk
