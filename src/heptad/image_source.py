"""Images in memory or in the cache, `uint8`, given as inputs of a network where they are asked for.

They are resized, or padded, once where the result fits, else batch by batch, to the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heptad.augmentation import Augmentation, augment
from heptad.stores import Rows, row_keys
from heptad.transform import Transform

# Images that are resized together.
IMAGES_AT_A_TIME = 1000


@dataclass(frozen=True)
class KeptImages:
    """Images that lie in the cache, `uint8` [N, C, S, S]; some of them are read when asked for.

    keys: the names of the images [N], by what they were decoded from, copies alike.
    """

    rows: Rows
    keys: NDArray[np.void]

    @property
    def shape(self) -> torch.Size:
        """N, C, S, S; there is one image at least."""
        return torch.Size([len(self.keys), *self.rows.shards[0].values.shape[1:]])

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Read the images at `indices`."""
        return self.rows.take(indices)

    def at(self, places: Tensor) -> KeptImages:
        """Look at the images at `places` alone."""
        return KeptImages(self.rows.at(places.numpy()), self.keys[places.numpy()])


@dataclass(frozen=True)
class ImageSource:
    """Images, `uint8` [N, C, H, W], with labels and ids [N]; see `records.Source`.

    images: in memory as they are stored, or resized already; or kept in the cache, resized.
    augmentation, seed: what happens to an image in each epoch, and what the draws come from, with
    draw_ids, int64 [N]: the ids where there are none.
    """

    images: Tensor | KeptImages
    labels: Tensor
    ids: Tensor
    classes: tuple[str, ...]
    transform: Transform
    device: torch.device
    dtype: torch.dtype = torch.float32
    augmentation: Augmentation | None = None
    seed: int = 0
    draw_ids: Tensor | None = None

    def take(self, indices: Tensor, epoch: int | None) -> Tensor:
        """Give inputs [N, C, S, S] in the source's type, on its device, channels last.

        With an epoch, changed as the augmentation says.
        """
        pixels = self.transform.to_size(self.images[indices]).to(self.device)
        inputs = self.transform.normalize(pixels).to(self.dtype)
        if self.augmentation and epoch is not None:
            # Gray that is repeated to 3 channels is changed once, and repeated again.
            num_different = pixels.shape[1] if len(self.transform.mean) == 1 else inputs.shape[1]
            inputs = augment(
                inputs[:, :num_different],
                self.augmentation,
                seed=self.seed,
                epoch=epoch,
                ids=self.drawn_by[indices],
                fill=self.transform.black().to(inputs),
            ).expand(-1, inputs.shape[1], -1, -1)
        return inputs.contiguous(memory_format=torch.channels_last)

    @property
    def drawn_by(self) -> Tensor:
        """What the draws of each image come from, int64 [N]."""
        return self.ids if self.draw_ids is None else self.draw_ids

    def at(self, places: Tensor) -> ImageSource:
        """Give the source of the images at `places`, in that order."""
        return replace(
            self,
            images=self.images[places]
            if isinstance(self.images, Tensor)
            else self.images.at(places),
            labels=self.labels[places],
            ids=self.ids[places],
            draw_ids=None if self.draw_ids is None else self.draw_ids[places],
        )

    def resized_if_it_fits(self, memory: int) -> ImageSource:
        """Give the same source with its images resized once, if that takes at most `memory` bytes.

        What `take` gives stays the same, to the bit.
        """
        size = self.transform.image_size
        is_ready = isinstance(self.images, Tensor) and self.images.shape[-2:] == (size, size)
        if is_ready or self.images.shape[0] * self.images.shape[1] * size**2 > memory:
            return self
        resized = torch.empty(*self.images.shape[:2], size, size, dtype=torch.uint8)
        # In parts, so that no second copy of the whole is ever held.
        for target, few in zip(torch.split(resized, IMAGES_AT_A_TIME), self.parts(), strict=True):
            target.copy_(self.transform.to_size(few))
        return replace(self, images=resized)

    def parts(self) -> Iterator[Tensor]:
        """Give the images as they are stored, in order, some at a time."""
        for places in torch.split(torch.arange(len(self.labels)), IMAGES_AT_A_TIME):
            yield self.images[places]

    def image_keys(self) -> NDArray[np.void]:
        """Name each image [N] by its content: equal images, and no others, have equal names."""
        if isinstance(self.images, KeptImages):
            return self.images.keys
        return row_keys(self.images.numpy())
