"""Augmentation: draws against plain integers and statistics, pictures against SciPy."""

from __future__ import annotations

import hashlib
import io
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats

from heptad.augmentation import (
    Augmentation,
    affine_matrices,
    augment,
    contact_sheet,
    draws,
    warp,
)
from heptad.errors import RecipeError

EVERYTHING = Augmentation(shift=0.1, rotation=15, scale=0.1, shear=10, flip=0.5, erase=0.5)
GOLDEN = 0x9E3779B97F4A7C15


def pictures(
    num: int, channels: int = 1, height: int = 32, width: int = 32, *, dtype=torch.float32
):
    """Smooth noise in 0..1, with which no two pixels agree."""
    generator = torch.Generator().manual_seed(7)
    return torch.rand(num, channels, height, width, dtype=dtype, generator=generator)


def augmented(images, augmentation, *, seed=0, epoch=0, ids=None, fill=0.0):
    ids = torch.arange(len(images)) if ids is None else ids
    return augment(images, augmentation, seed=seed, epoch=epoch, ids=ids, fill=fill)


def moves(num: int = 1, *, flip=False, rotation=0.0, scale=1.0, shear=0.0, shift=(0.0, 0.0)):
    """The matrices of `num` equal moves."""
    return affine_matrices(
        flip=torch.full((num,), flip),
        rotation=torch.full((num,), rotation, dtype=torch.float64),
        scale=torch.full((num,), scale, dtype=torch.float64),
        shear=torch.full((num,), shear, dtype=torch.float64),
        shift=torch.tensor([shift], dtype=torch.float64).repeat(num, 1),
    )


# Draws


def splitmix64(state: int) -> int:
    """One output of SplitMix64, in Python's own integers."""
    z = state % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_the_plain_hash_gives_the_published_numbers_of_splitmix64():
    # rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64, seed 1234567.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix64(1234567 + k * GOLDEN) for k in (1, 2, 3)] == published


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (1, 0), (2**63 - 1, 999_999)])
def test_draws_are_those_of_plain_integers(seed, epoch):
    ids = [0, 1, 59_999, 2**40 + 3, 2**63 - 1]
    text = f"flips:{seed}:{epoch}".encode()
    key = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
    expected = [
        [(splitmix64(splitmix64(key + i * GOLDEN) + k * GOLDEN) >> 40) / 2**24 for k in (1, 2, 3)]
        for i in ids
    ]
    found = draws(3, seed=seed, epoch=epoch, ids=torch.tensor(ids), purpose="flips")
    assert found.dtype == torch.float32
    assert found.tolist() == expected


def drawn(axis: str) -> np.ndarray:
    """4096 draws [4096] that differ in one thing alone."""
    few = torch.arange(1)
    match axis:
        case "ids":
            return draws(1, seed=3, epoch=5, ids=torch.arange(4096), purpose="p")[:, 0].numpy()
        case "columns":
            return draws(4096, seed=3, epoch=5, ids=few, purpose="p")[0].numpy()
    places = {"epochs": lambda k: (3, k, "p"), "seeds": lambda k: (k, 5, "p")}
    places["purposes"] = lambda k: (3, 5, f"p{k}")
    named = map(places[axis], range(4096))
    found = [draws(1, seed=s, epoch=e, ids=few, purpose=p).item() for s, e, p in named]
    return np.array(found)


def unlikeliness(values: np.ndarray) -> float:
    """The least p of tests for even values, and for neighbours that know nothing of one another."""
    pairs = [values[:-lag] + 1j * values[lag:] for lag in (1, 2, 3, 7, 64)]
    correlated = [stats.pearsonr(p.real, p.imag).pvalue for p in pairs]
    # Pairs without overlap, in 8 x 8 fields: sees more than straight lines.
    firsts, seconds = values[0::2], values[1::2]
    counts, _, _ = np.histogram2d(firsts, seconds, bins=8, range=[[0, 1], [0, 1]])
    even = stats.kstest(values, "uniform").pvalue
    return min(*correlated, even, stats.chisquare(counts.ravel()).pvalue)


@pytest.mark.parametrize("axis", ["ids", "columns", "epochs", "seeds", "purposes"])
def test_draws_are_even_and_neighbours_independent(axis):
    values = drawn(axis)
    assert values.min() >= 0
    assert values.max() < 1
    assert unlikeliness(values) > 1e-3


@pytest.mark.parametrize(
    "values",
    [
        [k * GOLDEN % 2**64 / 2**64 for k in range(4096)],
        np.random.default_rng(0).random(4096) ** 1.1,
        np.repeat(np.random.default_rng(0).random(2048), 2),
    ],
    ids=["not mixed", "not even", "twice the same"],
)
def test_draws_that_are_not_even_or_independent_would_be_found(values):
    assert unlikeliness(np.asarray(values, dtype=float)) < 1e-6


def test_the_evenness_of_draws_varies_over_seeds_and_epochs_as_chance_would_have_it():
    ids = torch.arange(2000)
    places = itertools.product(range(10), range(4))
    rows = [draws(11, seed=s, epoch=e, ids=ids, purpose="p").T.numpy() for s, e in places]
    likely = [stats.kstest(values, "uniform").pvalue for values in np.concatenate(rows)]
    assert len(likely) == 440
    assert stats.kstest(likely, "uniform").pvalue > 1e-3


def test_large_ids_and_many_columns_give_draws_in_range_and_none_twice():
    ids = torch.cat([torch.arange(20_000), 2**62 + torch.arange(20_000)])
    rows = draws(6, seed=0, epoch=0, ids=ids, purpose="p")
    assert len(rows.unique(dim=0)) == len(ids)
    assert rows.min() >= 0
    assert rows.max() < 1


def test_draws_of_an_image_repeat_in_no_epoch():
    ids = torch.arange(1000)
    rows = [draws(6, seed=0, epoch=epoch, ids=ids, purpose="p") for epoch in range(50)]
    assert len(torch.cat(rows).unique(dim=0)) == 50_000


def test_more_draws_leave_those_before_as_they_were():
    few, many = (draws(n, seed=0, epoch=0, ids=torch.arange(9), purpose="p") for n in (3, 11))
    assert torch.equal(few, many[:, :3])


# What an image becomes depends on nothing else


def test_nothing_to_do_gives_back_the_images_themselves():
    images = pictures(3)
    assert not Augmentation().is_active
    assert augmented(images, Augmentation()) is images


@pytest.mark.parametrize("field", ["shift", "rotation", "scale", "shear", "flip", "erase"])
def test_each_field_alone_is_active_and_changes_images(field):
    augmentation = Augmentation(**{field: 0.5})
    assert augmentation.is_active
    assert not torch.equal(augmented(pictures(8), augmentation), pictures(8))


@pytest.mark.parametrize("num", [1, 2, 7, 64])
def test_an_image_does_not_depend_on_the_others_of_its_batch(num):
    images, ids = pictures(64), torch.arange(64) * 7
    together = augmented(images, EVERYTHING, ids=ids)
    apart = [
        augmented(few, EVERYTHING, ids=their)
        for few, their in zip(images.split(num), ids.split(num), strict=True)
    ]
    assert torch.equal(torch.cat(apart), together)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augmented(images[order], EVERYTHING, ids=ids[order]), together[order])


def test_every_epoch_seed_and_id_gives_another_picture():
    image = pictures(1)
    places = itertools.product(range(4), range(4), range(4))
    seen = torch.cat(
        [
            augmented(image, EVERYTHING, seed=seed, epoch=epoch, ids=torch.tensor([number]))
            for seed, epoch, number in places
        ]
    )
    assert len(seen.unique(dim=0)) == 64


def test_erasing_leaves_what_the_other_fields_do():
    images = pictures(64) + 1
    plain, erased = (
        augmented(images, Augmentation(rotation=30, shift=0.1, erase=erase), fill=0.5)
        for erase in (0.0, 1.0)
    )
    assert torch.equal(erased[erased != 0.5], plain[erased != 0.5])
    assert (erased != plain).flatten(1).any(1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "augmentation", [EVERYTHING, Augmentation(flip=0.5), Augmentation(erase=0.5)]
)
def test_type_layout_and_the_images_given_are_kept(dtype, layout, channels, augmentation):
    images = pictures(5, channels, dtype=dtype).contiguous(memory_format=layout)
    before = images.clone()
    after = augmented(images, augmentation, fill=torch.linspace(-1, 1, channels))
    assert (after.dtype, after.stride()) == (images.dtype, images.stride())
    assert torch.equal(images, before)
    assert not torch.equal(after, before)


def test_gray_repeated_to_three_channels_stays_gray():
    gray = pictures(9)
    repeated = augmented(gray.expand(-1, 3, -1, -1), EVERYTHING)
    assert torch.equal(repeated, augmented(gray, EVERYTHING).repeat(1, 3, 1, 1))


def test_normalising_before_is_normalising_after():
    images = pictures(16, 3, dtype=torch.float64)
    mean, deviation = torch.tensor([[0.4, 0.5, 0.6], [0.2, 0.3, 0.1]]).double()[..., None, None]
    after = (augmented(images, EVERYTHING, fill=0.0) - mean) / deviation
    before = augmented((images - mean) / deviation, EVERYTHING, fill=(-mean / deviation).flatten())
    torch.testing.assert_close(before, after, rtol=0, atol=1e-12)


# Where pixels go


@pytest.mark.parametrize(("side", "tolerance"), [(32, 1e-6), (64, 1e-6), (224, 2e-5)])
def test_a_move_by_nothing_gives_the_image_back(side, tolerance):
    images = pictures(2, 3, side, side)
    back = warp(images, moves(2), fill=-0.4)
    torch.testing.assert_close(back, images, rtol=0, atol=tolerance)
    exact = warp(images.double(), moves(2), fill=-0.4)
    torch.testing.assert_close(exact, images.double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("quarters", [-1, 1, 2, 3])
@pytest.mark.parametrize("side", [7, 32])
def test_quarter_turns_are_counter_clockwise(quarters, side):
    images = pictures(2, 3, side, side, dtype=torch.float64)
    turned = warp(images, moves(2, rotation=90 * quarters), fill=-1.0)
    torch.testing.assert_close(turned, torch.rot90(images, quarters, (2, 3)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, 2), (-4, 5), (1, -31), (40, 0)])
def test_a_shift_by_whole_pixels_brings_the_fill_in(right, down):
    images, fill = pictures(2, 3), torch.tensor([0.1, -2.0, 7.0])
    rolled = torch.roll(images, (down, right), (2, 3))
    rows = (torch.arange(32) - down)[:, None].expand(32, 32)
    columns = (torch.arange(32) - right).expand(32, 32)
    is_inside = (rows >= 0) & (rows < 32) & (columns >= 0) & (columns < 32)
    expected = torch.where(is_inside, rolled, fill[:, None, None])
    shifted = warp(images, moves(2, shift=(right, down)), fill=fill[:, None, None])
    torch.testing.assert_close(shifted, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (9, 14)])
@pytest.mark.parametrize(
    "change",
    [
        {"scale": 1.7},
        {"scale": 0.6},
        {"shear": 25.0},
        {"shear": -50.0},
        {"rotation": 33.0},
        {"flip": True, "rotation": -70.0},
        {"flip": True, "rotation": 130.0, "scale": 0.8, "shear": 20.0, "shift": (2.3, -1.6)},
    ],
    ids=str,
)
def test_scale_shear_turn_and_shift_are_those_of_scipy(size, change):
    images = pictures(2, 1, *size, dtype=torch.float64)
    whole = {"flip": False, "rotation": 0.0, "scale": 1.0, "shear": 0.0, "shift": (0, 0)} | change
    # Each change as it moves a point (x to the right, y down) about the middle, in their order.
    angle, slope = math.radians(whole["rotation"]), math.tan(math.radians(whole["shear"]))
    flip = np.diag([-1.0 if whole["flip"] else 1.0, 1.0])
    shear = np.array([[1, slope], [0, 1]])
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    back = np.linalg.inv(turn @ shear @ (whole["scale"] * flip))[::-1, ::-1]
    middle = (np.array(size) - 1) / 2
    offset = middle - back @ (middle + np.array(whole["shift"])[::-1])
    expected = [
        ndimage.affine_transform(i, back, offset, order=1, mode="grid-constant", cval=-0.7)
        for i in images[:, 0].numpy()
    ]
    found = warp(images, moves(2, **change), fill=-0.7)[:, 0]
    np.testing.assert_allclose(found, np.stack(expected), rtol=0, atol=1e-9)


def recovered(augmentation: Augmentation, num: int = 2000, *, epoch: int = 0) -> np.ndarray:
    """Where pixels came from, [num, 2, 3] as in `affine_matrices`, read from the pictures alone.

    The images are their own coordinates, which interpolation repeats exactly; of the result, only
    the middle is looked at, where nothing came in from outside.
    """
    x = torch.arange(32, dtype=torch.float64) - 15.5
    maps = torch.stack([x.expand(32, 32), x[:, None].expand(32, 32)])
    found = augmented(maps.expand(num, -1, -1, -1), augmentation, epoch=epoch, fill=99.0)
    places = torch.cat([maps, torch.ones(1, 32, 32)])[:, 14:18, 14:18].flatten(1).T.numpy()
    values = found[:, :, 14:18, 14:18].flatten(2).permute(2, 0, 1).flatten(1).numpy()
    solved, misfit, _, _ = np.linalg.lstsq(places, values, rcond=None)
    assert misfit.max() < 1e-18
    return solved.T.reshape(num, 2, 3)


AMOUNTS = {
    "rotation": (70.0, lambda m: np.degrees(np.arctan2(m[:, 1, 0], m[:, 1, 1]))),
    "scale": (0.6, lambda m: 1 / m[:, 1, 1] - 1),
    "shear": (50.0, lambda m: -np.degrees(np.arctan2(m[:, 0, 1], m[:, 0, 0]))),
    "shift": (0.3, lambda m: -m[:, 0, 2] / 32),
    "shift down": (0.3, lambda m: -m[:, 1, 2] / 32),
}


@pytest.mark.parametrize("kind", AMOUNTS)
def test_amounts_are_even_from_the_largest_one_way_to_the_other(kind):
    most, amount = AMOUNTS[kind]
    augmentation = Augmentation(**{kind.split()[0]: most})
    amounts = np.concatenate([amount(recovered(augmentation, epoch=epoch)) for epoch in range(5)])
    assert np.abs(amounts).max() <= most + 1e-9
    assert stats.kstest(amounts, "uniform", args=(-most, 2 * most)).pvalue > 1e-3


def test_amounts_of_an_image_are_independent_of_one_another():
    most = Augmentation(rotation=20, scale=0.2, shear=20, shift=0.2, flip=0.5)
    matrices = recovered(most)
    # Undone in turn: the flip, then the linear part as turn times [[scale, .], [0, scale]].
    linear, offset = np.linalg.inv(matrices[:, :, :2]), matrices[:, :, 2:]
    is_flipped = np.linalg.det(linear) < 0
    linear = linear * np.where(is_flipped[:, None, None], [[[-1, 1]]], 1)
    angles = np.arctan2(-linear[:, 1, 0], linear[:, 0, 0])
    scales = np.hypot(linear[:, 1, 0], linear[:, 0, 0])
    slopes = (linear[:, 0, 0] * linear[:, 0, 1] + linear[:, 1, 0] * linear[:, 1, 1]) / scales**2
    shifts = -np.linalg.solve(matrices[:, :, :2], offset)[..., 0].T
    amounts = np.stack([is_flipped, angles, scales, slopes, *shifts])
    assert np.abs(np.corrcoef(amounts) - np.eye(6)).max() < 4 / math.sqrt(2000)


# Left and right


def test_a_certain_flip_is_torch_flip():
    images = pictures(4, 3, 28, 28)
    assert torch.equal(augmented(images, Augmentation(flip=1)), images.flip(3))
    by_warp = warp(images.double(), moves(4, flip=True), fill=0.0)
    torch.testing.assert_close(by_warp, images.flip(3).double(), rtol=0, atol=1e-12)


def test_flips_have_their_probability_whatever_else_is_done():
    images = pictures(1, 1, 8, 8).expand(4000, -1, -1, -1)
    alone = augmented(images, Augmentation(flip=0.3))
    is_flipped = (alone == images.flip(3)).flatten(1).all(1)
    assert torch.equal(alone[~is_flipped], images[~is_flipped])
    assert stats.binomtest(int(is_flipped.sum()), 4000, 0.3).pvalue > 1e-3
    shifted = recovered(Augmentation(flip=0.3, shift=0.1), num=4000)
    assert torch.equal(torch.from_numpy(shifted[:, 0, 0] < 0), is_flipped)


# Erasing


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (20, 45), (224, 224)])
def test_what_is_erased_is_one_rectangle_within_its_bounds(size):
    num, (height, width) = (300 if size[0] > 100 else 2000), size
    images = pictures(1, 3, *size).expand(num, -1, -1, -1)
    fill = torch.tensor([2.0, 3.0, -1.0])
    after = augmented(images, Augmentation(erase=1), fill=fill)
    is_erased = (after != images).any(1)
    assert torch.equal(after, torch.where(is_erased[:, None], fill[:, None, None], images))
    rows, columns = is_erased.any(2), is_erased.any(1)
    tall, wide = rows.sum(1), columns.sum(1)
    # A rectangle, without gaps: as many pixels as its sides say, and each side in one piece.
    assert torch.equal(is_erased.sum((1, 2)), tall * wide)
    assert ((rows.int().diff(dim=1) == 1).sum(1) + rows[:, 0] == 1).all()
    assert ((columns.int().diff(dim=1) == 1).sum(1) + columns[:, 0] == 1).all()
    areas = tall * wide / (height * width)
    assert areas.min() >= 0.02 - 1e-7
    assert areas.max() <= 0.2 + 1e-7
    # Sides are whole pixels, so that the ratio is met to within half a pixel or so of each.
    assert ((tall + 1) / (wide - 1) > 0.3).all()
    assert ((tall - 1) / (wide + 1) < 3.3).all()


def test_what_is_erased_varies_in_size_and_reaches_every_pixel():
    images = torch.ones(20_000, 1, 32, 32)
    is_erased = augmented(images, Augmentation(erase=1), fill=0.0)[:, 0] == 0
    areas = is_erased.double().mean((1, 2))
    tall, wide = is_erased.any(2).sum(1), is_erased.any(1).sum(1)
    ratios = torch.log(tall / wide)
    # Even from 0.02 to 0.2, and from log 0.3 to log 3.3: means and deviations by hand.
    assert areas.mean().item() == pytest.approx(0.11, abs=0.001)
    assert areas.std().item() == pytest.approx(0.18 / math.sqrt(12), rel=0.02)
    assert ratios.mean().item() == pytest.approx((math.log(0.3) + math.log(3.3)) / 2, abs=0.03)
    assert ratios.std().item() == pytest.approx(math.log(11) / math.sqrt(12), rel=0.05)
    reached = is_erased.double().mean(0)
    assert reached.min() > 0
    torch.testing.assert_close(reached, reached.flip(0), rtol=0, atol=0.02)
    torch.testing.assert_close(reached, reached.flip(1), rtol=0, atol=0.02)


def test_erasing_has_its_probability_and_is_as_large_when_it_is_rare():
    images = torch.ones(4000, 1, 32, 32)
    areas = (augmented(images, Augmentation(erase=0.2)) == 0).double().mean((1, 2, 3))
    assert stats.binomtest(int((areas > 0).sum()), 4000, 0.2).pvalue > 1e-3
    assert areas[areas > 0].mean().item() == pytest.approx(0.11, abs=0.006)


def test_whether_an_image_is_erased_has_nothing_to_do_with_its_flip():
    images = torch.tensor([1.0, 2.0]).repeat(4000, 1, 10, 5)
    after = augmented(images, Augmentation(flip=0.5, erase=0.5))
    is_erased = (after == 0).flatten(1).any(1)
    # Left columns hold 1 and right ones 2, in turns; a flip exchanges them.
    is_flipped = ((after == images.flip(3)) | (after == 0)).flatten(1).all(1)
    counts = np.histogram2d(is_erased.numpy(), is_flipped.numpy(), bins=2)[0]
    assert stats.chi2_contingency(counts).pvalue > 1e-3


@pytest.mark.parametrize("side", [1, 2, 3])
def test_of_a_tiny_image_at_least_a_pixel_is_erased(side):
    after = augmented(torch.ones(100, 1, side, side), Augmentation(erase=1))
    assert (after == 0).flatten(1).any(1).all()


# Settings


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("shift", 0.6, "0 to 0.5"),
        ("rotation", 181, "0 to 180"),
        ("scale", 1.0, "0 to 0.9"),
        ("shear", 61, "0 to 60"),
        ("flip", 1.5, "0 to 1"),
        ("erase", -0.1, "0 to 1"),
        ("shift", float("nan"), "0 to 0.5"),
    ],
)
def test_a_field_out_of_range_is_refused_with_what_is_allowed(field, value, allowed):
    with pytest.raises(RecipeError, match=f"{field} is {value}; allowed: {allowed}"):
        Augmentation(**{field: value})


# Looking at it


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [5, 32, 70])
def test_a_contact_sheet_shows_the_image_then_a_gap_then_its_versions(channels, side):
    numbers = torch.arange(8, dtype=torch.uint8).view(2, 4, 1, 1, 1) * 30
    tiles = numbers.repeat(1, 1, channels, side, side)
    content = contact_sheet(tiles[:, 0], tiles[:, 1:])
    sheet = np.array(Image.open(io.BytesIO(content)).convert("L"))
    for row, line in enumerate((len(sheet) // 4, 3 * len(sheet) // 4)):
        runs = [(value, len(list(run))) for value, run in itertools.groupby(sheet[line])]
        shown, widths = zip(*runs[1::2], strict=True)
        margins = [width for _, width in runs[0::2]]
        assert list(shown) == [(4 * row + k) * 30 for k in range(4)]
        assert all(width >= 64 and width % side == 0 for width in widths)
        assert margins[1] > margins[2] == margins[3]
        assert margins[0] == margins[-1]


def test_a_contact_sheet_enlarges_pixels_without_smoothing():
    image = (torch.arange(32 * 32) % 251).to(torch.uint8).view(1, 1, 32, 32)
    sheet = np.array(Image.open(io.BytesIO(contact_sheet(image, image[:, None]))))
    tile = image[0, 0].numpy().repeat(2, 0).repeat(2, 1)
    shown = np.lib.stride_tricks.sliding_window_view(sheet, tile.shape)
    assert (shown == tile).all((2, 3)).sum() == 2


def test_a_contact_sheet_of_floats_goes_from_black_to_white():
    images = torch.tensor([-0.5, 2.0]).view(2, 1, 1, 1).repeat(1, 1, 64, 64)
    sheet = np.array(Image.open(io.BytesIO(contact_sheet(images, images[:, None] * 0 + 0.75))))
    assert set(np.unique(sheet)) == {0, 128, 255}
    constant = torch.ones(1, 1, 4, 4)
    assert contact_sheet(constant, constant[:, None])[:4] == b"\x89PNG"
