"""Training images moved, turned and partly erased, anew in every epoch; part of stage 2.

What happens to an image follows from (seed, epoch, the image's id) by an integer hash: no generator
is kept, and another order, batch or number of workers changes nothing. Which images are augmented
(those to score never are) is not decided here.
"""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass, fields

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from heptad.errors import RecipeError
from heptad.randomness import derived_seed
from heptad.recipe import Recipe, fields_schema

# SplitMix64: its increment, and the shifts and factors of its mixing (Steele, Lea & Flood, "Fast
# splittable pseudorandom number generators", OOPSLA 2014; the constants are D. Stafford's "Mix13").
# Less 2**64, which is how an int64 holds them.
INCREMENT = 0x9E3779B97F4A7C15 - 2**64
MIXING = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))
LAST_SHIFT = 31

# What is erased: share of the area, and height over width (Zhong et al., arXiv:1708.04896, with a
# smaller largest area than their 0.4, which on 32 pixels would often hide the whole digit).
ERASED_AREA = (0.02, 0.2)
ERASED_ASPECT = (0.3, 3.3)

# A contact sheet, in pixels.
LEAST_TILE, SPACING, GAP = 64, 4, 12


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image; every amount is drawn evenly between its two ends.

    shift: of the side, 0 to 0.5, in both directions. rotation: degrees, 0 to 180, either way.
    scale: 0 to 0.9; s stands for factors from 1 - s to 1 + s. shear: degrees, 0 to 60, either way.
    flip: probability of left and right being exchanged. erase: probability of a rectangle being
    erased. Raises RecipeError for a value out of its range.
    """

    shift: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    flip: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        # The recipe has fields of the same names, which say how far each may go.
        settings = fields_schema(Recipe)
        for name, value in asdict(self).items():
            most = settings[name]["maximum"]
            if not 0 <= value <= most:
                raise RecipeError(f"{name} is {value}; allowed: 0 to {most:g}.")

    @property
    def is_active(self) -> bool:
        """Whether any image is changed at all."""
        return any(getattr(self, field.name) > 0 for field in fields(self))

    @property
    def is_warping(self) -> bool:
        """Whether images are moved to places between their pixels, so that they are resampled."""
        return max(self.shift, self.rotation, self.scale, self.shear) > 0


def draws(num: int, *, seed: int, epoch: int, ids: Tensor, purpose: str) -> Tensor:
    """Give float32 [N, num] in [0, 1): for each id of `ids`, int64 [N], its own `num` draws.

    A draw depends on seed, purpose, epoch, id and its column alone, on any device.
    """
    columns = torch.arange(1, num + 1, device=ids.device)
    start = _mixed(ids * INCREMENT + derived_seed(seed, purpose, epoch))
    hashed = _mixed(start[:, None] + columns * INCREMENT)
    # The upper 24 bits: as many as a float32 holds, so that nothing is rounded, least of all to 1.
    return (hashed >> 40 & 0xFFFFFF).to(torch.float32) * 2.0**-24


def _mixed(values: Tensor) -> Tensor:
    for shift, factor in MIXING:
        values = _folded(values, shift) * factor
    return _folded(values, LAST_SHIFT)


def _folded(values: Tensor, shift: int) -> Tensor:
    # An int64 shifted to the right is filled with its sign, which does not belong there.
    return values ^ (values >> shift & (1 << 64 - shift) - 1)


def augment(
    images: Tensor,
    augmentation: Augmentation,
    *,
    seed: int,
    epoch: int,
    ids: Tensor,
    fill: Tensor | float,
) -> Tensor:
    """Give each of `images`, floating point [N, C, H, W], as it looks in `epoch`.

    ids: int64 [N], by which images are told apart. fill: what comes in from outside and what is
    erased to, one value or [C]. Type and layout are kept; without anything to do, `images` itself.

    Floats, not `uint8`: what lies between two pixels would have to be rounded again, and is not to
    be had for `uint8` anyway. Since all that comes out is weighted means, images may be normalised
    before or after this, as long as `fill` is too.
    """
    if not augmentation.is_active:
        return images
    values = torch.as_tensor(fill, dtype=images.dtype, device=images.device).view(-1, 1, 1)
    assert len(values) in (1, images.shape[1])
    # All are drawn whatever is asked for, so that no field of an augmentation changes what another
    # does. On the CPU, where so little is done fastest and every device is given the same.
    chances = draws(11, seed=seed, epoch=epoch, ids=ids.cpu(), purpose="augmentation").double()
    moves, erasures = chances[:, :6], chances[:, 6:]
    changed = images
    if augmentation.is_warping:
        matrices = _matrices(augmentation, moves, height=images.shape[2], width=images.shape[3])
        changed = warp(images, matrices, fill=values)
    elif augmentation.flip > 0:
        # To the bit, and faster than by way of `warp`.
        flip = (moves[:, 0] < augmentation.flip).to(images.device)
        changed = torch.where(flip[:, None, None, None], images.flip(3), images)
    if augmentation.erase > 0:
        changed = _erased(changed, augmentation.erase, erasures, fill=values)
    if changed.stride() == images.stride():
        return changed
    return torch.empty_like(images).copy_(changed)


def _matrices(augmentation: Augmentation, moves: Tensor, *, height: int, width: int) -> Tensor:
    flip, rotation, scale, shear, across, down = moves.unbind(1)
    sides = torch.tensor([width, height])
    return affine_matrices(
        flip=flip < augmentation.flip,
        rotation=augmentation.rotation * (2 * rotation - 1),
        scale=1 + augmentation.scale * (2 * scale - 1),
        shear=augmentation.shear * (2 * shear - 1),
        shift=augmentation.shift * (2 * torch.stack([across, down], 1) - 1) * sides,
    )


def affine_matrices(
    *, flip: Tensor, rotation: Tensor, scale: Tensor, shear: Tensor, shift: Tensor
) -> Tensor:
    """Give float64 [N, 2, 3]: from a pixel's place after the change, to where it was before.

    Places are (x to the right, y down, 1), in pixels from the middle of the image. About it, an
    image is first flipped (bool [N]), scaled (a factor), sheared (degrees: what lies lower goes to
    the right) and turned (degrees, counter-clockwise); then shifted by [N, 2] pixels to the right
    and down. In float64, so that the last bits of a cosine, which depend on its place in the batch,
    are rounded away.
    """
    angle = torch.deg2rad(rotation.double())
    cosine, sine = angle.cos(), angle.sin()
    slope = torch.deg2rad(shear.double()).tan()
    # The inverse of each change, in the opposite order.
    scale = scale.double()
    side = torch.where(flip, -1.0, 1.0) / scale
    linear = torch.stack(
        [
            side * (cosine - slope * sine),
            side * -(sine + slope * cosine),
            sine / scale,
            cosine / scale,
        ],
        dim=1,
    ).view(-1, 2, 2)
    offset = -(linear * shift.double()[:, None, :]).sum(2, keepdim=True)
    return torch.cat([linear, offset], dim=2)


def warp(images: Tensor, matrices: Tensor, *, fill: Tensor | float) -> Tensor:
    """Resample `images` [N, C, H, W] bilinearly at the places that `matrices` [N, 2, 3] name.

    matrices: as `affine_matrices` gives them. fill: what lies outside, one value or [C, 1, 1].
    Where nothing moves, images come back to 1e-6 of their contrast (32 pixels) or 2e-5 (224).
    """
    height, width = images.shape[2:]
    x, y = (torch.arange(side, device=matrices.device) - (side - 1) / 2 for side in (width, height))
    # From pixels to what grid_sample counts in: -1 and 1 are the outer edges of the image.
    unit = matrices.new_tensor([[2 / width], [2 / height]])
    of_x, of_y, of_1 = (matrices * unit).unbind(2)
    along, down = of_x[..., None] * x, of_y[..., None] * y + of_1[..., None]
    along, down = (part.to(images.dtype).to(images.device) for part in (along, down))
    # [N, 2, 1, W] + [N, 2, H, 1]: one sum a pixel instead of the products of affine_grid.
    grid = (along[:, :, None] + down[..., None]).permute(0, 2, 3, 1)
    # Outside is zero for grid_sample, so that zero has to mean `fill` meanwhile.
    return grid_sample(images - fill, grid, align_corners=False).add_(fill)


def _erased(images: Tensor, probability: float, chances: Tensor, *, fill: Tensor) -> Tensor:
    height, width = images.shape[2:]
    edges = _edges(probability, chances, height=height, width=width).long().to(images.device)
    top, bottom, left, right = edges[..., None]
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    # 1 within, 0 elsewhere, where `lerp` gives either end to the bit: 3 times as fast as `where`
    # with a mask of truth values (64 images of 32 x 32, torch 2.14.1, one core, 2026-11).
    is_row = ((rows >= top) & (rows < bottom)).to(images.dtype)
    is_column = ((columns >= left) & (columns < right)).to(images.dtype)
    return torch.lerp(images, fill, is_row[:, None, :, None] * is_column[:, None, None, :])


def _edges(probability: float, chances: Tensor, *, height: int, width: int) -> Tensor:
    """Give [4, N]: first row erased and first not, first column erased and first not."""
    happens, area, aspect, top, left = chances.unbind(1)
    least, most = (share * height * width for share in ERASED_AREA)
    low, high = map(math.log, ERASED_ASPECT)
    pixels = least + (most - least) * area
    tall = (pixels * (low + (high - low) * aspect).exp()).sqrt().round().clamp(1, height)
    # The nearest whole width with which the area stays within its bounds.
    wide = torch.minimum((pixels / tall).round(), (most / tall).floor())
    wide = torch.maximum(wide, (least / tall).ceil()).clamp(1, width)
    top = (top * (height - tall + 1)).floor()
    left = (left * (width - wide + 1)).floor()
    bottom = top + torch.where(happens < probability, tall, 0)
    return torch.stack([top, bottom, left, left + wide])


def contact_sheet(images_before: Tensor, versions: Tensor) -> bytes:
    """Draw images [n, C, H, W] and, right of each, its `versions` [n, k, C, H, W], as a PNG.

    C is 1 or 3. `uint8` is shown as it is, of floats the least of all as black and the largest
    as white.
    """
    tiles = _as_bytes(torch.cat([images_before[:, None], versions], dim=1)).cpu()
    size = -(-LEAST_TILE // min(tiles.shape[-2:]))
    tiles = tiles.repeat_interleave(size, 3).repeat_interleave(size, 4)
    tiles = pad(tiles, [SPACING] * 4, value=255)
    # [n, k, C, H, W] to rows of tiles side by side: [n * H, k * W, C].
    before, after = (
        part.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
        for part in (tiles[:, :1], tiles[:, 1:])
    )
    gap = before.new_full((before.shape[0], GAP, before.shape[2]), 255)
    sheet = pad(torch.cat([before, gap, after], dim=1), [0, 0] + [SPACING] * 4, value=255)
    file = io.BytesIO()
    Image.fromarray(sheet.squeeze(2).numpy()).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _as_bytes(values: Tensor) -> Tensor:
    if values.dtype == torch.uint8:
        return values
    least, largest = values.min(), values.max()
    return ((values - least) * 255 / (largest - least).clamp(min=1e-12)).round().to(torch.uint8)
