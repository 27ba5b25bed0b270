"""The seven stages, a module each. They never import one another; `heptad.cycle` joins them.

1 `device`, 2 `data`, 3 `model`, 4 `objective`, 5 `training`, 6 `evaluation`, 7 `saving`.

Shapes, here and in every docstring: N images, C channels, H x W pixels, S pixels a side after
resizing, K classes; `[N, C, H, W]` is a tensor with those sizes. Seeds, and what they decide, are
in `heptad.randomness`.
"""
